"""The iteration of the book's theorem: thresholds fixed before the data are seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import as_groups, as_tensor, as_weights
from ._solution import Solution, as_problem
from .operators import Conv1d, Conv2d, Dense
from .proximal import group_soft_threshold, nonnegative_soft_threshold, soft_threshold


def scheduled_ista(
    Y,
    D,
    thresholds,
    W=None,
    group_size: int = 1,
    nonnegative: bool = False,
    callback: Callable[[int, Tensor], None] | None = None,
    threshold: Callable[..., Tensor] | None = None,
) -> Solution:
    r"""The iteration of the book's theorem: thresholds set before the data are seen.

    .. math:: x^{k+1} = GS_{\theta_k}\bigl(x^k + W'(y - D x^k)\bigr), \qquad x^0 = 0

    With the thresholds of :func:`dsclib.theory.threshold_schedule` no group outside the true
    support is ever active and the error shrinks at a known rate; the scalar iteration is that
    of :cite:p:`chen2018theoretical`. Differentiable in ``Y``, ``D``, ``W`` and ``thresholds``.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals; for a convolution of the shape that its ``analyze`` takes.
    D : tensor, shape (m, n), or operator
        Dictionary. The theorem wants :math:`W_g'D_g = I`: for ``W = None`` unit-norm atoms,
        orthonormal inside a group. A convolution of :mod:`dsclib.operators` costs no more
        than its filters are long.
    thresholds : tensor, shape (K,)
        One threshold >= 0 for each of the K iterations, in the units of the codes.
    W : like ``D``, optional
        Analysis weights; D if not given.
    group_size : int
        Entries a group; 1 is the soft threshold, and all that a convolution allows.
    nonnegative : bool
        For codes known to be nonnegative: :math:`\operatorname{ReLU}(z - \theta_k)`, of groups
        :math:`GS_{\theta_k}(\operatorname{ReLU}(z))`. The theorem covers both.
    callback : callable, optional
        ``callback(k, codes)`` for k = 0, ..., K, with detached codes.
    threshold : callable, optional
        ``threshold(z, theta, nonnegative=...)`` takes the place of the soft threshold, as
        :func:`dsclib.networks.approximate_threshold` does; only with ``group_size = 1``. What
        it misses by belongs in the schedule, as its ``eta``.

    Returns
    -------
    Solution
        ``codes`` (B, n), or shaped as the operator's. ``gap`` is None. ``history`` (K + 1, B)
        holds the residual norms of every iterate, detached.

    Raises
    ------
    ValueError
        If shapes do not match, numbers are not finite, a threshold is negative, or
        ``group_size`` does not divide n or is not 1 for a convolution or a ``threshold`` of
        your own, which must be callable and keep the shape of its input.
    """
    if isinstance(D, Conv1d | Conv2d):
        Y, x, synthesize, analyze, d = _convolutions(Y, D, W, group_size)
    else:
        Y, x, synthesize, analyze, d = _matrices(Y, D, W, group_size)
    thresholds = as_tensor(thresholds, "thresholds", "(K,)", like=Y).to(Y)
    if (thresholds < 0).any():
        raise ValueError(
            f"thresholds go down to {thresholds.min().item():.4g}, expected all >= 0: "
            "a threshold is how much the iteration shrinks"
        )
    if threshold is not None and (d > 1 or not callable(threshold)):
        raise ValueError(
            f"threshold is {threshold!r:.60} with group_size = {d}, expected a callable "
            "(z, theta, nonnegative=...) with group_size = 1, or None for the exact threshold"
        )
    history = []
    for k, theta in enumerate([*thresholds, None]):
        residual = Y - synthesize(x)
        history.append(residual.detach().flatten(1).norm(dim=1))
        if callback is not None:
            callback(k, x.detach())
        if theta is None:
            return Solution(x, None, k, torch.stack(history))
        z = x + analyze(residual)
        if threshold is not None:
            x = _shaped_like(z, threshold(z, theta, nonnegative=nonnegative))
        elif d > 1:
            x = group_soft_threshold(z.relu() if nonnegative else z, theta, d)
        else:
            x = (nonnegative_soft_threshold if nonnegative else soft_threshold)(z, theta)


def _shaped_like(z: Tensor, x) -> Tensor:
    """What a threshold made of ``z``, which torch would else broadcast in silence."""
    x = as_tensor(x, "the value of threshold", like=z)
    if x.shape != z.shape:
        raise ValueError(
            f"threshold answers shape {tuple(x.shape)} to {tuple(z.shape)}, expected the same: "
            "it maps codes to codes, entry by entry"
        )
    return x


def _matrices(Y, D, W, group_size):
    """What :func:`scheduled_ista` iterates with: Y, zero codes, D x, W'y and the group size."""
    D, W = (A.matrix if isinstance(A, Dense) else A for A in (D, W))
    Y, D = as_problem(Y, D)
    W, d = as_weights(W, D), as_groups(D.shape[1], group_size)
    return Y, Y.new_zeros(len(Y), D.shape[1]), lambda x: x @ D.T, lambda y: y @ W, d


def _convolutions(Y, D, W, group_size):
    """The same for convolutions."""
    W = D if W is None else W
    if type(W) is not type(D) or repr(W) != repr(D):  # filter shape, stride, boundary
        came = repr(W) if isinstance(W, Conv1d | Conv2d) else f"a {type(W).__name__}"
        raise ValueError(f"W is {came}, expected a {D!r} like D: one filter for every filter of D")
    if group_size != 1:
        raise ValueError(
            f"group_size = {group_size!r}, expected 1 for a convolution: its codes are ordered by "
            "position; pass a matrix for groups"
        )
    Y = as_tensor(Y, "Y", like=D.filters)
    return Y, torch.zeros_like(D.analyze(Y)), D.synthesize, W.analyze, 1
