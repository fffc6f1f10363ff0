"""The build runs a notebook again exactly when something that it depends on changed."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

EXTENSIONS = Path(__file__).parents[2] / "_ext"
CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_nb", "execution"]
nb_execution_mode = "cache"
nb_execution_cache_path = "_build/.jupyter_cache"
exclude_patterns = ["_build"]
"""


def write(folder: Path, name: str, code: str) -> None:
    """A notebook whose runs can be counted: each leaves a line in ``name.runs``."""
    count = f"with open('{name}.runs', 'a') as runs:\n    runs.write('x')"
    cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(count)]
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / f"{name}.ipynb")


def build(folder: Path) -> int:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ".", "_build/html"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode


def runs(folder: Path) -> dict[str, int]:
    return {
        name: len(path.read_text()) for name in "ab" if (path := folder / f"{name}.runs").exists()
    }


@pytest.fixture
def book(tmp_path):
    (tmp_path / "conf.py").write_text(CONF)
    (tmp_path / "index.md").write_text("# Book\n\n```{toctree}\na\nb\n```\n")
    (tmp_path / "dsclib").mkdir()
    (tmp_path / "dsclib" / "module.py").write_text("x = 1\n")
    (tmp_path / "constraints.txt").write_text("numpy==2\n")
    write(tmp_path, "a", "print(1)")
    write(tmp_path, "b", "print(1)")
    return tmp_path


def test_only_what_changed_runs_again(book):
    assert build(book) == 0
    assert runs(book) == {"a": 1, "b": 1}
    assert build(book) == 0
    assert runs(book) == {"a": 1, "b": 1}, "nothing changed"
    write(book, "b", "print(2)")
    assert build(book) == 0
    assert runs(book) == {"a": 1, "b": 2}, "one notebook changed"
    (book / "dsclib" / "module.py").write_text("x = 2\n")
    assert build(book) == 0
    assert runs(book) == {"a": 2, "b": 3}, "the library changed"


def test_a_failed_build_fails_and_resumes(book):
    write(book, "b", "assert 1 + 1 == 3")
    assert build(book) != 0
    assert runs(book)["a"] == 1
    write(book, "b", "assert 1 + 1 == 2")
    assert build(book) == 0
    assert runs(book)["a"] == 1, "what had run is kept"
