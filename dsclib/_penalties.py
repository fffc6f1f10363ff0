r"""Penalties on the features of one layer: one number for a batch (B, C, ...) of features.

Each is a mean, so that a weight means the same for small and large layers: over the n entries
of a signal, over the groups, or over the signals. Features in half precision are summed in
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import as_groups, as_number
from ._features import as_summands, channels_first


def l1(z: Tensor) -> Tensor:
    r"""Mean magnitude of the features.

    .. math:: \frac{1}{B n} \sum_{b=1}^{B} \|z_b\|_1

    The penalty of sparse coding with :math:`\lambda = w / n` at weight w, n being the features
    of one signal :cite:p:`olshausen1996emergence`.

    Parameters
    ----------
    z : Tensor, shape (B, C, ...)
        Features of a batch: units (B, C), maps (B, C, H, W).

    Returns
    -------
    Tensor
        A scalar, differentiable; the gradient is 0 at entries that are 0.
    """
    return as_summands(z).abs().mean()


def group_l1(z: Tensor, group_size: int = 1, axis: int = 1) -> Tensor:
    r"""Mean length of a channel: whole channels are switched off, signal by signal.

    .. math:: \frac{1}{B G} \sum_{b=1}^{B} \sum_{g=1}^{G} \frac{\|z_{b,g}\|_2}{\sqrt{d}}

    The group Lasso :cite:p:`yuan2006model`; :math:`z_{b,g}` has the d entries of
    ``group_size`` neighbouring channels at all positions. On units (B, C) and with groups of
    size 1 it equals :func:`l1`.

    Parameters
    ----------
    z : Tensor, shape (B, C, ...)
        Features of a batch.
    group_size : int
        Channels a group, a divisor of C.
    axis : int
        The axis of the channels: 1 for maps, -1 for tokens (B, T, C).

    Returns
    -------
    Tensor
        A scalar, differentiable; the gradient is 0 at groups that are 0.

    Raises
    ------
    ValueError
        If ``group_size`` does not divide the channels, or ``axis`` is the batch.
    """
    z = channels_first(as_summands(z), axis)
    size = as_groups(z.shape[1], group_size, "channels")
    groups = z.reshape(len(z), z.shape[1] // size, -1)
    return groups.norm(dim=2).mean() / groups.shape[2] ** 0.5


def hoyer(z: Tensor) -> Tensor:
    r"""Mean ratio of the l1 to the l2 norm, which does not change if the features are scaled.

    .. math:: \frac{1}{B} \sum_{b=1}^{B} \frac{\|z_b\|_1}{\sqrt{n}\,\|z_b\|_2}
              \in \left[\frac{1}{\sqrt{n}},\, 1\right]

    The measure of :cite:t:`hoyer2004nonnegative`, as a cost. k equal entries of n have
    :math:`\sqrt{k / n}`. A signal without features counts 0.

    Parameters
    ----------
    z : Tensor, shape (B, C, ...)
        Features of a batch.

    Returns
    -------
    Tensor
        A scalar, differentiable; signals without features have gradient 0.
    """
    z = as_summands(z).flatten(1)
    length = z.norm(dim=1)
    zero = length.detach() == 0
    ratio = z.abs().sum(dim=1) / length.masked_fill(zero, 1.0)
    return ratio.masked_fill(zero, 0.0).mean() / z.shape[1] ** 0.5


def log_sum(z: Tensor, eps: float = 0.1) -> Tensor:
    r"""Mean logarithm of the magnitudes: large features are hardly shrunk, small ones strongly.

    .. math:: \frac{1}{B n} \sum_{b, i} \log\Bigl(1 + \frac{|z_{b,i}|}{\varepsilon}\Bigr)

    The penalty of reweighted l1 :cite:p:`candes2008enhancing`.

    Parameters
    ----------
    z : Tensor, shape (B, C, ...)
        Features of a batch.
    eps : float
        > 0, in the units of the features: below it the penalty is nearly l1.

    Returns
    -------
    Tensor
        A scalar, differentiable.

    Raises
    ------
    ValueError
        If ``eps`` is not positive.
    """
    eps = as_number(eps, "eps", positive=True)
    return torch.log1p(as_summands(z).abs() / eps).mean()


def kl_rate(z: Tensor, rate: float = 0.05, axis: int = 1) -> Tensor:
    r"""Mean divergence of the activity of each channel from a target rate.

    .. math:: \frac{1}{C} \sum_{c=1}^{C} r \log\frac{r}{a_c} + (1 - r) \log\frac{1 - r}{1 - a_c},
              \qquad a_c = \operatorname{mean}\bigl(1 - e^{-|z_c|}\bigr)

    As in sparse autoencoders, whose units lie between 0 and 1 (:cite:t:`lee2007sparse` penalise
    the squared difference from the target instead). Features of a ReLU do not lie there, so each
    is read as the rate of a Poisson process and counts by the probability of at least one event;
    :math:`a_c` is its mean over the batch and all positions. Other penalties make each signal
    sparse, this one each channel rare.

    Parameters
    ----------
    z : Tensor, shape (B, C, ...)
        Features of a batch.
    rate : float
        The target r, between 0 and 1.
    axis : int
        The axis of the channels: 1 for maps, -1 for tokens (B, T, C).

    Returns
    -------
    Tensor
        A scalar, differentiable; activities are kept within [1e-6, 1 - 1e-6].

    Raises
    ------
    ValueError
        If ``rate`` is not strictly between 0 and 1, or ``axis`` is the batch.
    """
    rate = as_number(rate, "rate", positive=True)
    if rate >= 1:
        raise ValueError(f"rate = {rate}, expected a number between 0 and 1: a share of signals")
    z = channels_first(as_summands(z), axis)
    activity = -torch.expm1(-z.abs())
    activity = activity.mean(dim=(0, *range(2, z.ndim))).clamp(1e-6, 1 - 1e-6)
    on = rate * (rate / activity).log()
    return (on + (1 - rate) * ((1 - rate) / (1 - activity)).log()).mean()
