"""Other activations: how far from the soft threshold, and what that costs the theorem."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from dsclib.analysis import analysis_weights
from dsclib.coherence import interactions
from dsclib.dictionaries import babel, gaussian, group_orthonormal, incoherent, incoherent_conv
from dsclib.networks import approximate_threshold
from dsclib.operators import Conv1d
from dsclib.proximal import nonnegative_soft_threshold, soft_threshold
from dsclib.pursuit import scheduled_ista
from dsclib.theory import certified_sparsity, rate, threshold_schedule

DOUBLE = torch.float64
ROUNDING = 1e-12
INEXACT = ["elu", "softplus", "silu", "gelu", "sigmoid", "tanh"]
EXACT = ["relu", "leaky_relu"]
GAINS = [0.3, 20.0, 1e4]

D = incoherent(48, 80, seed=0, iterations=300, dtype=DOUBLE)
RANDOM = gaussian(32, 48, seed=3, dtype=DOUBLE)
WEIGHTS = analysis_weights(RANDOM)
CONV = Conv1d(incoherent_conv(12, 16, 8, seed=0, iterations=300, dtype=DOUBLE), 8)


def exact(z, theta, nonnegative):
    return (nonnegative_soft_threshold if nonnegative else soft_threshold)(z, theta)


def rand(*shape, seed=0):
    return torch.rand(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- eta


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("activation", INEXACT)
def test_eta_holds_and_is_nearly_attained(activation, gain, nonnegative):
    T = approximate_threshold(activation, gain)
    z = torch.linspace(-60, 60, 24_001, dtype=DOUBLE) / gain
    worst = 0.0
    for theta in [0, 0.1, 1, 4, 10]:
        apart = T(z, theta / gain, nonnegative) - exact(z, theta / gain, nonnegative)
        assert apart.abs().max() <= T.eta * (1 + 1e-9)
        worst = max(worst, apart.abs().max().item())
    assert worst > 0.999 * T.eta


@pytest.mark.parametrize("activation", EXACT + INEXACT)
def test_all_but_elu_carry_what_they_do_not_threshold(activation):
    z, T = torch.linspace(-45, 45, 901, dtype=DOUBLE), approximate_threshold(activation)
    off = (T(z, 0.0) - z).abs().max().item()
    assert T.carries == (activation != "elu")
    assert off < ROUNDING if T.carries else 0.99 * T.eta < off <= T.eta


def test_softplus_attains_its_largest_error_at_the_threshold():
    T, theta = approximate_threshold("softplus", 2.0), 0.3
    closed = (math.log(2) - math.log1p(math.exp(-2 * 2.0 * theta))) / 2.0
    z = torch.linspace(-5, 5, 100_001, dtype=DOUBLE)
    assert (T(z, theta) - soft_threshold(z, theta)).abs().max() == pytest.approx(closed, rel=1e-7)


def test_constants_are_the_maxima_they_stand_for():
    """Found again by a solver, from the definitions in the standard library."""

    def largest(miss):
        found = minimize_scalar(lambda u: -miss(u), bounds=(0, 5), options={"xatol": 1e-10})
        return -found.fun

    cases = {
        "silu": lambda u: u / (1 + math.exp(u)),
        "gelu": lambda u: u * math.erfc(u / math.sqrt(2)) / 2,
        "sigmoid": lambda u: u / (1 + math.exp(u)),
        "tanh": lambda u: u * (1 - math.tanh(u)) / 2,
    }
    for activation, miss in cases.items():
        assert approximate_threshold(activation).eta == pytest.approx(largest(miss), abs=1e-15)
    assert approximate_threshold("softplus").eta == math.log(2)
    assert approximate_threshold("elu", 4).eta == 0.25


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.2, 0.9])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_relu_and_leaky_relu_are_exact(slope, nonnegative):
    z = 6 * rand(200, 9) - 3
    expected = exact(z, 0.4, nonnegative)
    for activation in EXACT:
        T = approximate_threshold(activation, slope=slope)
        assert T.eta == 0
        torch.testing.assert_close(T(z, 0.4, nonnegative), expected, rtol=0, atol=ROUNDING)
        assert (T(z, 0.4, nonnegative)[expected == 0] == 0).all()
    assert torch.equal(approximate_threshold("relu", 3.7)(z, 0.4), soft_threshold(z, 0.4))


def test_activations_are_those_of_torch():
    u, t = 8 * rand(500) - 4, 3.0
    layers = {"elu": nn.ELU(), "softplus": nn.Softplus(), "silu": nn.SiLU(), "gelu": nn.GELU()}
    for activation, layer in layers.items():
        r = approximate_threshold(activation, t).rectify(u)
        torch.testing.assert_close(r, layer(t * u) / t)
    for activation, gate in [("sigmoid", nn.Sigmoid()), ("tanh", lambda v: (1 + v.tanh()) / 2)]:
        torch.testing.assert_close(approximate_threshold(activation, t).rectify(u), u * gate(t * u))


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("activation", EXACT + INEXACT)
def test_gradients(activation, nonnegative):
    T = approximate_threshold(activation, 50.0)
    z = torch.tensor([-1e3, -2, -0.5, -0.0, 0.0, 0.1, 0.5, 3, 1e3], dtype=DOUBLE)
    z, theta = z.requires_grad_(), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    for gradient in torch.autograd.grad(T(z, theta, nonnegative).sum(), [z, theta]):
        assert gradient.isfinite().all()
    z = (4 * rand(3, 5) - 2).requires_grad_()
    smooth = approximate_threshold(activation, 2.0)
    assert torch.autograd.gradcheck(lambda z, t: smooth(z, t, nonnegative), (z, theta))


def test_dtype_and_broadcasting():
    T = approximate_threshold("silu", 5.0)
    z = rand(4, 7).float()
    assert T(z, 0.1).dtype == torch.float32
    assert T(z, torch.full((7,), 0.1)).shape == (4, 7)
    assert T([1.0, -1.0], 0.5).shape == (2,)


# ---------------------------------------------------------------- the theorem with eta


def codes(n, s, count, seed):
    """Codes of s entries of all sizes up to 1; those of every third code are all +-1."""
    x = torch.zeros(count, n, dtype=DOUBLE)
    support = rand(count, n, seed=seed).topk(s).indices
    entries = 2 * rand(count, s, seed=seed + 1) - 1
    entries[::3] = entries[::3].sign()
    return x.scatter(1, support, entries)


def noise(W, sigma, count, seed):
    """Noise with max_i |w_i'e| = sigma exactly."""
    e = rand(count, len(W), seed=seed) - 0.5
    return sigma * e / (e @ W).abs().amax(dim=1, keepdim=True)


