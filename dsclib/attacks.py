r"""Attacks: small changes of an input that raise the loss of a classifier.

The attacker knows the network and may change each pixel by at most :math:`\varepsilon`, and looks
for

.. math:: \max_{x'} \; \ell(f(x'), t) \quad \text{subject to} \quad
          \|x' - x\|_\infty \le \varepsilon, \quad \text{low} \le x' \le \text{high}.

The two constraints together are a box. :func:`fgsm` goes to the corner of it that the gradient
points at, :func:`pgd` makes many small steps and is projected back after each. Both attack the
model with whatever hooks are set on it, such as those of :mod:`dsclib.sparsity`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_count, as_labels, as_number, as_tensor, generator
from ._evaluation import eval_mode


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    r"""By how much the best wrong class beats the right one: a loss for attacks.

    .. math:: \max_{c \ne t} z_c - z_t

    Positive if and only if the answer is wrong, and its slope does not fade where the network is
    sure, as that of the cross-entropy does in floating point :cite:p:`carlini2017towards`.

    Parameters
    ----------
    scores : Tensor, shape (B, classes)
        The scores z of a network, two classes at least.
    labels : Tensor, shape (B,)
        Right classes t, as integers.

    Returns
    -------
    Tensor, shape (B,)
    """
    right = labels[:, None]
    others = scores.scatter(1, right, -torch.inf).amax(dim=1)
    return others - scores.gather(1, right)[:, 0]


def fgsm(model, x, labels, eps, *, loss=F.cross_entropy, limits=(0.0, 1.0)) -> Tensor:
    r"""The fast gradient sign method: one step, as long as the ball allows.

    .. math:: x' = \Pi\bigl(x + \varepsilon \operatorname{sign} \nabla_x \ell(f(x), t)\bigr)

    The maximum of the loss in the box if the loss is a monotone function of a linear one, and a
    first-order approximation of it otherwise :cite:p:`goodfellow2015explaining`.
    :math:`\Pi` is the projection on the box.

    Parameters
    ----------
    model : torch.nn.Module
        Inputs (B, ...) to scores (B, classes). It is attacked in ``eval()`` mode, and its mode is
        put back; its weights get no gradients.
    x : tensor, shape (B, ...)
        Inputs, on the model's device.
    labels : tensor, shape (B,)
        The right classes 0, 1, ...
    eps : float
        >= 0, radius of the ball in the maximum norm, in the units of ``x``.
    loss : callable
        ``loss(scores, labels)``, what the attacker raises: a mean over the batch, or one value
        an input. Besides the cross-entropy see :func:`margin`.
    limits : (low, high)
        The values an input may have; (-inf, inf) for any.

    Returns
    -------
    Tensor, shape (B, ...)
        The attacked inputs, in the box up to rounding, without a gradient.

    Raises
    ------
    ValueError
        If ``eps`` is negative, ``x`` is not finite or not within ``limits``, the labels do not fit
        the inputs or the scores, or the loss has no finite value and gradient for each input.
    """
    x, labels, low, high = _box(model, x, labels, eps, limits)
    with eval_mode(model):
        slope = _loss_and_slope(model, x, labels, loss)[1]
    return (x + eps * slope.sign()).clamp(low, high)


def pgd(
    model,
    x,
    labels,
    eps,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    seed: int | None = None,
    loss=F.cross_entropy,
    limits=(0.0, 1.0),
) -> Tensor:
    r"""Projected gradient ascent from random points of the box.

    .. math:: x^{k+1} = \Pi\bigl(x^k + \alpha \operatorname{sign} \nabla_x \ell(f(x^k), t)\bigr)

    The usual test of robustness :cite:p:`madry2018towards`. Of all points it visits, each input
    gets the one with the largest loss.

    Parameters
    ----------
    model, x, labels, eps, loss, limits
        As in :func:`fgsm`.
    steps : int
        Steps of each run; 0 tries random points.
    step_size : float, optional
        :math:`\alpha \ge 0`, in the units of ``x``; 2.5 eps / steps if not given, enough to cross
        the ball.
    restarts : int
        Runs, each from another random point.
    seed : int, optional
        Of the random points; torch's default generator if not given.

    Returns
    -------
    Tensor, shape (B, ...)
        The attacked inputs, in the box up to rounding, without a gradient.

    Raises
    ------
    ValueError
        As in :func:`fgsm`, or if a number is out of its range.

    Notes
    -----
    A run costs ``steps + 1`` gradients. An attack only shows that a network fails: that it finds
    nothing proves nothing :cite:p:`athalye2018obfuscated`.
    """
    x, labels, low, high = _box(model, x, labels, eps, limits)
    steps, restarts = as_count(steps, "steps", at_least=0), as_count(restarts, "restarts")
    if step_size is None:
        step_size = 2.5 * eps / max(steps, 1)
    step_size, source = as_number(step_size, "step_size"), generator(seed, x.device)
    best, highest = x, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    each = (-1, *[1] * (x.ndim - 1))
    with eval_mode(model):
        for _ in range(restarts):
            share = torch.rand(x.shape, generator=source, dtype=x.dtype, device=x.device)
            z = low.lerp(high, share).clamp(low, high)
            for _ in range(steps + 1):
                value, slope = _loss_and_slope(model, z, labels, loss)
                better = value > highest
                highest = torch.where(better, value, highest)
                best = torch.where(better.view(each), z, best)
                z = (z + step_size * slope.sign()).clamp(low, high)
    return best.clamp(low, high)


def _box(model, x, labels, eps, limits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, labels, and the corners of what the attacker may do."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    x = as_tensor(x, "x").detach()
    if x.ndim < 2 or not x.numel():
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected a batch (B, ...), not empty: for a single "
            "input use x[None] and labels[None]"
        )
    labels, eps = as_labels(labels, "labels").to(x.device), as_number(eps, "eps")
    if len(labels) != len(x):
        raise ValueError(
            f"x has {len(x)} entries but labels {len(labels)}, expected as many labels as inputs: "
            "cut both alike"
        )
    low, high = limits
    if not low <= x.min() or not x.max() <= high:
        raise ValueError(
            f"x has values from {x.min():.4g} to {x.max():.4g}, expected limits around them but "
            f"got {limits}: pass limits=(low, high), the values that your inputs may have"
        )
    return x, labels, (x - eps).clamp(min=low), (x + eps).clamp(max=high)


@torch.inference_mode(False)
@torch.enable_grad()
def _loss_and_slope(model, x: Tensor, labels: Tensor, loss) -> tuple[Tensor, Tensor]:
    """The loss (B,) of each input and its gradient (B, ...); no parameter gets one."""
    x = x.clone().requires_grad_()
    scores = model(x)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(x):
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the model returned {came}, expected scores ({len(x)}, classes)")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, expected 0 to "
            f"{scores.shape[1] - 1}, one of the {scores.shape[1]} scores of the model"
        )
    # One input at a time, so that a loss that averages over the batch gives one value for each.
    value = torch.vmap(lambda z, t: loss(z[None], t[None]))(scores, labels)
    if value.numel() != len(x) or not value.isfinite().all():
        raise ValueError(
            f"the loss has shape {tuple(value.shape)} for {len(x)} inputs or is not finite, "
            "expected a finite mean or one finite value an input"
        )
    if not value.requires_grad:
        raise ValueError(
            "the loss does not depend on x, expected one with a gradient: let model and loss "
            "work on tensors, without detach, item or no_grad"
        )
    slope = torch.autograd.grad(value.sum(), x)[0]
    if not slope.isfinite().all():
        raise ValueError(
            "the gradient of the loss is NaN or infinite, expected a finite one: look for a root "
            "or a division at 0 in the model or the loss"
        )
    return value.detach().flatten(), slope
