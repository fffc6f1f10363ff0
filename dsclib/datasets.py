"""Real images, verified before use, and the patches that dictionaries are learned from.

``digits`` and ``sample_images`` come with scikit-learn and need no network. The other sets are
files, looked for in this order: the folder that the environment variable ``DSCLIB_DATA`` names
(files in a sub-folder ``fashion-mnist``, ``mnist`` or ``cifar-10``; those of Fashion-MNIST and
CIFAR-10 also directly), the folder of Debian's package ``dataset-fashion-mnist``, pooch's
cache, the network. A file is used only if its SHA-256 is the known one, wherever it lies: a
damaged one is a ``ValueError`` that names it, never a reason to look further.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import as_choice, as_count, as_tensor, check_axes, generator
from ._files import (
    CIFAR10,
    FASHION_MNIST,
    MNIST,
    DataUnavailable,
    Source,
    on_disk,
    read_cifar,
    read_idx,
)


class LabelledImages(NamedTuple):
    """Images (N, H, W) or (N, 3, H, W), float32 in [0, 1]; labels (N,), int64; class names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def image_patches(
    images, size: int, *, stride: int = 1, n_patches: int | None = None, seed: int | None = None
) -> Tensor:
    r"""Cut square patches out of images.

    Parameters
    ----------
    images : tensor, shape (H, W) or (K, H, W)
        One grey image or several of one size.
    size : int
        Side of a patch in pixels, at most H and W.
    stride : int
        Step between neighbouring positions, in pixels.
    n_patches : int, optional
        Draw this many positions of the grid, without replacement; ``None`` takes all.
    seed : int, optional
        Seed of that draw; ``None`` is torch's default generator.

    Returns
    -------
    Tensor, shape (N, size * size)
        Patches as rows, pixels row by row; in the order of the grid (image, row, column), or
        in random order with ``n_patches``.

    Raises
    ------
    ValueError
        If a patch is larger than the images, or the grid has fewer than ``n_patches`` positions.
    """
    images = as_tensor(images, "images")
    if images.ndim == 2:
        images = images[None]
    check_axes(images, "images", "(K, H, W)")
    size = as_count(size, "size", at_most=min(images.shape[1:]))
    stride = as_count(stride, "stride")
    windows = images.unfold(1, size, stride).unfold(2, size, stride)  # (K, rows, columns, h, w)
    if n_patches is None:
        return windows.reshape(-1, size * size)
    grid = windows.shape[:3]
    n_patches = as_count(n_patches, "n_patches", at_most=math.prod(grid))
    chosen = torch.randperm(math.prod(grid), generator=generator(seed))[:n_patches]
    k, i, j = (index.to(images.device) for index in torch.unravel_index(chosen, grid))
    return windows[k, i, j].reshape(-1, size * size)


