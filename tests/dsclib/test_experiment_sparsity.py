"""The script of the chapter "What sparsity costs": it goes on, and what it says can be trusted."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "experiments" / "sparsity.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("experiment_sparsity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "experiment_sparsity", module)
    spec.loader.exec_module(module)
    two = {name: weights[1:3] for name, weights in module.WEIGHTS.items()}
    monkeypatch.setattr(module, "WEIGHTS", two)
    return module


def options(folder, *more):
    work, output = str(folder / "work"), str(folder / "out.json")
    small = ["--data", "digits", "--images", "300", "--validation", "200", "--epochs", "2"]
    small += ["--more-epochs", "1", "--seeds", "0", "1", "--device", "cpu"]
    return [*small, "--work", work, "--output", output, *more]


def results(folder):
    content = json.loads((folder / "out.json").read_text())
    for run in content["runs"]:
        assert run.pop("training seconds") >= 0
    return content


def settings(script):
    return script.Settings("digits", 300, 200, (16, 32), 2, 1, 64, 2e-3)


def test_all_strategies_run_and_are_measured(script, tmp_path):
    script.main(options(tmp_path, "--seeds", "0"))
    content = results(tmp_path)
    names = [run["strategy"] for run in content["runs"]]
    assert names == [script.BASELINE, *(n for n in script.WEIGHTS for _ in range(2))]
    for run in content["runs"]:
        for part in (run["validation"], run["test"]):
            assert 0 <= part["accuracy"] <= 1
            assert 0 <= min(part["densities"]) <= part["density"] <= max(part["densities"]) <= 1
            assert all(d <= r for d, r in zip(part["dead"], part["rare"], strict=True))
            for layer, active in part["active products"].items():
                assert 0 <= active <= content["products"][layer]
        if run["strategy"] == "keep_largest":
            assert run["test"]["density"] <= run["weight"] + 0.01
    assert not list(tmp_path.rglob("*.part"))


def test_goes_on_where_it_was_interrupted(script, tmp_path, monkeypatch):
    few = ["--strategies", "l1", "threshold + log_sum", "keep_largest"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "half").mkdir()
    script.main(options(tmp_path / "whole", *few))
    run, count = script.run, []

    def interrupted(*arguments):
        count.append(arguments[1:3])
        if len(count) == 10:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(script, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(options(tmp_path / "half", *few))
    assert not (tmp_path / "half" / "out.json").exists()
    script.main(options(tmp_path / "half", *few))
    assert len(count) == 14 + 1  # of all runs only the interrupted one was begun again
    assert results(tmp_path / "half") == results(tmp_path / "whole")


def test_refuses_results_of_other_settings(script, tmp_path):
    script.main(options(tmp_path, "--seeds", "0", "--strategies", "l1"))
    with pytest.raises(SystemExit, match="other settings"):
        script.main(options(tmp_path, "--seeds", "0", "--strategies", "l1", "--epochs", "3"))


def test_training_validation_and_test_images_are_apart(script):
    data = script.load(settings(script), "cpu")
    assert [len(data[part][0]) for part in ("train", "validation", "test")] == [300, 200, 360]
    rows = [set(map(tuple, data[part][0].flatten(1).tolist())) for part in data]
    assert all(not a & b for i, a in enumerate(rows) for b in rows[:i])


def test_says_if_there_are_too_few_images(script, tmp_path):
    with pytest.raises(SystemExit, match="1437 training images, not 300"):
        script.main(options(tmp_path, "--validation", "1400"))


def test_weight_zero_is_the_baseline_and_hooks_come_off(script):
    data, chosen = script.load(settings(script), "cpu"), settings(script)
    network = script.build(data, chosen, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = script.run(network, script.BASELINE, 0.0, data, chosen, 1)
    none = script.run(network, "log_sum", 0.0, data, chosen, 1)
    assert plain["test"] == none["test"] and plain["validation"] == none["validation"]
    for name in script.WEIGHTS:
        with script.attached(network, name, 0.5, 0.1):
            assert any(layer._forward_hooks for layer in network.modules())
        assert not any(layer._forward_hooks for layer in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
