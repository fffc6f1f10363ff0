"""What _toc.yml lists, shared by the tests of the notebooks."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def listed() -> list[Path]:
    """The files of the table of contents, in order, with their suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())

    def files(entry):
        if "root" in entry:
            yield entry["root"]
        if "file" in entry:
            yield entry["file"]
        for key in ("parts", "chapters", "sections"):
            for child in entry.get(key, []):
                yield from files(child)

    found = []
    for name in files(toc):
        paths = [ROOT / f"{name}{suffix}" for suffix in (".ipynb", ".md")]
        found.append(next((p for p in paths if p.is_file()), paths[0]))
    return found


def notebooks() -> list[Path]:
    """The notebooks of the table of contents, in order."""
    return [path for path in listed() if path.suffix == ".ipynb"]
