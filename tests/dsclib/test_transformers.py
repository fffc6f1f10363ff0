"""A transformer is the iteration, up to what attention leaks, and the bound on it holds."""

import copy
import itertools
import math
import re

import pytest
import torch
from torch import nn

from dsclib import networks
from dsclib.codes import local_codes
from dsclib.coherence import analysis_filters, babel
from dsclib.dictionaries import incoherent_conv
from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.pursuit import scheduled_ista
from dsclib.theory import rate, threshold_schedule
from dsclib.transformers import (
    IstaBlock,
    IstaTransformer,
    OffsetAttention,
    attention_error,
    attention_leak,
    ista_transformer,
)

DOUBLE = torch.float64
ROUNDING = 1e-12
BOUNDARIES = ["circular", "zero"]
BIASES = [0.5, 2, 6, 32]
THETA = [0.3, 0.2, 0.1, 0.1]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def convolution(shape, stride, boundary, seed=0):
    """Random filters (C, K, *L) with atoms of length about 1; K = 0 for no channels."""
    C, K, *window = shape
    kind = Conv1d if len(window) == 1 else Conv2d
    filters = randn(C, *[K] * (K > 0), *window, seed=seed)
    return kind(filters / math.sqrt(filters[0].numel()), stride, boundary)


def signals(D, count, positions, seed=5):
    codes = D.filters.new_zeros(count, len(D.filters), *positions)
    return randn(*D.synthesize(codes).shape, seed=seed).to(codes)


# Shape, stride and numbers of tokens: overlaps of 1, 2, 3, 5 positions, more tokens and fewer.
KINDS = [
    ((5, 0, 16), 8, [(2,), (3,), (8,), (33,)]),
    ((4, 2, 5), 5, [(1,), (6,)]),
    ((3, 0, 11), 4, [(3,), (4,), (16,)]),
    ((3, 3, 3), 1, [(3,), (12,)]),
    ((4, 0, 4, 4), 2, [(2, 2), (3, 5), (7, 6)]),
    ((3, 2, 3, 5), 2, [(3, 3), (6, 4)]),
]


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("bias", BIASES)
def test_leak_is_its_formula(bias):
    r = math.exp(-bias)
    for axes in (1, 2):
        leak = attention_leak(bias, axes)
        assert leak == pytest.approx(1 - ((1 - r) / (1 + r)) ** axes, abs=1e-15)
        assert 0 < leak <= 2 * axes * r
    logits = -bias * torch.arange(-1000, 1001, dtype=DOUBLE).abs()
    assert 1 - logits.softmax(0)[1000].item() == pytest.approx(attention_leak(bias), abs=1e-15)


def test_leak_neither_vanishes_nor_overflows():
    assert attention_leak(100) == pytest.approx(2 * math.exp(-100), rel=1e-12)
    assert attention_leak(1e-20) == 1 and attention_leak(1e300) == 0


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_a_head_looks_at_its_offset(shape, q, grids, boundary):
    D = convolution(shape, q, boundary)
    axes = len(D.reach)
    for grid, bias in itertools.product(grids, BIASES):
        network = ista_transformer(D, THETA, bias)
        size = signals(D, 1, grid).shape[-axes:]
        maps = network.attention(tuple(size) if axes == 2 else size[0]).detach()
        T = math.prod(grid)
        assert len(network.offsets) == len(maps) == math.prod(2 * p - 1 for p in D.reach)
        assert maps.shape[1:] == (T, T + (boundary == "zero"))
        assert (maps >= 0).all() and (maps.sum(2) - 1).abs().max() < ROUNDING
        for offset, weights in zip(network.offsets, maps):
            for t, row in zip(itertools.product(*map(range, grid)), weights):
                goal = [i + d for i, d in zip(t, offset)]
                if boundary == "circular":
                    goal = [i % n for i, n in zip(goal, grid)]
                inside = all(0 <= i < n for i, n in zip(goal, grid))
                at = sum(i * n for i, n in zip(goal, (*grid[1:], 1))) if inside else T
                assert row.argmax() == at
                assert row[at] >= 1 - attention_leak(bias, axes) - ROUNDING
                assert boundary == "circular" or not inside or row[T] == 0
                best = math.log(row[at])
                for other, i in zip(row, itertools.product(*map(range, grid))):
                    apart = [abs(a - b) for a, b in zip(i, goal)]
                    if boundary == "circular":
                        apart = [min(d, n - d) for d, n in zip(apart, grid)]
                    if T < 13 and bias < 5:
                        assert math.log(other) == pytest.approx(best - bias * sum(apart))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_error_of_attention_is_below_its_bound(shape, q, grids, boundary):
    D, W = convolution(shape, q, boundary), convolution(shape, q, boundary, seed=1)
    C, worst = len(D.filters), 0
    for grid, bias, active in itertools.product(grids, BIASES, (1, 2, C)):
        network = ista_transformer(D, [0.1], bias, W)
        x = randn(20, C, *grid).sign() * 3
        off = randn(20, C, *grid, seed=1).argsort(dim=1) >= active  # so many entries a token
        x = x.masked_fill(off, 0)
        h = torch.cat([x, randn(*x.shape, seed=2)], dim=1).flatten(2).transpose(1, 2)
        with torch.no_grad():
            answer = network.blocks[0].attention(h, network._logits(grid))
        assert not answer[..., C:].any()
        answer = answer[..., :C].transpose(1, 2).unflatten(2, grid)
        error = (answer + W.analyze(D.synthesize(x))).abs().max().item()
        bound = attention_error(D, bias, active, 3, W)
        assert error <= bound + ROUNDING
        worst = max(worst, error / (bound + ROUNDING))
    assert worst > 0.2  # the bound is of the right size


