"""What a reader does with the book: slide, search, switch, unfold, print, lose the way."""

from __future__ import annotations

import pytest

TO_ICONS = """() => document.fonts.ready.then(() => [...document.fonts]
    .filter((face) => face.family.includes("Font Awesome") && face.status === "loaded").length)"""
WATCH_PRINTING = """() => window.addEventListener("beforeprint", () => {
    const folded = document.querySelectorAll("article details:not([open], .hide)").length;
    window.seen = { folded, theme: document.documentElement.dataset.theme };
})"""
HIDDEN_ON_PAPER = (
    ".bd-sidebar-primary, .bd-header-article, .prev-next-footer, .copybtn, .headerlink"
)


def pages_with(soups, selector: str) -> list[str]:
    return [page for page, soup in soups.items() if soup.select_one(selector)]


def open_page(tab, address: str) -> None:
    tab.goto(address)
    tab.evaluate("() => window.MathJax?.startup?.promise")


def test_sliders_answer_the_keyboard_offline(soups, tab, base) -> None:
    pages = pages_with(soups, "figure.explore")
    assert pages, "no page has a slider"
    for page in pages:
        tab.context.set_offline(False)
        open_page(tab, base + page)
        tab.context.set_offline(True)
        figures = tab.locator("figure.explore")
        for index in range(figures.count()):
            figure = figures.nth(index)
            picture = figure.locator("img.explore-frame")
            controls = figure.locator(".explore-control")
            assert controls.count() >= 1, page
            for number in range(controls.count()):
                control = controls.nth(number)
                slider, value = control.locator("input"), control.locator("output")
                before = picture.get_attribute("src"), value.text_content()
                at_end = slider.input_value() == slider.get_attribute("max")
                slider.focus()
                tab.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
                after = picture.get_attribute("src"), value.text_content()
                assert before[0] != after[0], (page, index, number, "the picture did not change")
                assert before[1] != after[1], (page, index, number, "the value did not change")
                assert slider.get_attribute("aria-valuetext") == after[1]
                assert picture.evaluate("(one) => one.decode().then(() => one.naturalWidth)") > 0
                thumb = slider.bounding_box()
                assert thumb is not None and thumb["height"] >= 24


def test_search_finds_a_word(tab, base) -> None:
    tab.goto(base + "search.html?q=coherence")
    results = tab.locator("#search-results ul.search > li")
    results.first.wait_for(timeout=10_000)
    assert "coherence" in tab.locator("#search-results").inner_text().lower()
    assert results.count() >= 1


def test_lost_readers_get_a_page(tab, base) -> None:
    missing = []
    tab.on("response", lambda response: missing.append(response.url) if not response.ok else None)
    address = base + "no/such/page.html"
    response = tab.goto(address)
    assert response is not None and response.status == 404
    assert missing == [address], "the 404 page asks for files that are not there"
    assert tab.locator("article h1").inner_text().startswith("Page not found")
    tab.locator("article a").first.click()
    assert tab.url == base + "index.html"


def test_dark_mode_by_keyboard(tab, base) -> None:
    open_page(tab, base + "index.html")
    for _ in range(80):
        tab.keyboard.press("Tab")
        if tab.evaluate("() => document.activeElement.matches('.theme-switch-button')"):
            break
    else:
        pytest.fail("the Tab key does not reach the switch")
    grounds = set()
    for _ in range(3):
        tab.keyboard.press("Enter")
        grounds.add(
            tab.evaluate(
                "() => [document.documentElement.dataset.theme,"
                " getComputedStyle(document.body).backgroundColor].join()"
            )
        )
    assert {ground.split(",")[0] for ground in grounds} == {"light", "dark"}
    assert len(grounds) == 2


def test_folded_boxes_open_by_keyboard(soups, tab, base) -> None:
    pages = pages_with(soups, "article details.admonition.dropdown")
    if not pages:
        pytest.skip("no folded box")
    open_page(tab, base + pages[0])
    box = tab.locator("article details.admonition.dropdown").first
    box.locator("> summary").focus()
    tab.keyboard.press("Enter")
    assert box.get_attribute("open") is not None


def test_icons_come_from_the_font(tab, base) -> None:
    open_page(tab, base + "index.html")
    assert tab.evaluate(TO_ICONS) > 0


def test_prints_unfolded_on_white(soups, tab, base) -> None:
    pages = pages_with(soups, "article details.admonition.dropdown") or ["index.html"]
    tab.emulate_media(color_scheme="dark")
    open_page(tab, base + pages[0])
    tab.evaluate(WATCH_PRINTING)
    assert tab.pdf(format="A4").startswith(b"%PDF")
    assert tab.evaluate("() => window.seen") == {"folded": 0, "theme": "light"}
    assert tab.evaluate("() => document.documentElement.dataset.theme") == "dark"
    tab.emulate_media(media="print")
    for one in tab.locator(HIDDEN_ON_PAPER).all():
        assert not one.is_visible()
    assert tab.locator("article h1").first.is_visible()
