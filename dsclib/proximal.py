r"""Thresholds: the proximal maps of the penalties that make codes sparse.

The proximal map of a penalty :math:`p` answers a signal with the best compromise between
staying close and paying little,
:math:`\operatorname{prox}_p(z) = \arg\min_x \tfrac12 \|x - z\|_2^2 + p(x)`
:cite:p:`parikh2014proximal`. For the penalties of this book it is a formula of one line.

Groups are neighbours on the last axis: with ``group_size = d`` a code (..., n) is read as
(..., G, d), n = G d. All maps are differentiable; where a formula has a kink (an entry or a
group at its threshold, a group that is zero) the derivative is the one of the zero branch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import as_count, as_groups, as_tensor, as_threshold


def soft_threshold(z, t) -> Tensor:
    r"""Soft threshold: shrink every entry towards zero by ``t``.

    .. math:: S_t(z)_i = \operatorname{sign}(z_i)\,(|z_i| - t)_+
              = \operatorname{ReLU}(z_i - t) - \operatorname{ReLU}(-z_i - t)

    The proximal map of :math:`t\,\|x\|_1` :cite:p:`parikh2014proximal`; the second form is
    why a ReLU network can compute it.

    Parameters
    ----------
    z : tensor, shape (..., n)
        Any shape; entries are treated one by one.
    t : float or tensor
        Threshold >= 0 in the units of ``z``, broadcast against it: a number, (n,) or (B, 1).

    Returns
    -------
    Tensor
        Shaped like ``z``.

    Raises
    ------
    ValueError
        If ``z`` is not finite, or ``t`` is negative or does not broadcast.
    """
    z = as_tensor(z, "z")
    t = as_threshold(t, "t", z)
    return (z - t).relu() - (-z - t).relu()


def nonnegative_soft_threshold(z, t) -> Tensor:
    r"""Soft threshold for nonnegative codes: a ReLU with bias ``-t``.

    .. math:: S^+_t(z)_i = \operatorname{ReLU}(z_i - t)

    The proximal map of :math:`t \sum_i x_i` on :math:`x \ge 0` :cite:p:`parikh2014proximal`.

    Parameters
    ----------
    z : tensor, shape (..., n)
        Any shape; entries are treated one by one.
    t : float or tensor
        Threshold >= 0 in the units of ``z``, broadcast against it: a number, (n,) or (B, 1).

    Returns
    -------
    Tensor
        Shaped like ``z``, no entry negative.

    Raises
    ------
    ValueError
        If ``z`` is not finite, or ``t`` is negative or does not broadcast.
    """
    z = as_tensor(z, "z")
    return (z - as_threshold(t, "t", z)).relu()


def hard_threshold(z, t) -> Tensor:
    r"""Hard threshold: keep the entries larger than ``t``, drop the others.

    .. math:: H_t(z)_i = z_i \;\text{if}\; |z_i| > t, \;\text{else}\; 0

    The proximal map of :math:`\tfrac{t^2}{2}\,\|x\|_0` :cite:p:`elad2010sparse`. It jumps, so
    its derivative with respect to ``t`` is zero wherever there is one.

    Parameters
    ----------
    z : tensor, shape (..., n)
        Any shape; entries are treated one by one.
    t : float or tensor
        Threshold >= 0 in the units of ``z``, broadcast against it: a number, (n,) or (B, 1).

    Returns
    -------
    Tensor
        Shaped like ``z``.

    Raises
    ------
    ValueError
        If ``z`` is not finite, or ``t`` is negative or does not broadcast.
    """
    z = as_tensor(z, "z")
    return z * (z.abs() > as_threshold(t, "t", z))


def top_k(z, k: int) -> Tensor:
    r"""Keep the ``k`` entries of largest magnitude along the last axis.

    .. math:: T_k(z) \in \arg\min_{\|x\|_0 \le k} \|x - z\|_2

    The projection onto the k-sparse codes :cite:p:`foucart2013mathematical`. Among equal
    magnitudes the choice is arbitrary, but never more than ``k`` are kept.

    Parameters
    ----------
    z : tensor, shape (..., n)
        Codes; every row of the last axis is treated by itself.
    k : int
        Number of entries to keep, 1 to n.

    Returns
    -------
    Tensor
        Shaped like ``z``.

    Raises
    ------
    ValueError
        If ``z`` is not finite or has no axis, or ``k`` is not between 1 and n.
    """
    z = _as_codes(z)
    k = as_count(k, "k", at_most=z.shape[-1])
    largest = z.abs().topk(k, dim=-1, sorted=False).indices
    return z * torch.zeros_like(z).scatter(-1, largest, 1.0)


def group_soft_threshold(z, t, group_size: int) -> Tensor:
    r"""Group soft threshold: shorten every group by ``t``, keep its direction.

    .. math:: GS_t(z)_g = \Bigl(1 - \frac{t}{\|z_g\|_2}\Bigr)_+ z_g

    The proximal map of :math:`t \sum_g \|x_g\|_2` :cite:p:`yuan2006model`. With
    ``group_size = 1`` it is :func:`soft_threshold`.

    Parameters
    ----------
    z : tensor, shape (..., n)
        Codes, n = G * group_size.
    t : float or tensor
        Threshold >= 0 in the units of ``z``, one a group: a number, (G,), (B, 1) or (B, G).
    group_size : int
        Entries a group; must divide n.

    Returns
    -------
    Tensor
        Shaped like ``z``.

    Raises
    ------
    ValueError
        If ``z`` is not finite or has no axis, ``t`` is negative or does not broadcast against
        (..., G), or ``group_size`` does not divide n.
    """
    groups, t = _split(z, t, group_size)
    squares = groups.square().sum(dim=-1)
    active = squares > t**2
    # Lengths of inactive groups never enter a quotient: no 0/0, forward or backward.
    length = torch.where(active, squares, 1.0).sqrt()
    scale = torch.where(active, (1 - t / length).relu(), 0.0)
    return (groups * scale.unsqueeze(-1)).flatten(-2)


def group_norms(z, group_size: int) -> Tensor:
    r"""Lengths of the groups of a code.

    .. math:: \|z_g\|_2, \qquad g = 1, \dots, G

    Parameters
    ----------
    z : tensor, shape (..., n)
        Codes, n = G * group_size.
    group_size : int
        Entries a group; must divide n. With 1 these are the magnitudes.

    Returns
    -------
    Tensor, shape (..., G)
        In the units of ``z``. The derivative at a group of zeros is zero.

    Raises
    ------
    ValueError
        If ``z`` is not finite or ``group_size`` does not divide n.
    """
    z = _as_codes(z)
    d = as_groups(z.shape[-1], group_size, "entries of z")
    return z.abs() if d == 1 else z.unflatten(-1, (-1, d)).norm(dim=-1)


def group_hard_threshold(z, t, group_size: int) -> Tensor:
    r"""Group hard threshold: keep the groups longer than ``t``, drop the others.

    .. math:: GH_t(z)_g = z_g \;\text{if}\; \|z_g\|_2 > t, \;\text{else}\; 0

    The proximal map of :math:`\tfrac{t^2}{2}` times the number of nonzero groups
    :cite:p:`elad2010sparse`. With ``group_size = 1`` it is :func:`hard_threshold`.

    Parameters
    ----------
    z : tensor, shape (..., n)
        Codes, n = G * group_size.
    t : float or tensor
        Threshold >= 0 in the units of ``z``, one a group: a number, (G,), (B, 1) or (B, G).
    group_size : int
        Entries a group; must divide n.

    Returns
    -------
    Tensor
        Shaped like ``z``.

    Raises
    ------
    ValueError
        If ``z`` is not finite or has no axis, ``t`` is negative or does not broadcast against
        (..., G), or ``group_size`` does not divide n.
    """
    groups, t = _split(z, t, group_size)
    active = groups.detach().norm(dim=-1) > t
    return (groups * active.unsqueeze(-1)).flatten(-2)


def _split(z, t, group_size: int):
    """The code as groups (..., G, d), and the threshold checked against (..., G)."""
    z = _as_codes(z)
    d = as_groups(z.shape[-1], group_size, "entries of z")
    groups = z.unflatten(-1, (-1, d))
    return groups, as_threshold(t, "t", groups[..., 0])


def _as_codes(z) -> Tensor:
    z = as_tensor(z, "z")
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(
            f"z has shape {tuple(z.shape)}, expected (..., n) with n >= 1: "
            "pass a vector or a batch of codes"
        )
    return z
