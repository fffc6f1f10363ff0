r"""The soft threshold out of the activations that networks use; public in :mod:`dsclib.networks`.

The soft threshold is a difference of two ReLUs, so whatever is close to a ReLU gives something
close to it; how close is proved at :func:`approximate_threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ._checks import as_choice, as_number, as_tensor, as_threshold

_SILU = 0.27846454276107380  # W(1/e): |u| / (1 + e^|u|) is largest where (|u| - 1) e^|u| = 1
_GELU = 0.16997120747990367  # |u| Phi(-|u|) is largest where Phi(-|u|) = |u| Phi'(|u|)

_EXACT = ("relu", "leaky_relu")

# name: the rectifier of gain t, and c
_RECTIFIERS: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    # torch cuts at 20, where 2e-9 is left
    "softplus": (lambda u, t: F.softplus(t * u, threshold=40) / t, math.log(2)),
    "silu": (lambda u, t: F.silu(t * u) / t, _SILU),
    "gelu": (lambda u, t: F.gelu(t * u) / t, _GELU),
    "elu": (lambda u, t: F.elu(t * u) / t, 1.0),
    "sigmoid": (lambda u, t: u * (t * u).sigmoid(), _SILU),
    "tanh": (lambda u, t: u * (1 + (t * u).tanh()) / 2, _SILU / 2),
}


@dataclass(frozen=True)
class ApproximateThreshold:
    """A soft threshold made of another activation; :func:`approximate_threshold` makes it.

    Attributes
    ----------
    activation : str
        Its name.
    eta : float
        Largest distance from the soft threshold, over all z and thetas, in the units of z.
    gain : float
        t, in units of 1/z.
    slope : float
        Slope of "leaky_relu" below zero.
    """

    activation: str
    eta: float
    gain: float
    slope: float

    @property
    def carries(self) -> bool:
        """Whether r(u) - r(-u) = u, so that an MLP carries what it does not threshold.

        All but ELU do; with ELU that is up to ``eta`` off.
        """
        return self.activation != "elu"

    def rectify(self, u: Tensor) -> Tensor:
        """What stands for the ReLU, r: a tensor of any shape to one of the same shape."""
        if self.activation == "relu":
            return F.relu(u)
        if self.activation == "leaky_relu":
            return _two_leaky(u, self.slope)
        return _RECTIFIERS[self.activation][0](u, self.gain)

    def __call__(self, z, theta, nonnegative: bool = False) -> Tensor:
        r"""Approximate :math:`S_\theta(z)`: two rectifiers, one for nonnegative codes.

        Parameters
        ----------
        z : tensor, shape (..., n)
            Any shape; entries are treated one by one.
        theta : float or tensor
            Threshold >= 0 in the units of ``z``, broadcast against it: a number, (n,) or (B, 1).
        nonnegative : bool
            Approximate :math:`\operatorname{ReLU}(z - \theta)` instead; an entry may then be as
            low as ``-eta``.

        Returns
        -------
        Tensor
            Shaped like ``z``, nowhere further than ``eta`` from the exact threshold.

        Raises
        ------
        ValueError
            If ``z`` is not finite, or ``theta`` is negative or does not broadcast.
        """
        z = as_tensor(z, "z")
        theta = as_threshold(theta, "theta", z)
        positive = self.rectify(z - theta)
        return positive if nonnegative else positive - self.rectify(-z - theta)


def approximate_threshold(
    activation: str, gain: float = 1.0, slope: float = 0.01
) -> ApproximateThreshold:
    r"""The soft threshold as networks with other activations than ReLU compute it.

    .. math:: T_\theta(z) = r(z - \theta) - r(-z - \theta), \qquad r(u) = \frac{a(t u)}{t}, \qquad
              |T_\theta(z) - S_\theta(z)| \le \eta = \frac{c}{t}

    for all z and all :math:`\theta \ge 0`. For nonnegative codes
    :math:`T_\theta(z) = r(z - \theta)` is as close to :math:`\operatorname{ReLU}(z - \theta)`.

    Parameters
    ----------
    activation : str
        "relu" and "leaky_relu" (exact), "softplus" (c = log 2), "silu" (c = 0.2785), "gelu"
        (c = 0.1700), "elu" (c = 1), or a gate: "sigmoid", :math:`r(u) = u / (1 + e^{-t u})`
        (c = 0.2785), and "tanh", :math:`r(u) = u (1 + \tanh t u) / 2` (c = 0.1392).
    gain : float
        t > 0, in units of 1/z; exact activations need none and take no notice.
    slope : float
        Slope a of "leaky_relu" below zero, 0 <= a < 1; the others have none.

    Returns
    -------
    ApproximateThreshold
        Call it as ``(z, theta, nonnegative=False)``; ``eta`` is the bound. Hand both to the
        theorem: ``eta`` to :func:`dsclib.theory.threshold_schedule`, the callable to
        :func:`dsclib.pursuit.scheduled_ista`.

    Raises
    ------
    ValueError
        If ``activation`` is none of these, ``gain`` is not positive or ``slope`` not in [0, 1).

    Notes
    -----
    A rectifier misses the ReLU by :math:`\delta(u) = r(u) - \operatorname{ReLU}(u)`. For t = 1:

    ==========  ============================================  ===============================
    activation  :math:`\delta(u)`                             c, largest :math:`|\delta|`
    ==========  ============================================  ===============================
    softplus    :math:`\log(1 + e^{-|u|})`                    log 2, at 0
    SiLU        :math:`-|u| / (1 + e^{|u|})`                  W(1/e), at 1 + W(1/e) = 1.2785
    GELU        :math:`-|u|\,\Phi(-|u|)`                      0.169971..., at 0.7518
    ELU         :math:`-(1 - e^u)` for u < 0, else 0          1, as u falls
    ==========  ============================================  ===============================

    with W Lambert's function and :math:`\Phi` the normal distribution function. The sigmoid gate
    is SiLU of gain t, the tanh gate SiLU of gain 2 t. Gain t divides :math:`\delta` by t.

    Errors do not add. Each :math:`\delta` keeps one sign, so all its values lie in [0, c/t] or all
    in [-c/t, 0], and :math:`T_\theta(z) - S_\theta(z) = \delta(z - \theta) - \delta(-z - \theta)`,
    the difference of two of them, is at most c/t. No smaller bound serves all :math:`\theta`:
    ELU comes as near as one likes when z grows, the others when :math:`t \theta` does, since one
    rectifier is then off by c/t where the other is exact.

    Leaky ReLU is exact because :math:`\operatorname{ReLU}(u) = (L_a(u) + a L_a(-u)) / (1 - a^2)`.
    """
    activation = as_choice(activation, "activation", [*_EXACT, *_RECTIFIERS])
    t = as_number(gain, "gain", positive=True)
    a = as_number(slope, "slope")
    if a >= 1:
        raise ValueError(
            f"slope = {slope!r}, expected 0 <= slope < 1: with slope 1 nothing tells a "
            "negative input from a positive one"
        )
    c = 0.0 if activation in _EXACT else _RECTIFIERS[activation][1]
    return ApproximateThreshold(activation, c / t, t, a)


def _two_leaky(u: Tensor, a: float) -> Tensor:
    """ReLU out of two leaky ones of slope a."""
    return (F.leaky_relu(u, a) + a * F.leaky_relu(-u, a)) / (1 - a * a)