def test_error_bound_is_attained():
    """Taps -0.48, 1, -0.48 and a state that alternates: all heads err the same way."""
    D, bias = Conv1d(torch.tensor([[0.6, -0.8]], dtype=DOUBLE), 1), 8.0
    x = torch.tensor([1.0, -1.0], dtype=DOUBLE).repeat(20)[None, None]
    network = ista_transformer(D, [0.1], bias)
    h = torch.cat([x, x], dim=1).transpose(1, 2)
    answer = network.blocks[0].attention(h, network._logits((40,)))[0, :, 0]
    error = (answer + D.analyze(D.synthesize(x))[0, 0]).abs().max().item()
    bound = attention_error(D, bias)
    assert bound == pytest.approx(2 * attention_leak(bias) * (1 + 2 * 0.48))
    assert 0.999 * bound < error <= bound


# ---------------------------------------------------------------- the transformer is the iteration


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_transformer_is_the_iteration_when_the_bias_is_large(shape, q, grids, boundary):
    D, V = convolution(shape, q, boundary), convolution(shape, q, boundary, seed=1)
    for grid, W, nonnegative in itertools.product(grids, (None, V), (False, True)):
        y = signals(D, 4, grid)
        codes = scheduled_ista(y, D, THETA, W, nonnegative=nonnegative).codes
        network = ista_transformer(D, THETA, 40, W, nonnegative=nonnegative)
        with torch.no_grad():
            answer = network(y)
            assert len(network.iterates(y)) == len(THETA) + 1 and not network.iterates(y)[0].any()
            cnn = networks.ista_cnn(D, THETA, W, nonnegative=nonnegative, factor=False)(y)
        assert codes.any() and answer.shape == codes.shape
        assert (answer - codes).abs().max() < 1e-10 and (answer - cnn).abs().max() < 1e-10
        assert torch.equal(answer != 0, codes != 0)  # zeros are zeros


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_transformer_is_near_the_iteration_for_every_bias(shape, q, grids, boundary):
    """For any signal: a step multiplies what is off by the row sums of I - W'D, and adds tau."""
    D = convolution(shape, q, boundary)
    for grid, bias in itertools.product(grids, BIASES):
        y = signals(D, 4, grid)
        size = y.shape[-len(grid) :]
        matrix = D.to_matrix(tuple(size) if len(grid) == 2 else size[0])
        gram = matrix.T @ matrix
        growth = (torch.eye(len(gram)) - gram).abs().sum(dim=1).max().item()
        exact = [torch.zeros_like(D.analyze(y))]
        scheduled_ista(y, D, THETA, callback=lambda k, x, exact=exact: exact.append(x))
        with torch.no_grad():
            codes = ista_transformer(D, THETA, bias).iterates(y)
        apart = 0.0
        for x, now, other in zip(codes, codes[1:], exact[2:]):
            apart = growth * apart + attention_error(D, bias, bound=x.abs().max().item())
            assert (now - other).abs().max().item() <= apart + ROUNDING


def test_chain_of_transformers_is_the_network_of_a_chain():
    chain = [convolution((4, 0, 8), 4, "circular"), convolution((3, 4, 4), 2, "circular", seed=1)]
    y = signals(chain[0], 3, (8,))
    deep = nn.Sequential(*(ista_transformer(D, THETA, 40) for D in chain))
    with torch.no_grad():
        assert (deep(y) - networks.ista_cnn(chain, [THETA, THETA])(y)).abs().max() < 1e-10


# ---------------------------------------------------------------- the theorem

