"""Blocks of mixer and MLP are the iteration, up to what leaks, and the bounds on that hold."""

import functools
import itertools
import math
import pickle
import re

import pytest
import torch
from torch import nn

from dsclib import networks, transformers
from dsclib.analysis import analysis_filters
from dsclib.codes import local_codes
from dsclib.coherence import babel
from dsclib.dictionaries import incoherent_conv
from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.proximal import nonnegative_soft_threshold, soft_threshold
from dsclib.pursuit import scheduled_ista
from dsclib.theory import rate, threshold_schedule
from dsclib.transformers import (
    IstaBlock,
    IstaTransformer,
    OffsetAttention,
    OffsetConvolution,
    attention_error,
    attention_leak,
    ista_encoder,
    ista_transformer,
)

DOUBLE = torch.float64
ROUNDING = 1e-12
BOUNDARIES = ["circular", "zero"]
BIASES = [0.5, 2, 6, 32]
THETA = [0.3, 0.2, 0.1, 0.1]
INEXACT = ["softplus", "silu", "gelu", "elu", "sigmoid", "tanh"]
ACTIVATIONS = ["relu", "leaky_relu", *INEXACT]


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
    ((5, 0, 16), 8, [(2,), (3,), (17,)]),
    ((4, 2, 5), 5, [(1,), (6,)]),
    ((3, 0, 11), 4, [(3,), (9,)]),
    ((3, 3, 3), 1, [(3,), (8,)]),
    ((4, 0, 4, 4), 2, [(2, 2), (3, 5)]),
    ((3, 2, 3, 5), 2, [(6, 4)]),
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
    for grid, bias in zip(grids, itertools.cycle([2, 0.5])):
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
                    assert math.log(other) == pytest.approx(best - bias * sum(apart))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_error_of_attention_is_below_its_bound(shape, q, grids, boundary):
    """States of size B + eta in so many entries of a token and eta in all others."""
    D, W = convolution(shape, q, boundary), convolution(shape, q, boundary, seed=1)
    C, bound, worst = len(D.filters), 3, 0
    bias = 2
    for grid, active, eta in itertools.product(grids, (1, C), (0, 0.4)):
        network = ista_transformer(D, [0.1], bias, W)
        x = randn(20, C, *grid).sign() * (bound + eta)
        off = randn(20, C, *grid, seed=1).argsort(dim=1) >= active
        x = torch.where(off, eta / (bound + eta) * x, x)
        h = torch.cat([x, randn(*x.shape, seed=2)], dim=1).flatten(2).transpose(1, 2)
        with torch.no_grad():
            answer = network.blocks[0].mixer(h, network._logits(grid))
        assert not answer[..., C:].any()
        answer = answer[..., :C].transpose(1, 2).unflatten(2, grid)
        error = (answer + W.analyze(D.synthesize(x))).abs().max().item()
        tau = attention_error(D, bias, active, bound, W, eta)
        assert error <= tau + ROUNDING
        worst = max(worst, error / tau)
        leaked = attention_error(D, bias, None, eta, W)
        assert tau == pytest.approx(attention_error(D, bias, active, bound, W) + leaked)
    assert worst > 0.2  # the bound is of the right size


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_error_bound_is_attained(eta):
    """Taps -0.48, 1, -0.48 and a state that alternates: all heads err the same way."""
    D, bias = Conv1d(torch.tensor([[0.6, -0.8]], dtype=DOUBLE), 1), 8.0
    x = (1 + eta) * torch.tensor([1.0, -1.0], dtype=DOUBLE).repeat(20)[None, None]
    network = ista_transformer(D, [0.1], bias)
    h = torch.cat([x, x], dim=1).transpose(1, 2)
    answer = network.blocks[0].mixer(h, network._logits((40,)))[0, :, 0]
    error = (answer + D.analyze(D.synthesize(x))[0, 0]).abs().max().item()
    bound = attention_error(D, bias, eta=eta)
    assert bound == pytest.approx(2 * attention_leak(bias) * (1 + 2 * 0.48) * (1 + eta))
    assert 0.999 * bound < error <= bound


