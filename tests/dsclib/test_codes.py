"""Random codes are as sparse as they say, and the cut leaves what it says."""

import itertools
import time

import pytest
import torch

from dsclib.codes import keep_largest, local_codes, sparse_codes
from dsclib.operators import Conv1d, Conv2d, Dense

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def groups(codes, d):
    return codes.unflatten(1, (-1, d)).norm(dim=2)


# ---------------------------------------------------------------- codes of a matrix


@pytest.mark.parametrize("n, s, d", [(12, 3, 1), (12, 0, 1), (12, 12, 1), (12, 2, 3), (12, 3, 4)])
@pytest.mark.parametrize("magnitudes", [None, (0.5, 1.0), (2, 2)])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_sparse_codes(n, s, d, magnitudes, nonnegative):
    options = dict(magnitudes=magnitudes, nonnegative=nonnegative, dtype=DOUBLE)
    codes = sparse_codes(200, n, s, group_size=d, seed=0, **options)
    norms = groups(codes, d)
    assert codes.shape == (200, n) and codes.dtype == DOUBLE
    assert ((norms > 0).sum(dim=1) == s).all()
    assert (codes >= 0).all() or not nonnegative
    if magnitudes and s:
        low, high = magnitudes
        active = norms[norms > 0]
        assert low - 1e-12 <= active.min() and active.max() <= high + 1e-12
        assert active.max() - active.min() >= 0.9 * (high - low)


def test_sparse_codes_are_even():
    codes = sparse_codes(20_000, 8, 2, seed=0, dtype=DOUBLE)
    active = (codes != 0).double()
    pairs = active.T @ active / len(codes)
    assert (pairs.diagonal() - 2 / 8).abs().max() < 0.02
    off = pairs[~torch.eye(8, dtype=torch.bool)]
    assert (off - 1 / 28).abs().max() < 0.01
    values = codes[codes != 0]
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    signs = sparse_codes(5000, 8, 2, magnitudes=(1, 1), seed=0).sign().sum()
    assert abs(signs) < 400


LINE = Conv1d(randn(3, 7), 3)


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: sparse_codes(3, 20, 4, seed=seed),
        lambda seed: local_codes(LINE, 2, 30, 2, seed=seed, dtype=torch.float32),
    ],
)
def test_seeds(build):
    assert torch.equal(build(1), build(1)) and not torch.equal(build(1), build(2))
    assert build(1).dtype == torch.float32
    torch.manual_seed(3)
    first = build(None)
    torch.manual_seed(3)
    assert torch.equal(first, build(None))
    state = torch.random.get_rng_state()
    build(1)
    assert torch.equal(state, torch.random.get_rng_state())


# ---------------------------------------------------------------- codes of a convolution


def stripe(op, positions, at):
    """Positions of the stripe of ``at``, one by one."""
    for other in itertools.product(*map(range, positions)):
        gaps = [abs(a - b) for a, b in zip(at, other)]
        if op.boundary == "circular":
            gaps = [min(g, T - g) for g, T in zip(gaps, positions)]
        if all(g < p for g, p in zip(gaps, op.reach)):
            yield other


def stripes(op, positions):
    """The same as a 0-1 matrix (positions, positions)."""
    places = list(itertools.product(*map(range, positions)))
    matrix = torch.zeros(len(places), len(places), dtype=torch.int64)
    for i, at in enumerate(places):
        for other in stripe(op, positions, at):
            matrix[i, places.index(other)] = 1
    return matrix


CASES = [
    (Conv1d(randn(3, 7), 3, b), (T,), s)
    for b, (T, s) in itertools.product(
        ("circular", "zero"), [(1, 2), (3, 4), (5, 1), (6, 15), (9, 2), (10, 3), (15, 2), (37, 4)]
    )
] + [
    (Conv2d(randn(2, 4, 5), 2, b), T, s)
    for b, (T, s) in itertools.product(
        ("circular", "zero"), [((2, 3), 2), ((3, 11), 1), ((6, 10), 5), ((9, 15), 3)]
    )
]
CASES += [(Conv1d(randn(2, 4), 4), (7,), 2), (Conv1d(randn(2, 4, 4), 2, "zero"), (20,), 3)]


@pytest.mark.parametrize("op, positions, s", CASES, ids=str)
def test_local_codes_fill_every_stripe_they_can(op, positions, s):
    shape = positions if len(positions) > 1 else positions[0]
    codes = local_codes(op, 20, shape, s, magnitudes=(0.5, 1), seed=0)
    C = len(op.filters)
    assert codes.shape == (20, C, *positions) and codes.dtype == DOUBLE
    values = codes[codes != 0].abs()
    assert values.min() >= 0.5 and values.max() <= 1
    assert (op.local_sparsity(codes) == s).all()
    meets = stripes(op, positions)
    used = (codes != 0).sum(dim=1).flatten(1)
    held = used @ meets
    assert (held.amax(dim=1) == s).all()
    full = (held == s).long() @ meets > 0  # some stripe over this position is full
    assert (full | (used == C)).all()  # so no entry could be added


