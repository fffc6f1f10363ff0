"""Dictionary learning: never uphill, optimal atom by atom, and it finds a known dictionary."""

import re

import pytest
import torch

from dsclib.datasets import image_patches, sample_images
from dsclib.dictionaries import gaussian
from dsclib.learning import _update, learn_dictionary
from dsclib.metrics import atom_recovery
from dsclib.pursuit import duality_gap


def sparse_signals(D, count, s, seed=0):
    """Signals with s atoms each, Gaussian coefficients."""
    random = torch.Generator().manual_seed(seed)
    support = torch.rand(count, D.shape[1], generator=random).topk(s).indices
    values = torch.randn(count, s, generator=random, dtype=D.dtype)
    return torch.zeros(count, D.shape[1], dtype=D.dtype).scatter(1, support, values) @ D.T


@pytest.fixture(scope="module")
def patches():
    P = image_patches(sample_images()["china"].double(), 8, n_patches=1000, seed=0)
    return P - P.mean(dim=1, keepdim=True)


def test_objective_never_rises_on_photograph_patches(patches):
    learned = learn_dictionary(patches, 80, 0.3, iterations=12, seed=0)
    steps = learned.history.diff()
    assert (steps <= 1e-6 * learned.history[0]).all()
    assert learned.history[-1] < 0.97 * learned.history[0]


def test_what_comes_back(patches):
    learned = learn_dictionary(patches, 70, 0.3, iterations=2, seed=0)
    D, X = learned.dictionary, learned.codes
    assert D.shape == (64, 70) and X.shape == (1000, 70) and learned.history.shape == (2,)
    torch.testing.assert_close(D.norm(dim=0), torch.ones(70).double())
    assert duality_gap(patches, D, X, 0.3).max() <= 1e-6


def test_an_atom_update_is_the_best_point_on_the_sphere():
    """Against many points on the sphere, one atom at a time."""
    torch.manual_seed(0)
    X, Y = torch.randn(40, 3).double(), torch.randn(40, 2).double()
    D = gaussian(2, 3, seed=0, dtype=torch.float64)
    before = D.clone()
    _update(D, X.T @ X, Y.T @ X)
    angles = torch.linspace(0, 2 * torch.pi, 20001).double()
    circle = torch.stack([angles.cos(), angles.sin()])
    for j in range(3):
        others = Y - X @ torch.cat([D[:, :j], torch.zeros(2, 1).double(), before[:, j + 1 :]], 1).T
        costs = (others[:, :, None] - X[:, j, None, None] * circle).square().sum(dim=(0, 1))
        torch.testing.assert_close(circle[:, costs.argmin()], D[:, j], atol=5e-4, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_recovers_a_known_dictionary(seed):
    """The classic experiment: 50 atoms of 20 samples, 1,500 signals of three atoms."""
    D = gaussian(20, 50, seed=seed, dtype=torch.float64)
    Y = sparse_signals(D, 1500, 3, seed=10 + seed)
    learned = learn_dictionary(Y, 50, 0.1, iterations=40, seed=seed)
    assert (atom_recovery(learned.dictionary, D) > 0.99).double().mean() >= 0.9


def test_batches_reach_what_full_passes_reach(patches):
    full = learn_dictionary(patches, 80, 0.3, iterations=15, seed=0)
    online = learn_dictionary(patches, 80, 0.3, iterations=15, batch_size=250, seed=0)
    assert online.history[-1] < 1.05 * full.history[-1]


def test_the_true_dictionary_is_nearly_a_fixed_point():
    D = gaussian(20, 30, seed=0, dtype=torch.float64)
    learned = learn_dictionary(sparse_signals(D, 800, 2), 30, 1e-3, iterations=3, start=D)
    assert atom_recovery(learned.dictionary, D).min() > 0.999


def test_unused_atoms_are_replaced():
    """All signals lie in a plane; an atom that no signal can use must not stay."""
    Y = torch.zeros(50, 4).double()
    Y[:, :2] = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    start = torch.eye(4).double()
    learned = learn_dictionary(Y, 4, 0.05, iterations=4, start=start)
    assert (learned.dictionary[2:].abs() < 1e-12).all()
    assert (learned.codes != 0).any(dim=0).all()


def test_seed_decides_and_dtype_follows(patches):
    Y = patches[:200].float()
    runs = [learn_dictionary(Y, 70, 0.3, iterations=2, seed=s).dictionary for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert runs[0].dtype == torch.float32
    assert learn_dictionary(Y.numpy(), 70, 0.3, iterations=1).dictionary.dtype == torch.float32


Y = torch.ones(5, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(Y=Y[0], n_atoms=2, lam=0.1), "Y has shape (4,), expected 2 axes (B, m)"),
        (dict(Y=Y * torch.nan, n_atoms=2, lam=0.1), "Y holds 20 NaN"),
        (dict(Y=Y, n_atoms=0, lam=0.1), "n_atoms = 0, expected at least 1"),
        (dict(Y=Y, n_atoms=2, lam=-1), "lam = -1, expected a finite number > 0"),
        (dict(Y=Y, n_atoms=9, lam=0.1), "n_atoms = 9 but only 5 of the 5 signals"),
        (dict(Y=0 * Y, n_atoms=1, lam=0.1), "n_atoms = 1 but only 0 of the 5 signals"),
        (dict(Y=Y, n_atoms=2, lam=0.1, iterations=0), "iterations = 0, expected at least 1"),
        (dict(Y=Y, n_atoms=2, lam=0.1, batch_size=0), "batch_size = 0, expected at least 1"),
        (dict(Y=Y, n_atoms=2, lam=0.1, batch_size=6), "batch_size = 6, expected at least 1 and"),
        (dict(Y=Y, n_atoms=2, lam=0.1, seed=-1), "seed = -1, expected at least 0"),
        (dict(Y=Y, n_atoms=2, lam=0.1, start=Y.T[:, :2]), "start has atoms of length 2 to 2"),
        (dict(Y=Y, n_atoms=2, lam=0.1, start=torch.eye(4)), "start has shape (4, 4), expected (4, 2)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        learn_dictionary(**arguments)
