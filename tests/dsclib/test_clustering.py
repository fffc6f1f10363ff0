"""Clusters and the groups made from them: oracles, degenerate images, and the script's resume."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dsclib.autoencoders import GroupSparseAutoencoder, pca_start
from dsclib.clustering import (
    cluster_start,
    consensus_clusters,
    nearest_subspace_loss,
    oriented_features,
    spectral_clusters,
    spectral_start,
    unit_rows,
)
from dsclib.dictionaries import group_orthonormal
from dsclib.metrics import clustering_accuracy, subspace_recovery

DOUBLE = torch.float64


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def union(groups=4, m=20, d=2, each=60, noise=0.02):
    """Unit signals near ``groups`` random subspaces, each on its own side of the origin."""
    D = group_orthonormal(m, groups, d, seed=0, dtype=DOUBLE)
    truth = torch.arange(groups).repeat_interleave(each)
    c = 0.3 * randn(len(truth), d)
    c[:, 0] += 1
    blocks = D.unflatten(1, (groups, d)).transpose(0, 1)
    Y = torch.einsum("bmd,bd->bm", blocks[truth], c) + noise * randn(len(truth), m, seed=1)
    return unit_rows(Y), truth, D


# ---------------------------------------------------------------- signals and features


def test_unit_rows_have_length_one_and_zero_stays_zero():
    Y = torch.stack([torch.ones(5), torch.zeros(5), torch.arange(5.0)])
    assert torch.allclose(unit_rows(Y).norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    centred = unit_rows(Y, torch.ones(5))
    assert (centred[0] == 0).all() and torch.allclose(centred[1], -torch.ones(5) / 5**0.5)


def test_features_see_the_direction_of_a_ramp():
    """An image that rises to the right answers in orientation 0 alone of 4, away from the rim."""
    ramp = (torch.arange(16.0) / 16).expand(1, 16, 16)
    f = oriented_features(ramp, 4, 4).view(4, 4, 4)[:, 1:3, 1:3]
    assert (f[0] > 0.05).all() and f[1:].abs().max() < 1e-6
    turned = oriented_features(ramp.mT, 4, 4).view(4, 4, 4)[:, 1:3, 1:3]
    assert torch.allclose(turned[1], f[0].mT) and turned[0].abs().max() < 1e-6


def test_features_are_the_same_in_batches_and_for_brighter_images():
    images = torch.rand(600, 12, 12, generator=torch.Generator().manual_seed(0))
    f = oriented_features(images)
    assert f.shape == (600, 128) and torch.allclose(f.norm(dim=1), torch.ones(600))
    assert torch.allclose(oriented_features(images[550:]), f[550:], atol=1e-6)
    assert torch.allclose(oriented_features(images.double() / 2), f.double(), atol=1e-5)


def test_black_and_constant_images():
    images = torch.stack([torch.zeros(12, 12), torch.full((12, 12), 0.5)])
    f = oriented_features(images, cells=4)
    assert (f[0] == 0).all() and f.isfinite().all()
    inside = f[1].view(8, 4, 4)[:, 1:3, 1:3]
    assert inside.abs().max() < 1e-6  # only the frame, beyond which it is dark, has edges


# ---------------------------------------------------------------- clusters


def test_clusters_of_a_union_of_subspaces_are_found():
    Y, truth, D = union()
    labels = spectral_clusters(Y, 4, n_neighbors=10, seed=0)
    assert labels.dtype == torch.int64 and clustering_accuracy(truth, labels) == 1
    W = spectral_start(Y, 4, 2, n_neighbors=10, seed=0)
    assert subspace_recovery(W, D, 2).max() < 0.1
    model = GroupSparseAutoencoder(20, 4, 2, 0.1, columns="orthonormal", weight=W)
    assert clustering_accuracy(truth, model.predict_cluster(Y)) > 0.99


def test_spectral_clusters_repeat_with_a_seed_and_take_arrays():
    Y, _, _ = union(noise=0.3)
    once = spectral_clusters(Y, 4, n_vectors=6, seed=3)
    assert torch.equal(once, spectral_clusters(Y.numpy(), 4, n_vectors=6, seed=3))
    assert once.min() == 0 and once.max() == 3


def test_equal_and_zero_signals_do_no_harm():
    """Twenty black images: their distances are zero and their neighbours each other."""
    Y, truth, _ = union()
    Y = torch.cat([Y, torch.zeros(20, 20, dtype=DOUBLE)])
    labels = spectral_clusters(Y, 5, n_neighbors=10, seed=0)
    truth = torch.cat([truth, torch.full((20,), 4)])
    assert clustering_accuracy(truth, labels) > 0.99
    W = cluster_start(Y, labels, 2)  # the zero cluster spans nothing: completed by the others
    blocks = W.unflatten(1, (5, 2)).transpose(0, 1)
    assert torch.allclose(blocks.mT @ blocks, torch.eye(2, dtype=DOUBLE).expand(5, 2, 2))
    model = GroupSparseAutoencoder(20, 5, 2, 0.1, weight=W)
    assert model.predict_cluster(Y).shape == (260,) and model.predict_cluster(Y)[-1] == 0


def test_cluster_start_is_the_pca_of_each_cluster():
    Y, truth, _ = union(noise=0.1)
    W = cluster_start(Y, truth, 3)
    for g in range(4):
        U = torch.linalg.svd(Y[truth == g])[2][:3].T
        assert torch.allclose((W[:, 3 * g : 3 * g + 3].T @ U).abs(), torch.eye(3, dtype=DOUBLE))
    assert subspace_recovery(pca_start(Y, 4, 3, seed=0), W, 3).max() < 1e-6  # k-means finds them


def test_consensus_outvotes_bad_clusterings():
    truth = torch.arange(5).repeat_interleave(40)
    random = torch.Generator().manual_seed(0)
    votes = []
    for _ in range(9):
        wrong = torch.rand(200, generator=random) < 0.25
        vote = torch.where(wrong, torch.randint(5, (200,), generator=random), truth)
        votes.append(torch.randperm(5, generator=random)[vote])  # names differ
    assert max(clustering_accuracy(truth, v) for v in votes) < 0.9
    assert clustering_accuracy(truth, consensus_clusters(votes, 5, seed=0)) > 0.97


# ---------------------------------------------------------------- the loss


def test_loss_is_half_the_squared_distance_to_the_nearest_subspace():
    Y, _, D = union(noise=0.3)
    model = GroupSparseAutoencoder(20, 4, 2, 0.0, columns="orthonormal", weight=D)
    distances = [(Y - Y @ B @ B.T).square().sum(1) for B in D.unflatten(1, (4, 2)).transpose(0, 1)]
    expected = torch.stack(distances).amin(0).mean() / 2
    loss = nearest_subspace_loss(model, Y)
    assert torch.allclose(loss, expected)
    loss.backward()
    step = 1e-3 * model.weight.grad
    closer = GroupSparseAutoencoder(20, 4, 2, 0.0, columns="orthonormal", weight=D - step)
    assert nearest_subspace_loss(closer, Y) < loss


# ---------------------------------------------------------------- what cannot be right


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda Y: spectral_clusters(Y, 300), "expected at least one for each of 300 groups"),
        (lambda Y: spectral_clusters(Y, 4, n_neighbors=240), "n_neighbors"),
        (lambda Y: spectral_clusters(Y, 4, n_vectors=240), "n_vectors"),
        (lambda Y: spectral_clusters(Y, 4, power=-1), "power"),
        (lambda Y: spectral_clusters(Y * float("nan"), 4), "NaN"),
        (lambda Y: cluster_start(Y, torch.full((240,), 2), 3), r"clusters \[0, 1\] of 3 are empty"),
        (lambda Y: cluster_start(Y, torch.zeros(7, dtype=torch.long), 3), "labels has length 7"),
        (lambda Y: cluster_start(Y, torch.arange(240) - 1, 3), "smallest value -1"),
        (lambda Y: cluster_start(Y, torch.zeros(240, dtype=torch.long), 21), "group_size"),
        (lambda Y: oriented_features(Y), r"\(N, H, W\)"),
        (lambda Y: oriented_features(torch.zeros(2, 3, 3), cells=4), "cells"),
        (lambda Y: consensus_clusters([torch.zeros(5)], 2), r"votes\[0\]"),
        (lambda Y: consensus_clusters([torch.tensor([-1, 0, 1])], 2), "votes"),
        (lambda Y: consensus_clusters([], 2), "votes"),
        (lambda Y: consensus_clusters([torch.tensor([0, 1]), torch.tensor([0])], 2), "votes"),
        (lambda Y: consensus_clusters([torch.tensor([0, 1])], 3), "n_clusters"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(union()[0])


# ---------------------------------------------------------------- the script


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parents[2] / "experiments" / "fashion_clusters.py"
    spec = importlib.util.spec_from_file_location("fashion_clusters", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(importlib.import_module("sys").modules, "fashion_clusters", module)
    spec.loader.exec_module(module)
    kept = ("k-means, unit pixels", "one graph", "start, trained", "true classes")
    monkeypatch.setattr(module, "METHODS", {name: module.METHODS[name] for name in kept})
    return module


def options(folder):
    work, output = str(folder / "work"), str(folder / "out.json")
    small = ["--data", "digits", "--seeds", "1", "2", "--device", "cpu"]
    return [*small, "--work", work, "--output", output]


def results(path):
    content = json.loads(path.read_text())
    for method in content["digits"]["methods"].values():
        assert len(method.pop("seconds")) == 2
    return content


def test_script_goes_on_where_it_was_interrupted(script, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "half").mkdir()
    script.main(options(tmp_path / "whole"))
    train, count = script.Trial.train, []

    def interrupted(trial, *arguments, **keywords):
        count.append(trial.seed)
        if len(count) == 2:
            raise KeyboardInterrupt
        return train(trial, *arguments, **keywords)

    monkeypatch.setattr(script.Trial, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.main(options(tmp_path / "half"))
    assert not (tmp_path / "half" / "out.json").exists()
    script.main(options(tmp_path / "half"))
    assert count == [1, 2, 2]  # seed 1 was not trained again
    whole, half = (results(tmp_path / name / "out.json") for name in ("whole", "half"))
    assert whole == half
    accuracy = np.mean(whole["digits"]["methods"]["start, trained"]["accuracy"])
    assert accuracy > np.mean(whole["digits"]["methods"]["k-means, unit pixels"]["accuracy"])
    assert np.sum(whole["digits"]["confusion"]) == 2 * 360


def test_script_refuses_results_of_other_settings(script, tmp_path):
    kept = tmp_path / "work" / "digits" / "results.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"settings": {"lam": 7}}))
    with pytest.raises(SystemExit, match="other settings"):
        script.main(options(tmp_path))
