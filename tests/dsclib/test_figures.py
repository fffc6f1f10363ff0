"""Pictures of images and atoms, and numbers in prose."""

import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from dsclib import book, figures  # noqa: E402


@pytest.fixture(autouse=True)
def clean_figures():
    yield
    plt.close("all")
    matplotlib.rcdefaults()


def test_mosaic_places_and_scales_tiles():
    tiles = torch.tensor([[[2.0, 0.0], [0.0, -2.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.5], [0, 0]]])
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
    glued = {}
    monkeypatch.setattr(book, "glue", lambda name, x, display: glued.update({name: repr(x)}))
    book.report("rate", value, ".2f")
    assert capsys.readouterr().out == "rate = 0.12\n"
    assert glued == {"rate": "0.12"}


def test_report_without_the_books_tools_still_prints(capsys, monkeypatch):
    monkeypatch.setattr(book, "glue", None)
    book.report("rate", 3)
    assert capsys.readouterr().out == "rate = 3\n"
