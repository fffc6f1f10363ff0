"""One look for every figure: legible on a phone, in greyscale, in light and in dark."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

from dsclib._checks import as_count, as_tensor

#: Okabe and Ito's colours, which stay apart for colour-blind readers; the line styles that
#: go with them keep curves apart in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5C00", "#56B4E9")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def style() -> None:
    """Set matplotlib to the book's look; every notebook calls it once.

    Figures are transparent SVG with dark ink, so that the site can show line plots in dark
    mode by turning lightness round. Outside IPython only the colours and sizes change.
    """
    plt.rcParams.update(
        {
            "figure.figsize": (5.5, 3.4),
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#888888",
            "grid.alpha": 0.25,
            "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=_LINES),
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "gray",
            "image.interpolation": "none",
            "svg.hashsalt": "dsclib",  # the same picture gives the same bytes
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")
    except (ImportError, AttributeError):  # a plain script: nothing to tell
        return


def show_images(images, titles=None, *, columns=None, limits=(0.0, 1.0), height=2.0):
    """Draw images side by side and return the figure.

    Parameters
    ----------
    images : sequence of (H, W) arrays, or (K, H, W)
    titles : sequence of str, optional
        One line above each image.
    columns : int, optional
        Images a row; all in one row unless given.
    limits : (low, high)
        The values drawn black and white, the same for every image, so that grey means the
        same everywhere.
    height : float
        Height of a row in inches.
    """
    images = [as_tensor(image, "images[k]", "(H, W)").detach().cpu() for image in images]
    if not images:
        raise ValueError("images is empty, expected at least one (H, W) array")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles has {len(titles)} entries, expected {len(images)}, one an image")
    columns = len(images) if columns is None else as_count(columns, "columns")
    rows = math.ceil(len(images) / columns)
    aspect = images[0].shape[1] / images[0].shape[0]
    extra = 0.5 if titles is not None else 0.1
    fig, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(columns * height * aspect, rows * (height + extra))
    )
    for ax in axes.flat:
        ax.axis("off")
    for k, image in enumerate(images):
        ax = axes.flat[k]
        ax.imshow(image.numpy(), vmin=limits[0], vmax=limits[1])
        if titles is not None:
            ax.set_title(titles[k])
    return fig


def mosaic(tiles, *, columns=16, gap=1):
    """Arrange tiles (K, h, w) in one picture, each scaled to [0, 1] with 0 at middle grey.

    Returns a NumPy array; the gaps between tiles are white.
    """
    tiles = as_tensor(tiles, "tiles", "(K, h, w)").detach().cpu().numpy()
    columns = min(as_count(columns, "columns"), len(tiles))
    count, h, w = tiles.shape
    rows = math.ceil(count / columns)
    peak = np.abs(tiles).max(axis=(1, 2), keepdims=True)
    tiles = 0.5 + 0.5 * tiles / np.where(peak > 0, peak, 1.0)
    out = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap))
    for k, tile in enumerate(tiles):
        top, left = k // columns * (h + gap), k % columns * (w + gap)
        out[top : top + h, left : left + w] = tile
    return out


def show_atoms(D, *, columns=16, shape=None, ax=None, title=None):
    """Draw the atoms of a dictionary (m, n) as tiles, grey for zero; returns the axes.

    ``shape`` is the (height, width) of an atom; a square one needs none.
    """
    D = as_tensor(D, "D", "(m, n)")
    m, n = D.shape
    if shape is None:
        side = math.isqrt(m)
        shape = (side, side)
    if shape[0] * shape[1] != m:
        raise ValueError(
            f"shape = {tuple(shape)} does not fit atoms of {m} entries: "
            "pass shape=(height, width) whose product is m"
        )
    picture = mosaic(D.T.reshape(n, *shape), columns=columns)
    if ax is None:
        scale = 5.5 / picture.shape[1]
        _, ax = plt.subplots(figsize=(5.5, scale * picture.shape[0] + (0.3 if title else 0)))
    ax.imshow(picture, vmin=0, vmax=1)
    ax.axis("off")
    if title:
        ax.set_title(title)
    return ax
