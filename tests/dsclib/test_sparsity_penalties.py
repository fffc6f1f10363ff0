"""Penalties on features: their formulas, their gradients, and what they refuse."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsclib.sparsity import group_l1, hoyer, kl_rate, l1, log_sum

DOUBLE = torch.float64
PENALTIES = [l1, group_l1, hoyer, log_sum, kl_rate]
each = pytest.mark.parametrize("penalty", PENALTIES, ids=[p.__name__ for p in PENALTIES])
seeds = st.integers(0, 2**31)
shapes = st.sampled_from([(4, 6), (3, 6, 5), (2, 6, 3, 2), (1, 6)])


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(seeds, shapes)
def test_formulas(seed, shape):
    z = normal(*shape, seed=seed)
    z[0, 0] = 0
    rows = z.flatten(1).tolist()
    n, B = len(rows[0]), len(rows)
    norms = [math.sqrt(sum(v * v for v in row)) for row in rows]
    assert l1(z).item() == pytest.approx(sum(abs(v) for row in rows for v in row) / (B * n))
    assert hoyer(z).item() == pytest.approx(
        sum(sum(map(abs, row)) / norm for row, norm in zip(rows, norms)) / B / math.sqrt(n)
    )
    logs = sum(math.log(1 + abs(v) / 0.3) for row in rows for v in row)
    assert log_sum(z, 0.3).item() == pytest.approx(logs / (B * n))
    d = n // 3  # groups of 2 of the 6 channels
    groups = [row[g * d : (g + 1) * d] for row in rows for g in range(3)]
    lengths = sum(math.sqrt(sum(v * v for v in group)) for group in groups)
    assert group_l1(z, 2).item() == pytest.approx(lengths / (3 * B * math.sqrt(d)))
    total = 0
    for c in range(6):
        values = z[:, c].flatten().tolist()
        a = max(sum(1 - math.exp(-abs(v)) for v in values) / len(values), 1e-6)
        total += 0.1 * math.log(0.1 / a) + 0.9 * math.log(0.9 / (1 - a))
    assert kl_rate(z, 0.1).item() == pytest.approx(total / 6)


def test_group_l1_of_single_units_is_l1():
    z = normal(5, 8)
    torch.testing.assert_close(group_l1(z), l1(z))
    assert group_l1(normal(5, 8, 3)) > l1(normal(5, 8, 3))


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(1e-20, 1e6))
def test_hoyer_does_not_see_the_scale_and_has_its_bounds(seed, scale):
    z = normal(3, 10, seed=seed).relu()
    n = 10
    for factor in 1.0, scale, -scale:
        torch.testing.assert_close(hoyer(factor * z), hoyer(z))
    one = torch.zeros(2, n, dtype=DOUBLE)
    one[:, 3] = scale
    assert hoyer(one).item() == pytest.approx(1 / math.sqrt(n))
    assert hoyer(torch.full((2, n), scale, dtype=DOUBLE)).item() == pytest.approx(1)
    four = torch.zeros(1, n, dtype=DOUBLE)
    four[:, :4] = -scale
    assert hoyer(four).item() == pytest.approx(math.sqrt(4 / n))


def test_kl_is_least_at_its_rate_and_convex_around_it():
    def at(a):  # features of which each channel has activity a
        return kl_rate(torch.full((4, 3), -math.log1p(-a), dtype=DOUBLE), 0.2).item()

    assert at(0.2) == pytest.approx(0, abs=1e-15)
    values = [at(a / 100) for a in range(1, 100)]
    assert min(values) == values[19]
    assert all(2 * b < a + c for a, b, c in zip(values, values[1:], values[2:]))


@each
def test_gradients(penalty):
    z = normal(3, 4, 5) + 0.1
    assert torch.autograd.gradcheck(penalty, z.clone().requires_grad_())


@each
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_no_gradient_at_zeros_and_never_nan(penalty, dtype):
    z = normal(3, 4, 5, dtype=dtype)
    z[0] = 0
    z[1, 2] = 0
    z.requires_grad_()
    value = penalty(z)
    value.backward()
    assert value.dtype == dtype and value.ndim == 0 and value.isfinite()
    assert z.grad.isfinite().all()
    assert (z.grad[0] == 0).all() and (z.grad[1, 2] == 0).all() and (z.grad[2] != 0).all()


@each
def test_all_zero_or_tiny_features(penalty):
    for value in 0.0, 1e-30, 1e-42:
        z = torch.full((2, 4), value, requires_grad=True)
        cost = penalty(z)
        cost.backward()
        assert cost.isfinite() and z.grad.isfinite().all()
    assert penalty in (kl_rate,) or penalty(torch.zeros(2, 4)) == 0


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(penalty, dtype):
    z = (20 * torch.rand(2, 4, 60, 60, generator=torch.Generator().manual_seed(0))).to(dtype)
    z.requires_grad_()
    cost = penalty(z)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost, penalty(z.detach().float()))
    cost.backward()
    assert z.grad.dtype == dtype and z.grad.isfinite().all()


def test_axis_of_tokens():
    z = normal(3, 7, 4)
    torch.testing.assert_close(group_l1(z, 2, axis=-1), group_l1(z.mT, 2))
    torch.testing.assert_close(group_l1(z, 2, axis=2), group_l1(z.mT, 2))
    torch.testing.assert_close(kl_rate(z, axis=-1), kl_rate(z.mT))


@each
def test_takes_arrays(penalty):
    z = normal(3, 4)
    assert penalty(z.numpy()) == penalty(z)


Z = torch.ones(2, 6)
BAD = [
    (lambda: l1(torch.ones(3)), "a tensor of shape (3,), expected features (B, C, ...)"),
    (lambda: l1(torch.ones(0, 3)), "no empty axis"),
    (lambda: hoyer(torch.ones(2, 3).long()), "torch.int64 tensor"),
    (lambda: log_sum(torch.ones(2, 3, dtype=torch.complex64)), "torch.complex64 tensor"),
    (lambda: l1("features"), "z is a str"),
    (lambda: group_l1(Z, 4), "group_size = 4 does not divide the 6 channels"),
    (lambda: group_l1(Z, 2, axis=0), "axis 0 is the batch"),
    (lambda: group_l1(Z, 2, axis=-2), "axis = -2"),
    (lambda: group_l1(Z, 2, axis=1.0), "axis = 1.0"),
    (lambda: kl_rate(Z, axis=2), "axis = 2"),
    (lambda: kl_rate(Z, 0.0), "rate = 0.0"),
    (lambda: kl_rate(Z, 1.0), "rate = 1.0"),
    (lambda: kl_rate(Z, math.nan), "rate = nan"),
    (lambda: log_sum(Z, 0), "eps = 0"),
    (lambda: log_sum(Z, -1.0), "eps = -1.0"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_refuses_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
