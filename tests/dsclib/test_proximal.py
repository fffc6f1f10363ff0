"""Thresholds against the definition of the proximal map, and their derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from dsclib.proximal import (
    group_hard_threshold,
    group_norms,
    group_soft_threshold,
    hard_threshold,
    nonnegative_soft_threshold,
    soft_threshold,
    top_k,
)

GRID = torch.arange(-40_000, 40_001, dtype=torch.float64) / 10_000  # holds 0 itself
values = st.floats(-10, 10, allow_subnormal=False)
vectors = arrays(np.float64, 6, elements=values).map(torch.from_numpy)
thresholds = st.floats(0, 5, allow_subnormal=False)


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize(
    "prox, penalty",
    [
        (soft_threshold, lambda x, t: t * x.abs()),
        (nonnegative_soft_threshold, lambda x, t: torch.where(x < 0, torch.inf, t * x)),
        (hard_threshold, lambda x, t: t**2 / 2 * (x != 0)),
    ],
)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.7])
def test_scalar_maps_minimise_their_definition(prox, penalty, t):
    z = torch.linspace(-2.9, 2.9, 41, dtype=torch.float64)
    cost = 0.5 * (GRID - z[:, None]) ** 2 + penalty(GRID, t)
    best = GRID[cost.argmin(dim=1)]
    torch.testing.assert_close(prox(z, t), best, atol=2e-4, rtol=0)


@pytest.mark.parametrize("t", [0.0, 0.5, 3.0])
def test_group_soft_threshold_minimises_its_definition(t):
    z = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = group_soft_threshold(z, t, 3).numpy()

    def cost(x):
        return (
            0.5 * ((x - z.numpy()) ** 2).sum() + t * np.linalg.norm(x.reshape(4, 3), axis=1).sum()
        )

    found = minimize(cost, z.numpy(), method="Powell", options={"xtol": 1e-9, "ftol": 1e-14})
    assert cost(ours) <= found.fun + 1e-12
    np.testing.assert_allclose(ours, found.x, atol=1e-3)


def test_group_hard_threshold_keeps_or_drops_whole_groups():
    z = torch.tensor([[3.0, 4.0, 0.0, 1.0, -0.6, 0.8]])
    expected = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(group_hard_threshold(z, 1.5, 2), expected)


def test_top_k_is_the_nearest_k_sparse_vector():
    z = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in range(1, 8):
        x = top_k(z, k)
        dropped = z.abs().sort(dim=1).values[:, : 7 - k].square().sum(dim=1)
        assert ((x != 0).sum(dim=1) == k).all()
        torch.testing.assert_close((x - z).square().sum(dim=1), dropped)
    assert torch.equal(top_k(z, 7), z)


def test_top_k_keeps_no_more_than_k_among_ties():
    assert int((top_k(torch.ones(3, 8), 3) != 0).sum()) == 9


# ---------------------------------------------------------------- properties


@given(vectors, vectors, thresholds)
@settings(max_examples=60, deadline=None)
def test_convex_proximal_maps_are_nonexpansive(a, b, t):
    maps = [
        lambda z: soft_threshold(z, t),
        lambda z: nonnegative_soft_threshold(z, t),
        lambda z: group_soft_threshold(z, t, 3),
    ]
    for prox in maps:
        assert (prox(a) - prox(b)).norm() <= (a - b).norm() * (1 + 1e-12) + 1e-12


@given(vectors, thresholds)
@settings(max_examples=60, deadline=None)
def test_identities(z, t):
    soft = soft_threshold(z, t)
    assert torch.equal(soft, (z - t).relu() - (-z - t).relu())
    assert torch.equal(soft, nonnegative_soft_threshold(z, t) - nonnegative_soft_threshold(-z, t))
    torch.testing.assert_close(soft, z.sign() * (z.abs() - t).clamp(min=0), atol=1e-14, rtol=0)
    odd = [
        soft_threshold,
        hard_threshold,
        lambda z, t: group_soft_threshold(z, t, 2),
        lambda z, t: group_hard_threshold(z, t, 2),
        lambda z, t: top_k(z, 2),
    ]
    for threshold in odd:
        assert torch.equal(threshold(-z, t), -threshold(z, t))


@given(vectors, thresholds)
@settings(max_examples=60, deadline=None)
def test_groups_of_one_are_the_scalar_maps(z, t):
    torch.testing.assert_close(
        group_soft_threshold(z, t, 1), soft_threshold(z, t), atol=1e-13, rtol=1e-13
    )
    torch.testing.assert_close(group_hard_threshold(z, t, 1), hard_threshold(z, t))


@given(vectors, thresholds)
@settings(max_examples=60, deadline=None)
def test_group_soft_threshold_shortens_by_t(z, t):
    before = z.unflatten(-1, (3, 2)).norm(dim=-1)
    after = group_soft_threshold(z, t, 2).unflatten(-1, (3, 2)).norm(dim=-1)
    torch.testing.assert_close(after, (before - t).clamp(min=0), atol=1e-12, rtol=1e-12)


# ---------------------------------------------------------------- thresholds that vary


@pytest.mark.parametrize("shape", [(), (6,), (4, 1), (4, 6)])
def test_thresholds_broadcast(shape):
    z = torch.randn(4, 6, dtype=torch.float64)
    t = torch.rand(shape, dtype=torch.float64)
    one_by_one = torch.stack(
        [soft_threshold(a, float(b)) for a, b in zip(z.flatten(), t.expand(4, 6).flatten())]
    )
    torch.testing.assert_close(soft_threshold(z, t).flatten(), one_by_one)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (4, 3)])
@pytest.mark.parametrize("threshold", [group_soft_threshold, group_hard_threshold])
def test_group_thresholds_broadcast(threshold, shape):
    z = torch.randn(4, 6, dtype=torch.float64)
    t = 2 * torch.rand(shape, dtype=torch.float64)
    groups = z.reshape(12, 2)
    one_by_one = [threshold(a, float(b), 2) for a, b in zip(groups, t.expand(4, 3).flatten())]
    torch.testing.assert_close(threshold(z, t, 2), torch.stack(one_by_one).reshape(4, 6))


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    "threshold",
    [
        soft_threshold,
        nonnegative_soft_threshold,
        lambda z, t: hard_threshold(z, t.detach()),
        lambda z, t: top_k(z, 2),
        lambda z, t: group_soft_threshold(z, t[..., :3], 2),
        lambda z, t: group_hard_threshold(z, t[..., :3].detach(), 2),
    ],
)
def test_gradients(threshold):
    gen = torch.Generator().manual_seed(2)
    z = torch.randn(4, 6, dtype=torch.float64, generator=gen).requires_grad_()
    t = torch.rand(6, dtype=torch.float64, generator=gen).requires_grad_()
    assert torch.autograd.gradcheck(threshold, (z, t))
    assert torch.autograd.gradgradcheck(threshold, (z, t))


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-21, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_zero_and_finite_at_a_group_that_is_off(length, dtype):
    z = torch.tensor([[length, 0.0, 3.0, 4.0]], dtype=dtype, requires_grad=True)
    t = torch.tensor([0.5, 0.5], dtype=dtype, requires_grad=True)
    group_soft_threshold(z, t, 2).sum().backward()
    assert torch.equal(z.grad[0, :2], torch.zeros(2, dtype=dtype))
    assert t.grad[0] == 0
    torch.testing.assert_close(t.grad[1], torch.tensor(-7 / 5, dtype=dtype))
    assert torch.isfinite(z.grad).all()


def test_gradient_of_a_zero_group_at_threshold_zero():
    z = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    group_soft_threshold(z, t, 2).square().sum().backward()
    assert torch.equal(z.grad, torch.zeros_like(z)) and t.grad == 0


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_input(dtype):
    z = torch.randn(3, 4, dtype=dtype)
    for out in (soft_threshold(z, 0.1), top_k(z, 2), group_soft_threshold(z, 0.1, 2)):
        assert out.dtype == dtype and out.shape == z.shape


def test_numpy_and_lists_are_accepted():
    z = np.array([[3.0, -4.0]])
    torch.testing.assert_close(
        group_soft_threshold(z, np.array([1.0]), 2), torch.tensor([[2.4, -3.2]]).double()
    )
    assert soft_threshold([2, -1, 0], 1).tolist() == [1, 0, 0]


Z = torch.zeros(2, 6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: soft_threshold(torch.tensor([1.0, torch.nan]), 1), "z holds 1 NaN"),
        (lambda: soft_threshold("abc", 1), "z"),
        (lambda: soft_threshold(Z, -0.1), "t = -0.1, expected a finite number >= 0"),
        (lambda: soft_threshold(Z, float("nan")), "t = nan"),
        (lambda: soft_threshold(Z, torch.ones(5)), r"t has shape \(5,\).*\(2, 6\)"),
        (lambda: soft_threshold(Z, -torch.ones(6)), "t has entries down to -1.*>= 0"),
        (lambda: soft_threshold(Z, torch.ones(6).double()), r"t is torch.float64.*t.to\(z\)"),
        (lambda: nonnegative_soft_threshold(Z, -1), "t = -1"),
        (lambda: hard_threshold(Z, -1), "t = -1"),
        (lambda: top_k(Z, 0), "k = 0, expected at least 1 and at most 6"),
        (lambda: top_k(Z, 7), "k = 7, expected at least 1 and at most 6"),
        (lambda: top_k(Z, 2.0), "k = 2.0, expected a whole number"),
        (lambda: top_k(torch.tensor(1.0), 1), r"z has shape \(\), expected \(..., n\)"),
        (lambda: group_soft_threshold(Z, 1, 4), "group_size = 4 does not divide the 6 entries"),
        (lambda: group_soft_threshold(Z, 1, 0), "group_size = 0, expected at least 1"),
        (lambda: group_soft_threshold(Z, torch.ones(6), 2), r"t has shape \(6,\).*\(2, 3\)"),
        (lambda: group_hard_threshold(Z, -1, 2), "t = -1"),
        (lambda: group_hard_threshold(torch.zeros(0), 1, 2), r"z has shape \(0,\), expected"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_group_norms_are_lengths_with_a_derivative_everywhere():
    z = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, -1.0, 2.0, -2.0]], dtype=torch.float64)
    z.requires_grad_()
    lengths = group_norms(z, 2)
    assert torch.allclose(lengths, torch.tensor([[5, 0], [1, 8**0.5]], dtype=torch.float64))
    assert torch.equal(group_norms(z, 1), z.abs())
    lengths.sum().backward()
    assert torch.equal(z.grad[0, 2:], torch.zeros(2)) and torch.allclose(
        z.grad[0, :2], torch.tensor([0.6, 0.8], dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="does not divide the 4 entries"):
        group_norms(z, 3)
