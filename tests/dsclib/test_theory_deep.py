"""The theorem with depth: tens of thousands of problems, every step of every layer checked."""

import itertools
import math

import pytest
import torch

from dsclib.coherence import cumulative_coherence
from dsclib.dictionaries import (
    analysis_weights,
    group_incoherent,
    group_orthonormal,
    incoherent,
    incoherent_conv,
)
from dsclib.networks import approximate_threshold
from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.pursuit import scheduled_ista
from dsclib.theory import (
    deep_error_bound,
    deep_schedule,
    input_gain,
    rate,
    threshold_schedule,
)

DOUBLE = torch.float64
ROUNDING = 1e-12
SPLIT = 2000  # signals at a time: more would not fit the processor's cache


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small problems: on a busy machine threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- models


def ring(blocks, step, profile, d=1, seed=0):
    """Sparse atoms: group g sits on the blocks from g * step on, wrapped, as a_k Q_k each.

    With step < len(profile) neighbours share blocks, so the groups are not orthogonal.
    """
    gen, G = torch.Generator().manual_seed(seed), blocks // step
    sizes = torch.tensor(profile, dtype=DOUBLE)
    D = torch.zeros(blocks, d, G, d, dtype=DOUBLE)
    for g, (k, a) in itertools.product(range(G), enumerate(sizes / sizes.norm())):
        Q = torch.linalg.qr(torch.randn(d, d, generator=gen, dtype=DOUBLE)).Q
        sign = 1 - 2 * torch.randint(2, (), generator=gen)
        D[(g * step + k) % blocks, :, g] = sign * a * Q
    return D.reshape(blocks * d, G * d)


def sparse_conv(C, channels, seed=0):
    """Filters of length 4 for stride 2, on two taps of one channel that their shifts share."""
    f = torch.zeros(C, channels, 4, dtype=DOUBLE)
    places = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))[:C]
    f[torch.arange(C), places, 0] = 0.15
    f[torch.arange(C), places, 2] = -math.sqrt(1 - 0.15**2)
    return Conv1d(f, 2)


# name: dictionaries, active groups a layer (as many as the atoms of the next layer need),
# group size, positions of the deepest code for depth 1, 2, 3
MODELS = {
    "dense": (
        [incoherent(72, 80, seed=0, dtype=DOUBLE), ring(80, 2, (1, 4, 1)), ring(40, 1, (1, 6))],
        (6, 2, 1),
        1,
        None,
    ),
    "convolution": (
        [
            Conv1d(incoherent_conv(10, 16, 8, seed=0, dtype=DOUBLE), 8),
            sparse_conv(6, 10),
            sparse_conv(5, 6),
        ],
        (4, 2, 1),
        1,
        (8, 4, 4),
    ),
    "group": (
        [
            group_incoherent(48, 28, 2, seed=0, dtype=DOUBLE),
            ring(28, 1, (1, 6), 2),
            ring(28, 1, (1, 6), 2, seed=1),
        ],
        (4, 2, 1),
        2,
        None,
    ),
    "random subspaces": (
        [group_orthonormal(300, 12, 3, seed=0, dtype=DOUBLE), ring(12, 1, (1, 6), 3)],
        (2, 1),
        3,
        None,
    ),
}


def operator(D):
    return D if isinstance(D, Conv1d) else Dense(D)


def group_norms(x, d):
    return x.abs() if d == 1 else x.unflatten(-1, (-1, d)).norm(dim=-1)


def sizes_up_to_one(*shape, gen):
    """Every third signal has all its sizes 1, the others any from 0 to 1."""
    sizes = torch.rand(*shape, dtype=DOUBLE, generator=gen)
    sizes[::3] = 1
    return sizes


