r"""Coherence: how much the atoms of a dictionary resemble each other.

How far sparse codes can be trusted is read off one matrix of interactions,
:math:`M_{ij} = |w_i^\top d_j|` for :math:`i \ne j` and 0 on the diagonal, where W = D unless
analysis weights are given. For groups of atoms :math:`M_{gh} = \|W_g^\top D_h\|_2`, the
spectral norm of a block. Everything here is computed in double precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._checks import as_count, as_dictionary, as_groups, as_weights


def mutual_coherence(D, W=None, group_size: int = 1) -> float:
    r"""Mutual coherence: the largest interaction of two atoms, or of two groups.

    .. math:: \mu = \max_{i \ne j} |w_i^\top d_j|, \qquad
              \mu^B = \max_{g \ne h} \|W_g^\top D_h\|_2

    Parameters
    ----------
    D : tensor, shape (m, n)
        Unit-norm atoms.
    W : tensor, shape (m, n), optional
        Analysis weights with :math:`w_i^\top d_i = 1`, in group form
        :math:`W_g^\top D_g = I`; ``None`` is W = D.
    group_size : int
        Atoms a group; must divide n.

    Returns
    -------
    float
        0 for orthonormal atoms, at most 1 for W = D; 0 if there is one group only.

    Raises
    ------
    ValueError
        If the atoms are not of length 1, ``W`` is not normalised against ``D``, or (groups,
        W = D) the atoms of a group are not orthonormal.

    Notes
    -----
    :cite:p:`donoho2003optimally`, :cite:p:`gribonval2003sparse`.
    """
    return interactions(D, W, group_size).max().item()


def babel(D, s: int, W=None, group_size: int = 1) -> float:
    r"""Cumulative coherence, or Babel function: interaction of an atom with ``s`` others.

    .. math:: \mu_1(s) = \max_i \max_{|S| = s,\, i \notin S} \sum_{j \in S} M_{ij}
              \le s\,\mu

    Parameters
    ----------
    D : tensor, shape (m, n)
        Unit-norm atoms.
    s : int
        Number of other atoms (groups), 0 to n - 1 (G - 1).
    W : tensor, shape (m, n), optional
        Analysis weights with :math:`w_i^\top d_i = 1`, in group form
        :math:`W_g^\top D_g = I`; ``None`` is W = D.
    group_size : int
        Atoms a group; must divide n.

    Returns
    -------
    float
        :math:`\mu_1(s)`; 0 for s = 0.

    Raises
    ------
    ValueError
        As :func:`mutual_coherence`, or if ``s`` is not a whole number in its range.

    Notes
    -----
    :cite:p:`tropp2004greed`, :cite:p:`donoho2003optimally`.
    """
    cumulative = cumulative_coherence(D, W, group_size)
    return cumulative[as_count(s, "s", at_least=0, at_most=len(cumulative) - 1)]


def cumulative_coherence(D, W=None, group_size: int = 1) -> list[float]:
    r"""All values of :func:`babel` at once: :math:`\mu_1(0), \dots, \mu_1(n - 1)`.

    Parameters
    ----------
    D, W, group_size
        As for :func:`babel`.

    Returns
    -------
    list of float
        One value for every s from 0 to n - 1 (groups: G - 1), never decreasing.

    Raises
    ------
    ValueError
        As :func:`mutual_coherence`.
    """
    M = interactions(D, W, group_size)
    largest_first = M.sort(dim=1, descending=True).values
    return [0.0, *largest_first.cumsum(dim=1).amax(dim=0)[:-1].tolist()]


def interactions(D, W=None, group_size: int = 1) -> Tensor:
    r"""The matrix M of interactions, zero on its diagonal.

    Parameters
    ----------
    D, W, group_size
        As for :func:`mutual_coherence`.

    Returns
    -------
    Tensor, shape (n, n) or (G, G), float64
        Row i holds :math:`|w_i^\top d_j|`, row g :math:`\|W_g^\top D_h\|_2`.

    Raises
    ------
    ValueError
        As :func:`mutual_coherence`.
    """
    D = as_dictionary(D, unit=True).detach()
    d = as_groups(D.shape[1], group_size)
    P = as_weights(W, D).detach().double().T @ D.double()
    blocks = P.unflatten(0, (-1, d)).unflatten(-1, (-1, d)).transpose(1, 2)  # (G, G, d, d)
    own = blocks.diagonal(dim1=0, dim2=1)  # (d, d, G)
    off = (own - torch.eye(d).to(own)[..., None]).abs().max().item()
    if off > (1e-3 if D.dtype == torch.float32 else 1e-6):
        raise ValueError(_not_normalised(off, W is None, d))
    M = blocks[..., 0, 0].abs() if d == 1 else torch.linalg.matrix_norm(blocks, ord=2)
    return M.fill_diagonal_(0)


def _not_normalised(off: float, tied: bool, d: int) -> str:
    if tied:
        return (
            f"D has atoms that are not orthonormal inside their group of {d}: an entry of "
            f"D_g'D_g is {off:.3g} off the identity, expected D_g'D_g = I: replace each group "
            "by the Q of torch.linalg.qr, or pass W with W_g'D_g = I"
        )
    if d > 1:
        return (
            f"W has an entry of W_g'D_g that is {off:.3g} off the identity, expected W_g'D_g = I "
            f"for each group of {d}: multiply W_g by the inverse of D_g'W_g"
        )
    return (
        f"W has an inner product w_i'd_i that is {off:.3g} off 1, expected w_i'd_i = 1: "
        "divide W by (W * D).sum(0)"
    )


def welch_bound(m: int, n: int) -> float:
    r"""Welch bound: no ``n`` unit vectors in ``m`` dimensions are less coherent.

    .. math:: \mu \ge \sqrt{\frac{n - m}{m\,(n - 1)}}

    Reached by equiangular tight frames only :cite:p:`welch1974lower`,
    :cite:p:`strohmer2003grassmannian`.

    Parameters
    ----------
    m, n : int
        Length of a signal and number of atoms.

    Returns
    -------
    float
        The bound on :func:`mutual_coherence`, 0 for n <= m.

    Raises
    ------
    ValueError
        If ``m`` or ``n`` is not a positive whole number.
    """
    m, n = as_count(m, "m"), as_count(n, "n")
    return math.sqrt((n - m) / (m * (n - 1))) if n > m else 0.0
