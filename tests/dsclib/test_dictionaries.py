"""Constructions against their definitions, coherence against loops written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from dsclib.coherence import cumulative_coherence, interactions
from dsclib.dictionaries import (
    analysis_filters,
    analysis_weights,
    babel,
    dirac_hadamard,
    gaussian,
    group_incoherent,
    group_orthonormal,
    incoherent,
    incoherent_conv,
    mutual_coherence,
    overcomplete_dct,
    sparse_atoms,
    sparse_filters,
    welch_bound,
)
from dsclib.operators import Conv1d, Conv2d

DOUBLE = torch.float64


# ---------------------------------------------------------------- constructions


@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda **k: gaussian(6, 10, seed=0, **k), (6, 10)),
        (lambda **k: dirac_hadamard(8, **k), (8, 16)),
        (lambda **k: overcomplete_dct(4, 6, **k), (16, 36)),
        (lambda **k: group_orthonormal(6, 4, 3, seed=0, **k), (6, 12)),
        (lambda **k: group_incoherent(6, 4, 3, seed=0, **k), (6, 12)),
        (lambda **k: incoherent(6, 10, seed=0, iterations=20, **k), (6, 10)),
        (lambda **k: incoherent(6, 4, seed=0, **k), (6, 4)),
        (lambda **k: incoherent_conv(3, 8, 4, seed=0, iterations=20, **k).T, (8, 3)),
        (lambda **k: sparse_atoms(12, 10, 4, seed=0, **k), (12, 10)),
        (lambda **k: sparse_atoms(12, 10, 2, group_size=2, rows=3, seed=0, **k), (12, 10)),
        (lambda **k: sparse_filters(3, 4, 5, 2, 3, seed=0, **k).flatten(1).T, (20, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_atoms_have_length_one_and_the_asked_dtype(build, shape, dtype):
    D = build(dtype=dtype)
    assert D.shape == shape and D.dtype == dtype
    torch.testing.assert_close(D.norm(dim=0), torch.ones(shape[1], dtype=dtype))
    assert build().dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: gaussian(5, 9, seed=seed),
        lambda seed: group_orthonormal(5, 3, 2, seed=seed),
        lambda seed: group_incoherent(4, 3, 2, seed=seed),
        lambda seed: incoherent(5, 9, seed=seed, iterations=5),
        lambda seed: incoherent_conv(3, 8, 4, seed=seed, iterations=5),
        lambda seed: sparse_atoms(12, 20, 4, seed=seed),
        lambda seed: sparse_filters(6, 4, 6, 2, 5, seed=seed),
    ],
)
def test_seeds(build):
    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))
    torch.manual_seed(3)
    first = build(None)
    torch.manual_seed(3)
    assert torch.equal(first, build(None))
    state = torch.random.get_rng_state()
    build(1)
    assert torch.equal(state, torch.random.get_rng_state())  # a seed leaves the default alone


@pytest.mark.parametrize("m", [2, 4, 16, 64])
def test_dirac_hadamard(m):
    D = dirac_hadamard(m, dtype=DOUBLE)
    assert mutual_coherence(D) == pytest.approx(1 / math.sqrt(m))
    torch.testing.assert_close(D @ D.T, 2 * torch.eye(m, dtype=DOUBLE))


def test_overcomplete_dct():
    D = overcomplete_dct(8, 11, dtype=DOUBLE)
    assert D.shape == (64, 121)
    torch.testing.assert_close(D[:, 0], torch.full((64,), 1 / 8, dtype=DOUBLE))
    assert D[:, 1:].sum(dim=0).abs().max() < 1e-12
    assert torch.linalg.matrix_rank(D) == 64
    square = overcomplete_dct(8, 8, dtype=DOUBLE)
    torch.testing.assert_close(square.T @ square, torch.eye(64, dtype=DOUBLE))


def test_group_orthonormal():
    D = group_orthonormal(10, 5, 3, seed=0, dtype=DOUBLE)
    for block in D.split(3, dim=1):
        torch.testing.assert_close(block.T @ block, torch.eye(3, dtype=DOUBLE))


def test_group_incoherent_has_the_block_coherence_of_vectors():
    D = group_incoherent(48, 24, 4, seed=0, dtype=DOUBLE)
    vectors = incoherent(12, 24, seed=0, dtype=DOUBLE)
    blocks = (D.T @ D).unflatten(0, (24, 4)).unflatten(2, (24, 4)).transpose(1, 2)
    values = torch.linalg.svdvals(blocks)  # all four are |b_g'b_h|
    expected = (vectors.T @ vectors).abs()[..., None].expand_as(values)
    torch.testing.assert_close(values, expected, atol=1e-12, rtol=0)
    assert mutual_coherence(D, group_size=4) == pytest.approx(mutual_coherence(vectors))
    random = mutual_coherence(group_orthonormal(48, 24, 4, seed=0, dtype=DOUBLE), group_size=4)
    assert mutual_coherence(D, group_size=4) < 0.6 * random


@pytest.mark.parametrize(
    "m, n, factor",
    [(64, 128, 1.12), (16, 32, 1.12), (7, 28, 1.002), (3, 6, 1.001), (2, 3, 1.001)],
)
def test_incoherent_comes_near_the_welch_bound(m, n, factor):
    mu = mutual_coherence(incoherent(m, n, seed=0, dtype=DOUBLE))
    assert welch_bound(m, n) * (1 - 1e-12) <= mu <= factor * welch_bound(m, n)
    assert mu < mutual_coherence(gaussian(m, n, seed=0))


def test_incoherent_does_not_need_the_gradients_of_its_caller():
    with torch.no_grad():
        D = incoherent(16, 24, iterations=20, seed=0)
    assert torch.equal(D, incoherent(16, 24, iterations=20, seed=0)) and not D.requires_grad


def test_incoherent_is_orthonormal_where_it_can_be():
    D = incoherent(8, 8, seed=0, dtype=DOUBLE)
    torch.testing.assert_close(D.T @ D, torch.eye(8, dtype=DOUBLE))


def shifted_coherence(filters, stride):
    """The definition, one pair and one shift at a time."""
    C, L = filters.shape
    values = [0.0]
    for a, b, k in itertools.product(range(C), range(C), range(0, L, stride)):
        if (a, 0) != (b, k):
            values.append(abs(float(filters[a, k:] @ filters[b, : L - k])))
    return max(values)


@pytest.mark.parametrize("n_filters, length, stride, target", [(12, 16, 8, 0.14), (4, 12, 4, 0.13)])
def test_incoherent_conv(n_filters, length, stride, target):
    filters = incoherent_conv(n_filters, length, stride, seed=0, dtype=DOUBLE)
    assert shifted_coherence(filters, stride) < target
    random = gaussian(length, n_filters, seed=0, dtype=DOUBLE).T
    assert shifted_coherence(random, stride) > 2 * target


def test_incoherent_conv_without_overlap_is_incoherent():
    assert mutual_coherence(incoherent_conv(4, 4, 8, seed=0).T) < 1e-2
    assert incoherent_conv(1, 4, 8, seed=0).norm() == pytest.approx(1)


# ---------------------------------------------------------------- sparse atoms


def shared_rows(D):
    """Rows that two columns share, off the diagonal, and how often each row is used."""
    uses = (D != 0).double()
    return (uses.T @ uses).fill_diagonal_(0), uses.sum(dim=1)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_sparse_atoms_share_as_little_as_they_can(m, n, k, seed):
    k = min(k, m)
    D = sparse_atoms(m, n, k, seed=seed, dtype=DOUBLE)
    shared, used = shared_rows(D)
    assert ((D != 0).sum(dim=0) == k).all()
    torch.testing.assert_close(D[D != 0].abs(), torch.full((n * k,), k**-0.5, dtype=DOUBLE))
    assert used.max() - used.min() <= 1
    if n * k <= m:
        assert shared.max() == 0 and mutual_coherence(D) == 0
    elif n * k <= 2 * m:
        most = 1 if k < n else -(-k // (n - 1))
        assert used.max() <= 2 and shared.max() <= most
        if most == 1:
            assert mutual_coherence(D) == pytest.approx(1 / k)
            assert shared.sum() / 2 == n * k - m  # one pair of atoms for every row used twice


@pytest.mark.parametrize("n, k", [(2, 1), (3, 2), (5, 4), (6, 5), (7, 4), (9, 8), (10, 9)])
def test_sparse_atoms_at_the_limit_are_a_complete_graph(n, k):
    shared, used = shared_rows(sparse_atoms(-(-n * k // 2), n, k, seed=0))
    assert shared.max() == 1 and used.max() == 2


@pytest.mark.parametrize("m, n, k", [(64, 128, 3), (128, 128, 4), (100, 150, 5), (7, 7, 3)])
def test_exchanges_find_atoms_that_share_one_row(m, n, k):
    """The last is the plane of seven points and seven lines: there is no better."""
    shared, used = shared_rows(sparse_atoms(m, n, k, seed=0))
    assert shared.max() == 1 and used.max() - used.min() <= 1


def test_signs_of_sparse_atoms_are_random():
    D = sparse_atoms(200, 100, 4, seed=0)
    assert abs(D.sign().sum()) < 80


@pytest.mark.parametrize(
    "m, n, k, d, b",
    [(48, 32, 3, 4, 2), (60, 30, 3, 3, 6), (24, 16, 3, 4, 4), (40, 8, 2, 1, 4), (30, 30, 4, 2, 2)],
)
def test_sparse_groups(m, n, k, d, b):
    D = sparse_atoms(m, n, k, group_size=d, rows=b, seed=0, dtype=DOUBLE)
    G, M = n // d, m // b
    blocks = D.reshape(M, b, G, d).norm(dim=(1, 3))
    assert ((blocks > 0).sum(dim=0) == k).all()
    for group in D.split(d, dim=1):
        torch.testing.assert_close(group.T @ group, torch.eye(d, dtype=DOUBLE))
    if b >= d:
        size = torch.full((G * k,), math.sqrt(d / k), dtype=DOUBLE)
        torch.testing.assert_close(blocks[blocks > 0], size)
    shared, used = shared_rows(blocks)
    assert used.max() - used.min() <= 1
    if G * k <= M:
        assert mutual_coherence(D, group_size=d) == 0
    elif b >= d and G * k <= 2 * M:
        assert mutual_coherence(D, group_size=d) <= 1 / k + 1e-12


CONVOLUTIONS = [(8, 12, 4, 2, 3), (8, 12, 4, 2, 6), (12, 12, 3, 1, 2), (4, 2, 7, 3, 3)]
CONVOLUTIONS += [(5, 3, 4, 6, 2), (16, 12, 4, 2, 4), (4, 2, 3, 1, 5), (3, 2, 2, 1, 4)]


@pytest.mark.parametrize("C, K, L, q, k", CONVOLUTIONS)
def test_sparse_filters(C, K, L, q, k):
    filters = sparse_filters(C, K, L, q, k, seed=0, dtype=DOUBLE)
    assert filters.shape == (C, K, L)
    uses = (filters != 0).double()
    assert (uses.sum(dim=(1, 2)) == k).all()
    torch.testing.assert_close(
        filters[filters != 0].abs(), torch.full((C * k,), k**-0.5, dtype=DOUBLE)
    )
    channels = uses.sum(dim=(0, 2))
    assert channels.max() - channels.min() <= 1
    mu = mutual_coherence(Conv1d(filters, q).local_matrix())
    kinds = K * min(q, L)
    if C * k <= kinds:
        assert mu == 0
    elif C * k <= 2 * kinds and k < C:
        assert mu == pytest.approx(1 / k)
    if L % q == 0 and k <= kinds:
        taps = uses.sum(dim=(0, 1))
        assert taps.max() - taps.min() <= C * k / 4


def test_filters_of_many_shared_kinds_still_meet_once():
    filters = sparse_filters(12, 12, 3, 1, 4, seed=0, dtype=DOUBLE)
    assert mutual_coherence(Conv1d(filters, 1).local_matrix()) == pytest.approx(1 / 4)


# ---------------------------------------------------------------- coherence


def slow_interactions(D, W, d):
    G = D.shape[1] // d
    M = np.zeros((G, G))
    for g, h in itertools.permutations(range(G), 2):
        block = W[:, g * d : (g + 1) * d].T @ D[:, h * d : (h + 1) * d]
        M[g, h] = np.linalg.norm(block.numpy(), ord=2)
    return M


def slow_babel(M, s):
    others = (np.delete(row, i) for i, row in enumerate(M))
    return max(max(sum(c) for c in itertools.combinations(row, s)) for row in others)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_coherence_is_its_definition(seed, d, weighted):
    D = group_orthonormal(7, 6 // d, d, seed=seed, dtype=DOUBLE)
    W = D
    if weighted:  # W_g = D_g + anything orthogonal to D_g
        V = torch.randn(7, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        blocks = [v - b @ (b.T @ v) for v, b in zip(V.split(d, 1), D.split(d, 1))]
        W = D + torch.hstack(blocks)
    M = slow_interactions(D, W, d)
    given_W = W if weighted else None
    np.testing.assert_allclose(interactions(D, given_W, d).numpy(), M, atol=1e-12)
    mu = mutual_coherence(D, given_W, d)
    assert type(mu) is float and mu == pytest.approx(M.max(), abs=1e-12)
    for s in range(len(M)):
        value = babel(D, s, given_W, d)
        assert type(value) is float
        assert value == pytest.approx(slow_babel(M, s), abs=1e-12)
        assert value <= s * mu + 1e-12
    every = cumulative_coherence(D, given_W, d)
    assert every == sorted(every) and len(every) == len(M)


def test_one_atom_has_no_rival():
    D = gaussian(5, 1, seed=0)
    assert mutual_coherence(D) == 0 and babel(D, 0) == 0
    B = group_orthonormal(5, 1, 3, seed=0)
    assert mutual_coherence(B, group_size=3) == 0


def test_coherence_ignores_order_and_signs():
    D = gaussian(6, 9, seed=0, dtype=DOUBLE)
    E = D[:, torch.randperm(9)] * torch.tensor([1.0, -1, 1] * 3, dtype=DOUBLE)
    assert mutual_coherence(E) == pytest.approx(mutual_coherence(D))
    assert babel(E, 4) == pytest.approx(babel(D, 4))


def test_coherence_of_arrays():
    assert mutual_coherence(np.eye(3)) == 0
    assert mutual_coherence([[1.0, 0.6], [0.0, 0.8]]) == pytest.approx(0.6)


@given(st.integers(1, 12), st.integers(1, 24), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_welch_bound_bounds(m, n, seed):
    assert mutual_coherence(gaussian(m, n, seed=seed, dtype=DOUBLE)) >= welch_bound(m, n) - 1e-12


def test_welch_bound_is_reached_by_the_mercedes_star():
    angles = torch.tensor([0, 1, 2], dtype=DOUBLE) * math.pi / 3
    star = torch.stack([angles.cos(), angles.sin()])
    assert mutual_coherence(star) == pytest.approx(welch_bound(2, 3)) == 0.5


# ---------------------------------------------------------------- analysis weights


def primal_weights(D, i):
    """min t with -t <= w'd_j <= t and w'd_i = 1, as it is written."""
    m, n = D.shape
    others = np.delete(D, i, axis=1).T
    t = -np.ones((n - 1, 1))
    A = np.block([[others, t], [-others, t]])
    cost = np.r_[np.zeros(m), 1]
    equal = np.r_[D[:, i], 0][None]
    return linprog(
        cost, A_ub=A, b_ub=np.zeros(2 * n - 2), A_eq=equal, b_eq=[1], bounds=(None, None)
    ).fun


@pytest.mark.parametrize("m, n", [(6, 10), (10, 20), (8, 9), (8, 8), (8, 5)])
def test_analysis_weights_solve_the_linear_program(m, n):
    D = gaussian(m, n, seed=0, dtype=DOUBLE)
    W = analysis_weights(D)
    torch.testing.assert_close((W * D).sum(dim=0), torch.ones(n, dtype=DOUBLE))
    reached = interactions(D, W).amax(dim=1).numpy()
    best = [primal_weights(D.numpy(), i) for i in range(n)]
    np.testing.assert_allclose(reached, best, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(
    "build",
    [
        lambda: gaussian(12, 30, seed=1),
        lambda: incoherent(12, 30, seed=1, iterations=200),
        lambda: dirac_hadamard(8),
        lambda: torch.eye(6),
        lambda: torch.hstack([torch.eye(4), torch.eye(4)]),
        lambda: torch.eye(5)[:, :1],
    ],
)
def test_analysis_weights_are_never_worse_than_the_atoms(build, dtype):
    D = build().to(dtype)
    W = analysis_weights(D)
    assert W.dtype == dtype and W.shape == D.shape
    assert (interactions(D, W).amax(dim=1) <= interactions(D).amax(dim=1)).all()
    torch.testing.assert_close((W * D).sum(dim=0), torch.ones(D.shape[1], dtype=dtype))


def test_analysis_weights_stay_in_the_span_of_the_atoms():
    D = gaussian(9, 6, seed=0, dtype=DOUBLE)
    W = analysis_weights(D)
    torch.testing.assert_close(D @ torch.linalg.pinv(D) @ W, W)
    assert mutual_coherence(D, W) < 1e-12


def unit_filters(*shape):
    f = torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return f / f.flatten(1).norm(dim=1).reshape(-1, *[1] * (f.ndim - 1))


@pytest.mark.parametrize(
    "shape, q, axes",
    [((3, 8), 4, 1), ((4, 7), 3, 1), ((2, 3), 5, 1), ((3, 2, 4), 2, 1), ((2, 3, 4), 2, 2)]
    + [((2, 2, 3, 2), 2, 2)],
)
def test_analysis_filters_solve_the_linear_program(shape, q, axes):
    filters = unit_filters(*shape)
    kind = (Conv1d, Conv2d)[axes - 1]
    W = analysis_filters(filters, q, axes)
    assert W.shape == filters.shape and W.dtype == DOUBLE
    D = kind(filters, q).local_matrix()
    M = interactions(D, kind(W, q).local_matrix()).amax(dim=1)  # also checks w'f = 1
    positions = D.shape[1] // len(filters)
    reached = M.reshape(len(filters), positions)
    torch.testing.assert_close(reached, reached[:, :1].expand_as(reached))
    for c in range(len(filters)):
        window = kind(torch.ones_like(filters), q).local_matrix()[:, c * positions] != 0
        assert window.sum() == filters[0].numel()
        best = primal_weights(D[window].numpy(), c * positions)
        assert reached[c, 0].item() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_analysis_filters_are_never_worse(dtype):
    for filters, q in (
        (incoherent_conv(6, 8, 4, seed=0, iterations=50), 4),
        (sparse_filters(8, 6, 4, 2, 3, seed=0), 2),
        (torch.eye(3), 3),
    ):
        filters = filters.to(dtype)
        W = analysis_filters(filters, q)
        assert W.dtype == dtype
        D, V = Conv1d(filters, q).local_matrix(), Conv1d(W, q).local_matrix()
        after, before = interactions(D, V).amax(dim=1), interactions(D).amax(dim=1)
        assert (after <= before + (1e-6 if dtype == torch.float32 else 1e-12)).all()


# ---------------------------------------------------------------- the door

EYE = torch.eye(4)
BENT = torch.tensor([[1.0, 0.6], [0.0, 0.8]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gaussian(0, 3), "m = 0, expected at least 1"),
        (lambda: gaussian(3, 2.5), "n = 2.5, expected a whole number"),
        (lambda: gaussian(3, 3, seed=-1), "seed = -1"),
        (lambda: dirac_hadamard(12), "m = 12, expected a power of two: the nearest are 8, 16"),
        (lambda: dirac_hadamard(1), "m = 1, expected at least 2"),
        (lambda: overcomplete_dct(1, 4), "side = 1, expected at least 2"),
        (lambda: overcomplete_dct(8, 7), "atoms_per_side = 7, expected at least 8"),
        (lambda: group_incoherent(9, 4, 2), "group_size = 2 does not divide the 9 entries"),
        (lambda: group_orthonormal(3, 2, 4), "group_size = 4, expected at least 1 and at most 3"),
        (lambda: incoherent(3, 6, iterations=0), "iterations = 0"),
        (lambda: incoherent_conv(3, 6, 0), "stride = 0"),
        (lambda: welch_bound(0, 3), "m = 0"),
        (lambda: mutual_coherence(2 * EYE), "atoms of length 2 to 2, expected unit-norm"),
        (lambda: mutual_coherence(EYE[0]), r"D has shape \(4,\), expected 2 axes"),
        (lambda: mutual_coherence(EYE * torch.nan), "D holds 16 NaN"),
        (lambda: mutual_coherence(EYE, W=2 * EYE), r"W has .* off 1.*divide W by \(W \* D\)"),
        (lambda: mutual_coherence(EYE, W=EYE[:3]), r"W has shape \(3, 4\), expected that of D"),
        (lambda: mutual_coherence(EYE, group_size=3), "group_size = 3 does not divide the 4 atoms"),
        (lambda: mutual_coherence(BENT, group_size=2), "not orthonormal inside.*0.6.*qr"),
        (lambda: mutual_coherence(BENT, BENT.clone(), 2), "W has an entry of W_g'D_g.*0.6"),
        (lambda: babel(EYE, 4), "s = 4, expected at least 0 and at most 3"),
        (lambda: babel(EYE, 1.0), "s = 1.0, expected a whole number"),
        (lambda: babel(EYE, True), "s = True, expected a whole number"),
        (lambda: babel(EYE, -1), "s = -1"),
        (lambda: babel(EYE, 2, group_size=2), "s = 2, expected at least 0 and at most 1"),
        (lambda: analysis_weights(3 * EYE), "atoms of length 3"),
        (lambda: analysis_filters(3 * EYE, 2), "filters has atoms of length 3"),
        (lambda: analysis_filters(EYE, 2, axes=2), r"filters has shape .* 3 axes \(C, h, w\)"),
        (lambda: analysis_filters(EYE, 0), "stride = 0"),
        (lambda: sparse_atoms(4, 4, 5), "nonzeros = 5, expected at least 1 and at most 4"),
        (lambda: sparse_atoms(4, 4, 1, rows=3), "rows = 3 does not divide m = 4"),
        (lambda: sparse_atoms(4, 4, 3, rows=2), "nonzeros = 3, .* at most 2"),
        (lambda: sparse_atoms(4, 4, 1, group_size=3), "group_size = 3 does not divide the 4 atoms"),
        (lambda: sparse_atoms(4, 4, 1, group_size=2), "hold 1 entries.*take nonzeros >= 2"),
        (lambda: sparse_filters(2, 2, 3, 1, 7), "nonzeros = 7, .* at most 6"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
