"""Dictionary learning: what it promises, and the classical recovery experiment."""

import pytest
import torch
from sklearn.datasets import load_sample_image

from dsclib.learning import Learned, learn_dictionary
from dsclib.pursuit import duality_gap, lasso


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small problems: on a busy machine threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(B, m, n, s, seed):
    """Signals with s nonzeros in a random dictionary, as in the K-SVD paper."""
    g = torch.Generator().manual_seed(seed)
    D = torch.randn(m, n, generator=g, dtype=torch.float64)
    D /= D.norm(dim=0)
    X = torch.zeros(B, n, dtype=torch.float64)
    support = torch.rand(B, n, generator=g).topk(s).indices
    X.scatter_(1, support, torch.randn(B, s, generator=g, dtype=torch.float64))
    return X @ D.T, D


def patches(count, side=8):
    image = torch.from_numpy(load_sample_image("china.jpg") @ [0.299, 0.587, 0.114]) / 255
    every = image.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)
    Y = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:count]]
    Y = Y - Y.mean(dim=1, keepdim=True)
    return Y / Y.norm(dim=1).mean()


def mean_objective(Y, D, X, lam):
    return ((Y - X @ D.T).square().sum(dim=1) / 2 + lam * X.abs().sum(dim=1)).mean().item()


# ---------------------------------------------------------------- promises


@pytest.mark.parametrize("batch_size", [None, 50])
def test_what_comes_back(batch_size):
    Y = normal(200, 12)
    L = learn_dictionary(Y, 20, 0.3, iterations=4, batch_size=batch_size, seed=0)
    assert isinstance(L, Learned)
    assert L.dictionary.shape == (12, 20) and L.codes.shape == (200, 20)
    assert L.history.shape == (4,)
    torch.testing.assert_close(L.dictionary.norm(dim=0), torch.ones(20, dtype=torch.float64))
    assert (duality_gap(Y, L.dictionary, L.codes, 0.3) <= 1e-6).all()


@pytest.mark.parametrize("seed", range(5))
def test_objective_never_rises_with_all_signals_at_once(seed):
    Y, _ = planted(300, 12, 24, 2, seed)
    L = learn_dictionary(Y, 24, 0.2, iterations=15, seed=seed)
    assert (L.history.diff() <= 1e-12).all() and L.history[-1] < 0.9 * L.history[0]
    assert mean_objective(Y, L.dictionary, L.codes, 0.2) <= L.history[-1] + 1e-12


def test_objective_never_rises_when_atoms_are_replaced():
    Y, _ = planted(300, 12, 24, 2, 0)
    start = normal(12, 1).expand(12, 24).clone()  # one atom 24 times: 23 of them go unused
    start = start / start.norm(dim=0)
    L = learn_dictionary(Y, 24, 0.2, iterations=15, start=start)
    assert (L.history.diff() <= 1e-12).all()
    assert (L.codes != 0).any(dim=0).all()
    G = (L.dictionary.T @ L.dictionary).fill_diagonal_(0).abs()
    assert G.max() < 0.999


def test_one_pass_from_a_start_is_the_two_steps_written_out():
    Y, lam = normal(100, 6), 0.4
    start = normal(6, 9, seed=2)
    start /= start.norm(dim=0)
    kept = start.clone()
    L = learn_dictionary(Y, 9, lam, iterations=1, start=start)
    X, D = lasso(Y, start, lam, 1e-4).codes, start.clone()
    assert L.history.item() == pytest.approx(mean_objective(Y, D, X, lam), rel=1e-4)
    for j in range(9):  # the best unit vector for atom j is along what only it must explain
        others = Y - X @ D.T + X[:, j : j + 1] * D[:, j]
        D[:, j] = others.T @ X[:, j]
        D[:, j] /= D[:, j].norm()
    torch.testing.assert_close(L.dictionary, D, atol=1e-3, rtol=0)
    assert torch.equal(start, kept)


