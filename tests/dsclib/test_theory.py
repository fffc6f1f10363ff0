"""The theorems themselves, on random and on adversarial instances."""

import itertools
import math

import numpy as np
import pytest
import torch

from dsclib.coherence import interactions
from dsclib.dictionaries import (
    analysis_weights,
    babel,
    dirac_hadamard,
    gaussian,
    group_orthonormal,
    incoherent,
    incoherent_conv,
    mutual_coherence,
)
from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.theory import (
    certified_sparsity,
    fista_bound,
    ista_bound,
    rate,
    stability_bound,
    threshold_schedule,
    uniqueness_sparsity,
)

DOUBLE = torch.float64
ROUNDING = 1e-12
STEPS = 25

DENSE = incoherent(48, 80, seed=0, iterations=300, dtype=DOUBLE)
RANDOM = gaussian(32, 48, seed=3, dtype=DOUBLE)
GROUPS = group_orthonormal(300, 12, 3, seed=0, dtype=DOUBLE)
CONV = Conv1d(incoherent_conv(12, 16, 8, seed=0, iterations=300, dtype=DOUBLE), 8)


def group_weights():
    """W_g = D_g + something orthogonal to D_g, so that W_g'D_g = I."""
    gen = torch.Generator().manual_seed(0)
    V = 0.05 * torch.randn(GROUPS.shape, dtype=DOUBLE, generator=gen)
    pairs = zip(V.split(3, 1), GROUPS.split(3, 1))
    return GROUPS + torch.hstack([v - b @ (b.T @ v) for v, b in pairs])


# ---------------------------------------------------------------- the theorem

# name: dictionary, weights, group size, nonnegative codes
CASES = {
    "scalar": (DENSE, None, 1, False),
    "nonnegative": (DENSE, None, 1, True),
    "weighted": (RANDOM, analysis_weights(RANDOM), 1, False),
    "weighted nonnegative": (RANDOM, analysis_weights(RANDOM), 1, True),
    "group": (GROUPS, None, 3, False),
    "group weighted": (GROUPS, group_weights(), 3, False),
    "group nonnegative": (GROUPS, None, 3, True),
}


def group_norms(x, d):
    return x.unflatten(-1, (-1, d)).norm(dim=-1)


def shrink(z, t, d, nonnegative):
    if nonnegative:
        z = z.clamp(min=0)
    groups = z.unflatten(-1, (-1, d))
    lengths = groups.norm(dim=-1, keepdim=True)
    return torch.where(lengths > t, groups * (1 - t / lengths), 0.0).flatten(-2)


def random_codes(D, s, d, nonnegative, count, rng):
    """Codes of at most ``s`` groups, of all sizes up to 1, the first third all of size 1."""
    G = D.shape[1] // d
    x = torch.zeros(count, G, d, dtype=DOUBLE)
    for b in range(count):
        support = rng.permutation(G)[: s if b % 3 else rng.integers(1, s + 1)]
        size = np.ones(s) if b < count // 3 else rng.uniform(0, 1, s) ** rng.integers(1, 4)
        direction = rng.standard_normal((len(support), d))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        x[b, support] = torch.from_numpy(direction * size[: len(support), None])
    return x.flatten(1).abs() if nonnegative else x.flatten(1)


def adversarial_codes(D, W, s, d, nonnegative):
    """For every group, the s groups that disturb it most, in the directions that do so."""
    G = D.shape[1] // d
    M = interactions(D, W, d)
    P = ((D if W is None else W).T @ D).reshape(G, d, G, d)
    codes = []
    for g in range(G):
        x = torch.zeros(G, d, dtype=DOUBLE)
        worst = M[g].topk(s).indices
        push = torch.linalg.svd(P[g, :, worst[0]]).U[:, 0]
        x[worst] = torch.nn.functional.normalize(P[g, :, worst].transpose(0, 1).mT @ push, dim=-1)
        codes.append(x.flatten())
    x = torch.stack(codes)
    return x.abs() if nonnegative else x


def noise_of_size(D, W, d, sigma, count, rng):
    """Noise with max_g ||W_g'e|| = sigma exactly; half of it aligned with one atom."""
    W = D if W is None else W
    e = torch.from_numpy(rng.standard_normal((count, D.shape[0])))
    e[::2] = W[:, rng.integers(0, D.shape[1], len(e[::2]))].T
    return sigma * e / group_norms(e @ W, d).amax(dim=1, keepdim=True)


