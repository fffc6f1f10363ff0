"""The slider: plain HTML while the book is built, widgets where a kernel is live."""

import json
import re

import ipywidgets
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import pytest  # noqa: E402

from dsclib import explore as module  # noqa: E402
from dsclib.explore import BUILD_VARIABLE, explore  # noqa: E402


def draw(lam, steps=1):
    plt.plot([0, 1], [lam, steps])


@pytest.fixture
def shown(monkeypatch):
    """Collects what explore displays."""
    out = []
    monkeypatch.setattr(module, "display", out.append)
    return out


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setenv(BUILD_VARIABLE, "1")


def payload(page: str) -> dict:
    return json.loads(re.search(r'json">(.*?)</script>', page, re.S)[1].replace("<\\/", "</"))


def test_build_writes_every_frame_and_its_alt_text(shown, build):
    explore(draw, alt="A line to {lam} in {steps}", lam=[0.1, 0.25], steps=[1, 2, 3])
    page = shown[0].data
    data = payload(page)
    assert data["values"] == [["0.1", "0.25"], ["1", "2", "3"]]
    assert len(data["frames"]) == 6 and all(f.startswith("<svg") for f in data["frames"])
    assert len(set(data["frames"])) == 6
    # The last slider runs fastest, as the script counts.
    assert data["alts"][:4] == [
        "A line to 0.1 in 1",
        "A line to 0.1 in 2",
        "A line to 0.1 in 3",
        "A line to 0.25 in 1",
    ]
    assert page.count('type="range"') == 2 and "λ" in page
    assert "data-lm-suppress-shortcuts" in page


def test_build_asks_no_other_host(shown, build):
    explore(draw, alt="a line", lam=[0, 1])
    links = re.findall(r'(?:src|href)="([^"]*)"', re.sub(r"<script.*?</script>", "", shown[0].data))
    assert links and all(link.startswith("data:") for link in links)


def test_build_is_reproducible_and_ids_come_from_content(shown, build):
    for _ in range(2):
        explore(draw, alt="a line", lam=[0, 1])
    explore(draw, alt="another line", lam=[0, 1])
    ids = [re.search(r'id="(explore-\w+)"', s.data)[1] for s in shown]
    assert shown[0].data == shown[1].data
    assert ids[0] == ids[1] != ids[2]


def test_a_plot_that_shows_itself_keeps_its_picture(shown, build):
    def draw_and_show(lam):
        draw(lam)
        plt.show()

    explore(draw, alt="a line", lam=[0, 1])
    explore(draw_and_show, alt="a line", lam=[0, 1])
    assert shown[0].data == shown[1].data


def test_frames_have_one_size(shown, build):
    explore(lambda k: plt.title("x" * k), alt="a title", k=[1, 80])
    sizes = {re.search(r'width="\S+" height="\S+"', f)[0] for f in payload(shown[0].data)["frames"]}
    assert len(sizes) == 1


def test_a_plot_that_draws_nothing_is_refused(build):
    with pytest.raises(ValueError, match="plot drew no figure"):
        explore(lambda lam: None, alt="nothing", lam=[0, 1])


def test_start_value_and_raster(shown, build):
    explore(draw, alt="a line to {lam}", lam=[0, 1, 2], start={"lam": 2}, raster=True)
    page = shown[0].data
    assert 'value="2"' in page and 'alt="a line to 2"' in page
    assert payload(page)["prefix"] == "data:image/webp;base64,"
    assert "invertible" not in page  # photographs keep their lightness


def test_live_kernel_gets_widgets_that_redraw(shown, monkeypatch):
    monkeypatch.delenv(BUILD_VARIABLE, raising=False)
    calls = []
    explore(lambda lam: calls.append(lam), alt="a line", lam=[0.1, 0.2, 0.3])
    slider = shown[0].children[0]
    assert isinstance(slider, ipywidgets.SelectionSlider)
    assert calls == [0.2]
    slider.value = 0.3
    assert calls == [0.2, 0.3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(alt="a"), "no slider came, expected at least one"),
        (dict(alt="a", lam=[1]), "lam has 1 values, expected at least 2"),
        (dict(alt="a", lam=3), "lam = 3, expected a sequence"),
        (dict(alt="", lam=[1, 2]), "alt = '', expected a sentence"),
        (dict(alt="{mu}", lam=[1, 2]), "names something that is no slider"),
        (dict(alt="a", lam=[1, 2], start={"lam": 5}), "lam is one of"),
        (dict(alt="a", lam=range(200)), "200 frames, expected at most 150"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explore(draw, **arguments)
