r"""Pursuit: given signals and a dictionary, find the codes.

Greedy (:func:`omp`), by an :math:`\ell_1` penalty (:func:`ista`, :func:`fista` in readable lines;
:func:`lasso`, :func:`group_lasso` compiled), or by the iteration the book's theorem is about
(:func:`scheduled_ista`). The penalised solvers minimise, signal by signal,

.. math:: P(x) = \tfrac12 \|y - D x\|_2^2 + \lambda \sum_g \|x_g\|_2

(groups of one entry: :math:`\lambda \|x\|_1`, the Lasso :cite:p:`tibshirani1996regression`) and
stop on the relative duality gap of :func:`duality_gap`, which bounds how far P is from its
minimum. All but :func:`scheduled_ista` compute in float64 and answer in the dtype they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ._checks import as_groups, as_number
from ._descent import solve_every
from ._greedy import omp
from ._scheduled import scheduled_ista
from ._solution import (
    ConvergenceWarning,
    Run,
    Solution,
    as_codes,
    as_problem,
    as_tolerance,
    relative_gap,
    warn_unless_converged,
)
from .proximal import soft_threshold

__all__ = [
    "Solution",
    "ConvergenceWarning",
    "duality_gap",
    "omp",
    "ista",
    "fista",
    "scheduled_ista",
    "lasso",
    "group_lasso",
]


def duality_gap(Y, D, codes, lam: float, group_size: int = 1) -> Tensor:
    r"""Relative duality gap: an upper bound on how far codes are from optimal.

    .. math:: \frac{P(x) - Q(\theta)}{P(x)} \ge \frac{P(x) - P(x^*)}{P(x)}, \qquad
              Q(\theta) = \langle y, \theta\rangle - \tfrac12 \|\theta\|_2^2

    The dual point is the residual, scaled as well as feasibility allows:
    :math:`\theta = \alpha (y - D x)` with :math:`\|D_g'\theta\|_2 \le \lambda` for every group
    :cite:p:`ndiaye2017gap`.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals.
    D : tensor, shape (m, n)
        Dictionary, atoms of any length.
    codes : tensor, shape (B, n)
        Any codes, whoever computed them.
    lam : float
        Penalty > 0 in the units of ``D'y``.
    group_size : int
        Entries a group; 1 is the Lasso.

    Returns
    -------
    Tensor, shape (B,)
        Between 0 and 1, 0 for a signal that is zero; computed in float64, not differentiable.

    Raises
    ------
    ValueError
        If shapes do not match, numbers are not finite, ``lam`` is not positive, or
        ``group_size`` does not divide n.
    """
    Y, D = as_problem(Y, D)
    codes = as_codes(codes, Y, D, "codes")
    d = as_groups(D.shape[1], group_size)
    lam = as_number(lam, "lam", positive=True)
    Y, D, codes, dtype = Y.detach().double(), D.detach().double(), codes.detach(), Y.dtype
    return relative_gap(Y, D, codes.double(), lam, d).to(dtype)


def ista(
    Y,
    D,
    lam: float,
    *,
    tol: float | None = 1e-6,
    max_iterations: int = 10_000,
    start=None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Solution:
    r"""Lasso by iterative soft thresholding: a gradient step, then a threshold.

    .. math:: x^{k+1} = S_{\lambda/L}\bigl(x^k + \tfrac1L D'(y - D x^k)\bigr), \quad
              L = \|D\|_2^2, \qquad
              P(x^k) - P(x^*) \le \frac{L \|x^* - x^0\|_2^2}{2k}

    :cite:p:`beck2009fast`. Differentiable in ``Y``, ``D`` and ``start`` through all iterations.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals.
    D : tensor, shape (m, n)
        Dictionary, atoms of any length.
    lam : float
        Penalty > 0 in the units of ``D'y``; from ``max |D'y|`` on, all codes are zero.
    tol : float or None
        Stop when every signal's relative duality gap is at most this (looked at every ten
        iterations); None does exactly ``max_iterations`` and does not warn.
    max_iterations : int
        Iterations at most.
    start : tensor, shape (B, n), optional
        Codes to start from; zeros if not given.
    callback : callable, optional
        ``callback(k, codes)`` for k = 0, 1, ..., with detached codes.

    Returns
    -------
    Solution
        ``history`` (iterations + 1, B) holds the objective P of every iterate, detached.

    Raises
    ------
    ValueError
        If shapes do not match, numbers are not finite or ``lam`` is not positive.

    Warns
    -----
    ConvergenceWarning
        If ``max_iterations`` did not suffice.
    """
    run = Run("ista", Y, D, lam, tol, max_iterations, start, callback)
    Y, D, lam, L = run.Y, run.D, run.lam, run.lipschitz
    x, fit = run.start, run.start @ D.T
    while run.goes_on(x, fit):
        x = soft_threshold(x + (Y - fit) @ D / L, lam / L)
        fit = x @ D.T
    return run.solution(x)


def fista(
    Y,
    D,
    lam: float,
    *,
    tol: float | None = 1e-6,
    max_iterations: int = 10_000,
    start=None,
    callback: Callable[[int, Tensor], None] | None = None,
    restart: bool = True,
) -> Solution:
    r"""Lasso by accelerated thresholding: :func:`ista` from a point ahead of the last iterate.

    .. math:: z^k = x^k + \frac{t_k - 1}{t_{k+1}} (x^k - x^{k-1}), \quad
              x^{k+1} = S_{\lambda/L}\bigl(z^k + \tfrac1L D'(y - D z^k)\bigr), \quad
              t_{k+1} = \tfrac12\bigl(1 + \sqrt{1 + 4 t_k^2}\bigr)

    Without restart :math:`P(x^k) - P(x^*) \le 2L\|x^* - x^0\|_2^2/(k+1)^2`
    :cite:p:`beck2009fast`. With it, a signal whose momentum points uphill starts again from
    t = 1 :cite:p:`odonoghue2015adaptive`, which makes the end of the search much shorter.
    Differentiable in ``Y``, ``D`` and ``start`` through all iterations.

    Parameters
    ----------
    Y, D, lam, tol, max_iterations, start, callback
        As in :func:`ista`: signals (B, m), dictionary (m, n), penalty > 0, stopping rule.
    restart : bool
        Restart the momentum of each signal by itself when it points uphill.

    Returns
    -------
    Solution
        ``history`` as in :func:`ista`, and so are errors and warnings.
    """
    run = Run("fista", Y, D, lam, tol, max_iterations, start, callback)
    Y, D, lam, L = run.Y, run.D, run.lam, run.lipschitz
    x, fit = run.start, run.start @ D.T
    z, z_fit, t = x, fit, torch.ones_like(Y[:, :1])
    while run.goes_on(x, fit):
        old, old_fit = x, fit
        x = soft_threshold(z + (Y - z_fit) @ D / L, lam / L)
        fit = x @ D.T
        if restart:
            uphill = ((z - x) * (x - old)).sum(dim=1, keepdim=True) > 0
            t = torch.where(uphill, 1.0, t)
        t_next = (1 + (1 + 4 * t**2).sqrt()) / 2
        momentum, t = (t - 1) / t_next, t_next
        z, z_fit = x + momentum * (x - old), fit + momentum * (fit - old_fit)  # D z is affine
    return run.solution(x)


def lasso(
    Y, D, lam: float, tol: float | None = 1e-6, *, max_iterations: int = 200, start=None
) -> Solution:
    r"""Lasso, fast: compiled coordinate descent on working sets, ended by Newton steps.

    .. math:: \min_x \tfrac12 \|y - D x\|_2^2 + \lambda \|x\|_1

    Coordinate descent :cite:p:`friedman2010regularization` finds the support; once it keeps
    still the solution is a small linear system. Runs on the CPU, on as many threads as torch
    (CUDA tensors go there and back), and is not differentiable: unroll :func:`fista` for that.
    The first call in a new installation compiles for about ten seconds.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals.
    D : tensor, shape (m, n)
        Dictionary, atoms of any length. Its Gram matrix (n, n) must fit in memory.
    lam : float
        Penalty > 0 in the units of ``D'y``; from ``max |D'y|`` on, all codes are zero.
    tol : float or None
        Relative duality gap at which a signal is done; None does ``max_iterations``.
    max_iterations : int
        Working sets at most; each is solved before the next is chosen.
    start : tensor, shape (B, n), optional
        Codes to start from; zeros if not given.

    Returns
    -------
    Solution
        ``history`` (iterations + 1,) holds the largest relative gap among the signals still
        at work when working set 0, 1, ... had been solved.

    Raises
    ------
    ValueError
        If shapes do not match, numbers are not finite or ``lam`` is not positive.

    Warns
    -----
    ConvergenceWarning
        If ``max_iterations`` did not suffice.
    """
    return _descend("lasso", Y, D, lam, 1, tol, max_iterations, start)


def group_lasso(
    Y,
    D,
    lam: float,
    group_size: int,
    tol: float | None = 1e-6,
    *,
    max_iterations: int = 200,
    start=None,
) -> Solution:
    r"""Group Lasso, fast: compiled block coordinate descent, ended by Newton steps.

    .. math:: \min_x \tfrac12 \|y - D x\|_2^2 + \lambda \sum_g \|x_g\|_2

    :cite:p:`yuan2006model`. Groups are neighbouring atoms, and each is updated with its own step
    :math:`1/\|D_g\|_2^2`. As :func:`lasso`, which is ``group_size = 1``: on the CPU, compiled
    at the first call, not differentiable.

    Parameters
    ----------
    Y, D, lam, tol, max_iterations, start
        As in :func:`lasso`; from ``lam = max ||D_g'y||`` on, all codes are zero.
    group_size : int
        Atoms a group; must divide n.

    Returns
    -------
    Solution
        ``history`` as in :func:`lasso`, and so are errors and warnings.

    Raises
    ------
    ValueError
        Also if ``group_size`` does not divide n.
    """
    return _descend("group_lasso", Y, D, lam, group_size, tol, max_iterations, start)


def _descend(solver, Y, D, lam, group_size, tol, max_iterations, start) -> Solution:
    """Hand the signals to the compiled kernel, every thread its share."""
    Y, D = as_problem(Y, D)
    d = as_groups(D.shape[1], group_size)
    lam = as_number(lam, "lam", positive=True)
    tol, max_iterations = as_tolerance(tol, max_iterations)
    start = Y.new_zeros(len(Y), D.shape[1]) if start is None else as_codes(start, Y, D, "start")
    like, Y, D = Y, Y.detach().double().cpu(), D.detach().double().cpu()
    gram = D.T @ D
    blocks = D.T.unflatten(0, (-1, d))
    steepness = torch.linalg.eigvalsh(blocks @ blocks.mT)[:, -1].clamp(min=0)
    carries = (steepness > 0).repeat_interleave(d)  # a group of length zero has no code
    codes = torch.where(carries, start.detach().double().cpu(), 0.0).contiguous()
    inputs = (gram, steepness, Y @ D, Y.square().sum(dim=1))
    inputs = [np.ascontiguousarray(t.numpy()) for t in inputs]
    share = min(torch.get_num_threads(), len(Y))
    # The kernel reads its gap off the Gram matrix; rounding there must not cost the certificate.
    aim = -1.0 if tol is None else 0.8 * tol
    options = (lam, d, aim, max_iterations, codes.numpy())
    with ThreadPoolExecutor(share) as pool:
        traces = list(pool.map(lambda i: solve_every(i, share, *inputs, *options), range(share)))
    history = np.max(traces, axis=0)
    history = torch.from_numpy(history[history >= 0]).to(like)
    gap = relative_gap(Y, D, codes, lam, d)
    warn_unless_converged(solver, gap, tol, len(history) - 1)
    return Solution(codes.to(like), gap.to(like), len(history) - 1, history)