def worst_ratio(D, W, d, nonnegative, x, e, schedule):
    """Run the iteration; assert the theorem at every step; largest error over bound."""
    W = D if W is None else W
    y = x @ D.T + e
    off = group_norms(x, d) == 0
    code, worst = torch.zeros_like(x), 0.0
    for theta, bound in zip(schedule.thresholds, schedule.errors[1:]):
        code = shrink(code + (y - code @ D.T) @ W, theta, d, nonnegative)
        assert group_norms(code, d)[off].max() <= ROUNDING, "false activation"
        error = group_norms(code - x, d).max()
        assert error <= bound + ROUNDING
        if bound > 1e-6:  # below, rounding is all there is to compare
            worst = max(worst, float(error / bound))
    return worst


@pytest.mark.parametrize("sigma", [0.0, 0.03])
@pytest.mark.parametrize("name", CASES)
def test_the_theorem(name, sigma):
    """Some 7,000 problems in all: random ones, and the adversary's for every atom or group."""
    D, W, d, nonnegative = CASES[name]
    rng = np.random.default_rng(0)
    certified = certified_sparsity(D, W, d)
    assert certified >= 2
    for s in range(1, certified + 1):
        schedule = threshold_schedule(D, s, STEPS, noise=sigma, W=W, group_size=d)
        x = torch.cat(
            [
                random_codes(D, s, d, nonnegative, 120, rng),
                adversarial_codes(D, W, s, d, nonnegative),
            ]
        )
        e = noise_of_size(D, W, d, sigma, len(x), rng)
        ratio = worst_ratio(D, W, d, nonnegative, x, e, schedule)
        if s == 1 and sigma == 0:
            assert ratio > 1 - 1e-6  # one atom, no noise: the bound is attained


def test_smaller_thresholds_let_wrong_atoms_in():
    """The thresholds cannot be lowered: the adversary defeats 0.95 of them."""
    s = certified_sparsity(DENSE)
    schedule = threshold_schedule(DENSE, s, STEPS)
    x = adversarial_codes(DENSE, None, s, 1, False)
    low = schedule._replace(thresholds=0.95 * schedule.thresholds)
    with pytest.raises(AssertionError, match="false activation"):
        worst_ratio(DENSE, None, 1, False, x, torch.zeros(len(x), 48, dtype=DOUBLE), low)


def local_codes(T, C, s, count, rng):
    """At most s active atoms in any stripe, for atoms that reach over two positions.

    s atoms at every fourth position or the one after it: a stripe of three meets one such s.
    """
    x = torch.zeros(count, C, T, dtype=DOUBLE)
    for b, t in itertools.product(range(count), range(0, T, 4)):
        for c in rng.permutation(C)[:s]:
            x[b, c, t + int(rng.integers(0, 2))] = rng.choice([-1, 1])
    active = (x != 0).sum(dim=1)
    assert (active.roll(1, 1) + active + active.roll(-1, 1)).max() == s
    return x


@pytest.mark.parametrize("T", [12, 400])
def test_the_theorem_is_local_for_convolutions(T):
    """s counts atoms per stripe: a long signal holds hundreds and keeps the same rate."""
    rng = np.random.default_rng(1)
    s = certified_sparsity(CONV)
    assert s >= 3
    schedule = threshold_schedule(CONV, s, STEPS, noise=0.01)
    x = local_codes(T, 12, s, 20, rng)
    e = torch.from_numpy(rng.standard_normal((len(x), 8 * T)))
    e *= 0.01 / CONV.analyze(e).abs().amax(dim=(1, 2))[:, None]
    y = CONV.synthesize(x) + e
    code = torch.zeros_like(x)
    for theta, bound in zip(schedule.thresholds, schedule.errors[1:]):
        z = code + CONV.analyze(y - CONV.synthesize(code))
        code = (z - theta).clamp(min=0) - (-z - theta).clamp(min=0)
        assert code[x == 0].abs().max() <= ROUNDING
        assert (code - x).abs().max() <= bound + ROUNDING
    assert (x != 0).sum(dim=(1, 2)).min() == s * T // 4  # far more than s in the long signal


# ---------------------------------------------------------------- the numbers