def assert_theorem(y, dictionary, x, schedule, eta, **options):
    """Error <= E_k and leak <= eta at every step; the largest error over its bound."""
    worst = [0.0]

    def check(k, code):
        error = (code - x).abs().max()
        assert error <= schedule.errors[k] + ROUNDING
        assert code[x == 0].abs().max() <= eta + ROUNDING, "leak"
        worst.append((error / schedule.errors[k]).item() if k else 0.0)

    scheduled_ista(y, dictionary, schedule.thresholds, callback=check, **options)
    return max(worst)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("activation", EXACT + INEXACT)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_theorem(activation, nonnegative, weighted):
    """Some 6,000 problems in all: 2 dictionaries, 8 activations, 2 gains, with noise or not."""
    A, W = (RANDOM, WEIGHTS) if weighted else (D, None)
    s, count = certified_sparsity(A, W), 50
    for i, (gain, sigma) in enumerate((t, e) for t in (3.0, 200.0) for e in (0.0, 0.02)):
        T = approximate_threshold(activation, gain, slope=0.2)
        schedule = threshold_schedule(A, s, 20, noise=sigma, W=W, eta=T.eta)
        x = codes(A.shape[1], s, count, seed=i)
        x = x.abs() if nonnegative else x
        y = x @ A.T + noise(A if W is None else W, sigma, count, seed=i)
        assert assert_theorem(y, A, x, schedule, T.eta, W=W, threshold=T, nonnegative=nonnegative)


