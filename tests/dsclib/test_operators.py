"""Operators are the matrices they say they are, and cost what they say they cost."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from dsclib.dictionaries import babel, incoherent_conv, mutual_coherence
from dsclib.operators import Conv1d, Conv2d, Dense

DOUBLE = torch.float64


def randn(*shape, dtype=DOUBLE, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unit_filters(*shape):
    f = randn(*shape)
    return f / f.flatten(1).norm(dim=1).reshape(-1, *[1] * (f.ndim - 1))


def size_of(positions, length, stride, boundary):
    return positions * stride if boundary == "circular" else (positions - 1) * stride + length


# (C, L, stride, positions): overlap none, exact halves, uneven, full, gaps between the atoms
LINES = [(3, 4, 4, 5), (12, 16, 8, 6), (2, 7, 3, 9), (4, 5, 1, 8), (2, 3, 5, 4), (1, 6, 2, 3)]
PLANES = [
    (2, (4, 4), 2, (5, 4)),
    (3, (3, 5), 2, (4, 6)),
    (2, (2, 3), 1, (3, 5)),
    (1, (2, 2), 3, (2, 3)),
]
# The same with K channels: (C, K, L, ...) and (C, K, window, ...)
CHANNEL_LINES = [(3, 2, 5, 2, 6), (2, 4, 4, 4, 3), (4, 1, 3, 1, 6)]
CHANNEL_PLANES = [(3, 2, (3, 4), 2, (4, 5)), (2, 3, (2, 3), 1, (3, 5))]
BOUNDARIES = ["circular", "zero"]


def lines():
    for (C, L, q, T), boundary in itertools.product(LINES, BOUNDARIES):
        yield Conv1d(randn(C, L), q, boundary), size_of(T, L, q, boundary), (C, T)
    for (C, K, L, q, T), boundary in itertools.product(CHANNEL_LINES, BOUNDARIES):
        yield Conv1d(randn(C, K, L), q, boundary), size_of(T, L, q, boundary), (C, T)


def planes():
    for (C, window, q, T), boundary in itertools.product(PLANES, BOUNDARIES):
        size = tuple(size_of(t, n, q, boundary) for t, n in zip(T, window))
        yield Conv2d(randn(C, *window), q, boundary), size, (C, *T)
    for (C, K, window, q, T), boundary in itertools.product(CHANNEL_PLANES, BOUNDARIES):
        size = tuple(size_of(t, n, q, boundary) for t, n in zip(T, window))
        yield Conv2d(randn(C, K, *window), q, boundary), size, (C, *T)


OPERATORS = [(Dense(randn(7, 11)), 7, (11,)), *lines(), *planes()]
everyone = pytest.mark.parametrize("op, size, code_shape", OPERATORS, ids=lambda v: str(v))


def shape(op, size):
    size = size if isinstance(size, tuple) else (size,)
    return size if op.channels is None else (op.channels, *size)


@everyone
def test_analysis_is_the_adjoint_of_synthesis(op, size, code_shape):
    x, y = randn(3, *code_shape), randn(3, *shape(op, size), seed=1)
    assert op.code_shape(size) == code_shape
    assert op.synthesize(x).shape == y.shape and op.analyze(y).shape == x.shape
    left = (op.synthesize(x) * y).flatten(1).sum(dim=1)
    right = (x * op.analyze(y)).flatten(1).sum(dim=1)
    torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-12)


@everyone
def test_matrix_is_the_operator(op, size, code_shape):
    D = op.to_matrix(size)
    x, y = randn(3, *code_shape), randn(3, *shape(op, size), seed=1)
    assert D.shape == (math.prod(shape(op, size)), math.prod(code_shape))
    torch.testing.assert_close(op.synthesize(x).flatten(1), x.flatten(1) @ D.T)
    torch.testing.assert_close(op.analyze(y).flatten(1), y.flatten(1) @ D)


@pytest.mark.parametrize("op, size, code_shape", list(lines()), ids=str)
def test_columns_are_shifted_filters(op, size, code_shape):
    C, T = code_shape
    K, L = op.channels or 1, op.filters.shape[-1]
    D = torch.zeros(K, size, C * T, dtype=DOUBLE)
    for c, t, i in itertools.product(range(C), range(T), range(L)):
        D[:, (t * op.stride + i) % size, c * T + t] += op.filters[c].reshape(K, L)[:, i]
    torch.testing.assert_close(op.to_matrix(size), D.flatten(0, 1))


@pytest.mark.parametrize("op, size, code_shape", list(planes()), ids=str)
def test_columns_are_shifted_images(op, size, code_shape):
    K, (h, w) = op.channels or 1, op.filters.shape[-2:]
    D = op.to_matrix(size).reshape(K, *size, *code_shape)
    for c, t, u in itertools.product(*map(range, code_shape)):
        image = torch.zeros(K, *size, dtype=DOUBLE)
        image[:, :h, :w] = op.filters[c]
        image = image.roll((t * op.stride, u * op.stride), dims=(1, 2))
        torch.testing.assert_close(D[..., c, t, u], image)


# ---------------------------------------------------------------- the Lipschitz constant


@everyone
def test_lipschitz_is_an_upper_bound(op, size, code_shape):
    largest = torch.linalg.eigvalsh(op.to_matrix(size).T @ op.to_matrix(size)).max().item()
    assert largest * (1 - 1e-12) <= op.lipschitz() * (1 + 1e-12)


@pytest.mark.parametrize(
    "shape, q", [((12, 16), 8), ((3, 16), 8), ((2, 7), 3), ((4, 5), 1), ((2, 3), 5), ((4, 3, 5), 2)]
)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_lipschitz_is_tight_for_long_sequences(shape, q, boundary):
    op = Conv1d(randn(*shape), q, boundary)
    D = op.to_matrix(size_of(70, shape[-1], q, boundary))
    largest = torch.linalg.matrix_norm(D, ord=2).item() ** 2
    assert largest * (1 - 1e-12) <= op.lipschitz() <= largest * (1 + 1e-2)


def test_lipschitz_is_exact_where_the_peak_is_on_the_grid():
    """Positive filters answer loudest to a constant, which every circular length holds."""
    op = Conv1d(randn(3, 8).abs(), 2)
    largest = torch.linalg.matrix_norm(op.to_matrix(16), ord=2).item() ** 2
    assert largest * (1 - 1e-12) <= op.lipschitz() <= largest * (1 + 5e-6)
    image = Conv2d(randn(3, 4, 4).abs(), 2)
    largest = torch.linalg.matrix_norm(image.to_matrix((8, 8)), ord=2).item() ** 2
    assert largest * (1 - 1e-12) <= image.lipschitz() <= largest * (1 + 1e-2)


def test_lipschitz_of_a_matrix():
    assert Dense(np.diag([3.0, 1.0])).lipschitz() == pytest.approx(9)


# ---------------------------------------------------------------- the local matrix


@pytest.mark.parametrize("C, L, q", [(4, 16, 8), (3, 7, 3), (2, 6, 1), (3, 4, 4), (2, 3, 5)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_local_matrix_shows_every_overlap(C, L, q, boundary):
    op = Conv1d(unit_filters(C, L), q, boundary)
    local = op.local_matrix()
    blocks = -(-L // q)
    assert local.shape == (q * (2 * blocks - 1), C * (2 * blocks - 1))
    for T in (2 * blocks - 1, 2 * blocks + 6):
        D = op.to_matrix(size_of(T, L, q, boundary))
        assert mutual_coherence(D) == pytest.approx(mutual_coherence(local), abs=1e-12)
    D = op.to_matrix(size_of(4 * blocks, L, q, boundary))  # some atom sees a whole stripe
    for s in range(local.shape[1]):
        assert babel(D, s) == pytest.approx(babel(local, s), abs=1e-12)


@pytest.mark.parametrize("window, q", [((4, 4), 2), ((3, 5), 2), ((2, 2), 3), ((3, 4, 2), 2)])
def test_local_matrix_shows_every_overlap_of_images(window, q):
    op = Conv2d(unit_filters(2, *window), q)
    local = op.local_matrix()
    D = op.to_matrix(tuple(q * 2 * -(-n // q) for n in window[-2:]))
    for s in range(local.shape[1]):
        assert babel(D, s) == pytest.approx(babel(local, s), abs=1e-12)


def test_incoherent_filters_are_incoherent_as_an_operator():
    op = Conv1d(incoherent_conv(12, 16, 8, seed=0), 8)
    assert mutual_coherence(op.local_matrix()) < 0.14


def test_local_matrix_of_a_matrix_is_the_matrix():
    D = randn(4, 6)
    assert Dense(D).local_matrix() is D and Dense(D).to_matrix() is D


def test_local_matrix_of_channels():
    op = Conv1d(unit_filters(3, 2, 5), 2, "zero")
    local, D = op.local_matrix(), op.to_matrix(size_of(12, 5, 2, "zero"))
    assert local.shape == (2 * 2 * 5, 3 * 5)
    for s in range(local.shape[1]):
        assert babel(D, s) == pytest.approx(babel(local, s), abs=1e-12)


# ---------------------------------------------------------------- stripes

SHORT = [
    (Conv1d(torch.ones(2, 7), 3, boundary), (T,)) for boundary in BOUNDARIES for T in (3, 4, 5, 9)
] + [
    (Conv2d(torch.ones(2, 2, 3, 5), 2, boundary), T)
    for boundary in BOUNDARIES
    for T in ((3, 3), (2, 4), (4, 6))
]


@pytest.mark.parametrize("op, positions", SHORT, ids=str)
def test_local_sparsity_counts_the_atoms_that_overlap(op, positions):
    """All entries 1: atoms overlap if and only if their inner product is not zero."""
    filters = torch.ones_like(op.filters)
    everywhere = type(op)(filters, op.stride, op.boundary)
    size = [size_of(t, n, op.stride, op.boundary) for t, n in zip(positions, op._window)]
    D = everywhere.to_matrix(size[0] if len(size) == 1 else tuple(size))
    overlap = (D.T @ D > 0).long()
    codes = (randn(20, 2, *positions) > 1).float()
    slow = (codes.flatten(1).long() @ overlap).amax(dim=1)
    fast = op.local_sparsity(codes)
    assert fast.dtype == torch.int64 and torch.equal(fast, slow)


def test_reach_and_channels():
    assert (
        Conv1d(torch.ones(2, 7), 3).reach == (3,) and Conv1d(torch.ones(2, 7), 3).channels is None
    )
    op = Conv2d(torch.ones(2, 3, 4, 5), 4)
    assert op.reach == (1, 2) and op.channels == 3
    dense = Dense(torch.eye(3))
    assert dense.reach == () and dense.channels is None
    assert dense.local_sparsity([[0.0, 2, 1], [0, 0, 0]]).tolist() == [2, 0]


# ---------------------------------------------------------------- the rest of the contract


def test_operators_are_differentiable():
    x, y = randn(2, 3, 4).requires_grad_(), randn(2, 12, seed=1).requires_grad_()
    filters = randn(3, 5).requires_grad_()
    for b, n in (("circular", 12), ("zero", 14)):
        assert torch.autograd.gradcheck(
            lambda f, x, b=b: Conv1d(f, 3, b).synthesize(x), (filters, x)
        )
        signal = torch.nn.functional.pad(y, (0, n - 12))
        assert torch.autograd.gradcheck(
            lambda f, y, b=b: Conv1d(f, 3, b).analyze(y), (filters, signal)
        )


@pytest.mark.parametrize(
    "op, x",
    [
        (Dense(randn(3, 4, dtype=torch.float32)), np.ones((2, 4))),
        (Conv1d(randn(3, 4, dtype=torch.float32), 2), np.ones((2, 3, 4))),
        (Conv2d(randn(3, 4, 4, dtype=torch.float32), 2), np.ones((2, 3, 4, 4))),
    ],
)
def test_arrays_take_on_the_dtype_of_the_operator(op, x):
    y = op.synthesize(x)
    assert y.dtype == torch.float32
    assert op.analyze(y.numpy()).dtype == torch.float32


def test_cost_is_linear_in_the_length():
    op = Conv1d(randn(8, 16, dtype=torch.float32), 8)
    x = torch.zeros(1, 8, 125_000)  # a million samples
    start = time.perf_counter()
    assert op.analyze(op.synthesize(x)).shape == x.shape
    assert time.perf_counter() - start < 10


LINE, ZERO = Conv1d(torch.ones(2, 5), 3), Conv1d(torch.ones(2, 5), 3, "zero")
PLANE = Conv2d(torch.ones(2, 4, 4), 2)
MANY = Conv1d(torch.ones(2, 3, 5), 3)
MATRIX = Dense(torch.ones(3, 4))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Conv1d(torch.ones(5), 2), r"filters has shape \(5,\), expected 2 axes \(C, L\)"),
        (
            lambda: Conv2d(torch.ones(5, 5), 2),
            r"filters has .* 3 axes \(C, h, w\): .*filters\[None\]",
        ),
        (lambda: Conv1d(torch.ones(2, 5) / 0, 2), "filters holds 10 NaN or inf"),
        (lambda: Conv1d(torch.ones(2, 5), 0), "stride = 0, expected at least 1"),
        (lambda: Conv1d(torch.ones(2, 5), (2, 2)), r"stride = \(2, 2\), expected a whole number"),
        (
            lambda: Conv1d(torch.ones(2, 5), 2, "same"),
            "boundary = 'same', expected one of 'circular'",
        ),
        (
            lambda: LINE.analyze(torch.ones(1, 10)),
            "y: a signal axis of 10 samples, expected a multiple of 3, the stride, from 6 for "
            "filters of length 5 and boundary 'circular': crop or pad it to 9 or 12",
        ),
        (lambda: LINE.analyze(torch.ones(1, 3)), "y: .* 3 samples.*pad it to 6$"),
        (lambda: LINE.synthesize(torch.ones(1, 2, 1)), "x: .* 3 samples.*pad it to 6$"),
        (
            lambda: ZERO.analyze(torch.ones(1, 9)),
            "y: .* 9 samples, expected a multiple of 3, the stride, added to 5 .* 8 or 11",
        ),
        (lambda: ZERO.analyze(torch.ones(1, 4)), "y: .* 4 samples.*pad it to 5$"),
        (lambda: LINE.analyze(torch.ones(9)), r"y has shape \(9,\), expected 2 axes .*y\[None\]"),
        (lambda: LINE.analyze(torch.ones(1, 9).double()), "y is torch.float64"),
        (lambda: LINE.synthesize(torch.ones(1, 3, 4)), r"x has shape \(1, 3, 4\), .* C = 2"),
        (lambda: LINE.synthesize(torch.ones(2, 4)), r"x has shape .* 3 axes \(B, C, T\)"),
        (lambda: MANY.analyze(torch.ones(1, 9)), r"y has shape \(1, 9\), .* 3 axes \(B, K, N\)"),
        (lambda: MANY.analyze(torch.ones(1, 2, 9)), r"y has shape .* \(B, K, N\) with K = 3"),
        (lambda: MANY.local_sparsity(torch.ones(1, 3, 4)), r"codes has shape .* C = 2"),
        (lambda: LINE.to_matrix(10), "size: .* 10 samples"),
        (lambda: LINE.to_matrix(9.0), "size = 9.0, expected a whole number"),
        (lambda: LINE.to_matrix((9, 9)), r"size = \(9, 9\), expected a number N"),
        (lambda: PLANE.code_shape(8), r"size = 8, expected a pair"),
        (lambda: PLANE.analyze(torch.ones(1, 8, 7)), "y: .* 7 samples.*6 or 8"),
        (lambda: PLANE.synthesize(torch.ones(1, 3, 4, 4)), r"expected \(B, C, T1, T2\) with C = 2"),
        (lambda: MATRIX.synthesize(torch.ones(1, 3)), r"x has shape \(1, 3\), expected \(B, 4\)"),
        (lambda: MATRIX.analyze(torch.ones(1, 4)), r"y has shape \(1, 4\), expected \(B, 3\)"),
        (lambda: MATRIX.to_matrix(4), "size = 4, expected 3"),
        (lambda: Dense(torch.ones(3)), r"D has shape \(3,\), expected 2 axes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
