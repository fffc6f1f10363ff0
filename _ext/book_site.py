"""Repairs to the pages that the theme and its companions write, one function a repair.

Each function says what was wrong. ``tests/site`` fails when a repair stops working, and a
repair can go when its test passes without it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms.post_transforms import SphinxPostTransform

HERE = Path(__file__).parent

# Jupyter Book loads these for every book. sphinx_thebe puts the address of another host on
# every page; sphinx_togglebutton is replaced by native_details.
UNUSED = {
    "sphinx_thebe": "sphinx-thebe.css",
    "sphinx_togglebutton": "togglebutton.css",
}

# What is written into a page's body, and what should stand there.
BODY_REPAIRS = {
    # A list holds list items; "doc-biblioentry" is deprecated and no list item.
    'role="doc-biblioentry"': 'role="listitem"',
    # The label hides the visible text, "Show code cell source", from a screen reader.
    '<summary aria-label="Toggle hidden content">': "<summary>",
    # A box to tick has no name.
    'class="task-list-item-checkbox"': 'aria-label="done" class="task-list-item-checkbox"',
}

NOT_FOUND = """<h1>Page not found</h1>
<p>There is no page at this address; it may have moved.
Start from the <a href="{prefix}index.html">first page</a>,
the contents beside this text, or the <a href="{prefix}search.html">search</a>.</p>
"""


class KeepPunctuation(SphinxPostTransform):
    """Browsers break a line between a formula and the comma after it; keep the two together."""

    default_priority = 400
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        for formula in list(self.document.findall(nodes.math)):
            after = formula.next_node(descend=False, siblings=True)
            mark = re.match(r"[,.;:!?)\]’”-]+", after) if isinstance(after, nodes.Text) else None
            if mark:
                after.parent.replace(after, nodes.Text(after[mark.end() :]))
                kept = nodes.inline("", "", classes=["nobreak"])
                formula.replace_self(kept)
                kept.extend([formula, nodes.Text(mark.group())])


def switch_off_unused(app: Sphinx) -> None:
    """Take the listeners and style sheets of the unused extensions out again."""
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if one.handler.__module__ not in UNUSED]
    app.registry.css_files[:] = [
        one for one in app.registry.css_files if one[0] not in UNUSED.values()
    ]


def keep_requests_home(app: Sphinx, config: Config) -> None:
    """Widget state in a notebook would load require.js and the widget manager from a CDN."""
    config.nb_ipywidgets_js = {}


def address_not_found_page(app: Sphinx, config: Config) -> None:
    """The 404 page is served for any address, so its links start at the site's own root."""
    prefix = urlsplit(config.html_baseurl).path.rstrip("/") + "/"
    config.notfound_urls_prefix = prefix
    config.notfound_context = {
        "title": "Page not found",
        "pagetitle": "Page not found",
        "body": NOT_FOUND.format(prefix=prefix),
    }


def complete_single_page_builder(app: Sphinx) -> None:
    """One extension that names ``singlehtml`` hides every other extension's HTML visitors."""
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = handlers.get("html", {}) | handlers["singlehtml"]


def rewrite_after_site_change(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Sphinx writes the pages whose text changed; a new style or repair concerns every page."""
    first_page = Path(app.outdir, f"{app.config.root_doc}.html")
    parts = [*Path(app.srcdir, "_static").rglob("*.*"), *HERE.glob("*.py")]
    if not first_page.exists() or not parts:
        return []
    newest = max(part.stat().st_mtime for part in parts)
    return sorted(env.found_docs) if newest > first_page.stat().st_mtime else []


def load_inline_scripts_once(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Scripts added before and after the builder starts stand twice; a ``let`` then fails."""
    files, seen = context["script_files"], set()
    for script in list(files):
        body = getattr(script, "attributes", {}).get("body")
        if body and body in seen:
            files.remove(script)
        seen.add(body)


def repair_body(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Apply ``BODY_REPAIRS``."""
    for wrong, right in BODY_REPAIRS.items():
        if "body" in context:
            context["body"] = context["body"].replace(wrong, right)


def name_chapter_toggles(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """The arrows that unfold a chapter in the sidebar have no name."""
    generate = context.get("generate_toctree_html")
    if generate is None:
        return

    def generate_named(*args, **kwargs):
        tree = generate(*args, **kwargs)
        for summary in tree.select("li > details > summary") if hasattr(tree, "select") else ():
            link = summary.find_parent("li").find("a")
            if link is not None and not summary.get_text(strip=True):
                summary["aria-label"] = f"Pages of {link.get_text(strip=True)}"
        return tree

    context["generate_toctree_html"] = generate_named


def prune_static(app: Sphinx, exception: Exception | None) -> None:
    """Source maps and the icon script (the icons come from the web font) are never loaded."""
    if exception is None and app.builder.format == "html":
        static = Path(app.outdir, "_static")
        for pattern in ("**/*.map", "scripts/fontawesome.js*"):
            for path in static.glob(pattern):
                path.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    switch_off_unused(app)
    app.config.templates_path.insert(0, str(HERE / "templates"))
    app.add_post_transform(KeepPunctuation)
    app.connect("config-inited", keep_requests_home)
    app.connect("config-inited", address_not_found_page, priority=400)
    app.connect("env-get-outdated", rewrite_after_site_change)
    app.connect("builder-inited", complete_single_page_builder)
    # After the theme, which fills the page's context at the default priority.
    for repair in (load_inline_scripts_once, repair_body, name_chapter_toggles):
        app.connect("html-page-context", repair, priority=900)
    app.connect("build-finished", prune_static, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