def adversary(eta, signs):
    """A threshold within eta of the exact one that leaks with the given signs."""
    return lambda z, theta, nonnegative: exact(z, theta, nonnegative) + eta * signs


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_theorem_holds_for_any_threshold_within_eta(nonnegative):
    """Every atom in turn is pushed by the leak of all others and by the s worst of them."""
    n, s, eta = D.shape[1], certified_sparsity(D), 0.01
    overlap = D.T @ D - torch.eye(n, dtype=DOUBLE)
    x = torch.zeros(n, n, dtype=DOUBLE)
    worst = overlap.abs().topk(s).indices
    x.scatter_(1, worst, overlap.gather(1, worst).sign())
    x = x.abs() if nonnegative else x
    schedule = threshold_schedule(D, s, 25, eta=eta)
    for against in overlap.sign(), -overlap.sign():
        T = adversary(eta, against)
        assert_theorem(x @ D.T, D, x, schedule, eta, threshold=T, nonnegative=nonnegative)


def test_nu_eta_cannot_be_left_out():
    """Where no atom is active the leak alone reaches nu eta: lower thresholds let atoms in."""
    n, eta = D.shape[1], 0.01
    overlap = D.T @ D - torch.eye(n, dtype=DOUBLE)
    nu = interactions(D).sum(dim=1).max().item()
    leaking = adversary(eta, -overlap.sign())  # signal i leaks against atom i

    def let_in(theta):
        kept = []

        def threshold(z, theta, nonnegative):
            kept.append(soft_threshold(z, theta).max().item())
            return leaking(z, theta, nonnegative)

        scheduled_ista(torch.zeros(n, 48, dtype=DOUBLE), D, [theta, theta], threshold=threshold)
        return kept[-1]

    theta = threshold_schedule(D, 1, 1, bound=0.0, eta=eta).thresholds.item()
    assert theta == pytest.approx(nu * eta)
    assert let_in(theta) == pytest.approx(0, abs=ROUNDING)
    assert let_in(0.95 * theta) == pytest.approx(0.05 * theta)


