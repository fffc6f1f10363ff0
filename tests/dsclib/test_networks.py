"""The network is the iteration; trained, it beats the solvers it came from."""

import copy
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from dsclib.analysis import analysis_weights
from dsclib.dictionaries import gaussian, incoherent_conv
from dsclib.dsc import DeepSparseModel
from dsclib.networks import IstaCNN, Lista, ista_cnn
from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.pursuit import ista, scheduled_ista
from dsclib.theory import threshold_schedule

DOUBLE = torch.float64
ROUNDING = 1e-12
STRIDES = [1, 2, 3, 4, 5, 6, 8]
BOUNDARIES = ["circular", "zero"]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def convolution(shape, stride, boundary, seed=0):
    """Random filters (C, K, *L) with atoms of length about 1; K = 0 for no channels."""
    C, K, *window = shape
    kind = Conv1d if len(window) == 1 else Conv2d
    filters = randn(C, *[K] * (K > 0), *window, seed=seed)
    return kind(filters / math.sqrt(filters[0].numel()), stride, boundary)


def iteration(y, D, thresholds, W=None, nonnegative=False):
    """The iteration in its own words."""
    W = D if W is None else W
    x = torch.zeros_like(D.analyze(y))
    for theta in thresholds:
        z = x + W.analyze(y - D.synthesize(x))
        x = (z - theta).relu()
        if not nonnegative:
            x = x - (-z - theta).relu()
    return x


def thresholds(steps, seed=0):
    return 0.2 * randn(steps, seed=seed).abs()


