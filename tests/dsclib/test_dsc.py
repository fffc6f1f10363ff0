"""Deep sparse coding: samples, what is certain about solutions, and the pursuits that find them."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dsclib.dictionaries import gaussian
from dsclib.dsc import (
    DeepSparseModel,
    layered_pursuit,
    layered_thresholding,
    multilayer_fista,
    multilayer_objective,
    sparse_conv_model,
    sparse_model,
)
from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.pursuit import fista, ista, lasso, omp, scheduled_ista
from dsclib.theory import deep_schedule, rate, uniqueness_sparsity

DOUBLE = torch.float64
ROUNDING = 1e-12

CONV = (18, 32, 16), (14, 4, 2), (20, 4, 2)

# The examples of the docstrings: build, its arguments, sparsity. A shallower example is the
# same model without its deepest layers.
MODELS = {
    "dense": (sparse_model, dict(sizes=(128, 144, 54, 36), nonzeros=(3, 3)), (9, 3, 1)),
    "deep": (
        sparse_model,
        dict(sizes=(192, 200, 72, 26, 20), nonzeros=(3, 3, 2)),
        (18, 6, 2, 1),
    ),
    "small": (sparse_model, dict(sizes=(64, 72, 26), nonzeros=3), (6, 2)),
    "group": (
        sparse_model,
        dict(sizes=(128, 144, 52, 32), nonzeros=(3, 2), group_size=4),
        (6, 2, 1),
    ),
    "conv": (sparse_conv_model, dict(layers=CONV, nonzeros=(3, 2)), (6, 2, 1)),
}
PRESETS = ["dense 1", "dense 2", "dense 3", "deep 4", "small 2"]
PRESETS += [f"{kind} {depth}" for kind in ("group", "conv") for depth in (1, 2, 3)]


@cache
def whole(kind, dtype=DOUBLE):
    make, arguments, _ = MODELS[kind]
    return make(**arguments, seed=0, dtype=dtype)


def build(name, dtype=DOUBLE):
    """The model of a preset, its sparsity, and the positions of its deepest codes."""
    kind, depth = name.split()
    model, depth = whole(kind, dtype), int(depth)
    model = DeepSparseModel(model.operators[:depth], model.group_sizes[:depth])
    return model, MODELS[kind][2][:depth], 2 ** (5 - depth) if kind == "conv" else None


@cache
def odd_filters():
    """Strides that no stripe fits exactly."""
    layers = ((6, 8, 4), (5, 3, 2), (4, 2, 1))
    return sparse_conv_model(layers, (3, 2), seed=0, dtype=DOUBLE).operators


def odd(boundary):
    return DeepSparseModel([Conv1d(D.filters, D.stride, boundary) for D in odd_filters()])


def lengths(x):
    return x.flatten(1).norm(dim=1)


def active(operator, x, d):
    """Active entries, groups, or entries in the fullest stripe, of every code."""
    if d > 1:
        return (x.unflatten(1, (-1, d)).norm(dim=2) > 0).sum(dim=1)
    return operator.local_sparsity(x)


def residuals(model, sample):
    """What is left of the two identities, in every layer."""
    outer = [sample.signals - sample.errors[0], *sample.codes]
    for j, operator in enumerate(model.operators):
        yield outer[j] - operator.synthesize(outer[j + 1]) - sample.errors[j + 1]


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_certified_and_exact(name):
    model, sparsity, positions = build(name)
    layers = zip(model.operators, sparsity, model.group_sizes)
    assert all(rate(D, s, None, d) <= 0.8 for D, s, d in layers)
    assert all(s <= c for s, c in zip(sparsity, model.certified_sparsity()))
    sample = model.sample(200, sparsity, positions=positions, seed=1)
    assert all(e.abs().max() == 0 for e in sample.errors)
    chain = model.expand(sample.codes[-1])
    for made, drawn in zip(chain, (sample.signals, *sample.codes)):
        assert (made - drawn).abs().max() <= 1e-15  # entries that cancel are exactly zero
    assert torch.equal(chain[0], model.synthesize(sample.codes[-1]))
    for operator, x, s, d in zip(model.operators, sample.codes, sparsity, model.group_sizes):
        assert active(operator, x, d).max() <= s
    assert (active(operator, x, d) == s).all()  # the deepest


@pytest.mark.parametrize("name", PRESETS)
def test_identities_hold_with_errors_in_every_layer(name):
    model, sparsity, positions = build(name)
    noise = [0.2, 0.1, *[0.05] * (model.depth - 1)]
    sample = model.sample(50, sparsity, noise=noise, positions=positions, seed=2)
    for r in residuals(model, sample):
        assert r.abs().max() < ROUNDING
    x0 = sample.signals - sample.errors[0]
    assert torch.allclose(lengths(sample.errors[0]), 0.2 * lengths(x0))
    for j, operator in enumerate(model.operators):
        made = operator.synthesize(sample.codes[j])
        # nothing is cut off where s_{j-1} has room for all of D_j x_j
        assert torch.allclose(lengths(sample.errors[j + 1]), noise[j + 1] * lengths(made))
        assert active(operator, sample.codes[j], model.group_sizes[j]).max() <= sparsity[j]


@pytest.mark.parametrize("name", ["dense 3", "group 3", "conv 3"])
def test_too_small_a_sparsity_cuts_codes_and_books_the_cut_as_error(name):
    model, sparsity, positions = build(name)
    less = (sparsity[0] // 2, *sparsity[1:])
    sample = model.sample(50, less, positions=positions, seed=3)
    for r in residuals(model, sample):
        assert r.abs().max() < ROUNDING
    assert active(model.operators[0], sample.codes[0], model.group_sizes[0]).max() <= less[0]
    assert sample.errors[2].abs().max() > 0.05
    assert torch.equal(sample.codes[0] * sample.errors[2], torch.zeros_like(sample.codes[0]))


def test_one_noise_number_is_the_noise_of_the_signal():
    model, sparsity, _ = build("dense 3")
    a = model.sample(20, sparsity, noise=0.3, seed=4)
    b = model.sample(20, sparsity, noise=(0.3, 0, 0, 0), seed=4)
    assert torch.equal(a.signals, b.signals)
    assert [e.abs().max() > 0 for e in a.errors] == [True, False, False, False]
    c = model.sample(20, sparsity, noise=0.3, seed=5)
    assert not torch.equal(a.codes[-1], c.codes[-1])
    assert a.codes[-1][a.codes[-1] != 0].abs().min() >= 0.5


@pytest.mark.parametrize("name", ["dense 3", "conv 3"])
def test_nonnegative_codes(name):
    model, sparsity, positions = build(name)
    options = dict(positions=positions, nonnegative=True, seed=6)
    signed = model.sample(50, sparsity, **options)
    assert all((x >= 0).all() for x in signed.codes)
    assert max(r.abs().max() for r in residuals(model, signed)) < ROUNDING
    outer, *inner = model.operators
    if isinstance(outer, Dense):
        inner = [Dense(D.matrix.abs()) for D in inner]
    else:
        inner = [Conv1d(D.filters.abs(), D.stride) for D in inner]
    positive = DeepSparseModel([outer, *inner]).sample(50, sparsity, **options)
    assert all((x >= 0).all() for x in positive.codes)
    assert all(e.abs().max() == 0 for e in positive.errors)


def test_single_precision_and_torchs_own_generator():
    model, sparsity, positions = build("conv 2", torch.float32)
    torch.manual_seed(0)
    a = model.sample(5, sparsity, noise=0.1, positions=positions)
    torch.manual_seed(0)
    b = model.sample(5, sparsity, noise=0.1, positions=positions)
    assert torch.equal(a.signals, b.signals)
    assert {t.dtype for t in (a.signals, *a.codes, *a.errors)} == {torch.float32}
    assert max(r.abs().max() for r in residuals(model, a)) < 1e-5


@pytest.mark.parametrize("boundary", ["circular", "zero"])
def test_to_dense_is_the_same_model(boundary):
    model = odd(boundary)
    sample = model.sample(7, (9, 3, 1), positions=6, noise=0.1, seed=1)
    dense = model.to_dense(sample.signals.shape[1])
    assert dense.depth == 3 and all(isinstance(D, Dense) for D in dense.operators)
    for a, b in zip(model.expand(sample.codes[-1]), dense.expand(sample.codes[-1].flatten(1))):
        assert torch.allclose(a.flatten(1), b, atol=1e-12)
    assert dense.to_dense() is dense


def test_images_make_models_too():
    gen = torch.Generator().manual_seed(0)
    outer = torch.randn(5, 4, 4, generator=gen, dtype=DOUBLE)
    inner = torch.zeros(3, 5, 2, 2, dtype=DOUBLE)
    inner[[0, 1, 2], [0, 2, 4], [0, 1, 0], [1, 0, 0]] = 1.0
    outer = outer / lengths(outer)[:, None, None]
    model = DeepSparseModel([Conv2d(outer, 2), Conv2d(inner, 2)])
    sample = model.sample(3, (4, 1), positions=(4, 3), noise=0.1, seed=0)
    assert sample.signals.shape == (3, 16, 12)
    assert max(r.abs().max() for r in residuals(model, sample)) < ROUNDING
    dense = model.to_dense((16, 12))
    assert torch.allclose(
        dense.synthesize(sample.codes[-1].flatten(1)),
        model.synthesize(sample.codes[-1]).flatten(1),
    )


def test_groups_of_the_first_layer_meet_at_the_angles_of_single_atoms():
    from dsclib.dictionaries import incoherent, mutual_coherence

    grouped = sparse_model((96, 108), group_size=3, seed=0, dtype=DOUBLE).operators[0].matrix
    single = incoherent(32, 36, seed=0, dtype=DOUBLE)
    assert mutual_coherence(grouped, group_size=3) < 1.2 * mutual_coherence(single)
    assert (grouped.abs() > 1e-3).double().mean() > 0.9  # in general position
    for D in grouped.split(3, dim=1):
        assert torch.allclose(D.T @ D, torch.eye(3, dtype=DOUBLE), atol=1e-12)


def test_a_shallower_model_is_the_beginning_of_a_deeper_one():
    for make, deep, shallow in (
        (sparse_model, ((16, 18, 8, 5), (2, 3)), ((16, 18, 8), (2,))),
        (sparse_conv_model, (((4, 6, 3), (3, 2, 1), (2, 2, 2)), (2, 3)), (((4, 6, 3),),)),
    ):
        deep, shallow = make(*deep, seed=3), make(*shallow, seed=3)
        for a, b in zip(deep.operators, shallow.operators):
            assert torch.equal(a.to_matrix(*size(a)), b.to_matrix(*size(b)))
    model = sparse_conv_model(((4, 6, 3), (3, 2, 1)), 2, boundary="zero", seed=0)
    assert [D.boundary for D in model.operators] == ["zero", "zero"]


def size(operator):
    return () if isinstance(operator, Dense) else (6 * operator.stride,)


# ---------------------------------------------------------------- stability and uniqueness


def extreme(matrix, support):
    """The unit vector on ``support`` that ``matrix`` shrinks most."""
    _, _, Vh = torch.linalg.svd(matrix[:, support])
    u = torch.zeros(matrix.shape[1], dtype=DOUBLE)
    u[support] = Vh[-1]
    return u


def entries(groups, d):
    return (groups[:, None] * d + torch.arange(d)).flatten()


def rivals(model, sparsity, worst, together, rng):
    """Two solutions (codes, errors) of one signal, with few enough active atoms in each layer.

    They lie half a difference u_j to either side of a chain of codes without errors, so that
    e_j = (u_{j-1} - D_j u_j) / 2 in one and -e_j in the other. ``together``: both have the same
    supports, and u_j is anything there; otherwise the deepest supports are disjoint, and the
    inner layers have no errors.
    """
    matrices = [D.matrix for D in model.operators]
    d, s = model.group_sizes[-1], sparsity[-1]
    order = torch.from_numpy(rng.permutation(matrices[-1].shape[1] // d))
    mine, other = entries(order[:s], d), entries(order[s : 2 * s], d)
    other = mine if together else other
    support = mine if together else torch.cat([mine, other])
    u = torch.zeros(matrices[-1].shape[1], dtype=DOUBLE)
    u[support] = torch.from_numpy(rng.standard_normal(len(support)))
    u = extreme(matrices[-1], support) if worst else u / u.norm()
    centre = u.clone() / 2  # so that one code has the first support, the other the second
    centre[other] = -centre[other]
    if together:
        centre[support] = torch.from_numpy(rng.standard_normal(len(support)))
    centres, differences = [centre], [u]
    for j in range(model.depth - 1, -1, -1):
        centre, made = matrices[j] @ centres[0], matrices[j] @ differences[0]
        u = made.clone()
        if together and j > 0:
            on = (centre != 0) & (made != 0)
            u = made * on * rng.uniform(0, 1)
            if not worst:
                u = (
                    u
                    + 0.3
                    * rng.standard_normal()
                    * torch.from_numpy(rng.standard_normal(len(u)))
                    * on
                )
        elif j == 0:
            u = made * rng.uniform(0, 1)
        centres.insert(0, centre)
        differences.insert(0, u)
    errors = [-differences[0] / 2]
    for j, D in enumerate(matrices):
        errors.append((differences[j] - D @ differences[j + 1]) / 2)
    one = [c + u / 2 for c, u in zip(centres, differences)]
    two = [c - u / 2 for c, u in zip(centres, differences)]
    return (one, errors), (two, [-e for e in errors])


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("worst", [True, False])
@pytest.mark.parametrize("name", [n for n in PRESETS if "conv" not in n])
def test_two_solutions_are_never_further_apart_than_the_bound(name, worst, together):
    model, sparsity, _ = build(name)
    rng = np.random.default_rng(0)
    unit = torch.eye(model.depth + 1).tolist()
    per_error = torch.tensor([model.stability(sparsity, e) for e in unit], dtype=DOUBLE)
    largest = 0.0
    for _ in range(20):
        (one, errors), (two, rival) = rivals(model, sparsity, worst, together, rng)
        y = one[0] + errors[0]
        assert torch.allclose(two[0] + rival[0], y, atol=1e-12)
        for j, D in enumerate(model.operators):  # both are solutions, and sparse
            for x, e in ((one, errors), (two, rival)):
                assert torch.allclose(x[j], D.matrix @ x[j + 1] + e[j + 1], atol=1e-12)
                assert active(D, x[j + 1][None], model.group_sizes[j]) <= sparsity[j]
        eps = torch.stack([e.norm() for e in errors])
        bound = eps @ per_error
        apart = torch.stack([(a - b).norm() for a, b in zip(one, two)])
        assert (apart <= bound * (1 + 1e-9) + 1e-12).all()
        largest = max(largest, (apart / bound).max().item())
    assert largest > 0.3  # a bound that says something


@pytest.mark.parametrize("name", PRESETS)
def test_any_two_samples_keep_the_bound(name):
    """Two samples explain the signal halfway between theirs; norms are of whole signals."""
    model, sparsity, positions = build(name)
    noise = [0.0, *[0.1] * model.depth]
    unit = torch.eye(model.depth + 1).tolist()
    per_error = torch.tensor([model.stability(sparsity, e) for e in unit], dtype=DOUBLE)
    a, b = (model.sample(50, sparsity, noise=noise, positions=positions, seed=s) for s in (1, 2))
    pairs = [(a.signals, b.signals), *zip(a.codes, b.codes)]
    eps = [lengths(a.signals - b.signals) / 2]
    eps += [torch.maximum(lengths(e), lengths(f)) for e, f in zip(a.errors[1:], b.errors[1:])]
    bound = torch.stack(eps, dim=1) @ per_error
    apart = torch.stack([lengths(x - z) for x, z in pairs], dim=1)
    assert (apart <= bound * (1 + 1e-9)).all()


def test_the_bound_is_met_by_the_two_atoms_that_are_most_alike():
    D = gaussian(32, 48, seed=0, dtype=DOUBLE)
    model = DeepSparseModel([D])
    pair = (D.T @ D).abs().fill_diagonal_(0).flatten().argmax().item()
    u = extreme(D, [pair // 48, pair % 48])
    eps = (D @ u).norm().item() / 2  # e = D u / 2 in one, -D u / 2 in the other
    assert model.stability((1,), (0.0, eps))[1] == pytest.approx(1.0)
    assert model.stability((1,), (eps, 0.0))[1] == pytest.approx(1.0)


def test_stability_follows_its_recursion_and_says_which_layer_fails():
    model, sparsity, _ = build("dense 3")
    eps = (0.3, 0.2, 0.1, 0.05)
    deltas = model.stability(sparsity, eps)
    assert deltas[0] == pytest.approx(0.6)
    for j, (D, s) in enumerate(zip(model.operators, sparsity), start=1):
        M = (D.matrix.T @ D.matrix).abs().fill_diagonal_(0)
        crowd = M.sort(dim=1, descending=True).values[:, : 2 * s - 1].sum(dim=1).max().item()
        expected = (2 * eps[j] + deltas[j - 1]) / math.sqrt(1 - crowd)
        assert deltas[j] == pytest.approx(expected)
    assert model.stability(sparsity, (0.0,) * 4) == (0.0,) * 4
    with pytest.raises(ValueError, match=r"layer 1: s = 60 has mu_1\(119\) = .* less than 1"):
        model.stability((60, 3, 1), eps)


def test_exact_models_have_one_solution():
    """Every support is tried: nothing else explains the signal."""
    model = sparse_model((14, 16, 6), (2,), seed=0, dtype=DOUBLE)
    sparsity = (2, 1)
    pairs = zip(model.operators, sparsity)
    assert all(s <= uniqueness_sparsity(D) for D, s in pairs)
    sample = model.sample(12, sparsity, seed=0)
    signals = sample.signals
    for operator, s, codes in zip(model.operators, sparsity, sample.codes):
        D, n = operator.matrix, operator.matrix.shape[1]
        supports = torch.tensor(list(itertools.combinations(range(n), s)))
        atoms = D[:, supports].permute(1, 0, 2)
        values = torch.linalg.pinv(atoms) @ signals.T
        exact = (atoms @ values - signals.T).norm(dim=1) < 1e-9
        found = torch.zeros(*exact.shape, n, dtype=DOUBLE)
        found.scatter_(2, supports[:, None].expand(-1, len(signals), -1), values.mT)
        assert exact.any(dim=0).all()
        for b in range(len(signals)):
            assert torch.allclose(found[exact[:, b], b], codes[b], atol=1e-9)
        signals = codes
    assert model.stability(sparsity, (0.0, 0.0, 0.0)) == (0.0, 0.0, 0.0)


# ---------------------------------------------------------------- layered pursuits


@pytest.mark.parametrize("boundary", ["circular", "zero"])
def test_layered_thresholding_is_the_forward_pass_of_a_cnn(boundary):
    model = odd(boundary)
    Y = model.sample(7, (9, 3, 1), positions=6, noise=0.1, seed=1).signals
    bias = torch.linspace(0.0, 0.2, 5, dtype=DOUBLE)
    codes = layered_thresholding(Y, model, (0.1, bias[:, None], 0.05), nonnegative=True)
    x = Y[:, None]
    for j, (operator, t) in enumerate(zip(model.operators, (0.1, bias, 0.05))):
        weight = operator.filters[:, None] if j == 0 else operator.filters
        if boundary == "circular":
            x = F.pad(x, (0, weight.shape[-1] - operator.stride), mode="circular")
        b = -torch.as_tensor(t, dtype=DOUBLE).expand(len(weight)).contiguous()
        x = F.relu(F.conv1d(x, weight, b, stride=operator.stride))
        assert torch.allclose(codes[j], x, atol=1e-14)
    signed = layered_thresholding(Y, model, 0.1)
    z = model.operators[0].analyze(Y)
    assert torch.allclose(signed[0], F.softshrink(z, 0.1), atol=1e-14)


def test_layered_thresholding_of_groups():
    model, sparsity, _ = build("group 2")
    Y = model.sample(5, sparsity, seed=0).signals
    codes = layered_thresholding(Y, model, (0.1, 0.2))
    for D, x, z, t in zip(model.operators, codes, (Y, codes[0]), (0.1, 0.2)):
        g = (z @ D.matrix).unflatten(1, (-1, 4))
        expected = g * (1 - t / g.norm(dim=2, keepdim=True)).clamp(min=0)
        assert torch.allclose(x, expected.flatten(1), atol=1e-14)
    with pytest.raises(ValueError, match="a group has no sign"):
        layered_thresholding(Y, model, 0.1, nonnegative=True)


@pytest.mark.parametrize("name", ["dense 1", "dense 2", "dense 3", "deep 4"])
def test_layered_matching_pursuit_finds_all_codes(name):
    model, sparsity, _ = build(name)
    sample = model.sample(100, sparsity, seed=7)
    found = layered_pursuit(sample.signals, model, lambda y, D, j: omp(y, D, sparsity[j]))
    for x, truth in zip(found, sample.codes):
        assert torch.allclose(x, truth, atol=1e-9)


def test_layered_lasso_and_fista_agree():
    model, sparsity, _ = build("small 2")
    Y = model.sample(20, sparsity, noise=0.05, seed=8).signals
    a = layered_pursuit(Y, model, lambda y, D, j: lasso(y, D, 0.05, tol=1e-10))
    b = layered_pursuit(Y, model, lambda y, D, j: fista(y, D, 0.05, tol=1e-10).codes)
    for x, z in zip(a, b):
        assert torch.allclose(x, z, atol=1e-4)
    x = fista(Y, model.operators[0].matrix, 0.05, tol=1e-10).codes
    assert torch.equal(b[0], x)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("name", PRESETS)
def test_scheduled_iterations_keep_their_promise_in_every_layer(name, noise):
    model, sparsity, positions = build(name)
    d = model.group_sizes[0]
    sample = model.sample(60, sparsity, noise=noise, positions=positions, seed=9)

    def peak(x):
        return (x if d == 1 else x.unflatten(1, (-1, d)).norm(dim=-1)).abs().max().item()

    sigma = [peak(D.analyze(e)) for D, e in zip(model.operators[1:], sample.errors[2:])]
    outer = sample.errors[0] + sample.errors[1]
    plans = deep_schedule(
        model.operators,
        sparsity,
        25,
        bounds=[peak(x) for x in sample.codes],
        noise=[peak(model.operators[0].analyze(outer)), *sigma],
        group_size=d,
    )

    def solve(y, D, layer):
        return scheduled_ista(y, D, plans[layer].thresholds, group_size=d)

    found = layered_pursuit(sample.signals, model, solve)
    for x, truth, plan in zip(found, sample.codes, plans):
        assert (x[truth == 0] == 0).all() if d == 1 else True
        assert peak(x - truth) <= plan.errors[-1] * (1 + 1e-9)


# ---------------------------------------------------------------- all layers at once


def test_one_layer_is_fista_and_ista():
    model, sparsity, _ = build("dense 1")
    Y = model.sample(20, sparsity, noise=0.05, seed=10).signals
    D = model.operators[0].matrix
    for momentum, solver in ((True, fista), (False, ista)):
        options = dict(restart=False) if momentum else {}
        expected = solver(Y, D, 0.05, tol=None, max_iterations=8, **options).codes
        (x,) = multilayer_fista(Y, model, 0.05, 8, momentum=momentum)
        assert torch.allclose(x, expected, rtol=0, atol=1e-12)
    (x,) = multilayer_fista(Y, model, 0.05, 400)
    best = multilayer_objective(Y, model, lasso(Y, D, 0.05, tol=1e-10).codes, 0.05)
    assert (multilayer_objective(Y, model, x, 0.05) <= best * (1 + 1e-6)).all()


def multilayer_minimum(Y, model, lams, iterations=3000):
    """The multilayer Lasso itself, by splitting (ADMM): minimise f(z) + |A z|_1."""
    D1, D2 = (operator.matrix for operator in model.operators)
    A = torch.vstack([lams[0] * D2, lams[1] * torch.eye(D2.shape[1], dtype=DOUBLE)])
    D = D1 @ D2
    rho = 20.0
    inverse = torch.linalg.inv(D.T @ D + rho * A.T @ A)
    v = w = Y.new_zeros(len(Y), len(A))
    for _ in range(iterations):
        z = (Y @ D + rho * (v - w) @ A) @ inverse
        v = F.softshrink(z @ A.T + w, 1 / rho)
        w = w + z @ A.T - v
    return multilayer_objective(Y, model, z, lams)


def test_two_layers_fall_and_end_near_the_minimum():
    model, sparsity, _ = build("small 2")
    Y = model.sample(20, sparsity, noise=0.1, seed=11).signals
    lams = (0.02, 0.05)
    best = multilayer_minimum(Y, model, lams)
    zero = Y.square().sum(dim=1) / 2
    trace = {}
    for momentum in (True, False):
        values = []

        def note(k, codes, values=values):
            assert k == len(values) and len(codes) == 2
            values.append(multilayer_objective(Y, model, codes[-1], lams))

        codes = multilayer_fista(Y, model, lams, 200, momentum=momentum, callback=note)
        assert [tuple(x.shape) for x in codes] == [(20, 72), (20, 26)]
        assert len(values) == 201 and torch.allclose(values[0], zero)
        assert (torch.stack(values) >= best * (1 - 1e-6)).all()
        assert ((values[-1] - best) < 0.05 * (zero - best)).all()
        trace[momentum] = torch.stack(values)
    assert (trace[False].diff(dim=0) <= 1e-9 * zero).double().mean() > 0.9
    early = [trace[m][5].mean() for m in (True, False)]
    assert early[0] < early[1]  # momentum helps


def test_the_multilayer_objective_by_hand_and_in_groups():
    for name, d in (("dense 3", 1), ("group 3", 4)):
        model, sparsity, _ = build(name)
        sample = model.sample(6, sparsity, noise=0.1, seed=12)
        lams = (0.1, 0.2, 0.3)
        x = sample.codes[-1]
        D = [operator.matrix for operator in model.operators]
        expected = (sample.signals - x @ D[2].T @ D[1].T @ D[0].T).square().sum(1) / 2
        for lam, z in zip(lams, (x @ D[2].T @ D[1].T, x @ D[2].T, x)):
            expected += lam * z.unflatten(1, (-1, d)).norm(dim=2).sum(dim=1)
        assert torch.allclose(multilayer_objective(sample.signals, model, x, lams), expected)
        codes = multilayer_fista(sample.signals, model, 0.01, 300)
        assert lengths(codes[-1] - x).mean() < 0.3 * lengths(x).mean()


def test_convolutions_and_their_matrices_step_alike():
    model, sparsity, positions = build("conv 2")
    Y = model.sample(5, sparsity, positions=positions, noise=0.05, seed=13).signals
    dense = model.to_dense(Y.shape[1])
    # the bound L of a convolution is for any length, a little above that of the matrix
    for conv, matrix in zip(model.operators, dense.operators):
        assert conv.lipschitz() >= matrix.lipschitz() * (1 - 1e-9)
    a = multilayer_fista(Y, model, (0.01, 0.02), 100)
    b = multilayer_fista(Y, dense, (0.01, 0.02), 100)
    for x, z in zip(a, b):
        assert (x.flatten(1) - z).abs().max() < 1e-2


def test_gradients_pass_through_all_layers():
    D1 = gaussian(12, 16, seed=0, dtype=DOUBLE).requires_grad_()
    D2 = gaussian(16, 8, seed=1, dtype=DOUBLE).requires_grad_()
    model = DeepSparseModel([D1, D2])
    Y = torch.randn(3, 12, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for codes in (layered_thresholding(Y, model, 0.1), multilayer_fista(Y, model, 0.01, 5)):
        codes[-1].square().sum().backward()
        assert D1.grad.abs().max() > 0 and D2.grad.abs().max() > 0
        D1.grad = D2.grad = None


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: DeepSparseModel([]), "dictionaries is empty"),
        (lambda m: DeepSparseModel([torch.eye(4), torch.eye(5)]), "layer 2 has 5 rows, expected 4"),
        (
            lambda m: DeepSparseModel([torch.eye(4), torch.eye(4).double()]),
            "layer 2 is torch.float64",
        ),
        (
            lambda m: DeepSparseModel([Conv1d(torch.ones(k), 1) for k in ((4, 3), (2, 3, 2))]),
            "layer 2 has 3 channels, expected 4",
        ),
        (
            lambda m: DeepSparseModel([Conv1d(torch.ones(4, 3), 1), torch.eye(4)]),
            "expected operators of one kind",
        ),
        (lambda m: DeepSparseModel([torch.eye(4)], 3), "group_size = 3 does not divide"),
        (
            lambda m: DeepSparseModel([Conv1d(torch.ones(4, 3), 1)], 2),
            "layer 1: group_size = 2, expected 1 for a convolution",
        ),
        (lambda m: m.sample(3, (6,)), "sparsity has 1 entries, expected 2"),
        (lambda m: m.sample(3, (6, 27)), r"sparsity\[1\] = 27"),
        (lambda m: m.sample(0, (6, 2)), "count = 0"),
        (lambda m: m.sample(3, (6, 2), noise=(0.1, 0.1)), "noise has 2 entries, expected 3"),
        (lambda m: m.sample(3, (6, 2), noise=-0.1), r"noise\[0\] = -0.1"),
        (lambda m: m.sample(3, (6, 2), positions=4), "positions = 4, expected None"),
        (lambda m: build("conv 1")[0].sample(3, (2,)), "positions is missing"),
        (lambda m: m.stability((6, 2), 0.1), "eps has 1 entries, expected 3"),
        (lambda m: m.stability((6, 2), (0.1, -1, 0)), r"eps\[1\] = -1"),
        (lambda m: m.certified_sparsity([None]), "weights has 1 entries, expected 2"),
        (lambda m: m.synthesize(torch.zeros(2, 9, dtype=DOUBLE)), r"expected \(B, 26\)"),
        (lambda m: layered_thresholding(torch.zeros(2, 64), m, 0.1), "Y is torch.float32"),
        (lambda m: layered_thresholding(Y0(), m, (0.1,)), "thresholds has 1 entries"),
        (lambda m: layered_thresholding(Y0(), m, -0.1), "expected a finite number >= 0"),
        (lambda m: layered_thresholding(Y0()[:, :9], m, 0.1), r"expected \(B, 64\)"),
        (lambda m: layered_thresholding(Y0(), [torch.eye(3)], 0.1), "expected a DeepSparseModel"),
        (
            lambda m: layered_pursuit(Y0(), m, lambda y, D, j: y),
            r"solve returned shape \(2, 64\) for layer 0, expected codes \(2, 72\)",
        ),
        (lambda m: layered_pursuit(Y0(), m, lambda y, D, j: None), "solve returned NoneType"),
        (lambda m: multilayer_fista(Y0(), m, (0.1, -1.0), 5), r"lams\[1\] = -1"),
        (lambda m: multilayer_fista(Y0(), m, 0.1, 0), "steps = 0"),
        (lambda m: multilayer_objective(Y0(), m, Y0()[:1, :26], 0.1), "codes make signals"),
        (lambda m: sparse_model((64,)), "sizes has 1 entries"),
        (lambda m: sparse_model((64, 72, 26), (3, 2)), "nonzeros has 2 entries, expected 1"),
        (lambda m: sparse_model((64, 72), group_size=5), "group_size = 5 does not divide"),
        (lambda m: sparse_conv_model(((4, 8),)), "expected triples"),
        (lambda m: sparse_conv_model(((4, 8, 4), (4, 2, 1))), "nonzeros has 0 entries"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(build("small 2")[0])


def Y0():
    return torch.ones(2, 64, dtype=DOUBLE)


def test_entries_that_cancel_are_not_active():
    """Equal entries of two atoms with opposite signs leave a rounding error, not an entry."""
    third = math.sqrt(1 / 3)
    D2 = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1.0]], dtype=DOUBLE).T * third
    D3 = torch.tensor([[third, -third]], dtype=DOUBLE).T * math.sqrt(3 / 2)
    model = DeepSparseModel([torch.eye(5, dtype=DOUBLE), D2, D3])
    drawn = model.sample(500, (4, 2, 1), noise=(0, 0, 0.1, 0), seed=0)
    assert (drawn.codes[0][:, 2] == 0).all() and (drawn.errors[2][:, 2] == 0).all()
    assert model.sample(500, (5, 2, 1), seed=1).codes[0].count_nonzero(dim=1).max() == 4