def test_the_true_dictionary_is_nearly_a_fixed_point():
    Y, D = planted(3000, 10, 12, 1, 0)
    L = learn_dictionary(Y, 12, 0.01, iterations=5, start=D)
    assert (L.dictionary * D).sum(dim=0).abs().min() > 0.9999


def test_same_seed_same_answer():
    Y = normal(120, 8)
    a, b, c = (learn_dictionary(Y, 10, 0.3, iterations=2, seed=s, batch_size=40) for s in (3, 3, 4))
    torch.testing.assert_close(a.dictionary, b.dictionary)
    assert not torch.allclose(a.dictionary, c.dictionary)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learn_dictionary(Y, 10, 0.3, iterations=1, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_float32_arrays_and_zero_signals():
    Y = normal(100, 8).float()
    Y[:10] = 0
    L = learn_dictionary(Y.numpy(), 10, 0.3, iterations=3, seed=0)
    assert L.dictionary.dtype == L.codes.dtype == L.history.dtype == torch.float32
    assert (L.codes[:10] == 0).all() and torch.isfinite(L.dictionary).all()
    nothing = learn_dictionary(torch.zeros(5, 3), 2, 0.1, iterations=2, start=torch.eye(3)[:, :2])
    assert torch.equal(nothing.dictionary, torch.eye(3)[:, :2]) and (nothing.codes == 0).all()


# ---------------------------------------------------------------- does it learn?


def test_recovers_a_known_dictionary():
    """K-SVD's experiment: 20 x 50, 1,500 signals with 3 nonzeros, atoms found within 0.99."""
    found = []
    for seed in range(3):
        Y, D = planted(1500, 20, 50, 3, seed)
        L = learn_dictionary(Y, 50, 0.2, iterations=50, seed=seed)
        found.append((L.dictionary.T @ D).abs().amax(dim=0) > 0.99)
    assert torch.cat(found).double().mean() > 0.93


def test_recovers_in_batches_with_fewer_passes():
    Y, D = planted(1500, 20, 50, 3, 0)
    L = learn_dictionary(Y, 50, 0.2, iterations=15, batch_size=250, seed=0)
    assert ((L.dictionary.T @ D).abs().amax(dim=0) > 0.99).double().mean() > 0.9


def test_learned_atoms_beat_random_ones_on_real_patches():
    Y = patches(2000)
    L = learn_dictionary(Y, 100, 0.15, iterations=5, batch_size=500, seed=0)
    random = normal(64, 100)
    random /= random.norm(dim=0)
    ours = mean_objective(Y, L.dictionary, L.codes, 0.15)
    theirs = mean_objective(Y, random, lasso(Y, random, 0.15).codes, 0.15)
    assert ours < 0.75 * theirs


# ---------------------------------------------------------------- bad input

Y = normal(30, 5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: learn_dictionary(Y[0], 3, 0.1), r"Y has shape \(5,\)"),
        (lambda: learn_dictionary(Y / 0, 3, 0.1), "Y holds 150 NaN or infinite"),
        (lambda: learn_dictionary(Y, 0, 0.1), "n_atoms = 0"),
        (lambda: learn_dictionary(Y, 2.0, 0.1), "n_atoms = 2.0"),
        (lambda: learn_dictionary(Y, 31, 0.1), "n_atoms = 31 but only 30 of the 30"),
        (lambda: learn_dictionary(Y, 3, 0), "lam = 0"),
        (lambda: learn_dictionary(Y, 3, 0.1, iterations=0), "iterations = 0"),
        (lambda: learn_dictionary(Y, 3, 0.1, batch_size=0), "batch_size = 0"),
        (lambda: learn_dictionary(Y, 3, 0.1, batch_size=31), "batch_size = 31.*at most 30"),
        (lambda: learn_dictionary(Y, 3, 0.1, start=normal(5, 3)), "start has atoms of length"),
        (lambda: learn_dictionary(Y, 3, 0.1, start=torch.eye(5)), r"start has shape \(5, 5\)"),
        (lambda: learn_dictionary(Y, 3, 0.1, seed=-1), "seed = -1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