ATOMS = incoherent_conv(12, 16, 8, seed=0, iterations=300, dtype=DOUBLE)
IMAGE_ATOMS = torch.nn.functional.normalize(randn(4, 144, seed=3)).unflatten(1, (12, 12))
CERTIFIED = {
    "sequence": (Conv1d(ATOMS, 8), 4, [(3,), (10,), (30,)]),
    "sequence, zero": (Conv1d(ATOMS, 8, "zero"), 4, [(3,), (10,), (30,)]),
    "weights": (Conv1d(ATOMS, 8), 3, [(20,)]),
    "image": (Conv2d(IMAGE_ATOMS, 6), 2, [(3, 3), (5, 4)]),
    "image, zero": (Conv2d(IMAGE_ATOMS, 6, "zero"), 2, [(3, 4)]),
}


def weights_for(name, D):
    return Conv1d(analysis_filters(D.filters, D.stride), D.stride) if name == "weights" else None


def instances(D, W, s, grid, sigma, nonnegative=False):
    """Codes with at most s entries a stripe, of size up to 1, and noise of size sigma."""
    count = 100 if len(grid) == 1 else 50
    x = torch.cat(
        [
            local_codes(D, count, grid, s, magnitudes=low, nonnegative=nonnegative, seed=seed)
            for seed, low in enumerate([(1.0, 1.0), (0.2, 1.0)])
        ]
    ).double()
    x = x.clamp(-1, 1)
    e = signals(D, len(x), grid)
    size = (W or D).analyze(e).abs().flatten(1).amax(dim=1)
    e = sigma * e / size[:, None] if e.ndim == 2 else sigma * e / size[:, None, None]
    return x, D.synthesize(x) + e


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("name", CERTIFIED)
def test_the_theorem_with_attention_for_noise(name, nonnegative):
    D, s, grids = CERTIFIED[name]
    W, steps = weights_for(name, D), 8
    mu = babel(D.local_matrix(), s - 1, None if W is None else W.local_matrix())
    for grid, sigma in itertools.product(grids, (0.0, 0.02)):
        x, y = instances(D, W, s, grid, sigma, nonnegative)
        assert D.local_sparsity(x).max() == s
        for bias in (3.0, 6.0, 30.0):
            tau = attention_error(D, bias, s, 1.0, W)
            schedule = threshold_schedule(D, s, steps, 1.0, sigma + tau, W)
            network = ista_transformer(D, schedule.thresholds, bias, W, nonnegative=nonnegative)
            exact = []
            scheduled_ista(
                y, D, schedule.thresholds, W, nonnegative=nonnegative,
                callback=lambda k, codes, exact=exact: exact.append(codes),
            )  # fmt: skip
            with torch.no_grad():
                iterates = network.iterates(y)
            for k, (codes, theirs) in enumerate(zip(iterates, exact)):
                assert not codes[x == 0].any()
                assert (codes - x).abs().max() <= schedule.errors[k] + ROUNDING
                assert (codes.abs() <= x.abs() + ROUNDING).all()
                apart = tau * (1 - mu**k) / (1 - mu)
                assert (codes - theirs).abs().max() <= apart + ROUNDING
            rho = rate(D, s, W)
            last = rho**steps + 2 * (sigma + tau) * (1 - rho**steps) / (1 - rho)
            assert schedule.errors[-1].item() == pytest.approx(last)


def test_thresholds_that_are_not_raised_let_wrong_atoms_in():
    D, s, steps, bias = CERTIFIED["sequence"][0], 2, 20, 5
    x, y = instances(D, None, s, (10,), 0.0)
    theta = threshold_schedule(D, s, steps).thresholds
    with torch.no_grad():
        assert ista_transformer(D, theta, bias)(y)[x == 0].any()
        assert not networks.ista_cnn(D, theta)(y)[x == 0].any()
        raised = threshold_schedule(D, s, steps, noise=attention_error(D, bias, s)).thresholds
        assert not ista_transformer(D, raised, bias)(y)[x == 0].any()


# ---------------------------------------------------------------- a module as torch knows them


