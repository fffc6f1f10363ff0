"""Pursuits against closed forms, the optimality conditions, each other and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, orthogonal_mp

from dsclib.operators import Conv1d, Conv2d, Dense
from dsclib.proximal import group_soft_threshold, soft_threshold
from dsclib.pursuit import (
    ConvergenceWarning,
    Solution,
    duality_gap,
    fista,
    group_lasso,
    ista,
    lasso,
    omp,
    scheduled_ista,
)

L1_SOLVERS = [ista, fista, lasso]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small problems: on a busy machine threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian(m, n, seed=0):
    D = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return D / D.norm(dim=0)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dct(side, atoms_per_side):
    """Coherent and rank deficient on purpose: the hard case for coordinate descent."""
    t, f = torch.arange(side, dtype=torch.float64), torch.arange(atoms_per_side)
    A = torch.cos(torch.pi * t[:, None] * f / atoms_per_side)
    A[:, 1:] -= A[:, 1:].mean(dim=0)
    A /= A.norm(dim=0)
    return torch.kron(A, A)


def objective(Y, D, X, lam, d=1):
    lengths = X.unflatten(1, (-1, d)).norm(dim=2)
    return (Y - X @ D.T).square().sum(dim=1) / 2 + lam * lengths.sum(dim=1)


def sparse_problem(B, m, n, s, seed=0):
    D, g = gaussian(m, n, seed), torch.Generator().manual_seed(seed)
    support = torch.rand(B, n, generator=g).topk(s).indices
    X = torch.zeros(B, n, dtype=torch.float64)
    X.scatter_(1, support, 1 + torch.rand(B, s, generator=g, dtype=torch.float64))
    return X @ D.T, D, X


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("solver", L1_SOLVERS)
def test_orthonormal_dictionary_gives_the_soft_threshold(solver):
    D = torch.linalg.qr(normal(12, 12)).Q
    Y = normal(7, 12, seed=2)
    solution = solver(Y, D, 0.4, tol=1e-12)
    torch.testing.assert_close(solution.codes, soft_threshold(Y @ D, 0.4), atol=1e-9, rtol=0)


def test_orthonormal_dictionary_gives_the_group_soft_threshold():
    D = torch.linalg.qr(normal(12, 12)).Q
    Y = normal(7, 12, seed=2)
    codes = group_lasso(Y, D, 0.9, 3, 1e-12).codes
    torch.testing.assert_close(codes, group_soft_threshold(Y @ D, 0.9, 3), atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", L1_SOLVERS)
def test_large_penalty_gives_zero_and_a_little_less_does_not(solver):
    Y, D = normal(1, 10), gaussian(10, 25)
    top = (Y @ D).abs().max().item()
    at_top = solver(Y, D, top * (1 + 1e-12))
    assert (at_top.codes == 0).all() and (at_top.gap < 1e-9).all() and at_top.iterations == 0
    assert (solver(Y, D, 0.99 * top).codes != 0).any()


def test_large_penalty_gives_zero_groups():
    Y, D = normal(1, 10), gaussian(10, 24)
    top = (Y @ D).unflatten(1, (-1, 4)).norm(dim=2).max().item()
    assert (group_lasso(Y, D, top * (1 + 1e-12), 4).codes == 0).all()
    assert (group_lasso(Y, D, 0.99 * top, 4).codes != 0).sum() == 4


def test_one_atom_by_hand():
    # min 1/2 (3 - 2x)^2 + x: 4x = 6 - 1.
    for solver in L1_SOLVERS:
        solution = solver([[3.0]], [[2.0]], 1.0)
        assert solution.codes.item() == pytest.approx(1.25, abs=1e-6)


def test_zero_signals_and_zero_dictionaries_cost_nothing():
    Y, D = normal(4, 6), gaussian(6, 9)
    Y[1] = 0
    for solution in [s(Y, D, 0.1) for s in L1_SOLVERS] + [group_lasso(Y, D, 0.1, 3), omp(Y, D, 3)]:
        assert (solution.codes[1] == 0).all() and torch.isfinite(solution.codes).all()
        assert solution.gap is None or solution.gap[1] == 0
    for solution in [s(Y, 0 * D, 0.1) for s in L1_SOLVERS] + [omp(Y, 0 * D, 3)]:
        assert (solution.codes == 0).all()


# ---------------------------------------------------------------- optimality


@pytest.mark.parametrize("solver", L1_SOLVERS)
@pytest.mark.parametrize("dictionary", [gaussian(16, 40), dct(4, 6), 3 * gaussian(16, 5)])
def test_lasso_solutions_meet_the_kkt_conditions(solver, dictionary):
    Y, lam = normal(9, 16), 0.3
    solution = solver(Y, dictionary, lam, tol=1e-10, max_iterations=100_000)
    q = (Y - solution.codes @ dictionary.T) @ dictionary
    assert (solution.gap <= 1e-10).all()
    assert q.abs().max() <= lam * (1 + 1e-4)
    large = solution.codes.abs() > 1e-3
    torch.testing.assert_close(q[large], lam * solution.codes[large].sign(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dictionary", [gaussian(16, 40), dct(4, 6)])
@pytest.mark.parametrize("d", [2, 4])
def test_group_lasso_solutions_meet_the_kkt_conditions(dictionary, d):
    Y, lam = normal(9, 16), 0.3
    solution = group_lasso(Y, dictionary, lam, d, 1e-10)
    q = ((Y - solution.codes @ dictionary.T) @ dictionary).unflatten(1, (-1, d))
    x = solution.codes.unflatten(1, (-1, d))
    assert (q.norm(dim=2) <= lam * (1 + 1e-4)).all()
    large = x.norm(dim=2) > 1e-3
    directions = x[large] / x[large].norm(dim=1, keepdim=True)
    torch.testing.assert_close(q[large], lam * directions, atol=1e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.floats(0.01, 2.0))
def test_gap_bounds_the_distance_to_the_minimum(seed, d, lam):
    D, Y = gaussian(8, 12, seed), normal(5, 8, seed=seed)
    X = normal(5, 12, seed=seed + 1) * (normal(5, 12, seed=seed + 2) > 0)
    best = group_lasso(Y, D, lam, d, 1e-11).codes
    here, least = objective(Y, D, X, lam, d), objective(Y, D, best, lam, d)
    gap = duality_gap(Y, D, X, lam, d)
    assert (gap >= (here - least) / here - 1e-9).all() and (gap <= 1).all()
    assert (duality_gap(Y, D, best, lam, d) <= 1e-10).all()


def test_gap_is_that_of_the_residual_scaled_into_the_feasible_set():
    Y, D, X, lam = normal(1, 6), gaussian(6, 10), 0.1 * normal(1, 10, seed=3), 0.2
    r = (Y - X @ D.T)[0]
    reach = lam / (D.T @ r).abs().max()
    scales = reach * torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    dual = max((Y[0] @ (a * r) - (a * r) @ (a * r) / 2).item() for a in scales)
    primal = objective(Y, D, X, lam).item()
    assert duality_gap(Y, D, X, lam).item() == pytest.approx((primal - dual) / primal, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 2, 3]), st.floats(-5.0, 0.0))
def test_fast_solvers_converge_on_hard_instances(seed, m, d, exponent):
    """Repeated atoms, more atoms than entries, penalties down to 1e-5 of the largest useful."""
    D = normal(m, 6 * d, seed=seed)
    D = torch.cat([D, D, D + 1e-3 * normal(m, 6 * d, seed=seed + 1)], dim=1)
    Y = normal(3, m, seed=seed + 2)
    lam = 10**exponent * (Y @ D).abs().max().item()
    assert (group_lasso(Y, D, lam, d, max_iterations=10_000).gap <= 1e-6).all()


# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize("dictionary", [gaussian(16, 40), dct(4, 8)])
@pytest.mark.parametrize("lam", [0.02, 0.2, 1.0])
def test_fast_and_readable_lasso_agree(dictionary, lam):
    Y = normal(30, 16)
    fast = lasso(Y, dictionary, lam, 1e-10)
    readable = fista(Y, dictionary, lam, tol=1e-9, max_iterations=200_000)
    a, b = (objective(Y, dictionary, s.codes, lam) for s in (fast, readable))
    torch.testing.assert_close(a, b, rtol=2e-9, atol=0)


def test_fast_and_readable_lasso_find_the_same_codes():
    Y, D = normal(30, 16), gaussian(16, 40)
    readable = fista(Y, D, 0.2, tol=1e-13).codes
    torch.testing.assert_close(lasso(Y, D, 0.2, 1e-13).codes, readable, atol=1e-6, rtol=0)


@pytest.mark.parametrize("d", [2, 5])
def test_group_lasso_agrees_with_a_readable_proximal_gradient(d):
    Y, D, lam = normal(20, 80), gaussian(80, 40), 0.6  # more entries than atoms: fast to solve
    L = torch.linalg.matrix_norm(D, 2).item() ** 2
    X = torch.zeros(20, 40, dtype=torch.float64)
    for _ in range(600):
        X = group_soft_threshold(X + (Y - X @ D.T) @ D / L, lam / L, d)
    torch.testing.assert_close(group_lasso(Y, D, lam, d, 1e-12).codes, X, atol=1e-7, rtol=0)


def test_groups_of_one_are_the_lasso():
    Y, D = normal(20, 16), gaussian(16, 40)
    assert torch.equal(group_lasso(Y, D, 0.2, 1).codes, lasso(Y, D, 0.2).codes)


def test_lasso_agrees_with_scikit_learn():
    Y, D, lam = normal(6, 16), gaussian(16, 40), 0.25
    ours = lasso(Y, D, lam, 1e-12).codes
    peer = Lasso(alpha=lam / 16, fit_intercept=False, tol=1e-14, max_iter=100_000)
    for y, x in zip(Y, ours):
        np.testing.assert_allclose(peer.fit(D.numpy(), y.numpy()).coef_, x, atol=1e-6)


def test_group_lasso_agrees_with_a_general_optimiser():
    y, D = normal(1, 8), gaussian(8, 6)
    ours = group_lasso(y, D, 0.3, 2, 1e-12).codes
    found = minimize(
        lambda x: objective(y, D, torch.from_numpy(x)[None], 0.3, 2).item(),
        ours[0].numpy() + 0.1,
        method="Powell",
        options={"xtol": 1e-10, "ftol": 1e-14, "maxiter": 20_000},
    )
    assert objective(y, D, ours, 0.3, 2).item() <= found.fun + 1e-10
    np.testing.assert_allclose(found.x, ours[0], atol=1e-3)


@pytest.mark.parametrize("solver", [*L1_SOLVERS, lambda Y, D, lam: group_lasso(Y, D, lam, 4)])
def test_signals_do_not_influence_each_other(solver):
    Y, D = normal(11, 48), gaussian(48, 24)
    Y[5:] *= 3
    whole = solver(Y, D, 0.3)
    for i in (0, 4, 5, 10):
        alone = solver(Y[i : i + 1], D, 0.3)
        torch.testing.assert_close(alone.codes[0], whole.codes[i], atol=1e-3, rtol=0)


def test_lasso_answers_the_same_however_many_threads():
    Y, D = normal(40, 16), gaussian(16, 40)
    alone = lasso(Y, D, 0.1)
    torch.set_num_threads(3)
    try:
        shared = lasso(Y, D, 0.1)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(shared.codes, alone.codes, atol=1e-9, rtol=0)
    torch.testing.assert_close(shared.history, alone.history)


# ---------------------------------------------------------------- rates and records


def test_ista_and_fista_keep_their_guarantees():
    Y, D, lam, K = normal(8, 16), gaussian(16, 40), 0.05, 200
    best = lasso(Y, D, lam, 1e-13).codes
    L = torch.linalg.matrix_norm(D, 2).item() ** 2
    distance = best.square().sum(dim=1)
    k = torch.arange(1, K + 1)[:, None]
    least = objective(Y, D, best, lam)
    slow = ista(Y, D, lam, tol=None, max_iterations=K).history
    fast = fista(Y, D, lam, tol=None, max_iterations=K, restart=False).history
    assert (slow[1:] - least <= L * distance / (2 * k) + 1e-9).all()
    assert (fast[1:] - least <= 2 * L * distance / (k + 1) ** 2 + 1e-9).all()
    assert (slow.diff(dim=0) <= 1e-12).all()


def test_restart_saves_iterations():
    Y, D = normal(8, 16), gaussian(16, 40)
    assert 2 * fista(Y, D, 0.1).iterations < fista(Y, D, 0.1, restart=False).iterations


def test_history_gap_and_callback_belong_to_the_codes():
    Y, D, seen = normal(5, 16), gaussian(16, 40), []
    for solver in (ista, fista):
        seen.clear()
        s = solver(Y, D, 0.2, callback=lambda k, codes: seen.append((k, codes)))
        assert [k for k, _ in seen] == list(range(s.iterations + 1))
        assert s.history.shape == (s.iterations + 1, 5)
        torch.testing.assert_close(s.history[-1], objective(Y, D, s.codes, 0.2))
        torch.testing.assert_close(s.history[3], objective(Y, D, seen[3][1], 0.2))
        torch.testing.assert_close(s.gap, duality_gap(Y, D, s.codes, 0.2))
        assert torch.equal(seen[-1][1], s.codes)
    s = lasso(Y, D, 0.2)
    assert s.history.shape == (s.iterations + 1,) and s.history[-1] <= 1e-6
    torch.testing.assert_close(s.gap, duality_gap(Y, D, s.codes, 0.2))


@pytest.mark.parametrize("solver", L1_SOLVERS)
def test_a_solution_is_a_start_that_needs_no_iteration(solver):
    Y, D = normal(5, 16), gaussian(16, 40)
    start = solver(Y, D, 0.2, tol=1e-9).codes
    again = solver(Y, D, 0.2, tol=1e-7, start=start)
    assert again.iterations == 0 and torch.equal(again.codes, start)


@pytest.mark.parametrize("solver", L1_SOLVERS)
def test_any_start_leads_to_the_same_minimum(solver):
    Y, D = normal(5, 16), gaussian(16, 40)
    kept = start = 5 * normal(5, 40, seed=4)
    s = solver(Y, D, 0.2, tol=1e-10, start=start)
    torch.testing.assert_close(s.codes, lasso(Y, D, 0.2, 1e-12).codes, atol=1e-4, rtol=0)
    assert torch.equal(start, kept)


@pytest.mark.parametrize("solver", [*L1_SOLVERS, lambda *a, **k: group_lasso(*a, 2, **k)])
def test_not_converged_warns_by_how_much(solver):
    Y, D = normal(5, 16), dct(4, 6)
    with pytest.warns(ConvergenceWarning, match="of 5 signals above tol") as caught:
        s = solver(Y, D, 0.01, tol=1e-8, max_iterations=2)
    assert s.iterations == 2 and f"{s.gap.max().item():.2g}" in str(caught[0].message)
    assert caught[0].filename == __file__
    silent = solver(Y, D, 0.01, tol=None, max_iterations=3)
    assert silent.iterations == 3


# ---------------------------------------------------------------- dtypes and derivatives


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_come_in_the_dtype_of_the_inputs(dtype):
    Y, D, kept = normal(5, 16).to(dtype), gaussian(16, 40).to(dtype), None
    exact = lasso(Y.double(), D.double(), 0.2, 1e-10).codes
    for s in [solver(Y, D, 0.2) for solver in L1_SOLVERS] + [group_lasso(Y, D, 0.2, 1)]:
        assert s.codes.dtype == s.gap.dtype == s.history.dtype == dtype
        torch.testing.assert_close(s.codes.double(), exact, atol=5e-3, rtol=0)
    for s in (omp(Y, D, 3), scheduled_ista(Y, D, [0.5, 0.4])):
        assert s.codes.dtype == s.history.dtype == dtype and s.gap is kept
    assert duality_gap(Y, D, s.codes, 0.2).dtype == dtype


def test_arrays_and_lists_are_accepted():
    Y, D = normal(3, 16), gaussian(16, 40)
    assert torch.equal(lasso(Y.numpy(), D.numpy(), 0.2).codes, lasso(Y, D, 0.2).codes)
    assert torch.equal(omp(Y.tolist(), D, 2).codes, omp(Y, D, 2).codes)
    assert torch.equal(fista(Y, D.numpy(), 0.2).codes, fista(Y, D, 0.2).codes)


@pytest.mark.parametrize("solver", [ista, fista])
def test_unrolled_iterations_are_differentiable(solver):
    Y, D, start = normal(2, 4), gaussian(4, 5), 0.1 * normal(2, 5, seed=5)
    for t in (Y, D, start):
        t.requires_grad_(True)

    def codes(Y, D, start):
        return solver(Y, D, 0.1, tol=None, max_iterations=7, start=start).codes

    assert torch.autograd.gradcheck(codes, (Y, D, start))
    s = solver(Y, D, 0.1, tol=None, max_iterations=7)
    assert s.codes.requires_grad and not s.history.requires_grad and not s.gap.requires_grad


@pytest.mark.parametrize("d, nonnegative", [(1, False), (2, False), (1, True), (2, True)])
def test_scheduled_ista_is_differentiable(d, nonnegative):
    Y, D, W = normal(2, 4), gaussian(4, 6), gaussian(4, 6, seed=7)
    thresholds = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    inputs = [t.requires_grad_(True) for t in (Y, D, thresholds, W)]

    def codes(*inputs):
        return scheduled_ista(*inputs, d, nonnegative).codes

    assert torch.autograd.gradcheck(codes, inputs)


def test_compiled_solvers_give_codes_without_a_graph():
    Y, D = normal(2, 4).requires_grad_(True), gaussian(4, 5).requires_grad_(True)
    assert not lasso(Y, D, 0.1).codes.requires_grad and not omp(Y, D, 2).codes.requires_grad


# ---------------------------------------------------------------- the theorem's iteration


def test_scheduled_ista_is_the_iteration_written_out():
    Y, D, W, seen = normal(5, 8), gaussian(8, 12), gaussian(8, 12, seed=3), []
    s = scheduled_ista(Y, D, [0.5, 0.2], W, 3, callback=lambda k, x: seen.append(x))
    x1 = group_soft_threshold(Y @ W, 0.5, 3)
    x2 = group_soft_threshold(x1 + (Y - x1 @ D.T) @ W, 0.2, 3)
    torch.testing.assert_close(s.codes, x2)
    torch.testing.assert_close(torch.stack(seen), torch.stack([0 * x1, x1, x2]))
    norms = [(Y - x @ D.T).norm(dim=1) for x in seen]
    torch.testing.assert_close(s.history, torch.stack(norms))
    assert s.gap is None and s.iterations == 2


def test_scheduled_ista_with_nonnegative_codes_is_a_relu_network():
    Y, D = normal(5, 8), gaussian(8, 12)
    s = scheduled_ista(Y, D, [0.5, 0.2], nonnegative=True)
    x1 = (Y @ D - 0.5).relu()
    torch.testing.assert_close(s.codes, (x1 + (Y - x1 @ D.T) @ D - 0.2).relu())
    assert (s.codes >= 0).all()


@pytest.mark.parametrize("d", [1, 3])
def test_scheduled_ista_keeps_the_promise_of_the_theorem(d):
    m, s, noise = 600, 2, 0.01
    n = 60
    D = torch.linalg.qr(normal(n // d, m, d)).Q.permute(1, 0, 2).reshape(m, n)
    blocks = D.reshape(m, -1, d).permute(1, 2, 0)
    M = torch.linalg.matrix_norm(torch.einsum("gim,hjm->ghij", blocks, blocks), 2).fill_diagonal_(0)
    worst = M.sort(dim=1, descending=True).values
    mu_s, mu_less = worst[:, :s].sum(dim=1).max(), worst[:, : s - 1].sum(dim=1).max()
    g = torch.Generator().manual_seed(0)
    support = torch.rand(20, n // d, generator=g).topk(s).indices
    X = torch.zeros(20, n // d, d, dtype=torch.float64)
    X[torch.arange(20)[:, None], support] = normal(20, s, d, seed=6)
    Y = X.flatten(1) @ D.T + noise * normal(20, m, seed=7)
    E = X.norm(dim=2).max()
    sigma = ((Y - X.flatten(1) @ D.T) @ D).unflatten(1, (-1, d)).norm(dim=2).max()
    assert mu_s + mu_less < 1
    thresholds, errors = [], [E]
    for _ in range(15):
        thresholds.append(mu_s * errors[-1] + sigma)
        errors.append((mu_s + mu_less) * errors[-1] + 2 * sigma)

    def check(k, x):
        wrong = (x.unflatten(1, (-1, d)) - X).norm(dim=2)
        assert wrong.max() <= errors[k] * (1 + 1e-9)
        assert not ((x.unflatten(1, (-1, d)).norm(dim=2) > 0) & (X.norm(dim=2) == 0)).any()

    scheduled_ista(Y, D, torch.stack(thresholds), group_size=d, callback=check)


def filters(C, *window, seed=0):
    f = normal(C, *window, seed=seed)
    return f / f.flatten(1).norm(dim=1).view(-1, *(1 for _ in window))


CONVOLUTIONS = [
    (Conv1d, (5, 6), 3, (24,)),
    (Conv1d, (3, 5), 1, (12,)),
    (Conv2d, (4, 3, 4), 2, (12, 8)),
]


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("boundary", ["circular", "zero"])
@pytest.mark.parametrize("kind, shape, q, size", CONVOLUTIONS)
def test_scheduled_ista_of_a_convolution_is_that_of_its_matrix(
    kind, shape, q, size, boundary, nonnegative
):
    if boundary == "zero":
        size = tuple(n - n % q + length % q for n, length in zip(size, shape[1:]))
    D = kind(filters(*shape), q, boundary)
    W = kind(filters(*shape, seed=3), q, boundary)
    Y, thresholds = normal(3, *size, seed=2), [0.4, 0.3, 0.2]
    for weights, matrix in ((None, None), (W, W.to_matrix(size))):
        seen = []
        s = scheduled_ista(
            Y, D, thresholds, weights, 1, nonnegative, lambda k, x, seen=seen: seen.append(x)
        )
        flat = scheduled_ista(
            Y.flatten(1), D.to_matrix(size), thresholds, matrix, nonnegative=nonnegative
        )
        assert s.codes.shape == (3, *D.code_shape(size)) and (flat.codes != 0).any()
        torch.testing.assert_close(s.codes.flatten(1), flat.codes, atol=1e-12, rtol=0)
        torch.testing.assert_close(s.history, flat.history, atol=1e-12, rtol=0)
        assert s.gap is None and s.iterations == 3 and torch.equal(seen[-1], s.codes)
        assert len(seen) == 4 and (seen[0] == 0).all()


def test_scheduled_ista_takes_a_dense_operator_for_its_matrix():
    Y, D, W = normal(5, 8), gaussian(8, 12), gaussian(8, 12, seed=3)
    plain = scheduled_ista(Y, D, [0.5, 0.2], W, 3)
    for weights in (W, Dense(W)):
        assert torch.equal(scheduled_ista(Y, Dense(D), [0.5, 0.2], weights, 3).codes, plain.codes)


def test_scheduled_ista_is_differentiable_through_a_convolution():
    def codes(Y, f, w, thresholds):
        return scheduled_ista(Y, Conv1d(f, 2), thresholds, Conv1d(w, 2)).codes

    thresholds = torch.tensor([0.3, 0.2], dtype=torch.float64)
    inputs = [normal(2, 8), filters(3, 4), filters(3, 4, seed=5), thresholds]
    assert torch.autograd.gradcheck(codes, [t.requires_grad_(True) for t in inputs])


# ---------------------------------------------------------------- orthogonal matching pursuit


def plain_omp(y, D, sparsity, tol=0.0):
    """Orthogonal matching pursuit for one signal, as it stands in every textbook."""
    support, x, residual = [], np.zeros(D.shape[1]), y
    while len(support) < sparsity and np.linalg.norm(residual) > tol:
        support.append(int(np.argmax(np.abs(D.T @ residual))))
        fit = np.linalg.lstsq(D[:, support], y, rcond=None)[0]
        residual = y - D[:, support] @ fit
    x[support] = fit if support else 0
    return x


def test_omp_is_the_textbook_algorithm():
    Y, D = normal(40, 16), gaussian(16, 40)
    for sparsity in (1, 4, 9):
        expected = np.stack([plain_omp(y, D.numpy(), sparsity) for y in Y.numpy()])
        np.testing.assert_allclose(omp(Y, D, sparsity).codes, expected, atol=1e-10)
    tol = torch.linspace(0.1, 3, 40, dtype=torch.float64)
    expected = np.stack([plain_omp(y, D.numpy(), 16, t.item()) for y, t in zip(Y.numpy(), tol)])
    s = omp(Y, D, 16, tol)
    np.testing.assert_allclose(s.codes, expected, atol=1e-9)
    assert (s.history[-1] <= tol).all()


def test_omp_agrees_with_scikit_learn():
    Y, D = normal(40, 16), gaussian(16, 40)
    peer = orthogonal_mp(D.numpy(), Y.T.numpy(), n_nonzero_coefs=5).T
    np.testing.assert_allclose(omp(Y, D, 5).codes, peer, atol=1e-10)
    peer = orthogonal_mp(D.numpy(), Y.T.numpy(), tol=0.5**2).T
    np.testing.assert_allclose(omp(Y, D, 16, 0.5).codes, peer, atol=1e-9)


def test_omp_recovers_sparse_codes_exactly_and_then_stops():
    Y, D, X = sparse_problem(50, 40, 60, 3)
    s = omp(Y, D, 10)
    found = ((s.codes - X).abs().amax(dim=1) < 1e-10).double().mean()
    assert found > 0.9 and (s.codes != 0).sum(dim=1).min() == 3


def test_omp_residual_is_orthogonal_and_shrinks():
    Y, D = normal(30, 16), gaussian(16, 40)
    s = omp(Y, D, 6)
    assert (s.history.diff(dim=0) < 0).all() and s.history.shape == (7, 30)
    residual = Y - s.codes @ D.T
    torch.testing.assert_close(residual.norm(dim=1), s.history[-1])
    assert ((residual @ D)[s.codes != 0].abs() < 1e-10).all()


def test_omp_does_not_care_about_the_length_of_atoms():
    Y, D = normal(30, 16), gaussian(16, 40)
    lengths = 10 ** normal(40, seed=9)
    torch.testing.assert_close(omp(Y, D * lengths, 5).codes * lengths, omp(Y, D, 5).codes)


def test_omp_survives_repeated_and_dependent_atoms():
    D = gaussian(6, 4)
    D = torch.cat([D, D, -D, D + 1e-14 * gaussian(6, 4, seed=3)], dim=1)
    Y = normal(20, 6)
    s = omp(Y, D, 6)
    assert torch.isfinite(s.codes).all() and (s.codes != 0).sum(dim=1).max() <= 4
    best = Y - Y @ torch.linalg.pinv(D[:, :4]).T @ D[:, :4].T
    torch.testing.assert_close(s.history[-1], best.norm(dim=1), atol=1e-9, rtol=0)


# ---------------------------------------------------------------- bad input

Y, D = normal(3, 4), gaussian(4, 6)
CONV = Conv1d(filters(2, 4), 2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: lasso(Y[0], D, 0.1), r"Y has shape \(4,\).*Y\[None\]"),
        (lambda: lasso(Y.T, D, 0.1), r"Y has shape \(4, 3\).*pass Y\.T"),
        (lambda: ista(Y, D[0], 0.1), "D has shape"),
        (lambda: fista(Y.float(), D, 0.1), "Y is torch.float32"),
        (lambda: fista(Y * float("nan"), D, 0.1), "Y holds 12 NaN"),
        (lambda: fista(Y, D * float("inf"), 0.1), "D holds 24 NaN or infinite"),
        (lambda: lasso(Y, D, 0.0), "lam = 0.0, expected a finite number > 0"),
        (lambda: lasso(Y, D, -1), "lam = -1"),
        (lambda: ista(Y, D, "0.1"), "lam = '0.1'"),
        (lambda: fista(Y, D, float("nan")), "lam = nan"),
        (lambda: fista(Y, D, 0.1, tol=-1), "tol = -1"),
        (lambda: lasso(Y, D, 0.1, "small"), "tol = 'small'"),
        (lambda: ista(Y, D, 0.1, max_iterations=-1), "max_iterations = -1"),
        (lambda: ista(Y, D, 0.1, max_iterations=2.5), "max_iterations = 2.5"),
        (lambda: fista(Y, D, 0.1, start=Y), r"start has shape \(3, 4\), expected \(3, 6\)"),
        (lambda: lasso(Y, D, 0.1, start=[0.0] * 6), r"start has shape \(6,\)"),
        (lambda: duality_gap(Y, D, D, 0.1), r"codes has shape \(4, 6\), expected \(3, 6\)"),
        (lambda: duality_gap(Y, D, Y @ D, 0.1, 4), "group_size = 4 does not divide the 6"),
        (lambda: group_lasso(Y, D, 0.1, 4), "group_size = 4 does not divide the 6"),
        (lambda: group_lasso(Y, D, 0.1, 0), "group_size = 0"),
        (lambda: omp(Y, D, 0), "sparsity = 0"),
        (lambda: omp(Y, D, 5), "sparsity = 5, expected at least 1 and at most 4"),
        (lambda: omp(Y, D, 2, tol=-0.1), "tol = -0.1"),
        (lambda: omp(Y, D, 2, tol=torch.ones(2)), "tol has 2 entries.*expected 3"),
        (lambda: omp(Y, D, 2, tol=[1.0, -1.0, 1.0]), "tol has 3 entries down to -1"),
        (lambda: scheduled_ista(Y, D, []), "thresholds has shape"),
        (lambda: scheduled_ista(Y, D, 0.1), "thresholds has shape"),
        (lambda: scheduled_ista(Y, D, [0.1, -0.1]), "thresholds go down to -0.1"),
        (lambda: scheduled_ista(Y, D, [0.1], D.T), r"W has shape \(6, 4\)"),
        (lambda: scheduled_ista(Y, D, [0.1], group_size=4), "group_size = 4"),
        (lambda: scheduled_ista(Y, D, [0.1], CONV), "W is a Conv1d"),
        (lambda: scheduled_ista(Y, CONV, [0.1], D), r"W is a Tensor, expected a Conv1d\(\(2, 4\)"),
        (
            lambda: scheduled_ista(Y, CONV, [0.1], Conv1d(filters(2, 4), 1)),
            r"W is Conv1d.*stride=1.*expected a Conv1d\(\(2, 4\), stride=2",
        ),
        (lambda: scheduled_ista(Y, CONV, [0.1], group_size=2), "expected 1 for a convolution"),
        (lambda: scheduled_ista(Y[0], CONV, [0.1]), r"y has shape \(4,\).*y\[None\]"),
        (lambda: scheduled_ista(normal(3, 5), CONV, [0.1]), "a signal axis of 5 samples"),
        (lambda: scheduled_ista(Y, CONV, [-0.1]), "thresholds go down to -0.1"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_solutions_cannot_be_altered():
    s = lasso(Y, D, 0.1)
    assert isinstance(s, Solution)
    with pytest.raises(AttributeError):
        s.codes = Y