# ---------------------------------------------------------------- the MLP


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_the_threshold_up_to_eta(activation, nonnegative):
    """z is carried exactly, by ELU up to as much again as its threshold is off."""
    T = networks.approximate_threshold(activation, 20.0)
    D = Conv1d(torch.ones(1, 1, dtype=DOUBLE), 1)
    exact, worst = nonnegative_soft_threshold if nonnegative else soft_threshold, 0.0
    grid = torch.linspace(-3, 3, 121, dtype=DOUBLE)
    z, b = grid.repeat_interleave(121), 2 * grid.repeat(121)
    for theta in (0.0, 0.035, 1.0):
        options = {"nonnegative": nonnegative, "threshold": T}
        network = ista_encoder(D, [theta], ["convolution"], **options)
        assert network.eta == (2 if activation == "elu" else 1) * T.eta
        h = torch.stack([z, b], dim=1)[None]
        with torch.no_grad():
            h = h + network.blocks[0].mlp(h)
        assert torch.equal(h[0, :, 1], b)
        off = h[0, :, 0] - exact(z + b, theta)
        assert off.abs().max() <= network.eta * (1 + 1e-9) + ROUNDING
        worst = max(worst, off.abs().max().item())
        carried = h[0, :, 0] - T(z + b, theta, nonnegative)
        if activation != "elu":
            assert T.carries and carried.abs().max() < ROUNDING
    assert worst >= (0.99 if activation == "elu" else 0.8) * network.eta


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_convolutions_make_the_iteration_of_any_activation(shape, q, grids, boundary):
    D, V = convolution(shape, q, boundary), convolution(shape, q, boundary, seed=1)
    for grid, W, nonnegative in zip(grids * 2, (None, V, V, None), (False, True) * 2):
        y = signals(D, 4, grid)
        for activation in ("leaky_relu", "gelu"):
            T = networks.approximate_threshold(activation, 20.0)
            options = {"W": W, "nonnegative": nonnegative, "threshold": T}
            codes = scheduled_ista(y, D, THETA, **options).codes
            with torch.no_grad():
                answer = ista_encoder(D, THETA, ["convolution"] * 4, **options)(y)
            assert codes.any() and (answer - codes).abs().max() < ROUNDING


def test_attention_and_convolution_take_turns():
    """Where the bias is large nobody can tell who mixed; where it is small one can."""
    D = convolution((4, 0, 4, 4), 2, "zero")
    y = signals(D, 3, (3, 5))
    codes = scheduled_ista(y, D, THETA).codes
    for mixers in itertools.product(["attention", "convolution"], repeat=4):
        network = ista_encoder(D, THETA, mixers, 40.0)
        kinds = {"attention": OffsetAttention, "convolution": OffsetConvolution}
        assert [type(block.mixer) for block in network.blocks] == [kinds[m] for m in mixers]
        with torch.no_grad():
            assert (network(y) - codes).abs().max() < 1e-10
            steps = ista_encoder(D, THETA, mixers, 1.0).iterates(y)
        # the first block mixes zeros, of which nothing leaks
        first = next((k for k in range(1, 4) if mixers[k] == "attention"), 4)
        for k, x in enumerate(steps[1:], start=1):
            same = scheduled_ista(y, D, THETA[:k]).codes
            assert ((x - same).abs().max() < ROUNDING) == (k <= first)


# ---------------------------------------------------------------- the transformer is the iteration


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape, q, grids", KINDS, ids=str)
def test_transformer_is_the_iteration_when_the_bias_is_large(shape, q, grids, boundary):
    D, V = convolution(shape, q, boundary), convolution(shape, q, boundary, seed=1)
    for grid, W, nonnegative in zip(grids * 2, (None, V, V, None), (False, True) * 2):
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
    for grid, bias in itertools.product(grids, [0.5, 6]):
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
    "sequence": (Conv1d(ATOMS, 8), 4, (10,)),
    "sequence, zero": (Conv1d(ATOMS, 8, "zero"), 4, (9,)),
    "short": (Conv1d(ATOMS, 8), 4, (3,)),
    "weights": (Conv1d(ATOMS, 8), 3, (12,)),
    "image": (Conv2d(IMAGE_ATOMS, 6), 2, (4, 4)),
    "image, zero": (Conv2d(IMAGE_ATOMS, 6, "zero"), 2, (3, 4)),
}
STEPS = 6


