r"""What is certain about one dictionary; public, with what depth adds, as :mod:`dsclib.theory`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import as_count, as_dictionary, as_number
from .coherence import cumulative_coherence
from .operators import Conv1d, Conv2d, Dense

# A certificate asks for rate < 1; equality hidden by rounding does not count.
_STRICT = 1 - 1e-9


class Schedule(NamedTuple):
    """Thresholds (K,) of K steps, and the errors (K + 1,) they are certified to leave."""

    thresholds: Tensor
    errors: Tensor


def rate(D, s: int, W=None, group_size: int = 1) -> float:
    r"""Rate of convergence of thresholded iterations, per step.

    .. math:: \rho = \mu_1(s) + \mu_1(s - 1)

    Below 1 it certifies :func:`threshold_schedule`, and with W = D that orthogonal matching
    pursuit and basis pursuit find every s-sparse code :cite:p:`tropp2004greed`. It is at most
    :math:`(2 s - 1) \mu`.

    Parameters
    ----------
    D : tensor, shape (m, n), or operator
        Unit-norm atoms.
    s : int
        Number of active atoms (groups; per stripe for a convolution), 1 to n (G).
    W : like ``D``, optional
        Analysis weights with :math:`w_i^\top d_i = 1`; ``None`` is W = D.
    group_size : int
        Atoms a group; must divide n, and be 1 for a convolution.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the atoms are not of length 1, ``W`` is not normalised against ``D``, the atoms of a
        group are not orthonormal (W = D), or ``s`` is not a whole number in its range.
    """
    mu = _cumulative(D, W, group_size)
    return _rate(mu, as_count(s, "s", at_most=len(mu) - 1))


def threshold_schedule(
    D, s: int, steps: int, bound=1.0, noise=0.0, W=None, group_size: int = 1, eta=0.0
) -> Schedule:
    r"""Thresholds that let no wrong atom in, and the error they leave after every step.

    .. math:: \theta_k = \mu_1(s) E_k + \sigma, \qquad
              E_{k+1} = \rho E_k + 2 \sigma, \qquad \rho = \mu_1(s) + \mu_1(s - 1) < 1

    For y = D x* + e with at most s active groups, the iteration
    :math:`x^{k+1} = GS_{\theta_k}(x^k + W^\top (y - D x^k))` from :math:`x^0 = 0` keeps every
    other group at zero and :math:`\max_g \|x^k_g - x^*_g\|_2 \le E_k`, hence

    .. math:: E_k = \rho^k E_0 + 2 \sigma\, \frac{1 - \rho^k}{1 - \rho}.

    Nonnegative codes keep the bound with :math:`\operatorname{ReLU}(z - \theta_k)`. A threshold
    that is only known within :math:`\eta` keeps the rate, with :math:`\nu` the largest row sum
    of M (of one stripe for a convolution):

    .. math:: \theta_k = \mu_1(s) E_k + \nu \eta + \sigma, \qquad
              E_{k+1} = \rho E_k + 2 (\nu \eta + \sigma) + \eta.

    The other groups are then not zero, but never larger than :math:`\eta`.

    Parameters
    ----------
    D, s, W, group_size
        As for :func:`rate`.
    steps : int
        Number of iterations K.
    bound : float
        :math:`E_0 \ge \max_g \|x^*_g\|_2`, in the units of the code.
    noise : float
        :math:`\sigma \ge \max_g \|W_g^\top e\|_2`, in the same units.
    eta : float
        :math:`\eta \ge \max_g \|T_\theta(z)_g - GS_\theta(z)_g\|_2` for all z, if a map T takes
        the place of GS (:func:`dsclib.networks.approximate_threshold`), in the same units.

    Returns
    -------
    Schedule
        ``thresholds`` (K,) and ``errors`` (K + 1,), of the dtype and device of ``D``.

    Raises
    ------
    ValueError
        As :func:`rate`, and if the rate is 1 or more, with its value.

    Notes
    -----
    The l1 form of the argument is due to :cite:p:`chen2018theoretical`; here it is in the max
    norm, so that the noise term carries no factor s.

    With an inexact threshold the induction also carries :math:`\|x^k_h\| \le \eta` for h outside
    the support S. Before the threshold, group g is off its true value by at most

    .. math:: \sum_{h \in S, h \ne g} M_{gh} E_k + \sum_{h \notin S, h \ne g} M_{gh} \eta + \sigma
              \le \mu_1(s) E_k + \nu \eta + \sigma = \theta_k,

    the second sum because up to all other groups leak. Outside S the exact threshold therefore
    answers zero, and T at most :math:`\eta`. In S it is off by :math:`\theta_k` for shrinking,
    :math:`\mu_1(s - 1) E_k + \nu \eta + \sigma` for its input and :math:`\eta` for being T,
    together :math:`E_{k+1}`, which is at least :math:`\eta`. The floor is
    :math:`(2 \nu \eta + 2 \sigma + \eta) / (1 - \rho)`. To let S leak only once, in :math:`E_k`
    and not in :math:`\nu`, would lower it by :math:`\rho \eta / (1 - \rho)`, no more.
    """
    mu = _cumulative(D, W, group_size)
    s = as_count(s, "s", at_most=len(mu) - 1)
    steps = as_count(steps, "steps")
    error, sigma = as_number(bound, "bound"), as_number(noise, "noise")
    eta = as_number(eta, "eta")
    rho = _rate(mu, s)
    if rho >= 1:
        raise ValueError(
            f"s = {s} has rate mu_1({s}) + mu_1({s - 1}) = {mu[s]:.4g} + {mu[s - 1]:.4g} = "
            f"{rho:.4g}, expected less than 1: certified here is s <= {_certified(mu)}; take a "
            "smaller s, a less coherent D, or W = analysis_weights(D)"
        )
    disturbance = mu[-1] * eta + sigma  # mu_1 of all groups is the largest row sum
    thresholds, errors = [], [error]
    for _ in range(steps):
        thresholds.append(mu[s] * errors[-1] + disturbance)
        errors.append(rho * errors[-1] + 2 * disturbance + eta)
    like = local_matrix(D)
    return Schedule(
        torch.tensor(thresholds, dtype=like.dtype, device=like.device),
        torch.tensor(errors, dtype=like.dtype, device=like.device),
    )


def certified_sparsity(D, W=None, group_size: int = 1) -> int:
    r"""Largest number s of active atoms for which the :func:`rate` is below 1.

    Parameters
    ----------
    D, W, group_size
        As for :func:`rate`.

    Returns
    -------
    int
        0 if not even one active atom is certified.

    Raises
    ------
    ValueError
        As :func:`rate`.
    """
    return _certified(_cumulative(D, W, group_size))


def uniqueness_sparsity(D) -> int:
    r"""Largest number s of active atoms for which no rival code can be as sparse.

    .. math:: s < \tfrac12 \bigl(1 + 1 / \mu\bigr)

    A code with so few nonzeros is the sparsest of all that explain the signal
    :cite:p:`donoho2003optimally`, :cite:p:`gribonval2003sparse`.

    Parameters
    ----------
    D : tensor, shape (m, n), or operator
        Unit-norm atoms.

    Returns
    -------
    int
        0 if two atoms are the same up to sign, n if all are orthogonal.

    Raises
    ------
    ValueError
        If the atoms are not of length 1.
    """
    mu = _cumulative(D, None, 1)
    return max(s for s in range(len(mu)) if s == 0 or (2 * s - 1) * mu[1] < _STRICT)


def stability_bound(D, s: int, eps) -> float:
    r"""How far apart two s-sparse codes can be that both explain a signal within ``eps``.

    .. math:: \|x - x'\|_2 \le \frac{2 \varepsilon}{\sqrt{1 - \mu_1(2 s - 1)}}

    From :math:`\|D u\|_2^2 \ge (1 - \mu_1(k - 1)) \|u\|_2^2` for k-sparse u
    :cite:p:`donoho2006stable`.

    Parameters
    ----------
    D : tensor, shape (m, n), or operator
        Unit-norm atoms.
    s : int
        Number of active atoms of each code (per stripe for a convolution), 1 to n.
    eps : float
        :math:`\|y - D x\|_2 \le \varepsilon` for both codes, in the units of the signal.

    Returns
    -------
    float
        In the units of the code.

    Raises
    ------
    ValueError
        If the atoms are not of length 1, ``s`` is not a whole number in its range, or
        :math:`\mu_1(2 s - 1) \ge 1`.
    """
    mu = _cumulative(D, None, 1)
    s = as_count(s, "s", at_most=len(mu) - 1)
    eps = as_number(eps, "eps")
    crowd = mu[min(2 * s - 1, len(mu) - 1)]
    if crowd >= 1:
        raise ValueError(
            f"s = {s} has mu_1({2 * s - 1}) = {crowd:.4g}, expected less than 1: "
            "take a smaller s or a less coherent D"
        )
    return 2 * eps / math.sqrt(1 - crowd)


def ista_bound(lipschitz, distance, k: int) -> float:
    r"""Objective left above the minimum by ``k`` steps of ISTA.

    .. math:: P(x^k) - P(x^*) \le \frac{L\, \|x^* - x^0\|_2^2}{2 k}

    :cite:p:`beck2009fast`, Theorem 3.1, with steps of length 1/L.

    Parameters
    ----------
    lipschitz, distance, k : float, float, int
        Largest eigenvalue L of :math:`D^\top D`, :math:`\|x^* - x^0\|_2`, steps k >= 1.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If ``lipschitz`` or ``distance`` is negative or not finite, or ``k < 1``.
    """
    L, r = as_number(lipschitz, "lipschitz"), as_number(distance, "distance")
    return L * r**2 / (2 * as_count(k, "k"))


def fista_bound(lipschitz, distance, k: int) -> float:
    r"""Objective left above the minimum by ``k`` steps of FISTA.

    .. math:: P(x^k) - P(x^*) \le \frac{2 L\, \|x^* - x^0\|_2^2}{(k + 1)^2}

    :cite:p:`beck2009fast`, Theorem 4.4, with steps of length 1/L and no restart.

    Parameters
    ----------
    lipschitz, distance, k
        As for :func:`ista_bound`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        As :func:`ista_bound`.
    """
    L, r = as_number(lipschitz, "lipschitz"), as_number(distance, "distance")
    return 2 * L * r**2 / (as_count(k, "k") + 1) ** 2


def local_matrix(D, name: str = "D") -> Tensor:
    """The matrix in which atoms overlap as in ``D``: a matrix itself, an operator's local one."""
    return D.local_matrix() if isinstance(D, Dense | Conv1d | Conv2d) else as_dictionary(D, name)


def _cumulative(D, W, group_size: int) -> list[float]:
    """mu_1(0), ..., mu_1(G): with all G groups active there are still only G - 1 others."""
    if isinstance(D, Conv1d | Conv2d) and group_size != 1:
        raise ValueError(
            f"group_size = {group_size!r}, expected 1 for a convolution: its codes are ordered by "
            "position; pass a matrix for groups"
        )
    W = None if W is None else local_matrix(W, "W")
    mu = cumulative_coherence(local_matrix(D), W, group_size)
    return [*mu, mu[-1]]


def _rate(mu: list[float], s: int) -> float:
    return mu[s] + mu[s - 1]


def _certified(mu: list[float]) -> int:
    return max(s for s in range(len(mu)) if s == 0 or _rate(mu, s) < _STRICT)
