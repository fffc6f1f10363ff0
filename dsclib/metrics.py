r"""Scores: how close an estimate comes to the truth.

Codes are compared by their support, dictionaries by matched atoms, subspaces by an angle,
clusterings by matched labels, images by a signal-to-noise ratio. A score of a whole batch is
a Python float; one score per atom or per subspace is a tensor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ._checks import as_dictionary, as_groups, as_labels, as_number, as_tensor, match


class SupportRecovery(NamedTuple):
    """Three fractions between 0 and 1 that say how well supports are found."""

    precision: float
    recall: float
    exact: float


def support_recovery(codes, truth, tol: float = 0.0) -> SupportRecovery:
    r"""Compare the support of codes with the true support.

    .. math:: \text{precision} = \frac{\sum_b |\hat S_b \cap S_b|}{\sum_b |\hat S_b|}, \quad
              \text{recall} = \frac{\sum_b |\hat S_b \cap S_b|}{\sum_b |S_b|}, \quad
              \text{exact} = \frac1B \sum_b [\hat S_b = S_b]

    Parameters
    ----------
    codes : tensor, shape (B, n) or (B, ...)
        Estimated codes; :math:`\hat S_b` holds the entries of signal b with
        :math:`|x| > \text{tol}`. For groups pass the group norms, (B, G).
    truth : tensor, shaped like ``codes``
        True codes; :math:`S_b` holds their nonzero entries.
    tol : float
        Magnitude up to which an estimated entry counts as zero, in the units of ``codes``.

    Returns
    -------
    SupportRecovery
        ``(precision, recall, exact)``: active entries and true entries are counted over the
        whole batch, ``exact`` is the share of signals whose support is exactly right. Where
        nothing is active, precision is 1; where nothing is true, recall is 1.

    Raises
    ------
    ValueError
        If the shapes differ, there is no batch axis, or ``tol`` is negative.
    """
    codes, truth = _as_pair(codes, truth, "codes", "truth")
    if codes.shape != truth.shape or codes.ndim < 2:
        raise ValueError(
            f"codes has shape {tuple(codes.shape)} and truth {tuple(truth.shape)}, expected the "
            "same shape (B, n) for both: for a single signal use codes[None] and truth[None]"
        )
    active, true = codes.abs() > as_number(tol, "tol"), truth != 0
    hits, n_active, n_true = (int(a.sum()) for a in (active & true, active, true))
    exact = (active == true).flatten(1).all(dim=1).double().mean().item()
    return SupportRecovery(
        hits / n_active if n_active else 1.0, hits / n_true if n_true else 1.0, exact
    )


def atom_recovery(D, truth) -> Tensor:
    r"""Match learned atoms with true ones, one to one, up to order and sign.

    .. math:: c_i = \frac{|\langle d_{\pi(i)}, d^*_i \rangle|}{\|d_{\pi(i)}\|\,\|d^*_i\|},
              \qquad \pi = \arg\max_{\pi \text{ injective}} \textstyle\sum_i c_i

    The score of dictionary recovery :cite:p:`agarwal2016learning`; the matching is a linear
    assignment, solved exactly.

    Parameters
    ----------
    D : tensor, shape (m, n')
        Learned dictionary, n' >= n; columns of any length, a zero column matches nothing.
    truth : tensor, shape (m, n)
        True dictionary, no zero column.

    Returns
    -------
    Tensor, shape (n,)
        Cosine magnitude of every true atom with its partner, in the order of ``truth``;
        1 is perfect. Differentiable in ``D``, the matching held fixed.

    Raises
    ------
    ValueError
        If the atoms differ in length, D has fewer atoms than truth, or a true atom is zero.
    """
    D, truth = _as_pair(D, truth, "D", "truth")
    D, truth = as_dictionary(D), as_dictionary(truth, "truth")
    if D.shape[0] != truth.shape[0] or D.shape[1] < truth.shape[1]:
        raise ValueError(
            f"D has shape {tuple(D.shape)}, expected ({truth.shape[0]}, n') with "
            f"n' >= {truth.shape[1]} since truth has shape {tuple(truth.shape)}: "
            "atoms are columns, and every true atom needs a partner"
        )
    lengths = truth.norm(dim=0)
    if (lengths == 0).any():
        raise ValueError(
            f"truth has {int((lengths == 0).sum())} zero atoms of {truth.shape[1]}, expected "
            "none: drop those columns"
        )
    tiny = torch.finfo(D.dtype).tiny
    cosines = ((truth / lengths).mT @ (D / D.norm(dim=0).clamp_min(tiny))).abs()
    rows, columns = linear_sum_assignment(cosines.detach().cpu().numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)].clamp(max=1.0)


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
    A, B = _as_pair(A, B, "A", "B")
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
    W, truth = _as_pair(W, truth, "W", "truth")
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


def clustering_accuracy(truth, labels) -> float:
    r"""Accuracy of a clustering under the best one-to-one naming of its clusters.

    .. math:: \max_{\pi \text{ injective}} \frac1N \sum_{i=1}^N [\,t_i = \pi(l_i)\,]

    Parameters
    ----------
    truth : integer tensor, shape (N,)
        True classes, any integers.
    labels : integer tensor, shape (N,)
        Clusters, any integers; their number may differ from that of the classes, and what is
        left without a partner counts as wrong.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the labels are not integers, not (N,), empty, or of different lengths.
    """
    truth, labels = as_labels(truth, "truth"), as_labels(labels, "labels")
    if len(truth) != len(labels):
        raise ValueError(
            f"labels has length {len(labels)}, expected {len(truth)} since truth has that many: "
            "pass one label per item"
        )
    classes, t = truth.unique(return_inverse=True)
    clusters, c = labels.unique(return_inverse=True)
    cells = len(classes) * len(clusters)
    counts = (t * len(clusters) + c).bincount(minlength=cells).view(len(classes), -1)
    counts = counts.numpy()
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(truth))


def psnr(image, reference, peak: float = 1.0) -> float:
    r"""Peak signal-to-noise ratio in decibels.

    .. math:: 10 \log_{10} \frac{\text{peak}^2}{\operatorname{mean}\,(x - x^*)^2}

    The score of image denoising :cite:p:`elad2006image`.

    Parameters
    ----------
    image : tensor, any shape
        Estimate; the mean runs over all entries.
    reference : tensor, shaped like ``image``
        Clean image, its values within a range of length ``peak``.
    peak : float
        Length of the range of values: 1 for images in [0, 1], 255 for bytes.

    Returns
    -------
    float
        Decibels; ``inf`` for equal images.

    Raises
    ------
    ValueError
        If the shapes differ or are empty, or ``reference`` does not fit into ``peak``.
    """
    image, reference = _as_pair(image, reference, "image", "reference")
    peak = as_number(peak, "peak", positive=True)
    if image.shape != reference.shape or image.numel() == 0:
        raise ValueError(
            f"image has shape {tuple(image.shape)} and reference {tuple(reference.shape)}, "
            "expected the same for both, not empty: crop or reshape one of them"
        )
    spread = (reference.max() - reference.min()).item()
    if spread > peak * (1 + 1e-5):
        raise ValueError(
            f"reference spreads over a range of {spread:.4g}, expected at most peak = {peak:g}: "
            "pass the length of the range of values as peak (255 for bytes)"
        )
    error = (image - reference).double().square().mean().item()
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def _as_pair(a, b, name_a: str, name_b: str) -> tuple[Tensor, Tensor]:
    """Two tensors of one dtype and device; one that is no tensor yet follows the other."""
    if isinstance(b, Tensor) and not isinstance(a, Tensor):
        b, a = _as_pair(b, a, name_b, name_a)
        return a, b
    a = as_tensor(a, name_a)
    b = as_tensor(b, name_b, like=a)
    match(a, b, name_a, name_b)
    return a, b