def average_patches(patches, shape, *, stride: int = 1) -> Tensor:
    r"""Put overlapping patches back into an image and average where they overlap.

    .. math:: \hat x = \Bigl(\sum_i R_i^\top R_i\Bigr)^{-1} \sum_i R_i^\top p_i

    with :math:`R_i` cutting patch :math:`p_i` out of the image :cite:p:`elad2006image`; the
    inverse of ``image_patches(image, size, stride=stride)``, to rounding.

    Parameters
    ----------
    patches : tensor, shape (N, size * size)
        All patches of the grid, in its order.
    shape : pair of int
        (H, W) of the image.
    stride : int
        Step of the grid, in pixels.

    Returns
    -------
    Tensor, shape (H, W)

    Raises
    ------
    ValueError
        If patches are not square, their number is not that of the grid, or the grid leaves
        pixels uncovered.
    """
    patches = as_tensor(patches, "patches", "(N, size*size)")
    size = math.isqrt(patches.shape[1])
    if size**2 != patches.shape[1]:
        raise ValueError(
            f"patches has {patches.shape[1]} columns, expected a square number size*size: "
            "pass whole square patches as rows"
        )
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise ValueError(f"shape = {shape!r}, expected a pair (H, W): pass image.shape")
    sides = [as_count(n, f"shape[{i}]", at_least=size) for i, n in enumerate(shape)]
    stride = as_count(stride, "stride")
    if any((n - size) % stride or (stride > size and n > size) for n in sides):
        raise ValueError(
            f"stride = {stride} leaves pixels of a {sides[0]} x {sides[1]} image uncovered by "
            f"patches of side {size}, expected a stride <= {size} that divides H - {size} and "
            f"W - {size}: use stride=1 or crop the image"
        )
    expected = math.prod((n - size) // stride + 1 for n in sides)
    if len(patches) != expected:
        raise ValueError(
            f"patches has {len(patches)} rows, expected {expected} for patches of side {size} at "
            f"stride {stride} on a {sides[0]} x {sides[1]} image: pass all patches, in order"
        )
    total, count = (
        F.fold(p.mT[None], sides, size, stride=stride)[0, 0]
        for p in (patches, torch.ones_like(patches))
    )
    return total / count


def sample_images() -> dict[str, Tensor]:
    """Two real photographs that come with scikit-learn, as grey images.

    Returns
    -------
    dict
        ``"china"`` and ``"flower"``, each (427, 640) float32 in [0, 1]: the luma
        0.2126 R + 0.7152 G + 0.0722 B of the stored colours (ITU-R BT.709).
    """
    from sklearn.datasets import load_sample_image  # slow to import

    weights = np.array([0.2126, 0.7152, 0.0722]) / 255
    names = ("china", "flower")
    grey = (load_sample_image(f"{name}.jpg") @ weights for name in names)
    return {name: torch.from_numpy(g.astype(np.float32)) for name, g in zip(names, grey)}


def digits(split: str = "train") -> LabelledImages:
    """Handwritten digits of 8 x 8 pixels that come with scikit-learn :cite:p:`pedregosa2011scikit`.

    Parameters
    ----------
    split : {"train", "test"}
        The first 1,437 images or the last 360, in the order of the file.

    Returns
    -------
    LabelledImages
        Images (N, 8, 8) in [0, 1]: grey levels 0 to 16, divided by 16.

    Raises
    ------
    ValueError
        If ``split`` is neither "train" nor "test".
    """
    part = slice(1437) if _is_train(split) else slice(1437, None)
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    images = torch.from_numpy((bunch.images[part] / 16).astype(np.float32))
    return LabelledImages(images, torch.from_numpy(bunch.target[part]).long(), MNIST.classes)


def fashion_mnist(split: str = "train") -> LabelledImages:
    """Fashion-MNIST: garments in ten classes, 28 x 28 pixels :cite:p:`xiao2017fashion`.

    Parameters
    ----------
    split : {"train", "test"}
        60,000 images or 10,000.

    Returns
    -------
    LabelledImages
        Images (N, 28, 28), bytes divided by 255; 188 MB for "train".

    Raises
    ------
    ValueError
        If ``split`` is neither "train" nor "test", a file is truncated or altered, or
        ``DSCLIB_DATA`` names no folder.
    DataUnavailable
        If the files (31 MB) are not on this machine and cannot be downloaded.
    """
    return _labelled(FASHION_MNIST, read_idx, split)


def mnist(split: str = "train") -> LabelledImages:
    """MNIST: handwritten digits, 28 x 28 pixels :cite:p:`lecun1998gradient`.

    Parameters
    ----------
    split : {"train", "test"}
        60,000 images or 10,000.

    Returns
    -------
    LabelledImages
        Images (N, 28, 28), bytes divided by 255; 188 MB for "train".

    Raises
    ------
    ValueError
        If ``split`` is neither "train" nor "test", a file is truncated or altered, or
        ``DSCLIB_DATA`` names no folder.
    DataUnavailable
        If the files (12 MB) are not on this machine and cannot be downloaded.
    """
    return _labelled(MNIST, read_idx, split)


def cifar10(split: str = "train") -> LabelledImages:
    """CIFAR-10: colour photographs in ten classes, 32 x 32 pixels :cite:p:`krizhevsky2009learning`.

    Parameters
    ----------
    split : {"train", "test"}
        50,000 images or 10,000.

    Returns
    -------
    LabelledImages
        Images (N, 3, 32, 32), bytes divided by 255; 614 MB for "train".

    Raises
    ------
    ValueError
        If ``split`` is neither "train" nor "test", the archive is truncated or altered, or
        ``DSCLIB_DATA`` names no folder.
    DataUnavailable
        If the archive (170 MB) is not on this machine and cannot be downloaded.
    """
    return _labelled(CIFAR10, read_cifar, split)


def fashion_mnist_or_digits(split: str = "train") -> LabelledImages:
    """Fashion-MNIST where it is to be had, else ``digits``, saying so in a printed sentence.

    Parameters
    ----------
    split : {"train", "test"}
        As in :func:`fashion_mnist` and :func:`digits`.

    Returns
    -------
    LabelledImages
        Images (N, 28, 28), or (N, 8, 8) from :func:`digits`.

    Raises
    ------
    ValueError
        As :func:`fashion_mnist`; a damaged file is no reason to fall back.
    """
    try:
        return fashion_mnist(split)
    except DataUnavailable:
        print(
            "Fashion-MNIST is neither on this machine nor to be downloaded, so this runs on "
            "scikit-learn's digits; fashion_mnist() says where it looked."
        )
        return digits(split)


def fashion_mnist_on_disk() -> bool:
    """Whether all files of Fashion-MNIST lie on this machine; downloads nothing."""
    return on_disk(FASHION_MNIST)


def _is_train(split) -> bool:
    return as_choice(split, "split", ("train", "test")) == "train"


def _labelled(source: Source, read: Callable, split: str) -> LabelledImages:
    images, labels = read(source, _is_train(split))
    scaled = images.astype(np.float32)
    scaled /= 255  # in place: a quotient of its own would be a second large array
    return LabelledImages(torch.from_numpy(scaled), torch.tensor(labels).long(), source.classes)