@pytest.mark.parametrize("T_axis", [12, 200])
@pytest.mark.parametrize("activation", INEXACT)
def test_the_theorem_is_local_for_convolutions(activation, T_axis):
    """nu is the row sum of one stripe: a longer signal leaks no more into an atom."""
    s, count, gain = certified_sparsity(CONV), 5, 40.0
    assert s >= 3
    T = approximate_threshold(activation, gain)
    schedule = threshold_schedule(CONV, s, 20, noise=0.01, eta=T.eta)
    # s atoms at every fourth position: a stripe of three positions meets one such s.
    x = torch.zeros(count, 12, T_axis, dtype=DOUBLE)
    x[:, :, ::4] = codes(12, s, count * T_axis // 4, 0).reshape(count, -1, 12).mT
    e = rand(count, 8 * T_axis, seed=1) - 0.5
    e *= 0.01 / CONV.analyze(e).abs().amax(dim=(1, 2))[:, None]
    assert_theorem(CONV.synthesize(x) + e, CONV, x, schedule, T.eta, threshold=T)


# ---------------------------------------------------------------- the schedule


def test_schedule_with_eta_is_its_formula():
    s, sigma, eta = 2, 0.02, 0.05
    rho, nu = rate(D, s), interactions(D).sum(dim=1).max().item()
    thresholds, errors = threshold_schedule(D, s, 30, bound=1.5, noise=sigma, eta=eta)
    floor = (2 * nu * eta + 2 * sigma + eta) / (1 - rho)
    k = torch.arange(31, dtype=DOUBLE)
    torch.testing.assert_close(errors, floor + rho**k * (1.5 - floor))  # the same rate
    torch.testing.assert_close(thresholds, babel(D, s) * errors[:-1] + nu * eta + sigma)


def test_eta_zero_changes_no_bit():
    rho, mu, sigma, errors = rate(D, 2), babel(D, 2), 0.017, [1.3]
    for _ in range(12):
        errors.append(rho * errors[-1] + 2 * sigma)
    for given in {}, {"eta": 0}:
        schedule = threshold_schedule(D, 2, 12, bound=1.3, noise=sigma, **given)
        assert schedule.errors.tolist() == errors
        assert schedule.thresholds.tolist() == [mu * error + sigma for error in errors[:-1]]


def test_groups_count_their_own_row_sums():
    G = group_orthonormal(300, 12, 3, seed=0, dtype=DOUBLE)
    nu = interactions(G, group_size=3).sum(dim=1).max().item()
    assert nu < interactions(G).sum(dim=1).max().item()
    schedule = threshold_schedule(G, 1, 1, bound=0.0, group_size=3, eta=0.1)
    assert schedule.thresholds[0] == pytest.approx(0.1 * nu)


# ---------------------------------------------------------------- gain and rate, measured


@pytest.mark.parametrize("activation", INEXACT)
def test_the_floor_falls_like_one_over_the_gain(activation):
    gains, s = torch.tensor([30.0, 100, 300, 1000, 3000], dtype=DOUBLE), 2
    x = codes(D.shape[1], s, 150, seed=5)[::3]  # all entries +-1
    measured, bounds = [], []
    for gain in gains:
        T = approximate_threshold(activation, gain)
        schedule = threshold_schedule(D, s, 40, eta=T.eta)
        found = scheduled_ista(x @ D.T, D, schedule.thresholds, threshold=T).codes
        measured.append((found - x).abs().max())
        bounds.append(schedule.errors[-1])
    log = gains.log() - gains.log().mean()
    for floor in measured, bounds:
        slope = (log * torch.stack(floor).log()).sum() / log.square().sum()
        assert slope == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("activation", INEXACT)
def test_the_rate_is_that_of_the_exact_threshold(activation):
    """Above the floor the two iterations lose the same factor a step."""
    T, x = approximate_threshold(activation, 1e10), codes(D.shape[1], 1, 30, seed=2)

    def factors(eta, threshold):
        thresholds, errors = threshold_schedule(D, 1, 6, eta=eta).thresholds, []
        scheduled_ista(
            x @ D.T,
            D,
            thresholds,
            callback=lambda k, code: errors.append((code - x).abs().max()),
            threshold=threshold,
        )
        return torch.stack(errors[1:]) / torch.stack(errors[:-1])

    same = factors(0.0, None)
    torch.testing.assert_close(same, torch.full_like(same, rate(D, 1)), rtol=0.01, atol=0)
    torch.testing.assert_close(factors(T.eta, T), same, rtol=0.01, atol=0)


# ---------------------------------------------------------------- bad input


def test_exact_thresholds_leave_scheduled_ista_as_it_is():
    x = codes(D.shape[1], 2, 20, seed=0)
    thresholds = threshold_schedule(D, 2, 10).thresholds
    for nonnegative in False, True:
        plain = scheduled_ista(x @ D.T, D, thresholds, nonnegative=nonnegative)
        T = approximate_threshold("relu")
        same = scheduled_ista(x @ D.T, D, thresholds, nonnegative=nonnegative, threshold=T)
        assert torch.equal(plain.codes, same.codes)


Y = D.T[:2]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: approximate_threshold("mish"), "activation = 'mish', expected one of 'relu', "),
        (lambda: approximate_threshold("silu", 0), "gain = 0, expected a finite number > 0"),
        (lambda: approximate_threshold("silu", math.inf), "gain = inf"),
        (lambda: approximate_threshold("silu", math.nan), "gain = nan"),
        (lambda: approximate_threshold("leaky_relu", slope=1.0), "slope = 1.0, expected 0 <= sl"),
        (lambda: approximate_threshold("leaky_relu", slope=-0.1), "slope = -0.1, expected"),
        (lambda: approximate_threshold("silu")(Y, -1.0), "theta = -1.0, expected"),
        (lambda: approximate_threshold("silu")(Y, torch.ones(3)), "theta is torch.float32"),
        (lambda: approximate_threshold("silu")([math.nan], 1.0), "z holds 1 NaN"),
        (lambda: threshold_schedule(D, 1, 3, eta=-0.1), "eta = -0.1, expected a finite"),
        (lambda: threshold_schedule(D, 1, 3, eta=math.inf), "eta = inf"),
        (
            lambda: scheduled_ista(Y, D, [0.1], threshold="silu"),
            "threshold is 'silu' with group_size = 1, expected a callable",
        ),
        (
            lambda: scheduled_ista(
                Y, D, [0.1], group_size=2, threshold=approximate_threshold("silu")
            ),
            "threshold is .* with group_size = 2, expected a callable",
        ),
        (
            lambda: scheduled_ista(Y, D, [0.1], threshold=lambda z, t, nonnegative: z[:, :1]),
            r"threshold answers shape \(2, 1\) to \(2, 80\), expected the same",
        ),
        (
            lambda: scheduled_ista(Y, D, [0.1], threshold=lambda z, t, nonnegative: z / 0),
            "the value of threshold holds",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