def test_blocks_are_transformer_blocks():
    D = convolution((5, 0, 16), 8, "circular")
    network = ista_transformer(D, THETA, 6)
    assert isinstance(network, IstaTransformer) and len(network.blocks) == len(THETA)
    assert network.offsets == [(-1,), (0,), (1,)]
    for block in network.blocks:
        assert isinstance(block, IstaBlock) and isinstance(block.attention, OffsetAttention)
        assert block.attention.heads == 3
        assert [type(layer) for layer in block.mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    image = ista_transformer(convolution((3, 0, 4, 4), 2, "circular"), THETA, 6)
    assert image.blocks[0].attention.heads == 9 and image.offsets[5] == (0, 1)
    for name in ("ista_transformer", "IstaTransformer", "attention_error", "attention_leak"):
        assert getattr(networks, name) is globals()[name] and name in networks.__all__


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_transformer_keeps_dtype_and_random_state_and_can_be_trained(boundary):
    D = Conv1d(randn(3, 8).float() / 3, 4, boundary)
    state = torch.get_rng_state()
    network = ista_transformer(D, THETA, 3)
    assert torch.equal(state, torch.get_rng_state())
    y = signals(D, 4, (9,))
    codes = network(y)
    assert codes.dtype == torch.float32
    assert torch.equal(network(y[:, None]), codes) and torch.equal(network(y.numpy()), codes)
    parameters = dict(network.named_parameters())
    assert all(p.requires_grad and p.is_leaf for p in parameters.values())
    before = D.filters.clone()
    codes.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
    assert network.bias.grad != 0
    again = copy.deepcopy(network)
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert torch.equal(before, D.filters) and not torch.equal(network(y), codes)
    assert torch.equal(again(y), codes)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(y), network(y))
    assert network.double()(y.double()).dtype == DOUBLE
    with torch.no_grad():  # whichever kernel of torch's attention serves
        assert (network(y.double()) - again.double()(y.double())).abs().max() < ROUNDING


def test_gradients_are_right():
    D = convolution((2, 0, 5), 2, "zero")
    network, y = ista_transformer(D, [0.05, 0.02], 2), signals(D, 2, (4,)).requires_grad_()
    assert torch.autograd.gradcheck(network, y)


# ---------------------------------------------------------------- bad input

ONE = convolution((3, 0, 8), 4, "circular")
TWO = convolution((3, 2, 8), 4, "circular")
BAD = [
    (lambda: ista_transformer(Dense(randn(4, 8)), THETA, 3), "expected Conv1d or Conv2d"),
    (lambda: ista_transformer([ONE], THETA, 3), "operator is [Conv1d"),
    (lambda: ista_transformer(ONE, [0.1, -0.2], 3), "thresholds go down to -0.2"),
    (lambda: ista_transformer(ONE, 0.1, 3), "thresholds has shape ()"),
    (lambda: ista_transformer(ONE, [], 3), "thresholds has shape (0,)"),
    (lambda: ista_transformer(ONE, [math.nan], 3), "thresholds holds 1 NaN"),
    (lambda: ista_transformer(ONE, THETA, 0), "bias = 0, expected a finite number > 0"),
    (lambda: ista_transformer(ONE, THETA, -1.0), "bias = -1.0"),
    (lambda: ista_transformer(ONE, THETA, math.nan), "bias = nan"),
    (lambda: ista_transformer(ONE, THETA, math.inf), "bias = inf"),
    (lambda: ista_transformer(Conv1d(ONE.filters.float(), 4), THETA, 1e39), "bias = 1e+39"),
    (lambda: ista_transformer(ONE, THETA, 3, TWO), "W is Conv1d((3, 2, 8)"),
    (lambda: ista_transformer(ONE, THETA, 3, Conv1d(ONE.filters, 2)), "like the dictionary"),
    (lambda: ista_transformer(ONE, THETA, 3, Conv1d(ONE.filters.float(), 4)), "torch.float32"),
    (lambda: ista_transformer(ONE, THETA, 3)(randn(2, 30)), "y does not fit layer 1"),
    (lambda: ista_transformer(ONE, THETA, 3)(randn(2, 2, 32)), "expected (B, 1, N)"),
    (lambda: ista_transformer(TWO, THETA, 3)(randn(2, 32)), "expected (B, 2, N)"),
    (lambda: ista_transformer(ONE, THETA, 3)(randn(2, 32).float()), "torch.float32"),
    (lambda: ista_transformer(ONE, THETA, 3)(randn(2, 32) / 0), "NaN or infinite"),
    (lambda: ista_transformer(ONE, THETA, 3).attention(30), "size: a signal axis of 30"),
    (lambda: attention_leak(0), "bias = 0"),
    (lambda: attention_leak(1, 3), "axes = 3"),
    (lambda: attention_error(Dense(randn(4, 8)), 3), "expected Conv1d or Conv2d"),
    (lambda: attention_error(ONE, 3, 0), "active = 0"),
    (lambda: attention_error(ONE, 3, 4), "active = 4"),
    (lambda: attention_error(ONE, 3, bound=-1), "bound = -1"),
    (lambda: attention_error(ONE, 3, W=TWO), "like the dictionary"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
