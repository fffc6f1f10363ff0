r"""What attention to one offset costs: how much of it leaks, and what that does to a step.

Public in :mod:`dsclib.transformers` and :mod:`dsclib.networks`.
"""

from __future__ import annotations

import math

from ._checks import as_count, as_number
from ._convolutional import as_analysis, as_convolution, overlap_kernel


def attention_leak(bias, axes: int = 1) -> float:
    r"""How much of its attention a head gives to other tokens than its own, at most.

    .. math:: \varepsilon = 1 - \tanh(\beta / 2)^a, \qquad
              \varepsilon \le 2 a\, e^{-\beta}

    for logits :math:`-\beta` times the distance (on a grid the sum of the distances along its a
    axes) and any number of tokens: all weights together are at most
    :math:`\sum_{j \in \mathbb{Z}} e^{-\beta |j|} = \coth(\beta / 2)` an axis times that of the
    token of the head.

    Parameters
    ----------
    bias : float
        :math:`\beta > 0`, by how much logits fall from one position to the next.
    axes : {1, 2}
        1 for sequences, 2 for images.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If ``bias`` is not positive and finite, or ``axes`` is another number.
    """
    r = math.exp(-as_number(bias, "bias", positive=True))
    if r == 1:  # a bias that rounding swallows
        return 1.0
    # tanh(bias / 2) = (1 - r) / (1 + r), in a form that a large bias does not round to 1.
    return -math.expm1(as_count(axes, "axes", at_most=2) * (math.log1p(-r) - math.log1p(r)))


def attention_error(operator, bias, active: int | None = None, bound=1.0, W=None, eta=0.0) -> float:
    r"""What leaking attention adds to a step: :math:`\tau`, which joins the noise.

    .. math:: \tau = 2\, \varepsilon\, (\Gamma_s B + \Gamma_C\, \eta), \qquad
              \Gamma_s = \max_c \sum_\delta \max_{|A| = s} \sum_{c' \in A}
              \bigl|(W'D)_\delta[c, c']\bigr|

    In the max norm, for every state x of which at most s entries in any one token exceed
    :math:`\eta`, and none exceeds :math:`B + \eta`:
    :math:`\|\text{attention}(x) + W'D x\|_\infty \le \tau`. :math:`\varepsilon` is the
    :func:`attention_leak`, :math:`(W'D)_\delta` the tap of W'D at offset :math:`\delta`. How
    many tokens there are does not matter.

    Parameters
    ----------
    operator : Conv1d or Conv2d of :mod:`dsclib.operators`
        The dictionary.
    bias : float
        :math:`\beta > 0` of :func:`ista_transformer`.
    active : int, optional
        Large entries s of a token, at most; a local sparsity serves. ``None`` is all C.
    bound : float
        B, in the units of the codes.
    W : operator like the dictionary, optional
        Analysis weights; the dictionary if not given.
    eta : float
        What an inexact activation leaks into all entries, the ``eta`` of the network.

    Returns
    -------
    float
        In the units of the codes.

    Raises
    ------
    ValueError
        If the operator is not a convolution, ``W`` is not like it, ``active`` is not a whole
        number from 1 to C, or a number is out of its range.

    Notes
    -----
    Where :math:`v_0` is wanted a head answers :math:`\sum_j \pi_j v_j` with
    :math:`\sum_j \pi_j = 1` and :math:`\sum_{j \ne 0} \pi_j \le \varepsilon`: off by
    :math:`|\sum_{j \ne 0} \pi_j (v_j - v_0)| \le 2 \varepsilon \max_j |v_j|` in every entry.
    Values are a tap times a token. With A the large entries of the token,

    .. math:: \sum_{c' \in A} |(W'D)_\delta[c, c']|\, (B + \eta)
              + \sum_{c' \notin A} |(W'D)_\delta[c, c']|\, \eta
              = \sum_{c' \in A} |(W'D)_\delta[c, c']|\, B
              + \sum_{c'} |(W'D)_\delta[c, c']|\, \eta

    bounds a value, and heads add up. How :math:`\tau` enters the theorem says
    :func:`ista_encoder`.
    """
    D = as_convolution(operator)
    taps = overlap_kernel(as_analysis(W, D), D).abs().double().flatten(2)  # (C, C, heads)
    count = len(taps)
    active = count if active is None else as_count(active, "active", at_most=count)
    large = taps.topk(active, dim=1).values.sum(dim=(1, 2)).max().item()
    size = large * as_number(bound, "bound")
    size += taps.sum(dim=(1, 2)).max().item() * as_number(eta, "eta")
    return 2 * attention_leak(bias, len(D.reach)) * size