def test_rate_and_schedule_are_their_formulas():
    D, s, sigma, bound = DENSE, 3, 0.02, 1.5
    rho = rate(D, s)
    assert type(rho) is float and rho == pytest.approx(babel(D, 3) + babel(D, 2))
    assert rho <= 5 * mutual_coherence(D) + ROUNDING
    thresholds, errors = threshold_schedule(D, s, 40, bound=bound, noise=sigma)
    assert thresholds.shape == (40,) and errors.shape == (41,)
    k = torch.arange(41, dtype=DOUBLE)
    closed = rho**k * bound + 2 * sigma * (1 - rho**k) / (1 - rho)
    torch.testing.assert_close(errors, closed)
    torch.testing.assert_close(thresholds, babel(D, 3) * errors[:-1] + sigma)
    assert threshold_schedule(D.float(), s, 4).thresholds.dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_certified_sparsity_is_the_largest(name):
    D, W, d, _ = CASES[name]
    s = certified_sparsity(D, W, d)
    assert rate(D, s, W, d) < 1 <= rate(D, s + 1, W, d)


def test_certified_sparsity_at_the_ends():
    twins = torch.eye(3, dtype=DOUBLE)[:, [0, 1, 2, 2]]
    assert certified_sparsity(twins) == 0 == uniqueness_sparsity(twins)
    assert certified_sparsity(torch.eye(5)) == 5 == uniqueness_sparsity(torch.eye(5))
    assert certified_sparsity(torch.eye(6), group_size=2) == 3
    assert certified_sparsity(torch.eye(5)[:, :1]) == 1
    assert rate(torch.eye(5), 5) == 0
    assert threshold_schedule(torch.eye(5), 5, 2).errors.tolist() == [1, 0, 0]


def test_equality_is_not_certified():
    frame = incoherent(7, 28, seed=0, dtype=DOUBLE)  # equiangular, mu = 1/3
    assert mutual_coherence(frame) == pytest.approx(1 / 3, abs=1e-4)
    assert uniqueness_sparsity(frame) == certified_sparsity(frame) == 1
    cosine = 1 / 3 - 1e-14  # three atoms, all pairs at 1/3 up to rounding: 3 mu = 1
    gram = (1 - cosine) * torch.eye(3, dtype=DOUBLE) + cosine
    three = torch.linalg.cholesky(gram).T
    assert uniqueness_sparsity(three) == 1


@pytest.mark.parametrize(
    "D",
    [
        dirac_hadamard(4, dtype=DOUBLE),
        gaussian(9, 12, seed=5, dtype=DOUBLE),
        incoherent(8, 10, seed=0, dtype=DOUBLE),
    ],
)
def test_uniqueness_and_the_lower_bound_behind_stability(D):
    """Exhaustively: any 2s atoms are independent, and ||Du||^2 >= (1 - mu_1(k-1)) ||u||^2."""
    n = D.shape[1]
    for k in range(1, 5):
        columns = torch.tensor(list(itertools.combinations(range(n), k)))
        smallest = torch.linalg.svdvals(D.T[columns].mT)[:, -1].min().item()
        assert smallest**2 >= 1 - babel(D, k - 1) - ROUNDING
        if k <= 2 * uniqueness_sparsity(D):
            assert smallest > 1e-6


def test_stability_bound_holds():
    rng = np.random.default_rng(0)
    for s in (1, 2, 3):
        x = random_codes(DENSE, s, 1, False, 300, rng)
        other = x.clone()
        other[x != 0] += 0.1 * torch.from_numpy(rng.standard_normal(int((x != 0).sum())))
        swap = torch.from_numpy(rng.permutation(300))
        for rival in (other, x[swap]):
            apart = (x - rival).norm(dim=1)
            eps = ((x - rival) @ DENSE.T).norm(dim=1) / 2  # y half way explains both within eps
            bound = stability_bound(DENSE, s, 1.0) * eps
            assert (apart <= bound + ROUNDING).all()
    mu = babel(DENSE, 5)
    assert stability_bound(DENSE, 3, 0.5) == pytest.approx(1 / math.sqrt(1 - mu))
    assert stability_bound(torch.eye(3), 3, 0.5) == 1


