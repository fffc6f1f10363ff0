"""The built book, a server for it and a browser to read it with.

``BOOK_HTML`` names another folder than ``_build/html``; ``CHROMIUM`` another browser. Without a
browser its tests are skipped, and under ``CI`` they fail instead.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

HTML = Path(os.environ.get("BOOK_HTML", Path(__file__).parents[2] / "_build" / "html")).resolve()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
# No request leaves this machine, whatever a page asks for.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


def built_pages() -> list[str]:
    """Every page of the book, as a path below its first page."""
    found = (path.relative_to(HTML) for path in HTML.rglob("*.html"))
    pages = [path.as_posix() for path in found if path.parts[0] not in ("_static", "_sources")]
    return sorted(pages) or ["index.html"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``page`` is every page; ``screen`` leaves out all but one of the listings of source code."""
    pages = built_pages()
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages)
    if "screen" in metafunc.fixturenames:
        listings = [page for page in pages if page.startswith("_modules/")]
        metafunc.parametrize("screen", [page for page in pages if page not in listings[1:]])


@pytest.fixture(scope="session", autouse=True)
def html() -> Path:
    if not (HTML / "index.html").is_file():
        pytest.fail("there is no built book: run `make book` first", pytrace=False)
    return HTML


@pytest.fixture(scope="session")
def soups(html: Path) -> dict[str, BeautifulSoup]:
    """Every page, parsed once."""
    return {
        page: BeautifulSoup((html / page).read_text(encoding="utf-8"), "html.parser")
        for page in built_pages()
    }


@pytest.fixture(scope="session")
def prefix(html: Path) -> str:
    """Where the site expects to stand on its host, as its 404 page says."""
    text = (html / "404.html").read_text(encoding="utf-8")
    found = re.search(r'href="(/(?:[^"/]+/)*)_static/', text)
    return found.group(1) if found else "/"


class Handler(SimpleHTTPRequestHandler):
    """Serves the book below its prefix, and its 404 page for whatever is not there."""

    prefix = "/"
    protocol_version = "HTTP/1.1"  # one connection for many files

    def translate_path(self, path: str) -> str:
        inside = path.startswith(self.prefix)
        return super().translate_path("/" + path[len(self.prefix) :] if inside else "/no-page")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        body = (HTML / "404.html").read_bytes()
        self.send_response(code, message)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def base(html: Path, prefix: str) -> Iterator[str]:
    """Address of the first page's folder, on a free port."""
    handler = type("BookHandler", (Handler,), {"prefix": prefix})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{prefix}"
    server.shutdown()
    server.server_close()


def find_chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    return next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)


@pytest.fixture(scope="session")
def browser():
    """One Chromium, with a fresh profile, for all tests."""
    path = find_chromium()
    if path is None:
        reason = "no Chromium found: install one (Debian: apt-get install chromium) or set CHROMIUM"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    """A new tab at desktop size, light."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context.new_page()
    context.close()
