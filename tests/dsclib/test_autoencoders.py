"""The encoder is the pursuit, the support theorem holds, and training finds the subspaces."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch.func import functional_call

from dsclib.autoencoders import (
    GroupSparseAutoencoder,
    SparseAutoencoder,
    data_start,
    kmeans_start,
    nearby_start,
    pca_start,
)
from dsclib.codes import sparse_codes
from dsclib.dictionaries import gaussian, group_incoherent, group_orthonormal
from dsclib.metrics import subspace_recovery, support_recovery
from dsclib.proximal import group_soft_threshold, nonnegative_soft_threshold, soft_threshold
from dsclib.pursuit import duality_gap, fista, group_lasso
from dsclib.theory import support_interval

DOUBLE = torch.float64
STARTS = [data_start, kmeans_start, pca_start]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def grouped(columns="free", steps=1, lam=0.3, **options):
    """A small model: 4 groups of 3 in 16 dimensions."""
    options = {"seed": 0, "dtype": DOUBLE, **options}
    return GroupSparseAutoencoder(16, 4, 3, lam, steps, columns=columns, **options)


# --- the encoder


@pytest.mark.parametrize("nonnegative", [False, True])
def test_one_step_is_the_threshold_of_the_correlations(nonnegative):
    y, W = randn(9, 16), randn(16, 12, seed=1)
    group = GroupSparseAutoencoder(16, 4, 3, 0.5, nonnegative=nonnegative, weight=W)
    z = y @ W
    expected = group_soft_threshold(z.relu() if nonnegative else z, 0.5, 3)
    torch.testing.assert_close(group.encode(y), expected)
    torch.testing.assert_close(group(y), expected @ W.T)
    scalar = SparseAutoencoder(16, 12, 0.5, nonnegative=nonnegative, weight=W)
    threshold = nonnegative_soft_threshold if nonnegative else soft_threshold
    torch.testing.assert_close(scalar.encode(y), threshold(z, 0.5))


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_more_steps_are_fista(steps):
    W, y = randn(16, 12), randn(5, 16, seed=1)
    model = SparseAutoencoder(16, 12, 0.4, steps, weight=W)
    expected = fista(y, W, 0.4, tol=None, max_iterations=steps, restart=False).codes
    torch.testing.assert_close(model.encode(y), expected)


def test_many_steps_solve_the_group_lasso():
    W, y = group_orthonormal(16, 4, 3, seed=0, dtype=DOUBLE), randn(5, 16, seed=1)
    codes = grouped(steps=2000, weight=W).encode(y).detach()
    assert duality_gap(y, W, codes, 0.3, 3).max() < 1e-8
    torch.testing.assert_close(codes, group_lasso(y, W, 0.3, 3, 1e-12).codes, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_nonnegative_threshold_is_a_proximal_map(seed):
    model = grouped(nonnegative=True, weight=torch.eye(16, dtype=DOUBLE)[:, :12], lam=0.7)
    z = randn(40, 12, seed=seed)
    x = model.encode(torch.nn.functional.pad(z, (0, 4)))

    def penalised(x):
        lengths = x.unflatten(1, (-1, 3)).norm(dim=-1)
        return (x - z).square().sum(dim=1) / 2 + 0.7 * lengths.sum(dim=1)

    assert (x >= 0).all() and (x > 0).any() and (x == 0).any()
    for scale in (1e-3, 0.1, 1.0):
        rival = (x + scale * randn(40, 12, seed=seed + 100)).relu()
        assert (penalised(rival) >= penalised(x) - 1e-12).all()


@pytest.mark.parametrize("columns", ["free", "unit", "orthonormal"])
@pytest.mark.parametrize("steps", [1, 4])
def test_gradients_are_right_and_finite_at_zero_groups(columns, steps):
    model, y = grouped(columns, steps, lam=0.8), randn(3, 16, seed=1)
    y[0] = 0
    assert (~model.active_groups(y)).any() and model.active_groups(y).any()

    def forward(y):
        return functional_call(model, {"weight": model.weight.detach()}, (y,))

    assert torch.autograd.gradcheck(forward, y.requires_grad_())
    # L is held fixed in the gradient of W: check that of one step, finiteness of both
    if steps == 1:
        weight = model.weight.detach().clone().requires_grad_()
        call = lambda w: functional_call(model, {"weight": w}, (y.detach(),))  # noqa: E731
        assert torch.autograd.gradcheck(call, weight)
    model.loss(y.detach()).backward()
    assert torch.isfinite(model.weight.grad).all()


def test_clusters_and_active_groups():
    W = torch.eye(4, dtype=DOUBLE)
    model = GroupSparseAutoencoder(4, 2, 2, 1.0, weight=W)
    y = torch.tensor([[3, 0, 0, 2.9], [0, 0, 2, 2], [0.1, 0, 0.2, 0], [0, 0, 0, 0]], dtype=DOUBLE)
    assert model.predict_cluster(y).tolist() == [0, 1, 1, 0]
    assert model.predict_cluster(y).dtype == torch.int64
    expected = [[True, True], [False, True], [False, False], [False, False]]
    assert model.active_groups(y).tolist() == expected
    one_sided = GroupSparseAutoencoder(4, 2, 2, 1.0, weight=W, nonnegative=True)
    assert one_sided.predict_cluster(-y[:1] + 0.1).tolist() == [0]


# --- the constraint


def test_columns_are_put_back():
    W = 3 * randn(16, 12)
    torch.testing.assert_close(grouped("free", weight=W).weight.detach(), W)
    unit = grouped("unit", weight=W).weight.detach()
    torch.testing.assert_close(unit, W / W.norm(dim=0))
    blocks = grouped("orthonormal", weight=W).weight.detach().unflatten(1, (-1, 3)).movedim(1, 0)
    torch.testing.assert_close(blocks.mT @ blocks, torch.eye(3, dtype=DOUBLE).expand(4, 3, 3))
    given = W.unflatten(1, (-1, 3)).movedim(1, 0)
    inner = blocks.mT @ given  # symmetric and positive for the nearest orthonormal columns only
    torch.testing.assert_close(inner, inner.mT)
    assert (torch.linalg.eigvalsh(inner) > 0).all()


@pytest.mark.parametrize("columns", ["unit", "orthonormal"])
def test_gradients_are_tangent(columns):
    model = grouped(columns)
    model.loss(randn(20, 16, seed=1)).backward()
    W, grad = model.weight.detach(), model.weight.grad
    assert grad.norm() > 1e-3
    d = 1 if columns == "unit" else 3
    W, grad = (A.unflatten(1, (-1, d)).movedim(1, 0) for A in (W, grad))
    inner = W.mT @ grad
    assert (inner + inner.mT).abs().max() < 1e-12


def test_copies_and_state():
    model, y = grouped("orthonormal", 3), randn(2, 16)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(y), model(y))
    other = grouped("orthonormal", 3, seed=1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(y), model(y))
    assert grouped(seed=2).weight.equal(grouped(seed=2).weight)
    assert model(y.numpy()).dtype == DOUBLE and model.float().weight.dtype == torch.float32
    assert "columns='orthonormal'" in repr(model)


def test_loss_and_objective():
    y, one, many = randn(6, 16), grouped(), grouped(steps=5)
    expected = (y - one(y)).square().sum(dim=1).mean() / 2
    torch.testing.assert_close(one.loss(y), expected)
    x = many.encode(y)
    lengths = x.unflatten(1, (-1, 3)).norm(dim=-1).sum(dim=1)
    expected = (y - x @ many.weight.T).square().sum(dim=1).mean() / 2 + 0.3 * lengths.mean()
    torch.testing.assert_close(many.loss(y), expected)


def test_held_codes_give_the_gradient_at_their_optimum():
    y = randn(6, 16)
    model, fixed = grouped(steps=500), grouped(steps=500)
    model.loss(y).backward()
    fixed.objective(y, fixed.encode(y).detach()).backward()
    torch.testing.assert_close(model.weight.grad, fixed.weight.grad, atol=1e-6, rtol=0)


# --- the support theorem


def instance(rng, d):
    """Random D, W near it, and codes inside the conditions."""
    G, s = int(rng.integers(2, 8)), int(rng.integers(1, 4))
    m, s = int(rng.integers(d * 4, 40)), min(s, G)
    seed = int(rng.integers(2**31))
    D = group_orthonormal(m, G, d, seed=seed, dtype=DOUBLE)
    if rng.random() < 0.5:
        D = torch.linalg.qr(D).Q if m >= G * d else D
    W = nearby_start(D, rng.uniform(0, 0.4), d, seed=seed + 1) * rng.uniform(0.5, 2)
    least, bound = 1.0, rng.uniform(1, 1.5)
    X = sparse_codes(
        25, G * d, s, magnitudes=(least, bound), group_size=d, seed=seed + 2, dtype=DOUBLE
    )
    e = 0.05 * randn(25, m, seed=seed + 3)
    sigma = (e @ W).unflatten(1, (-1, d)).norm(dim=-1).max().item()
    return D, W, s, X, X @ D.T + e, dict(least=least, bound=bound, noise=sigma)


def test_support_theorem_has_no_violation_in_ten_thousand_instances():
    rng, signals, outside = np.random.default_rng(0), 0, 0
    while signals < 10_000:
        d = int(rng.integers(1, 5))
        D, W, s, X, Y, bounds = instance(rng, d)
        low, high = support_interval(D, s, W, d, **bounds)
        if low >= high:
            continue
        true = X.unflatten(1, (-1, d)).norm(dim=-1) > 0
        for lam in (low * (1 + 1e-12), (low + high) / 2, high * (1 - 1e-12)):
            model = GroupSparseAutoencoder(*D.shape[:1], true.shape[1], d, lam, weight=W)
            assert (model.active_groups(Y) == true).all()
        for lam in (low / 2, 2 * high):
            model = GroupSparseAutoencoder(*D.shape[:1], true.shape[1], d, lam, weight=W)
            outside += int((model.active_groups(Y) != true).any(dim=1).sum())
        signals += len(Y)
    assert outside > signals / 2  # the conditions matter


@pytest.mark.parametrize("s", [1, 2, 3])
def test_support_interval_is_sharp_at_both_ends(s):
    """Codes that attain the bounds: a threshold a little outside activates the wrong atoms."""
    D = gaussian(40, 6, seed=s, dtype=DOUBLE)
    W = nearby_start(D, 0.2, seed=s)
    D = D @ (torch.eye(6, dtype=DOUBLE) + 0.01)
    low, high = support_interval(D, s, W, bound=1.2)
    inner = W.T @ D
    others = inner.abs().fill_diagonal_(-1).sort(dim=1, descending=True)
    g = others.values[:, :s].sum(dim=1).argmax()
    x = torch.zeros(6, dtype=DOUBLE)
    active = others.indices[g, :s]
    x[active] = 1.2 * inner[g, active].sign()
    assert (D @ x @ W)[g].item() == pytest.approx(low)
    g = (inner.diag().abs() - 1.2 * others.values[:, : s - 1].sum(dim=1)).argmin()
    x, active = torch.zeros(6, dtype=DOUBLE), others.indices[g, : s - 1]
    x[g], x[active] = inner[g, g].sign(), -1.2 * inner[g, active].sign()
    assert (D @ x @ W)[g].item() == pytest.approx(high)


def test_support_interval_contains_that_of_coherence_and_distance():
    D, s, delta, bound = group_incoherent(32, 12, 4, seed=0, dtype=DOUBLE), 2, 0.05, 1.1
    W = nearby_start(D, delta, 4, seed=1)
    blocks = (D.T @ D).unflatten(0, (-1, 4)).unflatten(-1, (-1, 4)).transpose(1, 2)
    mu = torch.linalg.matrix_norm(blocks, 2).fill_diagonal_(0).max().item()
    low, high = support_interval(D, s, W, 4, bound=bound)
    assert low <= s * (mu + delta) * bound
    assert high >= (1 - delta) - (s - 1) * (mu + delta) * bound


def test_support_interval_refuses():
    D = group_orthonormal(16, 4, 2, seed=0)
    for wrong in (dict(s=0), dict(s=5), dict(group_size=3), dict(least=2.0), dict(noise=-1)):
        with pytest.raises(ValueError):
            support_interval(D, **{"s": 1, "group_size": 2, **wrong})
    with pytest.raises(ValueError, match="W has shape"):
        support_interval(D, 1, D[:, :4], 2)
    assert support_interval(D, 4, group_size=2).lower > 0


# --- learning


def test_what_is_outside_the_subspace_shrinks_by_the_covariance_of_the_codes():
    """One active group, found: N <- N (I - step C), whatever the threshold does to the codes."""
    D = group_incoherent(32, 6, 4, seed=0, dtype=DOUBLE)
    model = GroupSparseAutoencoder(32, 6, 4, 0.5, weight=nearby_start(D, 0.3, 4, seed=1))
    X = sparse_codes(200, 24, 1, group_size=4, magnitudes=(1, 2), seed=2, dtype=DOUBLE)
    codes, Y = model.encode(X @ D.T).detach(), X @ D.T
    assert (model.active_groups(Y) == (X.unflatten(1, (-1, 4)).norm(dim=-1) > 0)).all()
    model.loss(Y).backward()
    for g in range(6):
        block = slice(4 * g, 4 * g + 4)
        outside = torch.eye(32, dtype=DOUBLE) - D[:, block] @ D[:, block].T
        C = codes[:, block].T @ codes[:, block] / len(Y)
        expected = outside @ model.weight.detach()[:, block] @ C
        torch.testing.assert_close(outside @ model.weight.grad[:, block], expected)


def test_the_scale_of_the_fixed_point():
    """2 M2 c^3 - 3 lam M1 c^2 - (2 M2 - lam^2) c + lam M1 = 0, with empirical moments."""
    D, lam = torch.linalg.qr(randn(12, 12)).Q, 0.6
    X = sparse_codes(600, 12, 1, group_size=3, magnitudes=(1, 2), seed=3, dtype=DOUBLE)
    r = X.norm(dim=1)
    M1, M2 = r.mean().item(), r.square().mean().item()
    roots = np.roots([2 * M2, -3 * lam * M1, lam**2 - 2 * M2, lam * M1])
    c = roots.real.max()

    def loss(c):
        return GroupSparseAutoencoder(12, 4, 3, lam, weight=c * D).loss(X @ D.T).item()

    assert 1 < c < (lam + math.sqrt(lam**2 + 4)) / 2
    assert loss(c) < min(loss(c - 1e-3), loss(c + 1e-3))
    assert loss(c + 1e-3) == pytest.approx(loss(c - 1e-3), abs=1e-7)


@pytest.mark.parametrize("columns", ["free", "unit", "orthonormal"])
def test_training_finds_the_subspaces(columns):
    D = group_incoherent(32, 8, 4, seed=0)
    start = nearby_start(D, 0.4, 4, seed=1)
    model = GroupSparseAutoencoder(32, 8, 4, 0.6, columns=columns, weight=start)
    X = sparse_codes(4000, 32, 1, group_size=4, magnitudes=(1, 1.5), seed=2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for y in (X @ D.T).split(40):
        optimiser.zero_grad()
        model.loss(y).backward()
        optimiser.step()
        model.project_()
    assert subspace_recovery(start, D, 4).sin().min() > 0.3
    assert subspace_recovery(model.weight, D, 4).sin().max() < 0.01
    lengths = [a.unflatten(1, (-1, 4)).norm(dim=-1) for a in (model.encode(X @ D.T), X)]
    assert support_recovery(*lengths).exact == 1


# --- the starts


def test_starts_find_clusters():
    D = group_orthonormal(20, 3, 2, seed=0, dtype=DOUBLE)
    X = sparse_codes(300, 6, 1, group_size=2, magnitudes=(1, 1), nonnegative=True, seed=1)
    Y = X.double() @ D.T
    for start in (kmeans_start, pca_start):
        assert subspace_recovery(start(Y, 3, 2, seed=0), D, 2).max() < 1e-6
    W = data_start(Y, 3, 2, seed=0).unflatten(1, (3, 2))
    distances = [[(w - d @ (d.T @ w)).norm() for d in D.split(2, dim=1)] for w in W.unbind(1)]
    assert torch.tensor(distances).amin(dim=1).max() < 1e-6  # every group inside one subspace


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_starts_are_unit_columns_of_the_dtype(start, dtype):
    Y = randn(50, 9).to(dtype)
    W = start(Y, 4, 3, seed=1)
    assert W.shape == (9, 12) and W.dtype == dtype and torch.isfinite(W).all()
    torch.testing.assert_close(W.norm(dim=0), torch.ones(12, dtype=dtype))
    assert W.equal(start(Y, 4, 3, seed=1)) and not W.equal(start(Y, 4, 3, seed=2))


@pytest.mark.parametrize("start", [kmeans_start, pca_start])
@pytest.mark.parametrize(
    "Y", [np.zeros((6, 5)), np.ones((6, 5)), np.eye(5)[[0, 0, 0, 1, 1, 1]]], ids=str
)
def test_empty_clusters_and_constant_images(start, Y):
    W = start(Y, 4, 3, seed=0)
    assert W.shape == (5, 12)
    for block in W.split(3, dim=1):
        assert torch.linalg.matrix_rank(block) == 3
        torch.testing.assert_close(block.norm(dim=0), torch.ones(3, dtype=DOUBLE))


def test_nearby_start_is_as_far_as_it_says():
    D = group_orthonormal(16, 4, 3, seed=0, dtype=DOUBLE)
    moved = (nearby_start(D, 0.3, 3, seed=1) - D).unflatten(1, (4, 3)).movedim(1, 0)
    values = torch.linalg.svdvals(moved)
    torch.testing.assert_close(values, torch.full((4, 3), 0.3, dtype=DOUBLE))
    assert nearby_start(D, 0.0, 3).equal(D)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data_start(torch.zeros(9, 4), 2), "0 nonzero signals of 9"),
        (lambda: pca_start(torch.ones(3, 4), 5), "3 signals"),
        (lambda: kmeans_start(torch.ones(9, 4), 2, 5), "group_size = 5"),
        (lambda: nearby_start(torch.eye(4), 0.1, 3), "does not divide"),
        (lambda: nearby_start(torch.eye(4), -0.1), "distance"),
        (lambda: GroupSparseAutoencoder(4, 3, 5, 0.1), "group_size = 5"),
        (lambda: GroupSparseAutoencoder(4, 3, 0, 0.1), "group_size = 0"),
        (lambda: GroupSparseAutoencoder(4, 3, 2, -0.1), "lam"),
        (lambda: GroupSparseAutoencoder(4, 3, 2, 0.1, columns="orthogonal"), "columns"),
        (lambda: SparseAutoencoder(4, 3, 0.1, columns="orthonormal"), "columns"),
        (lambda: GroupSparseAutoencoder(4, 3, 2, 0.1, weight=torch.eye(4)), "weight has shape"),
        (lambda: SparseAutoencoder(3, 3, 0.1, weight=torch.eye(3) * torch.tensor([0.0, 1, 1]),
                                   columns="unit"), "zero column"),
        (lambda: grouped()(torch.zeros(2, 15, dtype=DOUBLE)), "y has shape .* since weight"),
        (lambda: grouped()(torch.zeros(16, dtype=DOUBLE)), r"y\[None\]"),
        (lambda: grouped()(torch.zeros(2, 16)), "but weight is"),
        (lambda: grouped().decode(torch.zeros(2, 5, dtype=DOUBLE)), "codes has shape"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_training_that_diverged_is_named():
    model = grouped()
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="weight holds 1 NaN"):
        model(randn(2, 16))


# --- the metric


def test_subspace_recovery_up_to_order_and_basis():
    D = group_orthonormal(16, 4, 3, seed=0, dtype=DOUBLE)
    turned = torch.cat([D[:, 3 * g : 3 * g + 3] @ randn(3, 3, seed=g) for g in (2, 0, 3, 1)], 1)
    assert subspace_recovery(turned, D, 3).max() < 1e-7
    more = torch.cat([randn(16, 3), turned], 1)
    assert subspace_recovery(more, D, 3).max() < 1e-7
    dependent = turned.clone()
    dependent[:, 1] = dependent[:, 0]
    angles = subspace_recovery(dependent, D, 3)
    assert angles[2].item() == pytest.approx(math.pi / 2) and angles[[0, 1, 3]].max() < 1e-7
    near = subspace_recovery(nearby_start(D, 1e-9, 3, seed=1), D, 3)
    assert (near > 1e-10).all() and (near < 1.1e-9).all()


def test_subspace_recovery_refuses():
    D = group_orthonormal(16, 4, 3, seed=0)
    for W, truth, d, message in [
        (D[:, :9], D, 3, "every true group"),
        (D, D, 5, "does not divide"),
        (D, torch.zeros(16, 12), 3, "dependent"),
    ]:
        with pytest.raises(ValueError, match=message):
            subspace_recovery(W, truth, d)
