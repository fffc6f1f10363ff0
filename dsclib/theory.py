r"""What is certain before any data is seen: the bounds of the book as functions.

With :math:`\mu_1` the cumulative coherence (:func:`dsclib.dictionaries.babel`), all of them
take a matrix D (m, n) of unit-norm atoms, or an operator of :mod:`dsclib.operators`. For a
convolution s is local: the largest number of active atoms in any stripe, the stripe of an
atom being all atoms that overlap it, itself included; the bounds then hold for signals of any
length from 2 p - 1 positions on, p the operator's reach :cite:p:`papyan2017working`. With
``group_size = d`` atoms are counted in groups.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ._chain import as_chain
from ._checks import as_count, as_groups, as_number, per_layer
from ._interval import SupportInterval, support_interval
from .guarantees import (
    Schedule,
    certified_sparsity,
    fista_bound,
    ista_bound,
    local_matrix,
    rate,
    stability_bound,
    threshold_schedule,
    uniqueness_sparsity,
)
from .operators import Conv1d, Conv2d, Dense

__all__ = [
    "Schedule",
    "SupportInterval",
    "rate",
    "threshold_schedule",
    "certified_sparsity",
    "support_interval",
    "input_gain",
    "deep_schedule",
    "deep_error_bound",
    "uniqueness_sparsity",
    "stability_bound",
    "ista_bound",
    "fista_bound",
]


def input_gain(W, active: int, group_size: int = 1, rows: int = 1) -> float:
    r"""How much of an error in its sparse input a layer lets into its codes.

    .. math:: \kappa = \max_g \max_{|A| = a} \sum_{h \in A} \|W_g[h]\|_2, \qquad
              \max_g \|W_g^\top u\|_2 \le \kappa \max_h \|u[h]\|_2

    for every u with at most ``a = active`` nonzero blocks u[h] of ``rows`` neighbouring entries;
    W_g[h] are those rows of W_g. With blocks and groups of one, :math:`\kappa` is the largest
    sum of the a largest magnitudes in a column of W.

    Parameters
    ----------
    W : tensor, shape (m, n), or operator
        Analysis weights of the layer, of any scale; of a convolution its filters, each the
        whole window that its atom sees.
    active : int
        Nonzero blocks of the input, at least 1; more than there are means all of them.
    group_size : int
        Atoms a group; must divide n, and be 1 for a convolution.
    rows : int
        Entries a block of the input, the group size of the layer before; must divide m, and
        be 1 for a convolution.

    Returns
    -------
    float
        In units of the layer's codes for one unit of its input.

    Raises
    ------
    ValueError
        If ``W`` is not a finite matrix, or a count is not a whole number in its range.
    """
    if isinstance(W, Conv1d | Conv2d):
        if (group_size, rows) != (1, 1):
            raise ValueError(
                f"group_size = {group_size!r}, rows = {rows!r}, expected 1 and 1 for a "
                "convolution: its codes are ordered by position; pass a matrix for groups"
            )
        W = W.filters.flatten(1).T
    W = local_matrix(W, "W").detach().double()
    active, d = as_count(active, "active"), as_groups(W.shape[1], group_size)
    b = as_count(rows, "rows", at_most=W.shape[0])
    if W.shape[0] % b:
        raise ValueError(f"rows = {b} does not divide the {W.shape[0]} rows of W: blocks are whole")
    blocks = W.unflatten(0, (-1, b)).unflatten(-1, (-1, d)).transpose(1, 2)
    gains = blocks[..., 0, 0].abs() if b == d == 1 else torch.linalg.matrix_norm(blocks, ord=2)
    return gains.topk(min(active, len(gains)), dim=0).values.sum(dim=0).max().item()


def deep_schedule(
    dictionaries: Sequence,
    sparsity: Sequence[int],
    steps,
    bounds=1.0,
    noise=0.0,
    weights: Sequence | None = None,
    group_size=1,
    eta=0.0,
) -> tuple[Schedule, ...]:
    r"""A :func:`threshold_schedule` for every layer of a deep model: the theorem with depth.

    For :math:`y = x_0 + e_0` and :math:`x_{j-1} = D_j x_j + e_j`, j = 1, ..., J, where
    :math:`x_j` has at most :math:`s_j` active groups, run layer after layer
    :func:`dsclib.pursuit.scheduled_ista`, each on the codes that the one before has found.
    Layer j has rate :math:`\rho_j < 1`, bound :math:`B_j`, :math:`K_j` steps and

    .. math:: \sigma_1 = \eta_1, \qquad \sigma_j = \kappa_j \delta_{j-1} + \eta_j, \qquad
              \delta_j = \rho_j^{K_j} B_j
                         + 2 \sigma_j\, \frac{1 - \rho_j^{K_j}}{1 - \rho_j}

    Then no layer ever activates a group outside the support of :math:`x_j`, and its codes end
    within :math:`\max_g \|\hat x_{j,g} - x_{j,g}\|_2 \le \delta_j`. Thresholds that are only
    known within :math:`\zeta_j`, the ``eta`` of layer j, keep the rates:

    .. math:: \sigma_j = \kappa_j \delta_{j-1} + (\bar\kappa_j - \kappa_j)\, \zeta_{j-1}
                         + \eta_j, \qquad
              \delta_j = \rho_j^{K_j} B_j
                         + \bigl(2 \sigma_j + (2 \nu_j + 1)\, \zeta_j\bigr)
                           \frac{1 - \rho_j^{K_j}}{1 - \rho_j}

    with :math:`\nu_j` as in :func:`threshold_schedule` and :math:`\bar\kappa_j` the gain of all
    entries. The other groups are then not zero, but never larger than :math:`\zeta_j`.

    Parameters
    ----------
    dictionaries : sequence of J
        :math:`D_1, \dots, D_J`, outermost first: matrices (m, n_1), (n_1, n_2), ... or operators
        of one kind, each with as many channels as the one before has filters.
    sparsity : sequence of J ints
        :math:`s_j`, active atoms (groups; per stripe for a convolution).
    steps : int or J ints
        :math:`K_j`.
    bounds : float or J floats
        :math:`B_j \ge \max_g \|x_{j,g}\|_2`, in the units of the codes, which are those of the
        signals since atoms have length 1.
    noise : float or J floats
        :math:`\eta_j \ge \max_g \|W_{j,g}^\top e_j\|_2`, in the same units; :math:`\eta_1` covers
        :math:`e_0 + e_1`. What layer j - 1 leaves over is not in :math:`\eta_j`: it is added here.
    weights : sequence of J, optional
        Analysis weights :math:`W_j`; ``None``, for all layers or in place of one, is W = D.
    group_size : int or J ints
        Atoms a group.
    eta : float or J floats
        :math:`\zeta_j`, how far layer j's threshold is from the exact one at most, as for
        :func:`threshold_schedule`, in the units of the codes.

    Returns
    -------
    tuple of J Schedule
        Outermost layer first; the last of ``errors`` is :math:`\delta_j`.

    Raises
    ------
    ValueError
        If dictionaries do not fit on each other, or as :func:`threshold_schedule`, above all if
        a rate is 1 or more. The message begins with the layer.

    Notes
    -----
    Why depth costs no more than this: the error u that layer j - 1 hands on lives on the support
    of :math:`x_{j-1}`, because no layer activates a wrong atom. So it enters layer j as noise of
    size :math:`\|W_{j,g}^\top u\|_2 \le \kappa_j \delta_{j-1}`, where :math:`\kappa_j`
    (:func:`input_gain`) counts :math:`s_{j-1}` entries of a column and not all. With inexact
    thresholds u is at most :math:`\zeta_{j-1}` off that support S, and
    :math:`\zeta_{j-1} \le \delta_{j-1}`, so

    .. math:: \sum_{h \in S} \|W_{j,g}[h]\|_2\, \delta_{j-1}
              + \sum_{h \notin S} \|W_{j,g}[h]\|_2\, \zeta_{j-1}
              \le \kappa_j (\delta_{j-1} - \zeta_{j-1}) + \bar\kappa_j \zeta_{j-1}.

    Any :math:`2 p_{j-1} - 1` neighbouring positions of a convolution lie in one stripe, so an
    atom of length :math:`L_j` sees at most
    :math:`s_{j-1} \lceil L_j / (2 p_{j-1} - 1) \rceil` active entries (the quotients of all axes
    multiplied). The l1 form for one layer is due to :cite:p:`chen2018theoretical`; how fast
    networks converge to the codes of deep models is the subject of :cite:p:`li2024convergence`.
    This form and its constants are the book's.
    """
    layers = as_chain(dictionaries)
    J = len(layers)
    sparsity = per_layer(sparsity, J, "sparsity")
    steps, noise = per_layer(steps, J, "steps"), per_layer(noise, J, "noise")
    bounds, sizes = per_layer(bounds, J, "bounds"), per_layer(group_size, J, "group_size")
    weights = [None] * J if weights is None else per_layer(weights, J, "weights")
    eta = per_layer(eta, J, "eta")
    schedules: list[Schedule] = []
    for j, (D, W, s, d) in enumerate(zip(layers, weights, sparsity, sizes)):
        try:
            sigma = as_number(noise[j], "noise")
            if j > 0:
                active = sparsity[j - 1] * _windows(layers[j - 1], D)
                V, d_in = D if W is None else W, sizes[j - 1]
                kappa, total = (input_gain(V, a, d, d_in) for a in (active, sys.maxsize))
                leak = as_number(eta[j - 1], "eta")
                sigma += kappa * (schedules[-1].errors[-1].item() - leak) + total * leak
            schedules.append(threshold_schedule(D, s, steps[j], bounds[j], sigma, W, d, eta[j]))
        except ValueError as error:
            raise ValueError(f"layer {j + 1}: {error}") from None
    return tuple(schedules)


def deep_error_bound(
    dictionaries: Sequence,
    sparsity: Sequence[int],
    steps,
    bounds=1.0,
    noise=0.0,
    weights: Sequence | None = None,
    group_size=1,
    eta=0.0,
) -> Tensor:
    r"""What the layers of :func:`deep_schedule` leave: the bound on the error of every layer.

    .. math:: \delta_j = \rho_j^{K_j} B_j + 2 (\kappa_j \delta_{j-1} + \eta_j)\,
              \frac{1 - \rho_j^{K_j}}{1 - \rho_j}, \qquad \delta_0 = 0

    for exact thresholds; what ``eta`` adds is written there.

    Steps :math:`K_j` of the order of :math:`\log 1/\varepsilon` reach the error
    :math:`\varepsilon`, down to the noise floor.

    Parameters
    ----------
    dictionaries, sparsity, steps, bounds, noise, weights, group_size, eta
        As for :func:`deep_schedule`.

    Returns
    -------
    Tensor, shape (J,)
        :math:`\delta_j \ge \max_g \|\hat x_{j,g} - x_{j,g}\|_2`, in the units of the codes.

    Raises
    ------
    ValueError
        As :func:`deep_schedule`.
    """
    schedules = deep_schedule(
        dictionaries, sparsity, steps, bounds, noise, weights, group_size, eta
    )
    return torch.stack([schedule.errors[-1] for schedule in schedules])


def _windows(above, D) -> int:
    """Stripes of ``above`` that hold all that an atom of ``D`` sees of its codes."""
    window = () if isinstance(D, Dense) else D.filters.shape[2:]
    return math.prod(-(-length // (2 * p - 1)) for length, p in zip(window, above.reach))
