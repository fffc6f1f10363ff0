"""Sliders that need no kernel.

Where a kernel is live, :func:`explore` draws with ipywidgets. While the book is built it draws
every frame once and writes a plain HTML figure: one picture, native range inputs and the
frames beside them. Nothing else is loaded, so the slider works on the static site, offline and
from the keyboard.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
import os
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display

#: Set by the book's build for the kernels that it starts; nobody needs to set it by hand.
BUILD_VARIABLE = "DSCLIB_BOOK_BUILD"
MOST_FRAMES = 150
_SYMBOLS = {
    "lam": "λ", "mu": "μ", "sigma": "σ", "theta": "θ", "rho": "ρ", "eps": "ε", "alpha": "α",
    "delta": "δ", "tau": "τ",
}  # fmt: skip
_SCRIPT = """
(() => {
  const figure = document.currentScript.closest("figure");
  const data = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const image = figure.querySelector("img");
  const inputs = [...figure.querySelectorAll("input")];
  const show = () => {
    let frame = 0;
    inputs.forEach((input, k) => {
      const value = data.values[k][input.value];
      frame = frame * data.values[k].length + Number(input.value);
      input.setAttribute("aria-valuetext", value);
      input.nextElementSibling.textContent = value;
    });
    const picture = data.frames[frame];
    image.src = data.prefix + (data.text ? encodeURIComponent(picture) : picture);
    image.alt = data.alts[frame];
  };
  inputs.forEach((input) => input.addEventListener("input", show));
  show();
})();
"""


def explore(plot, *, alt: str, start: dict | None = None, raster: bool = False, **sliders) -> None:
    """Show ``plot(**values)`` with one slider for each keyword.

    Parameters
    ----------
    plot : callable
        Draws one matplotlib figure for the values it is given.
    alt : str
        What the picture shows, for those who do not see it; may name sliders in braces, as in
        ``"Error after {k} steps"``.
    start : dict, optional
        First value of some sliders; the middle one unless given.
    raster : bool
        Lossless WebP at 192 dpi in place of SVG: for photographs and clouds of points.
    **sliders : sequences
        The values of each slider, in order. Their product is the number of frames, at most 150.

    Raises
    ------
    ValueError
        If there is no slider, a slider has fewer than two values, a start value is not among
        them, there are too many frames, ``alt`` is empty or names an unknown slider, or
        (while the book is built) ``plot`` draws nothing.

    Examples
    --------
    >>> explore(draw, alt="Soft threshold at {lam}", lam=[0.1, 0.5, 1.0])  # doctest: +SKIP
    """
    sliders = {name: _plain(name, values) for name, values in sliders.items()}
    if not sliders:
        raise ValueError("no slider came, expected at least one, as in explore(plot, lam=[0, 1])")
    frames = int(np.prod([len(values) for values in sliders.values()]))
    if frames > MOST_FRAMES:
        raise ValueError(
            f"the sliders make {frames} frames, expected at most {MOST_FRAMES}: "
            "give fewer values, or split the figure"
        )
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(f"alt = {alt!r}, expected a sentence that says what the picture shows")
    try:
        alt.format(**{name: "" for name in sliders})
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            f"alt = {alt!r} names something that is no slider: the sliders are {list(sliders)}"
        ) from None
    chosen = {name: len(values) // 2 for name, values in sliders.items()}
    for name, value in (start or {}).items():
        if name not in sliders or value not in sliders[name]:
            raise ValueError(
                f"start = {start!r}, expected values of the sliders: {name} is one of "
                f"{sliders.get(name, list(sliders))}"
            )
        chosen[name] = sliders[name].index(value)
    if os.environ.get(BUILD_VARIABLE):
        display(HTML(_figure(plot, alt, chosen, raster, sliders)))
    else:
        _widgets(plot, chosen, sliders)


def _plain(name: str, values) -> list:
    """The values of a slider as plain Python objects."""
    try:
        values = [v.item() if hasattr(v, "item") else v for v in values]
    except TypeError:
        raise ValueError(
            f"{name} = {values!r}, expected a sequence of the values that the slider takes"
        ) from None
    if len(values) < 2:
        raise ValueError(f"{name} has {len(values)} values, expected at least 2 for a slider")
    return values


def _label(name: str) -> str:
    return _SYMBOLS.get(name, name.replace("_", " "))


def _text(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _widgets(plot, chosen: dict, sliders: dict) -> None:
    import ipywidgets

    controls = {
        name: ipywidgets.SelectionSlider(
            options=[(_text(v), v) for v in values],
            index=chosen[name],
            description=_label(name),
            continuous_update=False,
            style={"description_width": "initial"},
        )
        for name, values in sliders.items()
    }

    def draw(**values):
        plot(**values)
        plt.show()

    picture = ipywidgets.interactive_output(draw, controls)
    display(ipywidgets.VBox([*controls.values(), picture]))


def _frame(plot, values: dict, raster: bool) -> str:
    """Draw one frame; SVG as text, WebP as base64."""
    plt.close("all")
    # plt.show() in a plot would close the figure that is to be kept. Frames all have the size
    # that they ask for, or the page would jump; equal frames give equal bytes.
    settings = {"savefig.bbox": "standard", "svg.hashsalt": "dsclib"}
    with mock.patch.object(plt, "show"), plt.rc_context(settings):
        plot(**values)
        if not plt.get_fignums():
            raise ValueError(f"plot drew no figure for {values}: it should draw with matplotlib")
        figure, buffer = plt.gcf(), io.BytesIO()
        if raster:
            options = {"dpi": 192, "facecolor": "white", "pil_kwargs": {"lossless": True}}
            figure.savefig(buffer, format="webp", **options)
            out = base64.b64encode(buffer.getvalue()).decode()
        else:
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            svg = buffer.getvalue().decode()
            out = svg[svg.index("<svg") :]
    plt.close("all")
    return out


def _figure(plot, alt: str, chosen: dict, raster: bool, sliders: dict) -> str:
    """The plain HTML figure: picture, range inputs, frames, and the few lines that join them."""
    choices = [dict(zip(sliders, v, strict=True)) for v in itertools.product(*sliders.values())]
    frames = [_frame(plot, values, raster) for values in choices]
    alts = [alt.format(**{k: _text(v) for k, v in values.items()}) for values in choices]
    first = int(
        np.ravel_multi_index(list(chosen.values()), [len(values) for values in sliders.values()])
    )
    prefix = "data:image/webp;base64," if raster else "data:image/svg+xml,"
    data = {
        "values": [[_text(v) for v in values] for values in sliders.values()],
        "alts": alts, "prefix": prefix, "text": not raster, "frames": frames,
    }  # fmt: skip
    # "<\/" keeps a closing tag inside a frame from ending the script that holds it.
    payload = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    name = hashlib.sha256(payload.encode()).hexdigest()[:10]
    # The first frame stands in the page itself: it shows in print and without JavaScript.
    source = frames[first] if raster else base64.b64encode(frames[first].encode()).decode()
    kind = "image/webp" if raster else "image/svg+xml"
    controls = "".join(
        f'<label class="explore-control"><span class="explore-name">{html.escape(_label(key))}'
        f'</span><input type="range" min="0" max="{len(values) - 1}" step="1" '
        f'value="{chosen[key]}" aria-valuetext="{html.escape(_text(values[chosen[key]]))}" '
        f'autocomplete="off" data-lm-suppress-shortcuts="true">'
        f"<output>{html.escape(_text(values[chosen[key]]))}</output></label>"
        for key, values in sliders.items()
    )
    return (
        f'<figure class="explore" id="explore-{name}">'
        f'<img class="explore-frame{"" if raster else " invertible"}" '
        f'alt="{html.escape(alts[first])}" src="data:{kind};base64,{source}">'
        f'<div class="explore-controls">{controls}</div>'
        f'<script type="application/json">{payload}</script>'
        f"<script>{_SCRIPT}</script></figure>"
    )