def shortest(window, stride, boundary, longer=0):
    """The shortest signal axes that the dictionary takes, longer by some strides."""
    least = [-(-L // stride) * stride if boundary == "circular" else L for L in window]
    return [n + longer * stride for n in least]


def has_no_factors(window, stride, boundary):
    return boundary == "zero" and stride == 1 and any(L % 2 == 0 for L in window)


def is_plain(network, kernel=None):
    """Conv and ReLU in turn, nothing else."""
    convolutions = (nn.Conv1d, nn.Conv2d)
    for i, layer in enumerate(network):
        assert isinstance(layer, nn.ReLU if i % 2 else convolutions)
        if kernel and not i % 2:
            assert set(layer.kernel_size) == {kernel}
    return True


def worst(network, y, codes):
    with torch.no_grad():
        answer = network(y)
    assert answer.shape == codes.shape and answer.dtype == codes.dtype
    return ((answer - codes).abs().max() / codes.abs().max().clamp(min=1)).item()


# ---------------------------------------------------------------- the network is the iteration


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("q", STRIDES)
def test_network_is_the_iteration_on_sequences(q, boundary):
    lengths = sorted({1, q, q + 1, 2 * q - 1, 2 * q, 2 * q + 1, 3 * q, 4 * q + 1})
    kinds = [(0, False), (5, False), (5, True)]
    for L, (longer, nonnegative) in itertools.product(lengths, kinds):
        D = convolution((3, 0, L), q, boundary)
        W = convolution((3, 0, L), q, boundary, seed=1) if longer else None
        y = 3 * randn(2, *shortest((L,), q, boundary, longer), seed=2)
        codes = iteration(y, D, thresholds(3), W, nonnegative)
        assert codes.any()
        for factor in (True, False):
            if factor and has_no_factors((L,), q, boundary):
                continue
            network = ista_cnn(D, thresholds(3), W, nonnegative=nonnegative, factor=factor)
            assert is_plain(network, 3 if factor else None)
            assert worst(network, y, codes) < ROUNDING, (L, longer, nonnegative, factor)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("q", STRIDES)
def test_network_is_the_iteration_on_images(q, boundary):
    windows = [(1, 1), (q, q), (2 * q, 2 * q), (q + 1, 2 * q), (3, 2 * q + 1), (1, 3 * q)]
    kinds = [(0, True), (1, False), (1, True)]
    for window, (longer, nonnegative) in itertools.product(windows, kinds):
        D = convolution((2, 2 * longer, *window), q, boundary)
        W = convolution((2, 2 * longer, *window), q, boundary, seed=1) if longer else None
        size = shortest(window, q, boundary, longer)
        y = 3 * randn(2, *[2] * longer, *size, seed=2)
        for factor in (True, False):
            if factor and has_no_factors(window, q, boundary):
                continue
            network = ista_cnn(D, thresholds(2), W, nonnegative=nonnegative, factor=factor)
            assert is_plain(network, 3 if factor else None)
            codes = iteration(y, D, thresholds(2), W, nonnegative)
            assert worst(network, y, codes) < ROUNDING, (window, longer, nonnegative, factor)


# shapes (C, K, *L) and strides, outermost first; every length odd where the stride is 1
CHAINS = [
    [((4, 0, 4), 2)],
    [((4, 2, 8), 4), ((3, 4, 4), 2)],
    [((4, 0, 5), 2), ((3, 4, 5), 1)],
    [((3, 0, 6), 3), ((4, 3, 2), 2), ((5, 4, 3), 1)],
    [((3, 0, 4, 4), 2), ((4, 3, 3, 2), 2)],
    [((2, 3, 3, 3), 1), ((3, 2, 4, 2), 2), ((2, 3, 3, 3), 1)],
]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("layers", CHAINS, ids=lambda layers: f"{layers}")
def test_chain_of_dictionaries_is_one_network(layers, boundary):
    chain = [convolution(shape, q, boundary, seed=j) for j, (shape, q) in enumerate(layers)]
    weights = [convolution(shape, q, boundary, seed=9 + j) for j, (shape, q) in enumerate(layers)]
    weights[0] = None
    size = [24] * len(chain[0].reach)
    if boundary == "zero":
        size = [3] * len(size)
        for D in reversed(chain):
            windows = D.filters.shape[-len(size) :]
            size = [(t - 1) * D.stride + L for t, L in zip(size, windows)]
    y = randn(3, *[chain[0].channels] * (chain[0].channels is not None), *size, seed=5)
    theta = [thresholds(2 + j, seed=j) for j in range(len(chain))]
    for W, nonnegative, factor in itertools.product((None, weights), (False, True), (False, True)):
        network = ista_cnn(chain, theta, W, nonnegative=nonnegative, factor=factor)
        assert is_plain(network, 3 if factor else None)
        x = y
        for D, V, t in zip(chain, W or [None] * len(chain), theta):
            x = iteration(x, D, t, V, nonnegative)
        assert worst(network, y, x) < ROUNDING
    model = ista_cnn(DeepSparseModel(chain), theta)
    assert torch.equal(model(y), ista_cnn(chain, theta)(y))


CONV = Conv1d(incoherent_conv(12, 16, 8, seed=0, iterations=300, dtype=DOUBLE), 8)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_network_answers_as_scheduled_ista(steps):
    D = CONV
    theta = threshold_schedule(D.local_matrix(), 4, steps).thresholds
    y = D.synthesize(randn(2, 12, 40).where(randn(2, 12, 40, seed=1) > 2.4, 0.0))
    codes = scheduled_ista(y, D, theta).codes
    network = ista_cnn(D, theta)
    assert worst(network, y, codes) < ROUNDING
    assert torch.equal(network(y), network(y[:, None])) and torch.equal(
        network(y), network(y.numpy())
    )
    # 4 layers of kernel 3 for the filters of length 16 at stride 8, a layer a step, one to end
    assert len(network) == 2 * (4 + (steps - 1) + 1) - 1
    assert [layer.stride[0] for layer in network[:8:2]] == [2, 2, 2, 1]
    assert len(ista_cnn(D, theta, nonnegative=True)) == 2 * (4 + (steps - 1))
    assert len(ista_cnn(D, theta, factor=False)) == 2 * (steps + 1) - 1


def test_a_step_is_the_matrix_in_the_docstring():
    D = convolution((3, 0, 8), 4, "zero")
    M = torch.eye(15).double() - D.to_matrix(24).T @ D.to_matrix(24)  # 5 positions
    step = ista_cnn(D, [0.3, 0.1, 0.2], factor=False)[2]
    columns = step(torch.eye(60).double().unflatten(1, (12, 5))) - step.bias[:, None]
    assert (step.bias[:6] == -0.1).all() and not step.bias[6:].any()
    O, I = torch.zeros_like(M), torch.eye(15).double()
    blocks = [[M, -M, I, -I], [-M, M, -I, I], [O, O, I, O], [O, O, O, I]]
    rows = torch.vstack([torch.hstack(row) for row in blocks])
    assert (columns.flatten(1).T - rows).abs().max() < ROUNDING


def test_filters_may_lie_in_memory_as_they_like():
    D = Conv1d(gaussian(4, 16, dtype=DOUBLE, seed=0).T, 4)  # a transposed matrix
    y, theta = randn(3, 32), thresholds(3)
    assert (ista_cnn(D, theta)(y) - iteration(y, D, theta)).abs().max() < ROUNDING


def test_zero_taps_of_filters_cost_no_channels():
    filters = randn(3, 16)
    filters[:, 2:] = 0
    sparse = ista_cnn(Conv1d(filters, 8), thresholds(2))
    assert sparse[4].out_channels == 4  # [u+; u-] at two places
    nothing = Conv1d(torch.zeros(3, 16), 8)
    assert not ista_cnn(nothing, [0.1, 0.1])(torch.ones(2, 32)).any()


def test_network_keeps_dtype_and_random_state_and_can_be_trained():
    D = Conv1d(randn(3, 8).float() / 3, 4)
    state = torch.get_rng_state()
    network = ista_cnn(D, [0.1, 0.05, 0.02])
    assert torch.equal(state, torch.get_rng_state())
    y = randn(4, 32).float()
    codes = network(y)
    assert codes.dtype == torch.float32
    assert torch.allclose(codes, iteration(y, D, [0.1, 0.05, 0.02]), atol=1e-5)
    parameters = list(network.parameters())
    assert all(p.requires_grad and p.is_leaf for p in parameters)
    codes.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    before = D.filters.clone()
    torch.optim.SGD(parameters, 0.1).step()
    assert torch.equal(before, D.filters) and not torch.equal(network(y), codes)
    again = copy.deepcopy(network)
    assert again.operators and torch.equal(again(y), network(y))
    assert network.double()(y.double()).dtype == DOUBLE


def test_gradient_reaches_the_signals():
    D = convolution((2, 0, 5), 2, "circular")
    network, y = ista_cnn(D, [0.05, 0.02]), randn(1, 8).requires_grad_()
    theirs = torch.autograd.grad(iteration(y, D, [0.05, 0.02]).square().sum(), y)[0]
    ours = torch.autograd.grad(network(y).square().sum(), y)[0]
    assert (theirs - ours).abs().max() < ROUNDING


def test_a_slice_is_a_plain_chain_of_layers():
    network = ista_cnn(convolution((3, 0, 8), 4, "circular"), thresholds(3))
    y = randn(2, 24)
    head, tail = network[:5], network[5:]
    assert isinstance(head, IstaCNN) and not head.operators
    assert torch.equal(tail(head(y[:, None])), network(y))


# ---------------------------------------------------------------- LISTA

D32 = gaussian(40, 80, seed=0)
W32 = analysis_weights(D32)


def test_untrained_lista_is_ista():
    D = D32.double()
    Y = randn(6, 40)
    codes = {}
    ista(Y, D, 0.2, tol=None, max_iterations=7, callback=codes.__setitem__)
    iterates = Lista(D, 7, lam=0.2).iterates(Y)
    assert len(iterates) == 8
    for k, x in enumerate(iterates):
        assert (x - codes[k]).abs().max() < ROUNDING


@pytest.mark.parametrize("train_weights", [False, True])
def test_untrained_alista_is_scheduled_ista(train_weights):
    D, Y, W = D32.double(), randn(6, 40), W32.double()
    network = Lista(D, 5, lam=0.1, W=W, train_weights=train_weights)
    codes = scheduled_ista(Y, D, [0.1] * 5, W).codes
    assert (network(Y) - codes).abs().max() < ROUNDING
    assert torch.equal(network(Y), network(Y.numpy()))
    names = {name for name, _ in network.named_parameters()}
    assert names == {"step_sizes", "raw_thresholds"} | ({"W"} if train_weights else set())
    again = Lista(D, 5, train_weights=train_weights)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(Y), network(Y))


def test_lista_thresholds_stay_positive_and_large_ones_are_exact():
    network = Lista(D32, 3, lam=1e-3)
    with torch.no_grad():
        network.raw_thresholds -= 50
    assert (network.thresholds > 0).all()
    assert Lista(D32, 1, lam=500.0, W=D32).thresholds.item() == pytest.approx(500)


def sparse(count, s, gen):
    places = torch.rand(count, 80, generator=gen).topk(s, dim=1).indices
    return torch.zeros(count, 80).scatter(1, places, torch.randn(count, s, generator=gen))


def train(network, D, s, gen, steps=200, lr=3e-2, batch=128):
    """Adam on fresh signals, the learning rate falling to zero along a cosine."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = sparse(batch, s, gen)
        loss = (network(x @ D.T) - x).square().sum() / batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def best(Y, X, D, steps, momentum):
    """Smallest relative error of ISTA or FISTA over a grid of penalties."""
    L, errors = Dense(D).lipschitz(), []
    for lam in np.logspace(-3, 0.3, 23):
        x = v = torch.zeros_like(X)
        t = 1.0
        for _ in range(steps):
            z = v + (Y - v @ D.T) @ D / L
            new, faster = z - z.clamp(-lam / L, lam / L), (1 + math.sqrt(1 + 4 * t * t)) / 2
            v = new + momentum * (t - 1) / faster * (new - x)
            x, t = new, faster
        errors.append(error(x, X))
    assert 0 < np.argmin(errors) < len(errors) - 1
    return min(errors)


def error(x, X):
    return ((x - X).square().sum() / X.square().sum()).item()


@pytest.mark.parametrize("seed, s, steps", [(0, 4, 6), (1, 5, 5), (2, 6, 8)])
def test_trained_lista_beats_ista_and_fista_on_new_signals(seed, s, steps):
    D = gaussian(40, 80, seed=seed)
    X = sparse(1000, s, torch.Generator().manual_seed(100 + seed))
    Y, gen = X @ D.T, torch.Generator().manual_seed(seed)
    slow, fast = best(Y, X, D, steps, 0), best(Y, X, D, steps, 1)
    lista = Lista(D, steps)
    train(lista, D, s, gen)
    alista = Lista(D, steps, W=analysis_weights(D), train_weights=False)
    train(alista, D, s, gen)
    with torch.no_grad():
        learned, analytic = error(lista(Y), X), error(alista(Y), X)
    assert fast < slow
    assert analytic < 0.6 * fast, (analytic, fast, slow)
    assert learned < 0.15 * fast, (learned, fast, slow)


# ---------------------------------------------------------------- what is refused

LINE = Conv1d(torch.ones(3, 4) / 2, 2)
DEEP = [LINE, Conv1d(torch.ones(2, 3, 4) / 4, 2)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((D32, [0.1]), "operator is Dense(m=40, n=80), expected Conv1d or Conv2d"),
        (([LINE, LINE], [[0.1]] * 2), "layer 2 has no channels, expected 3"),
        (([], []), "empty"),
        ((DEEP, [[0.1]]), "thresholds: 1, expected a list of 2"),
        ((DEEP, 0.1), "thresholds: 0.1, expected a list of 2"),
        ((DEEP, [[0.1]] * 2, LINE), "W: Conv1d((3, 4), stride=2, boundary='circular'), expected"),
        ((DEEP, [[0.1], [-0.1]]), "thresholds of layer 2 go down to -0.1, expected all >= 0"),
        ((LINE, [-0.1]), "thresholds go down to -0.1, expected all >= 0"),
        ((LINE, 0.1), "thresholds has shape (), expected 1 axes (K,)"),
        ((LINE, []), "thresholds has shape (0,)"),
        ((LINE, [math.nan]), "thresholds holds 1 NaN"),
        ((LINE, [0.1], D32), "W is tensor"),
        ((LINE, [0.1], Conv1d(torch.ones(3, 4), 4)), "W is Conv1d((3, 4), stride=4"),
        ((LINE, [0.1], Conv1d(torch.ones(3, 4).double(), 2)), "W is torch.float64 on cpu"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ista_cnn(*arguments)


def test_even_filters_at_stride_one_with_zero_boundary_have_no_factors():
    for D in Conv1d(torch.ones(2, 4), 1, "zero"), Conv2d(torch.ones(2, 3, 2), 1, "zero"):
        with pytest.raises(ValueError, match="expected odd sizes.*factor=False"):
            ista_cnn(D, [0.1])
        assert ista_cnn(D, [0.1], factor=False)


@pytest.mark.parametrize(
    "y, message",
    [
        (torch.ones(2, 7), "y does not fit layer 1, Conv1d"),
        (torch.ones(2, 6), "y does not fit layer 2, Conv1d"),
        (torch.ones(8), "y has shape (8,), expected (B, 1, N)"),
        (torch.ones(2, 3, 8), "y has shape (2, 3, 8), expected (B, 1, N)"),
        (torch.ones(2, 8).double(), "y is torch.float64 on cpu but network is torch.float32"),
        (torch.full((2, 8), math.inf), "y holds 16 NaN or infinite"),
    ],
)
def test_signals_that_do_not_fit_are_refused(y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ista_cnn(DEEP, [[0.1], [0.1]])(y)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((D32[0], 3), {}, "D has shape (80,)"),
        ((torch.zeros(4, 8), 3), {}, "D is zero"),
        ((D32, 0), {}, "steps = 0, expected at least 1"),
        ((D32, 3), {"lam": 0.0}, "lam = 0.0, expected a finite number > 0"),
        ((D32, 3), {"W": D32[:, :9]}, "W has shape (40, 9)"),
    ],
)
def test_lista_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Lista(*arguments, **options)
    with pytest.raises(ValueError, match="Y|y"):
        Lista(D32, 2)(torch.ones(3, 80))
