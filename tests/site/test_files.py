"""What can be read from the files of the built book, without a browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup, Tag

# A role, a formula or a reference that stands in the text as it was typed.
UNRESOLVED = re.compile(
    r"\?\?|\[\?\]|\{(?:[a-z]+:)?(?:ref|numref|eq|cite|doc|term|glue|download|func|mod)[a-z:]*\}`"
    r"|\$|\\begin\{|\\cite\b|\\ref\b|^:::|```"
)
ADDRESSES = (("a", "href"), ("link", "href"), ("script", "src"), ("img", "src"))
TEXT_FILES = {".html", ".js", ".css", ".json", ".ipynb", ".txt", ".xml", ".svg", ".md", ".inv"}


def target_of(page: str, address: str, prefix: str) -> tuple[str, str] | None:
    """The file and the fragment that an address on a page means; None outside the book."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    if path.startswith(prefix):
        path = path[len(prefix) :] or "index.html"
    elif path:
        path = normpath(join(dirname(page), path))
    return path or page, unquote(parts.fragment)


def ids_of(soup: BeautifulSoup) -> list[str]:
    return [tag["id"] for tag in soup.find_all(id=True)]


def prose_of(article: Tag) -> str:
    """The text of an article without code, formulas and scripts."""
    copy = BeautifulSoup(str(article), "html.parser")
    for tag in copy.select("pre, code, script, style, .math, .sig, .highlight"):
        tag.decompose()
    return copy.get_text(" ")


@pytest.fixture(scope="session")
def ids(soups: dict[str, BeautifulSoup]) -> dict[str, set[str]]:
    return {page: set(ids_of(soup)) for page, soup in soups.items()}


def test_links_lead_somewhere(page, soups, ids, html, prefix) -> None:
    broken = []
    for name, attribute in ADDRESSES:
        for tag in soups[page].find_all(name, attrs={attribute: True}):
            target = target_of(page, tag[attribute], prefix)
            if target is None:
                continue
            path, fragment = target
            if not (html / path).is_file():
                broken.append(f"{tag[attribute]}: no such file")
            elif fragment and path in ids and fragment not in ids[path]:
                broken.append(f"{tag[attribute]}: no such place")
    assert not broken


def test_ids_are_unique(page, soups) -> None:
    repeated = [name for name, count in Counter(ids_of(soups[page])).items() if count > 1]
    assert not repeated


def test_references_are_resolved(page, soups) -> None:
    soup = soups[page]
    assert not soup.select(".problematic, .system-message, .missing-citation")
    # A reference without a text of its own, whose target has no number, comes out empty.
    assert not soup.select("article code.xref:not(:has(*)), article a.reference:empty")
    for article in soup.select("article:not(:has(.viewcode-block))"):
        prose = prose_of(article)
        marks = [prose[max(m.start() - 30, 0) : m.end() + 30] for m in UNRESOLVED.finditer(prose)]
        assert not marks


def test_images_say_what_they_show(page, soups) -> None:
    poor = []
    for image in soups[page].select("article img"):
        alt = image.get("alt", "").strip()
        words = 4 if image.find_parent(class_="cell_output") else 1
        file_name = re.search(r"[0-9a-f]{16,}|\.(?:svg|png|webp|jpe?g)$|_images/", alt)
        if len(alt.split()) < words or file_name:
            poor.append((alt, image.get("src", "")[:80]))
    assert not poor


def test_notebook_can_be_downloaded(page, soups, html, prefix) -> None:
    if not soups[page].select("article div.cell"):
        pytest.skip("no notebook")
    targets = [target_of(page, a["href"], prefix) for a in soups[page].select("a[href]")]
    files = {target[0] for target in targets if target and target[0].endswith(".ipynb")}
    assert files
    for file in files:
        nbformat.validate(json.loads((html / file).read_text(encoding="utf-8")))


def test_no_path_of_this_machine(html) -> None:
    roots = {str(Path(__file__).parents[2]), str(html.parents[1])}
    traces = tuple(root.encode() for root in roots) + (b"/tmp/ipykernel", b"site-packages/")
    files = (path for path in html.rglob("*") if path.suffix in TEXT_FILES)
    found = [
        (path.relative_to(html).as_posix(), trace)
        for path in files
        if "_static" not in path.parts
        for trace in traces
        if trace in path.read_bytes()
    ]
    assert not found


def test_site_is_small(html) -> None:
    """MathJax comes with 24 MB and the theme with 6; the book needs a quarter of it."""
    size = sum(path.stat().st_size for path in (html / "_static").rglob("*") if path.is_file())
    assert size < 9e6
    assert not list((html / "_static").rglob("*.map"))
