"""Pictures of images and atoms, and numbers in prose."""

import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import nbformat  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from docutils.core import publish_file  # noqa: E402
from myst_nb.docutils_ import Parser  # noqa: E402

from dsclib import book, figures  # noqa: E402


@pytest.fixture(autouse=True)
def clean_figures():
    yield
    plt.close("all")
    matplotlib.rcdefaults()


def test_mosaic_places_and_scales_tiles():
    tiles = torch.tensor(
        [[[2.0, 0.0], [0.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.5], [0, 0]]]
    )
    out = figures.mosaic(tiles, columns=2)
    assert out.shape == (5, 5)
    np.testing.assert_allclose(out[:2, :2], [[1, 0.5], [0.5, 0]])
    np.testing.assert_allclose(out[:2, 3:], 0.5)  # a zero tile is middle grey
    np.testing.assert_allclose(out[3, :2], [0.5, 1])
    np.testing.assert_allclose(out[2], 1)  # the gap is white


def test_show_images_shares_one_grey_scale():
    fig = figures.show_images([np.zeros((4, 6)), np.ones((4, 6))], titles=["a", "b"])
    limits = [ax.images[0].get_clim() for ax in fig.axes]
    assert limits == [(0, 1), (0, 1)]
    assert [ax.get_title() for ax in fig.axes] == ["a", "b"]


def test_show_atoms_draws_all():
    ax = figures.show_atoms(torch.eye(16), columns=4)
    assert ax.images[0].get_array().shape == (19, 19)


def test_style_distinguishes_curves_without_colour():
    figures.style()
    lines = plt.plot(np.zeros((2, len(figures.COLOURS))))
    dashes = {str(line.get_linestyle()) + str(line._dash_pattern) for line in lines}
    assert len(dashes) == len(figures.COLOURS)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: figures.show_images([]), "images is empty"),
        (lambda: figures.show_images([np.zeros((2, 2))], ["a", "b"]), "titles has 2 entries"),
        (lambda: figures.show_images([np.zeros(3)]), "images[k] has shape (3,)"),
        (lambda: figures.show_images([np.zeros((2, 2))], columns=0), "columns = 0"),
        (lambda: figures.show_atoms(torch.ones(10, 3)), "shape = (3, 3) does not fit"),
        (lambda: figures.show_atoms(torch.full((4, 3), torch.nan)), "D holds 12 NaN"),
        (lambda: figures.mosaic(torch.ones(3, 3)), "tiles has shape (3, 3)"),
        (lambda: book.report("", 1.0), "name = '', expected a non-empty string"),
        (lambda: book.report("a", torch.ones(2)), "value of 'a' has shape (2,)"),
        (lambda: book.report("a", "text", ".2f"), "fmt = '.2f' does not fit"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("value", [0.123, np.float64(0.123), torch.tensor(0.123)])
def test_report_prints_and_glues_the_same_text(value, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(book, "display", lambda data, metadata, raw: shown.append((data, metadata)))
    book.report("rate", value, ".2f")
    assert capsys.readouterr().out == "rate = 0.12\n"
    ((data, metadata),) = shown
    assert list(data.values()) == ["'0.12'"]
    assert metadata["scrapbook"]["name"] == "rate"


@pytest.mark.parametrize("value, fmt", [(10626, ","), (0.5, ".2f"), (1.5e10, ".1e"), ("a b", "")])
def test_reported_text_reaches_the_page_unchanged(value, fmt, tmp_path, monkeypatch):
    """Through MyST-NB itself, which would read 10,626 as a pair and 0.50 as 0.5."""
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\nvalue: {glue:text}`key`."),
        nbformat.v4.new_code_cell(
            f"from dsclib.book import report\nreport('key', {value!r}, {fmt!r})"
        ),
    ]
    nb = nbformat.v4.new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(nb, tmp_path / "a.ipynb")
    monkeypatch.chdir(tmp_path)  # MyST-NB leaves a folder where it runs
    page = publish_file(
        source_path=str(tmp_path / "a.ipynb"), destination_path=str(tmp_path / "a.html"),
        parser=Parser(), writer_name="html", settings_overrides={"nb_execution_mode": "force"},
    )  # fmt: skip
    assert f"value: {format(value, fmt)}." in re.sub("<[^>]+>", "", str(page))
