"""What holds for every notebook: listed, without outputs, short cells, alt text, within budget.

The build's own cache (_build/.jupyter_cache) tells what each notebook took and printed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from book import ROOT, listed, notebooks
from jupyter_cache import get_cache

NOTEBOOKS = notebooks()
names = [path.stem for path in NOTEBOOKS]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=names)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code(path: Path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def cache():
    folder = ROOT / "_build" / ".jupyter_cache"
    assert folder.is_dir(), "the book is not built yet: run 'make book' first"
    return get_cache(str(folder))


def test_every_notebook_is_in_the_table_of_contents():
    found = {p for p in (ROOT / "chapters").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert found == set(NOTEBOOKS)
    assert NOTEBOOKS, "the table of contents lists no notebook"


def test_every_listed_file_exists():
    assert [p for p in listed() if not p.is_file()] == []


@each
def test_stored_without_outputs(path):
    dirty = [
        k
        for k, cell in enumerate(code(path))
        if "keep_output" not in cell.metadata.get("tags", [])
        and (cell.outputs or cell.execution_count is not None)
    ]
    assert dirty == [], "run 'nbstripout' on it"


@each
def test_first_cell_fetches_the_library(path):
    assert code(path)[0].source == code(NOTEBOOKS[0])[0].source
    assert "find_spec" in code(path)[0].source


@each
def test_cells_are_short(path):
    lengths = sorted(len(cell.source.splitlines()) for cell in code(path)[1:])
    assert lengths[-1] <= 20
    assert lengths[len(lengths) // 2] <= 10


@each
def test_claims_are_asserted(path):
    assert sum("assert " in cell.source for cell in code(path)) >= 3


@each
def test_fences_stand_alone(path):
    """A fence that closes at the end of a line of text does not close."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"^[^`\n]+`{3,}[ ]*$", cell.source, re.M)


@each
def test_has_slider_exercises_and_summary(path):
    whole = "\n".join(cell.source for cell in read(path).cells)
    assert "explore(" in whole
    exercises = re.findall(r"^`{3,}\{exercise\}.*\n:label: (\S+)", whole, re.M)
    solutions = re.findall(r"^`{3,}\{solution\} (\S+)", whole, re.M)
    assert 3 <= len(exercises) <= 6
    assert exercises == solutions
    assert re.search(r"^## What to remember", whole, re.M)
    assert re.search(r"^## Further reading", whole, re.M)


def test_no_helper_is_defined_twice():
    seen = {}
    for path in NOTEBOOKS:
        for cell in code(path):
            for name, body in re.findall(
                r"^def (\w+)\(.*?\n((?:[ ]+.*\n?|\n)+)", cell.source, re.M
            ):
                key = (name, re.sub(r"\s+", " ", body).strip())
                assert key not in seen, f"{name} stands in {seen[key]} and in {path.stem}"
                seen[key] = path.stem


@each
def test_executed_in_the_build_within_its_budget(path, cache):
    record = cache.match_cache_notebook(read(path))
    # The budget is 20 s on two quiet cores; twice that leaves room for a slower machine.
    assert record.data["execution_seconds"] <= 40
    if "peak_mb" in record.data:  # Linux only
        assert record.data["peak_mb"] <= 1024


@each
def test_figures_have_alt_text_that_says_something(path, cache):
    done = cache.merge_match_into_notebook(read(path))[1]
    figures = 0
    for cell in (c for c in done.cells if c.cell_type == "code"):
        pictures = [
            o for o in cell.outputs if {"image/svg+xml", "image/png"} & set(o.get("data", {}))
        ]
        if pictures:
            figures += 1
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 6, cell.source
            assert len(pictures) == 1, "one figure a cell, or the alt text fits only one"
        for o in cell.outputs:
            assert o.output_type != "stream" or o.name != "stderr", o.text
    assert figures >= 2


@each
def test_numbers_in_prose_were_reported(path, cache):
    """Every glue role in the text has its report in the same notebook, none has two."""
    done = cache.merge_match_into_notebook(read(path))[1]
    text = "\n".join(c.source for c in done.cells if c.cell_type == "markdown")
    wanted = set(re.findall(r"\{glue:text\}`([^`:]+)", text))
    keys = [
        output.metadata["scrapbook"]["name"]
        for cell in done.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "scrapbook" in output.get("metadata", {})
    ]
    assert wanted, "no number in the text comes from a cell"
    assert wanted <= set(keys)
    assert len(keys) == len(set(keys))


def test_a_failing_claim_fails_nbval(tmp_path):
    """The check itself can fail: a wrong assert in a notebook turns nbval red."""
    broken = read(NOTEBOOKS[0])
    broken.cells = [nbformat.v4.new_code_cell("assert 1 + 1 == 3")]
    nbformat.write(broken, tmp_path / "broken.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "broken.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout


def test_notebooks_are_valid_json_with_trailing_newline():
    for path in NOTEBOOKS:
        text = path.read_text()
        json.loads(text)
        assert text.endswith("\n"), path
