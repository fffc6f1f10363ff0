"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def test_the_examples_of_the_readme_run(default_dtype, capsys):
    text = README.read_text()
    section = text[text.index("## Use the library") : text.index("## Where things are")]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", section, flags=re.MULTILINE)
    code = [b for b in blocks if "import" in b]
    assert len(code) == 3
    names: dict = {}
    for block in code:
        exec(re.sub(r"^    ", "", block, flags=re.MULTILINE), names)
    assert names["loss"].isfinite() and names["model"][0].weight.grad.any()
    error, sign, bound = capsys.readouterr().out.splitlines()[-1].split()
    assert sign == "<=" and 0 < float(error) <= float(bound)
