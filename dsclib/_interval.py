r"""Thresholds with which one step finds the support; public in :mod:`dsclib.theory`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._checks import as_count, as_dictionary, as_groups, as_number, as_weights


class SupportInterval(NamedTuple):
    """Both ends of an interval of thresholds; empty unless ``lower < upper``."""

    lower: float
    upper: float


def support_interval(
    D, s: int, W=None, group_size: int = 1, *, least=1.0, bound=1.0, noise=0.0
) -> SupportInterval:
    r"""Thresholds for which one step with any weights W finds the active groups, and no others.

    .. math:: \lambda_- &= B_{\max} \max_g \max_{|S| = s,\, g \notin S} \sum_{h \in S} M_{gh}
              + \sigma, \\
              \lambda_+ &= \min_g \Bigl[ B_{\min}\, \sigma_{\min}(W_g^\top D_g) - B_{\max}
              \max_{|S| = s - 1,\, g \notin S} \sum_{h \in S} M_{gh} \Bigr] - \sigma

    with :math:`M_{gh} = \|W_g^\top D_h\|_2`. For every :math:`\lambda_- \le \lambda < \lambda_+`
    and every y = D x + e with 1 to s active groups, :math:`GS_\lambda(W^\top y)` is active in
    exactly the groups of x. Unlike for :func:`rate`, W is not normalised against D: it may be
    the weight of an autoencoder on its way to D :cite:p:`theodosis2021convergence`.

    Parameters
    ----------
    D : tensor, shape (m, n)
        Dictionary that generates the signals; groups are neighbouring columns.
    s : int
        Active groups of a code, at most; 1 to G.
    W : tensor, shape (m, n), optional
        Weights of the encoder; ``None`` is W = D.
    group_size : int
        Atoms a group; must divide n.
    least, bound : float
        :math:`B_{\min} \le \|x_g\|_2 \le B_{\max}` for active groups, in the units of the code.
    noise : float
        :math:`\sigma \ge \max_g \|W_g^\top e\|_2`, in the units of ``W'y``.

    Returns
    -------
    SupportInterval
        ``(lower, upper)``.

    Raises
    ------
    ValueError
        If ``s`` is not a whole number in its range, ``W`` is not shaped like ``D``,
        ``group_size`` does not divide n, or the bounds are not 0 < least <= bound.

    Notes
    -----
    *Proof.* :math:`z_g = W_g^\top y = \sum_h W_g^\top D_h x_h + W_g^\top e`. For g inactive all
    terms are interference, :math:`\|z_g\|_2 \le \sum_{h \in S} M_{gh} B_{\max} + \sigma \le
    \lambda_- \le \lambda`: GS answers zero. For g active,
    :math:`\|W_g^\top D_g x_g\|_2 \ge \sigma_{\min}(W_g^\top D_g)\, B_{\min}`, and the other
    active groups, s - 1 at most, take away no more than
    :math:`B_{\max} \sum_{h \in S, h \ne g} M_{gh}`: :math:`\|z_g\|_2 \ge \lambda_+ > \lambda`.
    With s = G no group is inactive, and the lower end is what G - 1 groups leave.

    *In terms of the distance.* If :math:`D_g^\top D_g = I`,
    :math:`\|D_g^\top D_h\|_2 \le \mu_B` and :math:`\|W_g - D_g\|_2 \le \delta`, then
    :math:`M_{gh} \le \mu_B + \delta` and :math:`\sigma_{\min}(W_g^\top D_g) \ge 1 - \delta`.
    The interval therefore holds all :math:`\lambda` between
    :math:`s (\mu_B + \delta) B_{\max}` and
    :math:`(1 - \delta) B_{\min} - (s - 1)(\mu_B + \delta) B_{\max}`.

    *Sharp* for groups of one: signs of x of length :math:`B_{\max}` align all interferences.
    """
    D = as_dictionary(D).detach()
    W = as_weights(W, D).detach()
    d = as_groups(D.shape[1], group_size)
    G = D.shape[1] // d
    s = as_count(s, "s", at_most=G)
    bound = as_number(bound, "bound", positive=True)
    least = as_number(least, "least", positive=True, at_most=bound)
    sigma = as_number(noise, "noise")
    blocks = (W.double().T @ D.double()).unflatten(0, (-1, d)).unflatten(-1, (-1, d))
    values = torch.linalg.svdvals(blocks.transpose(1, 2))  # (G, G, d)
    own = values[..., -1].diagonal()
    others = values[..., 0].clone().fill_diagonal_(0.0).sort(dim=1, descending=True).values
    lower = bound * others[:, : min(s, G - 1)].sum(dim=1).max() + sigma
    upper = (least * own - bound * others[:, : s - 1].sum(dim=1)).min() - sigma
    return SupportInterval(lower.item(), upper.item())