def random_codes(D, s, d, count, positions, gen):
    """Codes with s active groups, or with s active atoms in a stripe of three positions."""
    if isinstance(D, Conv1d):
        # s atoms at the first two of every four positions: no stripe meets two such sets
        C = len(D.filters)
        quads = torch.zeros(count, positions // 4, 4 * C, dtype=DOUBLE)
        places = torch.rand(count, positions // 4, 2 * C, generator=gen).topk(s).indices
        sizes = sizes_up_to_one(*places.shape, gen=gen)
        signs = 1 - 2 * torch.randint(2, places.shape, generator=gen)
        quads.scatter_(2, places, signs * sizes)
        return quads.reshape(count, positions, C).mT.contiguous()
    G = D.shape[1] // d
    support = torch.rand(count, G, generator=gen).topk(s).indices
    values = torch.randn(count, s, d, dtype=DOUBLE, generator=gen)
    values /= values.norm(dim=2, keepdim=True)
    values *= sizes_up_to_one(count, s, 1, gen=gen)
    x = torch.zeros(count, G, d, dtype=DOUBLE)
    return x.scatter_(1, support[..., None].expand(-1, -1, d), values).flatten(1)


def noise_like(x, relative, gen, where=None):
    e = torch.randn(x.shape, dtype=DOUBLE, generator=gen)
    e = e if where is None else e * where
    lengths = [t.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) for t in (x, e)]
    return relative * lengths[0] / lengths[1] * e


def deep_signals(dictionaries, deepest, relative, gen):
    """Signals, the codes x_1, ..., x_J and the errors e_0 + e_1, e_2, ..., e_J."""
    codes, errors = [deepest], []
    for D in reversed(dictionaries[1:]):
        clean = operator(D).synthesize(codes[0])
        errors.insert(0, noise_like(clean, relative, gen, where=clean != 0))
        codes.insert(0, clean + errors[0])
    clean = operator(dictionaries[0]).synthesize(codes[0])
    e1 = noise_like(clean, relative, gen)
    errors.insert(0, e1 + noise_like(clean + e1, relative, gen))
    return clean + errors[0], codes, errors


def measured(dictionaries, codes, errors, d, weights=None):
    """The smallest B_j and eta_j that cover all the instances."""
    weights = dictionaries if weights is None else weights
    bounds = [group_norms(x, d).max().item() for x in codes]
    noise = [group_norms(operator(W).analyze(e), d).max().item() for W, e in zip(weights, errors)]
    return bounds, noise


def worst_ratio(
    dictionaries, schedules, signals, codes, d=1, weights=None, nonnegative=False, inexact=None
):
    """Run the layers one after the other; assert the theorem at every step of each.

    ``inexact`` holds a threshold and its eta for every layer. Returns the largest error over
    bound.
    """
    worst = 0.0
    inexact = [(None, 0.0)] * len(dictionaries) if inexact is None else inexact
    weights = [None] * len(dictionaries) if weights is None else weights
    for first in range(0, len(signals), SPLIT):
        found = signals[first : first + SPLIT]
        for D, W, schedule, x, (T, eta) in zip(dictionaries, weights, schedules, codes, inexact):
            true = x[first : first + SPLIT]
            off = group_norms(true, d) == 0

            def check(k, code, true=true, off=off, bounds=schedule.errors, eta=eta):
                nonlocal worst
                false = torch.where(off, group_norms(code, d), 0.0).max()
                assert false <= eta + ROUNDING, f"false activation at step {k}"
                error = group_norms(code - true, d).max()
                assert error <= bounds[k] + ROUNDING, f"bound broken at step {k}"
                if k > 0 and bounds[k] > 1e-6:  # below, rounding is all there is to compare
                    worst = max(worst, (error / bounds[k]).item())

            found = scheduled_ista(
                found, D, schedule.thresholds, W, d, nonnegative, check, threshold=T
            ).codes
    return worst


# ---------------------------------------------------------------- the theorem with depth


def run_model(name, depth, relative, count, steps, positions=None, seed=0):
    dictionaries, sparsity, d, lengths = MODELS[name]
    dictionaries, sparsity = dictionaries[:depth], sparsity[:depth]
    gen = torch.Generator().manual_seed(seed)
    positions = positions or (lengths and lengths[depth - 1])
    deepest = random_codes(dictionaries[-1], sparsity[-1], d, count, positions, gen)
    signals, codes, errors = deep_signals(dictionaries, deepest, relative, gen)
    for D, s, x in zip(dictionaries, sparsity, codes):
        assert rate(D, s, group_size=d) < 1
        active = group_norms(x, d) != 0
        counted = D.local_sparsity(x) if name == "convolution" else active.sum(dim=1)
        assert counted.max() <= s
    bounds, noise = measured(dictionaries, codes, errors, d)
    schedules = deep_schedule(dictionaries, sparsity, steps, bounds, noise, group_size=d)
    return worst_ratio(dictionaries, schedules, signals, codes, d), schedules, codes


CHAINS = "dense", "convolution", "group"
RUNS = [
    *itertools.product(CHAINS, (1, 2, 3), (0.0, 0.03, 0.1)),
    *((name, 3, 0.003) for name in CHAINS),
    ("random subspaces", 2, 0.03),
]


@pytest.mark.parametrize("name, depth, relative", RUNS)
def test_the_theorem_with_depth(name, depth, relative):
    """10,000 random problems each: errors below the bound, no wrong atom, at every step."""
    steps = {1: 18, 2: (16, 12), 3: (15, 11, 9)}[depth]
    ratio, schedules, _ = run_model(name, depth, relative, 10_000, steps, seed=depth)
    assert 0 < ratio <= 1 + 1e-6
    if relative <= 0.003:
        assert schedules[-1].errors[-1] < 0.35  # codes have sizes up to 1: the bound says much


@pytest.mark.parametrize("depth, active", [(1, 125_000), (3, 31_250)])
def test_a_million_samples_have_the_bound_of_one_stripe(depth, active):
    """At most 4 active atoms in any stripe, thousands in the signal: 4 is what counts."""
    positions = 125_000 if depth == 1 else 31_252
    steps = {1: 30, 3: (30, 12, 12)}[depth]
    ratio, schedules, codes = run_model("convolution", depth, 0.0, 1, steps, positions)
    assert 8 * codes[0].shape[2] >= 1_000_000
    assert schedules[0].errors[-1] < 1e-3 and ratio <= 1 + 1e-6
    assert (codes[0] != 0).sum() >= active


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_theorem_with_depth_and_other_weights(nonnegative):
    """Weights of layer 2 may be dense: kappa then counts only the rows that carry a code."""
    first, second = incoherent(24, 32, seed=0, dtype=DOUBLE), ring(32, 2, (1, 3, 1), seed=1)
    second = second.abs() if nonnegative else second
    dictionaries = [first, second]
    weights = [analysis_weights(D) for D in dictionaries]
    assert input_gain(weights[1], 3) < input_gain(weights[1], 32) - 1e-3
    gen = torch.Generator().manual_seed(2)
    deepest = random_codes(second, 1, 1, 4000, None, gen)
    deepest = deepest.abs() if nonnegative else deepest
    for relative in (0.0, 0.05):
        signals, codes, errors = deep_signals(dictionaries, deepest, relative, gen)
        bounds, noise = measured(dictionaries, codes, errors, 1, weights)
        schedules = deep_schedule(dictionaries, (3, 1), 15, bounds, noise, weights)
        ratio = worst_ratio(dictionaries, schedules, signals, codes, 1, weights, nonnegative)
        assert 0 < ratio <= 1 + 1e-6


def test_the_bound_with_depth_is_attained():
    """Orthonormal atoms with disjoint supports, and noise against every active entry."""
    dictionaries = [torch.eye(12, dtype=DOUBLE), ring(12, 2, (3, 4)).abs()]
    dictionaries.append(ring(6, 2, (3, 4)).abs())
    deepest = torch.eye(3, dtype=DOUBLE)
    signals, codes, _ = deep_signals(dictionaries, deepest, 0.0, torch.Generator())
    sigma = 0.01
    signals = signals - sigma * (signals != 0)
    schedules = deep_schedule(dictionaries, (4, 2, 1), 5, noise=(sigma, 0, 0))
    assert worst_ratio(dictionaries, schedules, signals, codes) <= 1 + 1e-6
    final = [schedule.errors[-1].item() for schedule in schedules]
    assert final == pytest.approx([2 * sigma, 2 * 1.4 * 2 * sigma, (2 * 1.4) ** 2 * 2 * sigma])
    for D, schedule, x in zip(dictionaries, schedules, codes):
        signals = scheduled_ista(signals, D, schedule.thresholds).codes
        assert (signals - x).abs().max().item() == pytest.approx(schedule.errors[-1].item())


def test_a_layer_that_trusts_its_input_lets_wrong_atoms_in():
    """Without the term kappa delta the second layer fails."""
    dictionaries, sparsity = MODELS["dense"][0][:2], (6, 2)
    gen = torch.Generator().manual_seed(0)
    deepest = random_codes(dictionaries[1], 2, 1, 500, None, gen)
    signals, codes, _ = deep_signals(dictionaries, deepest, 0.0, gen)
    noise = noise_like(signals, 0.1, gen)
    eta = (noise @ dictionaries[0]).abs().max().item()
    good = deep_schedule(dictionaries, sparsity, 20, noise=(eta, 0.0))
    worst_ratio(dictionaries, good, signals + noise, codes)
    trusting = threshold_schedule(dictionaries[1], 2, 20)
    found = scheduled_ista(signals + noise, dictionaries[0], good[0].thresholds).codes
    found = scheduled_ista(found, dictionaries[1], trusting.thresholds).codes
    assert (found[codes[1] == 0].abs() > 1e-3).any()


# ---------------------------------------------------------------- inexact thresholds


@pytest.mark.parametrize("activations", [("gelu", "elu", "softplus"), ("silu", "relu", "tanh")])
@pytest.mark.parametrize("name", ["dense", "convolution"])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_theorem_with_depth_and_other_activations(name, depth, activations):
    """Errors off the support enter the next layer as well; each layer has an eta of its own."""
    dictionaries, sparsity, d, lengths = MODELS[name]
    dictionaries, sparsity = dictionaries[:depth], sparsity[:depth]
    gen = torch.Generator().manual_seed(depth)
    positions = lengths and lengths[depth - 1]
    deepest = random_codes(dictionaries[-1], sparsity[-1], d, 300, positions, gen)
    signals, codes, errors = deep_signals(dictionaries, deepest, 0.01, gen)
    bounds, noise = measured(dictionaries, codes, errors, d)
    for gain in (100.0, 1e4):
        inexact = [approximate_threshold(name, gain) for name in activations[:depth]]
        inexact = [(T, T.eta) for T in inexact]
        eta = [eta for _, eta in inexact]
        steps = (15, 11, 9)[:depth]
        schedules = deep_schedule(dictionaries, sparsity, steps, bounds, noise, eta=eta)
        ratio = worst_ratio(dictionaries, schedules, signals, codes, inexact=inexact)
        assert 0.3 < ratio <= 1 + 1e-6


def against(D, eta, strongest):
    """Soft threshold, then the strongest leak on zeros that eta allows against one atom of D."""

    def threshold(z, theta, nonnegative):
        x = torch.sign(z) * (z.abs() - theta).clamp(min=0)
        return torch.where(x == 0, eta * D[:, strongest].sign(), x + eta * x.sign())

    return threshold


def test_leaks_of_a_layer_enter_the_next_one_as_much_as_that():
    """A first layer of no error but its leak, all of it against one atom of the next."""
    eye, dense = torch.eye(24, dtype=DOUBLE), incoherent(24, 32, seed=0, dtype=DOUBLE)
    eta, signal = (0.01, 0.0), torch.zeros(1, 24, dtype=DOUBLE)
    strongest = dense.abs().sum(dim=0).argmax()
    schedules = deep_schedule([eye, dense], (1, 1), 1, bounds=(0.0, 0.0), eta=eta)
    delta, kappa = schedules[0].errors[-1].item(), dense.abs().max().item()
    assert delta == pytest.approx(0.01)  # no overlap: nothing but the leak
    reached = 0.01 * dense.abs().sum(dim=0).max().item()
    assert schedules[1].thresholds.item() == pytest.approx(reached) and reached > kappa * delta
    leak = against(dense, 0.01, strongest)
    found = scheduled_ista(signal, eye, schedules[0].thresholds, threshold=leak).codes
    assert (found @ dense)[0, strongest].item() == pytest.approx(reached)
    for factor, allowed in (1.0, False), (0.95, True):
        code = scheduled_ista(found, dense, factor * schedules[1].thresholds).codes
        assert (code.abs().max() > ROUNDING) == allowed


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("d, rows", [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2)])
def test_input_gain_by_brute_force(d, rows):
    W = normal(12, 8, seed=0)
    for active in (1, 2, 3, 4):
        expected = max(
            sum(torch.linalg.svdvals(W[h * rows : (h + 1) * rows, g : g + d])[0] for h in A)
            for g in range(0, 8, d)
            for A in itertools.combinations(range(12 // rows), active)
        )
        assert input_gain(W, active, d, rows) == pytest.approx(expected.item(), rel=1e-12)
    everything = input_gain(W, 12 // rows, d, rows)
    assert input_gain(W, 100, d, rows) == everything


def test_input_gain_bounds_what_a_sparse_error_does():
    W, active, d, rows = normal(12, 8, seed=1), 2, 2, 3
    kappa = input_gain(W, active, d, rows)
    u = normal(5000, 4, rows, seed=2)
    u /= u.norm(dim=2, keepdim=True)
    keep = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0)).topk(active).indices
    u *= torch.zeros(5000, 4, dtype=DOUBLE).scatter(1, keep, 1.0)[..., None]
    reached = group_norms(u.flatten(1) @ W, d).max()
    assert 0.8 * kappa < reached <= kappa
    u = W.T.sign() * (W.T.abs() >= W.T.abs().topk(3).values[:, 2:])  # one code: attained
    assert (u @ W).abs().max().item() == pytest.approx(input_gain(W, 3))


def test_input_gain_of_an_operator_is_that_of_its_atoms():
    for op, size in (
        (Conv1d(normal(4, 3, 5, seed=0), 2), 20),
        (Conv1d(normal(4, 5, seed=0), 2, "zero"), 21),
        (Conv2d(normal(3, 2, 3, 2, seed=0), 2), (8, 8)),
        (Dense(normal(9, 6, seed=0)), 9),
    ):
        for active in (1, 4, 1000):
            assert input_gain(op, active) == pytest.approx(input_gain(op.to_matrix(size), active))


@pytest.mark.parametrize("leaks", [0.0, (0.003, 0.0, 0.001)])
@pytest.mark.parametrize("name", CHAINS)
def test_the_deep_bound_is_its_closed_form(name, leaks):
    dictionaries, sparsity, d, _ = MODELS[name]
    steps, bounds, noise = (9, 7, 30), (1.5, 1.2, 0.9), (0.02, 0.01, 0.03)
    given = dictionaries, sparsity, steps, bounds, noise, None
    delta = deep_error_bound(*given, d, leaks)
    schedules = deep_schedule(*given, (d, d, d), leaks)
    leaks = leaks or (0.0, 0.0, 0.0)
    assert delta.shape == (3,) and delta.dtype == DOUBLE
    before = 0.0
    for j, (D, s, K, B, eta, schedule) in enumerate(
        zip(dictionaries, sparsity, steps, bounds, noise, schedules)
    ):
        local = operator(D).local_matrix()
        mu = [*cumulative_coherence(local, None, d), math.nan]
        rho = mu[s] + mu[s - 1]
        entries = D.filters.flatten(1).T if name == "convolution" else D
        if d == 1:
            gains = entries.abs()
        else:
            gains = torch.linalg.matrix_norm(
                entries.reshape(len(entries) // d, d, -1, d).transpose(1, 2), ord=2
            )
        # the convolutions see 4 positions, of which 3 lie in a stripe: two stripes
        active = sparsity[j - 1] * (2 if name == "convolution" else 1)
        kappa = gains.sort(dim=0, descending=True).values[:active].sum(dim=0).max().item()
        total = gains.sum(dim=0).max().item()
        sigma = eta + (kappa * before + (total - kappa) * leaks[j - 1] if j else 0)
        nu = mu[-2]  # all other groups
        each = 2 * (sigma + nu * leaks[j]) + leaks[j]
        expected = rho**K * B + each * (1 - rho**K) / (1 - rho)
        assert delta[j].item() == pytest.approx(expected, rel=1e-12)
        assert schedule.errors[-1] == delta[j] and schedule.thresholds.shape == (K,)
        first = mu[s] * B + nu * leaks[j] + sigma
        assert schedule.thresholds[0].item() == pytest.approx(first, rel=1e-12)
        before = delta[j].item()


def test_one_layer_is_the_threshold_schedule():
    D = MODELS["dense"][0][0]
    (schedule,) = deep_schedule([D], [4], 12, 1.5, 0.1)
    expected = threshold_schedule(D, 4, 12, bound=1.5, noise=0.1)
    assert torch.equal(schedule.thresholds, expected.thresholds)
    assert torch.equal(schedule.errors, expected.errors)
    delta = deep_error_bound([Dense(D)], [4], torch.tensor([12]), [1.5], [0.1])
    assert torch.equal(delta, expected.errors[-1:])


def test_an_atom_sees_as_many_stripes_as_cover_it():
    """A first layer without overlap has stripes of one position: a window of 4 sees 4 of them."""
    eye = torch.eye(3, dtype=DOUBLE)
    layers = [Conv1d(eye, 3), Conv1d(torch.full((1, 3, 4), 12**-0.5, dtype=DOUBLE), 4)]
    schedules = deep_schedule(layers, (2, 1), 3, noise=(0.1, 0.0))
    kappa = 2 * 4 / math.sqrt(12)
    assert schedules[1].errors[-1].item() == pytest.approx(2 * kappa * 0.2)
    images = [
        Conv2d(torch.eye(4, dtype=DOUBLE).reshape(4, 2, 2), 2),
        Conv2d(torch.full((1, 4, 2, 3), 24**-0.5, dtype=DOUBLE), 3),
    ]
    schedules = deep_schedule(images, (3, 1), 3, noise=(0.1, 0.0))
    assert schedules[1].errors[-1].item() == pytest.approx(2 * 3 * 6 / math.sqrt(24) * 0.2)


def test_depth_reaches_any_accuracy_without_noise():
    """Twice the steps square the error: steps of the order of log 1/eps."""
    dictionaries, sparsity, *_ = MODELS["dense"]
    at = [deep_error_bound(dictionaries, sparsity, K)[-1] for K in (25, 50, 100)]
    assert at[0] < 1e-3 and at[1] < at[0] ** 1.8 and at[2] < at[1] ** 1.8


# ---------------------------------------------------------------- bad input

EYE = torch.eye(4)
ALIKE = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 0.0], [0.0, 0.0]])
CONV = Conv1d(torch.eye(2), 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: deep_schedule([EYE, ALIKE], (2, 2), 5),
            r"^layer 2: s = 2 has rate mu_1\(2\) \+ mu_1\(1\) = 0.96 \+ 0.96 = 1.92, "
            "expected less than 1: certified here is s <= 1",
        ),
        (
            lambda: deep_error_bound([ALIKE, torch.eye(2)], (2, 1), 5),
            "^layer 1: s = 2 has rate",
        ),
        (lambda: deep_schedule(EYE, [1], 5), r"dictionaries is a single Tensor.*use \[D\]"),
        (lambda: deep_schedule(CONV, [1], 5), "dictionaries is a single Conv1d"),
        (lambda: deep_schedule([], [], 5), "dictionaries is empty"),
        (lambda: deep_schedule([EYE, torch.eye(3)], (1, 1), 5), "layer 2 has 3 rows, expected 4"),
        (
            lambda: deep_schedule([CONV, Conv1d(torch.ones(1, 3, 1), 1)], (1, 1), 5),
            "layer 2 has 3 channels, expected 2, one for each of the filters of layer 1",
        ),
        (lambda: deep_schedule([CONV, CONV], (1, 1), 5), "layer 2 has no channels, expected 2"),
        (lambda: deep_schedule([CONV, EYE], (1, 1), 5), r"layer 2 is Dense.*one kind"),
        (
            lambda: deep_schedule([EYE, EYE.double()], (1, 1), 5),
            "layer 2 is torch.float64.*but layer 1",
        ),
        (lambda: deep_schedule([EYE, EYE], [1], 5), "sparsity has 1 entries, expected 2"),
        (lambda: deep_schedule([EYE, EYE], (1, 0), 5), "layer 2: s = 0"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), (5, 0)), "layer 2: steps = 0"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), (5,)), "steps has 1 entries"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), 5, (1, -1)), "layer 2: bound = -1"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), 5, 1, -0.1), "layer 1: noise = -0.1"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), 5, eta=(0.1, -0.1)), "layer 2: eta = -0.1"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), 5, eta=[0.1]), "eta has 1 entries, expected 2"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), 5, weights=[EYE]), "weights has 1 entries"),
        (
            lambda: deep_schedule([EYE, EYE], (1, 1), 5, weights=[None, 2 * EYE]),
            "layer 2: W has an inner product",
        ),
        (lambda: deep_schedule([2 * EYE], [1], 5), "layer 1: D has atoms of length 2"),
        (lambda: deep_schedule([EYE, EYE], (1, 1), 5, group_size=(2, 3)), "layer 2: group_size"),
        (lambda: deep_schedule([CONV], [1], 5, group_size=2), "layer 1: group_size = 2"),
        (lambda: input_gain(EYE, 0), "active = 0"),
        (lambda: input_gain(EYE[0], 1), r"W has shape \(4,\)"),
        (lambda: input_gain(EYE, 1, 3), "group_size = 3 does not divide"),
        (lambda: input_gain(EYE, 1, 1, 3), "rows = 3 does not divide the 4 rows"),
        (lambda: input_gain(CONV, 1, rows=2), "group_size = 1, rows = 2, expected 1 and 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
