"""Every page in a browser. A page is loaded once; each test judges one thing that was seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

DESKTOP = {"width": 1280, "height": 900}
SERIOUS = ("serious", "critical")
# "region" is never serious and looks at every element.
EVERYTHING = {"rules": {"region": {"enabled": False}}}
CONTRAST = {"runOnly": ["color-contrast", "link-in-text-block"]}

TYPESETTING_DONE = "() => window.MathJax?.startup?.promise"
RAW_FORMULAS = """() => [...document.querySelectorAll(".math")]
    .filter((one) => !one.querySelector("mjx-container") || one.querySelector("mjx-merror"))
    .map((one) => one.textContent.slice(0, 80))"""
# Formulas and code make nine elements in ten, which axe would walk through for half a minute.
# They are looked at apart: on the phone, and in test_code_has_contrast.
STRIP = """() => {
    for (const one of document.querySelectorAll("mjx-container")) one.replaceWith("x");
    for (const one of document.querySelectorAll("article pre")) one.textContent = "code";
}"""
UNREACHABLE = """() => [...document.querySelectorAll("main *")]
    .filter((one) => one.scrollWidth > one.clientWidth + 1 && one.tabIndex < 0 &&
        /auto|scroll/.test(getComputedStyle(one).overflowX) &&
        !one.querySelector("a[href], button, input, summary, [tabindex='0']"))
    .map((one) => one.outerHTML.slice(0, 120))"""
UNFOLD = "() => document.querySelectorAll('article details').forEach((one) => (one.open = true))"
TOO_WIDE = """() => {
    const room = document.documentElement.clientWidth;
    const scrolls = (one) => one !== document.body && one !== document.documentElement &&
        getComputedStyle(one).overflowX !== "visible";
    const inside = (one) => !one ? false : scrolls(one) || inside(one.parentElement);
    const found = [...document.querySelectorAll("main *")].filter((one) =>
        one.getBoundingClientRect().right > room + 1 && !inside(one.parentElement));
    return [document.documentElement.scrollWidth,
            found.slice(0, 5).map((one) => one.outerHTML.slice(0, 120))];
}"""


@dataclass
class Visit:
    """What was seen of a page."""

    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    raw_formulas: list[str] = field(default_factory=list)
    phone_width: int = 0
    too_wide: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)


def violations(tab, rules: dict, where: dict | None = None) -> list[str]:
    options = {"resultTypes": ["violations"], "preload": False, **rules}
    found = Axe().run(tab, context=where, options=options).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for rule in found
        if rule["impact"] in SERIOUS
        for node in rule["nodes"][:3]
    ]


def turn_dark(tab) -> None:
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")


def look_at(tab, address: str) -> Visit:
    """Load a page once: light, then on a phone, then dark; every box is unfolded."""
    visit = Visit()
    tab.on("request", lambda request: visit.hosts.add(urlsplit(request.url).netloc))
    tab.on("pageerror", lambda error: visit.complaints.append(str(error)))
    tab.on(
        "console",
        lambda message: (
            visit.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    tab.goto(address)
    tab.evaluate(TYPESETTING_DONE)
    visit.raw_formulas = tab.evaluate(RAW_FORMULAS)
    tab.evaluate(UNFOLD)
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.wait_for_timeout(300)  # the page fits its formulas 200 ms after a change of size
    visit.phone_width, visit.too_wide = tab.evaluate(TOO_WIDE)
    visit.unreachable = tab.evaluate(UNREACHABLE)
    tab.set_viewport_size(DESKTOP)
    tab.evaluate(STRIP)
    visit.violations["light"] = violations(tab, EVERYTHING)
    turn_dark(tab)
    visit.violations["dark"] = violations(tab, CONTRAST)
    return visit


@pytest.fixture(scope="session")
def visits() -> dict[str, Visit]:
    return {}


@pytest.fixture(scope="session")
def reader(browser):
    """One reader for all pages: scripts and fonts come from the cache after the first."""
    context = browser.new_context(
        viewport=DESKTOP,
        color_scheme="light",
        reduced_motion="reduce",  # a colour half way from light to dark has no contrast
    )
    yield context
    context.close()


@pytest.fixture
def visit(screen: str, reader, base: str, visits: dict[str, Visit]) -> Visit:
    if screen not in visits:
        tab = reader.new_page()
        visits[screen] = look_at(tab, base + screen)
        tab.close()
    return visits[screen]


def test_loads_without_complaint(visit: Visit) -> None:
    assert not visit.complaints


def test_asks_no_other_host(visit: Visit, base: str) -> None:
    assert visit.hosts - {""} == {urlsplit(base).netloc}


def test_mathematics_is_typeset(visit: Visit) -> None:
    assert not visit.raw_formulas


@pytest.mark.parametrize("sight", ["light", "dark"])
def test_accessible(visit: Visit, sight: str) -> None:
    assert not visit.violations[sight]


def test_fits_a_phone(visit: Visit) -> None:
    assert visit.phone_width <= 360, visit.too_wide


def test_what_scrolls_is_reached_by_keyboard(visit: Visit) -> None:
    assert not visit.unreachable


def test_code_has_contrast(soups, reader, base: str) -> None:
    page = max(soups, key=lambda name: len(soups[name].select("article div.cell_input pre span")))
    tab = reader.new_page()
    tab.emulate_media(color_scheme="light")
    tab.goto(base + page)
    code = {"include": [["article pre"]]}
    assert not violations(tab, CONTRAST, code)
    turn_dark(tab)
    assert not violations(tab, CONTRAST, code)
    tab.close()