def test_convergence_bounds_hold():
    """ISTA and FISTA written out; the minimum is what 20,000 steps leave."""
    gen = torch.Generator().manual_seed(0)
    D, lam = gaussian(20, 40, seed=0, dtype=DOUBLE), 0.05
    y = torch.randn(20, dtype=DOUBLE, generator=gen)
    L = Dense(D).lipschitz()

    def objective(x):
        return 0.5 * (y - D @ x).square().sum() + lam * x.abs().sum()

    def step(x):
        return shrink(x + D.T @ (y - D @ x) / L, torch.tensor(lam / L), 1, False)

    best = torch.zeros(40, dtype=DOUBLE)
    for _ in range(20_000):
        best = step(best)
    distance = best.norm().item()
    x = ahead = old = torch.zeros(40, dtype=DOUBLE)
    t = 1.0
    for k in range(1, 101):
        x = step(x)
        assert objective(x) - objective(best) <= ista_bound(L, distance, k)
        new = step(ahead)
        assert objective(new) - objective(best) <= fista_bound(L, distance, k)
        t, last = (1 + math.sqrt(1 + 4 * t**2)) / 2, t
        old, ahead = new, new + (last - 1) / t * (new - old)
    assert ista_bound(2.0, 3.0, 4) == 2.25 and fista_bound(2.0, 3.0, 4) == 36 / 25


@pytest.mark.parametrize("op", [CONV, Conv2d(torch.eye(4).reshape(4, 2, 2), 1), Dense(DENSE)])
def test_operators_stand_for_their_local_matrix(op):
    local = op.local_matrix()
    assert rate(op, 2) == rate(local, 2)
    assert certified_sparsity(op) == certified_sparsity(local)
    assert uniqueness_sparsity(op) == uniqueness_sparsity(local)
    assert rate(op, 2, W=op) == rate(op, 2)
    if certified_sparsity(op):
        assert torch.equal(
            threshold_schedule(op, 1, 5).errors, threshold_schedule(local, 1, 5).errors
        )
        assert stability_bound(op, 1, 0.1) == stability_bound(local, 1, 0.1)


EYE = torch.eye(4)
TWINS = torch.eye(3)[:, [0, 1, 2, 2]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rate(EYE, 0), "s = 0, expected at least 1 and at most 4"),
        (lambda: rate(EYE, 5), "s = 5, expected at least 1 and at most 4"),
        (lambda: rate(EYE, 3, group_size=2), "s = 3, expected at least 1 and at most 2"),
        (lambda: rate(EYE, 1.5), "s = 1.5, expected a whole number"),
        (lambda: rate(2 * EYE, 1), "D has atoms of length 2.*expected unit-norm"),
        (lambda: rate(EYE, 1, W=2 * EYE), "W has an inner product.*expected w_i'd_i = 1"),
        (lambda: rate(EYE, 1, W=EYE[0]), r"W has shape \(4,\)"),
        (lambda: rate(EYE, 1, group_size=3), "group_size = 3 does not divide the 4 atoms"),
        (lambda: rate(CONV, 1, group_size=2), "group_size = 2, expected 1 for a convolution"),
        (lambda: rate(Conv1d(torch.ones(1, 4), 2), 1), "D has atoms of length 2"),
        (
            lambda: threshold_schedule(TWINS, 1, 3),
            r"s = 1 has rate mu_1\(1\) \+ mu_1\(0\) = "
            "1 \\+ 0 = 1, expected less than 1: certified here is s <= 0",
        ),
        (lambda: threshold_schedule(EYE, 1, 0), "steps = 0, expected at least 1"),
        (lambda: threshold_schedule(EYE, 1, 3, bound=-1), "bound = -1, expected a finite"),
        (lambda: threshold_schedule(EYE, 1, 3, noise=math.nan), "noise = nan"),
        (lambda: stability_bound(TWINS, 1, 0.1), r"s = 1 has mu_1\(1\) = 1, expected less than 1"),
        (lambda: stability_bound(EYE, 1, -0.1), "eps = -0.1"),
        (lambda: uniqueness_sparsity(2 * EYE), "D has atoms of length 2"),
        (lambda: ista_bound(-1, 1, 1), "lipschitz = -1"),
        (lambda: ista_bound(1, 1, 0), "k = 0, expected at least 1"),
        (lambda: fista_bound(1, math.inf, 1), "distance = inf"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
