"""MathJax from the book's own pages: no other host, and only the parts a page can load.

The ``sphinx-mathjax-offline`` package brings every MathJax component (24 MB). The book sets
TeX in CHTML, so it copies that bundle, the fonts and the TeX extensions, and nothing else.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

NEEDED = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")


def mathjax_folder() -> Path:
    """Folder of the installed MathJax, found without importing its hyphenated package."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError("MathJax is missing: pip install sphinx-mathjax-offline")
    return Path(spec.origin).parent / "static" / "mathjax"


def configure(app: Sphinx, config: Config) -> None:
    """Load the local bundle, without the menu that would ask for parts that are not there.

    With the menu every formula is a stop of the Tab key, hundreds on a page.
    """
    config.mathjax_path = "mathjax/tex-chtml.js"
    settings = dict(config.mathjax3_config or {})
    settings["options"] = {"enableMenu": False, **settings.get("options", {})}
    config.mathjax3_config = settings


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the needed parts into the built site."""
    if exception is not None or app.builder.format != "html":
        return
    source, target = mathjax_folder(), Path(app.outdir, "_static", "mathjax")
    for name in NEEDED:
        part = source / name
        copy_asset(part, target / name if part.is_dir() else (target / name).parent)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", configure)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
