"""How close two column spaces are: principal angles, and subspaces matched group by group."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ._checks import as_dictionary, as_groups, as_pair


def principal_angle(A, B) -> Tensor:
    r"""Largest principal angle between two column spaces.

    .. math:: \theta = \operatorname{atan2}\bigl(\|(I - Q_A Q_A^\top) Q_B\|_2,\;
              \sigma_{\min}(Q_A^\top Q_B)\bigr)

    with orthonormal bases :math:`Q_A, Q_B`, the second no wider than the first. The sine is
    accurate for small angles, the cosine for large ones :cite:p:`bjorck1973numerical`, and the
    arctangent of both for all.

    Parameters
    ----------
    A : tensor, shape (..., m, p)
        Linearly independent columns; leading axes are a batch.
    B : tensor, shape (..., m, q)
        Likewise; the leading axes broadcast. For p != q the min(p, q) angles between the
        smaller space and the larger one are meant.

    Returns
    -------
    Tensor, shape (...)
        Radians, from 0 (one space holds the other) to pi/2.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the columns are linearly dependent.
    """
    A, B = as_pair(A, B, "A", "B")
    for x, name in ((A, "A"), (B, "B")):
        if x.ndim < 2 or 0 in x.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected (..., m, p) with no empty axis: "
                f"for a single vector use {name}[:, None]"
            )
        values = torch.linalg.svdvals(x.detach())
        least = values[..., -1] / values[..., 0].clamp_min(torch.finfo(x.dtype).tiny)
        bound = max(x.shape[-2:]) * torch.finfo(x.dtype).eps
        if x.shape[-1] > x.shape[-2] or (least <= bound).any():
            raise ValueError(
                f"{name} with shape {tuple(x.shape)} has linearly dependent columns, expected "
                "a basis of each column space: drop the columns that add nothing"
            )
    try:
        batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    except RuntimeError:
        batch = None
    if batch is None or A.shape[-2] != B.shape[-2]:
        raise ValueError(
            f"A has shape {tuple(A.shape)} and B {tuple(B.shape)}, expected (..., m, p) and "
            "(..., m, q) with one m and leading axes that broadcast: check which axis is which"
        )
    if A.shape[-1] < B.shape[-1]:
        A, B = B, A
    A, B = torch.linalg.qr(A).Q, torch.linalg.qr(B).Q
    inner = A.mT @ B
    sine = torch.linalg.svdvals(B - A @ inner)[..., 0]
    return torch.atan2(sine, torch.linalg.svdvals(inner)[..., -1])


def subspace_recovery(W, truth, group_size: int) -> Tensor:
    r"""Match learned groups of atoms with true ones, one to one, and measure what is missed.

    .. math:: \theta_g = \max_{u \in \operatorname{span} D_g}
              \angle\bigl(u, \operatorname{span} W_{\pi(g)}\bigr), \qquad
              \pi = \arg\max_{\pi \text{ injective}} \textstyle\sum_g \cos^2 \theta_g

    the largest :func:`principal_angle` of a group and its partner: groups are known up to their
    order and a basis of each only :cite:p:`theodosis2021convergence`.

    Parameters
    ----------
    W : tensor, shape (m, n')
        Learned atoms, n' >= n; groups are neighbouring columns. A group whose columns are
        dependent spans less than a true one and misses a direction of it: pi/2.
    truth : tensor, shape (m, n)
        True atoms, independent inside each group.
    group_size : int
        Atoms of a group, in both.

    Returns
    -------
    Tensor, shape (G,)
        Radians from 0 to pi/2, in the order of the groups of ``truth``; not differentiable.

    Raises
    ------
    ValueError
        If the shapes do not fit, ``group_size`` does not divide them, W has fewer groups than
        truth, or a true group has dependent columns.
    """
    W, truth = as_pair(W, truth, "W", "truth")
    W, truth = as_dictionary(W).detach(), as_dictionary(truth, "truth").detach()
    d = as_groups(truth.shape[1], group_size, "atoms of truth")
    as_groups(W.shape[1], d, "atoms of W")
    if W.shape[0] != truth.shape[0] or W.shape[1] < truth.shape[1]:
        raise ValueError(
            f"W has shape {tuple(W.shape)}, expected ({truth.shape[0]}, n') with "
            f"n' >= {truth.shape[1]} since truth has shape {tuple(truth.shape)}: "
            "atoms are columns, and every true group needs a partner"
        )
    A, rank = _orthonormal_groups(W, d)
    B, true_rank = _orthonormal_groups(truth, d)
    if (true_rank < d).any():
        raise ValueError(
            f"truth has {int((true_rank < d).sum())} groups with dependent columns, expected "
            f"{d} independent ones in each group: check truth and group_size"
        )
    inner = torch.einsum("gmi,hmj->ghij", B, A)
    cosines = torch.linalg.svdvals(inner)[..., -1]
    rows, columns = linear_sum_assignment(cosines.square().cpu().numpy(), maximize=True)
    rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    sines = torch.linalg.svdvals(B - A[columns] @ inner[rows, columns].mT)[:, 0]
    return torch.atan2(sines, cosines[rows, columns])


def _orthonormal_groups(D: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (G, m, d) of the spans of groups, zero columns beyond their ranks (G,)."""
    blocks = D.unflatten(1, (-1, d)).transpose(0, 1)
    U, values, _ = torch.linalg.svd(blocks, full_matrices=False)
    bound = max(blocks.shape[-2:]) * torch.finfo(D.dtype).eps * values[:, :1]
    kept = values > bound
    U = U * kept[:, None]
    return torch.cat([U, U.new_zeros(*U.shape[:2], d - U.shape[2])], 2), kept.sum(dim=1)