def test_local_codes_visit_every_place_alike():
    for op, shape in ((Conv1d(randn(3, 7), 3), 13), (Conv2d(randn(2, 4, 4), 2), (7, 3))):
        codes = local_codes(op, 4000, shape, 2, seed=0)
        active = (codes != 0).double().mean(dim=0)
        assert (active / active.mean() - 1).abs().max() < 0.2


def test_long_codes_are_quick_and_full():
    op = Conv1d(randn(12, 16), 8)
    start = time.perf_counter()
    codes = local_codes(op, 1, 125_000, 4, seed=0)
    assert time.perf_counter() - start < 5
    assert op.local_sparsity(codes).item() == 4
    assert (codes != 0).sum() > 0.85 * 4 / 3 * 125_000


def test_no_active_entry():
    assert local_codes(LINE, 2, 9, 0).eq(0).all()
    assert local_codes(LINE, 2, 9, 2, nonnegative=True, seed=0).ge(0).all()


# ---------------------------------------------------------------- the cut


def test_keep_largest_of_a_matrix():
    op, codes = Dense(randn(4, 12)), randn(5, 12)
    kept = keep_largest(op, codes, 3)
    for before, after in zip(codes, kept):
        largest = before.abs().topk(3).indices
        assert torch.equal(after.nonzero().flatten(), largest.sort().values)
        assert torch.equal(after[largest], before[largest])
    kept = keep_largest(op, codes, 2, group_size=3)
    for before, after in zip(groups(codes, 3), groups(kept, 3)):
        assert set(after.nonzero().flatten().tolist()) == set(before.topk(2).indices.tolist())
    assert keep_largest(op, codes, 0).eq(0).all()
    assert torch.equal(keep_largest(op, codes, 12), codes)


@pytest.mark.parametrize("op, positions, s", CASES, ids=str)
@pytest.mark.parametrize("kind", ["dense", "ties", "sparse"])
def test_keep_largest_of_a_convolution(op, positions, s, kind):
    codes = randn(4, len(op.filters), *positions)
    if kind == "ties":
        codes = codes.sign()
    if kind == "sparse":
        codes = codes * (codes > 1)
    s = min(s, codes[0].numel())
    kept = keep_largest(op, codes, s)
    assert (op.local_sparsity(kept) <= s).all()
    assert torch.equal(kept, codes * (kept != 0))
    meets = stripes(op, positions)
    flat = codes.flatten(2)
    for b in range(len(codes)):
        allowed = torch.ones_like(flat[b], dtype=torch.bool)
        size = flat[b].abs().flatten()
        order = size.argsort(descending=True, stable=True)
        for window in meets:
            inside = window.bool().expand_as(allowed).flatten()
            leading = order[inside[order]][:s]
            among = torch.zeros_like(inside)
            among[leading] = True
            allowed &= (among | ~inside).view_as(allowed)
        assert torch.equal(kept[b].flatten(1), flat[b] * allowed)


def test_keep_largest_leaves_local_codes_alone_and_has_a_gradient():
    op = Conv1d(randn(3, 7), 3, "zero")
    codes = local_codes(op, 4, 40, 2, seed=0)
    assert torch.equal(keep_largest(op, codes, 2), codes)
    noisy = (codes + 0.1 * randn(*codes.shape)).requires_grad_()
    kept = keep_largest(op, noisy, 2)
    kept.sum().backward()
    assert torch.equal(noisy.grad, (kept != 0).double())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sparse_codes(0, 4, 1), "count = 0"),
        (lambda: sparse_codes(2, 4, 5), "sparsity = 5, expected at least 0 and at most 4"),
        (lambda: sparse_codes(2, 4, 3, group_size=2), "sparsity = 3, .* at most 2"),
        (lambda: sparse_codes(2, 4, 1, group_size=3), "group_size = 3 does not divide the 4 ent"),
        (lambda: sparse_codes(2, 4, 1, magnitudes=1.0), r"magnitudes = 1.0, expected a pair"),
        (lambda: sparse_codes(2, 4, 1, magnitudes=(2, 1)), r"magnitudes\[0\] = 2, .* <= 1"),
        (lambda: local_codes(Dense(torch.eye(3)), 1, 9, 1), "Dense, expected a Conv.*sparse_codes"),
        (lambda: local_codes(LINE, 1, (9, 9), 1), r"positions = \(9, 9\), expected a number T"),
        (lambda: local_codes(LINE, 1, 9, 16), "sparsity = 16, .* at most 15"),
        (lambda: local_codes(LINE, 1, 0, 1), "positions = 0"),
        (lambda: keep_largest(torch.eye(3), torch.ones(1, 3), 1), r"wrap a matrix as Dense\(D\)"),
        (lambda: keep_largest(LINE, randn(1, 2, 9), 1), r"codes has shape .* C = 3"),
        (lambda: keep_largest(LINE, randn(1, 3, 9), 1, 3), "group_size = 3, expected 1"),
        (lambda: keep_largest(LINE, randn(1, 3, 9), -1), "sparsity = -1"),
        (lambda: keep_largest(Dense(torch.eye(3)), torch.ones(1, 3), 4), "sparsity = 4"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