@functools.cache
def weights_for(name):
    D, *_ = CERTIFIED[name]
    return Conv1d(analysis_filters(D.filters, D.stride), D.stride) if name == "weights" else None


@functools.cache
def instances(name, nonnegative=False):
    """Codes with at most s entries a stripe, of size up to 1, and noise of size 1."""
    D, s, grid = CERTIFIED[name]
    x = torch.cat(
        [
            local_codes(D, 25, grid, s, magnitudes=low, nonnegative=nonnegative, seed=seed)
            for seed, low in enumerate([(1.0, 1.0), (0.2, 1.0)])
        ]
    ).double()
    assert D.local_sparsity(x).max() == s
    e = signals(D, len(x), grid)
    size = (weights_for(name) or D).analyze(e).abs().flatten(1).amax(dim=1)
    return x.clamp(-1, 1), e / size.reshape(-1, *[1] * len(grid))


def assert_theorem(name, mixers, bias, activation, gain, sigma, nonnegative):
    """Error <= E_k, leak <= eta, states within B + eta; the largest error over its bound."""
    (D, s, _), W = CERTIFIED[name], weights_for(name)
    x, e = instances(name, nonnegative)
    T = networks.approximate_threshold(activation, gain, slope=0.2)
    eta = T.eta if T.carries else 2 * T.eta
    tau = attention_error(D, bias, s, 1.0, W, eta) if bias else 0.0
    schedule = threshold_schedule(D, s, STEPS, 1.0, sigma + tau, W, eta=eta)
    network = ista_encoder(
        D, schedule.thresholds, mixers, bias, W, nonnegative=nonnegative, threshold=T
    )
    assert network.eta == eta
    with torch.no_grad():
        iterates = network.iterates(D.synthesize(x) + sigma * e)
    worst = 0.0
    for k, codes in enumerate(iterates):
        error = (codes - x).abs().max().item()
        assert error <= schedule.errors[k] + ROUNDING
        assert codes[x == 0].abs().max() <= eta + ROUNDING
        assert (codes.abs() <= x.abs() + eta + ROUNDING).all()
        worst = max(worst, error / schedule.errors[k].item() if k else 0.0)
    return worst, iterates, schedule, tau


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("name", CERTIFIED)
def test_the_theorem_with_attention_for_noise(name, nonnegative):
    (D, s, _), W = CERTIFIED[name], weights_for(name)
    x, e = instances(name, nonnegative)
    mu = babel(D.local_matrix(), s - 1, None if W is None else W.local_matrix())
    for sigma, bias in (0.02, 3.0), (0.0, 6.0), (0.02, 30.0):
        given = ["attention"] * STEPS, bias, "relu", 1.0, sigma, nonnegative
        worst, iterates, schedule, tau = assert_theorem(name, *given)
        exact = []
        scheduled_ista(
            D.synthesize(x) + sigma * e, D, schedule.thresholds, W, nonnegative=nonnegative,
            callback=lambda k, codes, exact=exact: exact.append(codes),
        )  # fmt: skip
        for k, (codes, theirs) in enumerate(zip(iterates, exact)):
            assert not codes[x == 0].any()
            assert (codes - theirs).abs().max() <= tau * (1 - mu**k) / (1 - mu) + ROUNDING
        rho = rate(D, s, W)
        last = rho**STEPS + 2 * (sigma + tau) * (1 - rho**STEPS) / (1 - rho)
        assert schedule.errors[-1].item() == pytest.approx(last)
        assert worst > 0.5 or bias < 6


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_theorem_with_any_activation_and_any_mixer(activation, nonnegative):
    turns = ["convolution", "attention", "attention"] * (STEPS // 3)
    convolutions = ["convolution"] * STEPS
    for name, bias in itertools.product(["sequence, zero", "weights", "image"], [6.0, None]):
        mixers, gain, sigma = (turns, 50.0, 0.0) if bias else (convolutions, 1000.0, 0.02)
        given = mixers, bias, activation, gain, sigma, nonnegative
        worst, *_ = assert_theorem(name, *given)
        assert worst > 0.5


def test_thresholds_that_are_not_raised_let_wrong_atoms_in():
    D, s, grid = CERTIFIED["sequence"]
    s, steps, bias = 2, 20, 5.0
    x = local_codes(D, 50, grid, s, magnitudes=(1.0, 1.0), seed=0).double()
    y, mixers = D.synthesize(x), ["attention"] * steps

    def largest_wrong(noise, eta, **options):
        theta = threshold_schedule(D, s, steps, noise=noise, eta=eta).thresholds
        with torch.no_grad():
            return ista_encoder(D, theta, mixers, bias, **options)(y)[x == 0].abs().max().item()

    assert largest_wrong(0.0, 0.0) > 1e-4
    assert largest_wrong(attention_error(D, bias, s), 0.0) == 0
    T = networks.approximate_threshold("elu", 200.0)
    eta = 2 * T.eta
    tau = attention_error(D, bias, s, eta=eta)
    assert largest_wrong(tau, eta, threshold=T) <= eta
    assert largest_wrong(0.0, eta, threshold=T) > eta or largest_wrong(0.0, 0.0, threshold=T) > eta


# ---------------------------------------------------------------- a module as torch knows them


def test_blocks_are_transformer_blocks():
    D = convolution((5, 0, 16), 8, "circular")
    network = ista_transformer(D, THETA, 6)
    assert isinstance(network, IstaTransformer) and len(network.blocks) == len(THETA)
    assert network.offsets == [(-1,), (0,), (1,)]
    for block in network.blocks:
        assert isinstance(block, IstaBlock) and isinstance(block.mixer, OffsetAttention)
        assert block.mixer.heads == 3
        assert [type(layer) for layer in block.mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    image = ista_transformer(convolution((3, 0, 4, 4), 2, "circular"), THETA, 6)
    assert image.blocks[0].mixer.heads == 9 and image.offsets[5] == (0, 1)
    turns = ista_encoder(D, THETA, ["attention", "convolution"] * 2, 6)
    gelu = networks.approximate_threshold("gelu", 3.0)
    assert "gelu" in repr(ista_encoder(D, THETA, ["convolution"] * 4, threshold=gelu))
    assert turns.bias == 6 and ista_encoder(D, THETA, ["convolution"] * 4, 6).bias is None
    for name in transformers.__all__:
        assert getattr(networks, name) is getattr(transformers, name) and name in networks.__all__


@pytest.mark.parametrize("boundary, activation", [("circular", "relu"), ("zero", "gelu")])
def test_transformer_keeps_dtype_and_random_state_and_can_be_trained(boundary, activation):
    D = Conv1d(randn(3, 8).float() / 3, 4, boundary)
    state = torch.get_rng_state()
    mixers, T = ["attention", "convolution"] * 2, networks.approximate_threshold(activation, 5.0)
    network = ista_encoder(D, THETA, mixers, 3, threshold=T)
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
    again = pickle.loads(pickle.dumps(network))
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
    y = signals(D, 2, (4,)).requires_grad_()
    for activation in "relu", "silu":
        T = networks.approximate_threshold(activation, 5.0)
        mixers = ["convolution", "attention"]
        network = ista_encoder(D, [0.05, 0.02], mixers, 2, threshold=T)
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
    (lambda: ista_encoder(ONE, THETA, "attention", 3), "mixers: 'attention', expected 4 names"),
    (lambda: ista_encoder(ONE, THETA, None, 3), "mixers: None, expected 4 names"),
    (lambda: ista_encoder(ONE, THETA, ["attention"], 3), "mixers: 1 names, expected 4 names"),
    (lambda: ista_encoder(ONE, [0.1], ["conv"], 3), "mixers = 'conv', expected one of"),
    (lambda: ista_encoder(ONE, [0.1], ["attention"]), "bias = None, expected a finite number"),
    (
        lambda: ista_encoder(ONE, [0.1], ["convolution"], threshold="gelu"),
        "threshold is 'gelu', expected what approximate_threshold",
    ),
    (
        lambda: ista_encoder(ONE, [0.1], ["convolution"]).attention(32),
        "mixers are all 'convolution'",
    ),
    (lambda: ista_encoder(ONE, [0.1], ["convolution"])(randn(2, 30)), "y does not fit layer 1"),
    (lambda: attention_error(ONE, 3, eta=-1), "eta = -1"),
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
