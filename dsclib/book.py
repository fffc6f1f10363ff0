"""Numbers in prose: the notebook computes them, the text only points at them."""

from __future__ import annotations

from IPython.display import display

# What MyST-NB reads; saying it here spares every notebook the import of the book's tools.
_PREFIX = "application/papermill.record/"


def report(name: str, value, fmt: str = "") -> None:
    """Print ``name = value`` and give the value to the text around the cell.

    In the built book ``{glue:text}`name``` puts the same characters into a sentence, so that
    prose and output cannot disagree. In JupyterLab and Colab a reader sees the printed line.

    Parameters
    ----------
    name : str
        What the number is called; also the key of the glue role.
    value : number, 0-d tensor or str
    fmt : str
        A format specification such as ``".2f"``.

    Raises
    ------
    ValueError
        If ``name`` is empty, ``value`` is not a single number, or ``fmt`` does not fit it.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name = {name!r}, expected a non-empty string that the text refers to")
    if hasattr(value, "item"):
        if value.numel() != 1 if hasattr(value, "numel") else value.size != 1:
            raise ValueError(
                f"value of {name!r} has shape {tuple(value.shape)}, expected a single number: "
                "report one entry, a mean or a maximum"
            )
        value = value.item()
    try:
        text = format(value, fmt)
    except (ValueError, TypeError) as err:
        raise ValueError(
            f"fmt = {fmt!r} does not fit {name} = {value!r} ({err}): "
            "use a format such as '.2f' for a number, '' for text"
        ) from None
    print(f"{name} = {text}")
    # Quoted: MyST-NB reads the text as a Python literal, and 10,626 without quotes is a pair.
    display(
        {_PREFIX + "text/plain": repr(text)},
        metadata={"scrapbook": {"name": name, "mime_prefix": _PREFIX}},
        raw=True,
    )
