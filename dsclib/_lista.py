"""LISTA: the iteration with weights and thresholds that are trained."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_count, as_dictionary, as_number, as_signals, as_weights
from .operators import Dense


class Lista(nn.Module):
    r"""The iteration with weights and thresholds that are trained, layer by layer.

    .. math:: x^{k+1} = S_{\theta_k}\bigl(x^k + \gamma_k W_k'(y - D x^k)\bigr), \qquad x^0 = 0,
              \qquad k = 0, \dots, K - 1

    The network of :cite:p:`gregor2010learning`, with weights coupled as in
    :cite:p:`chen2018theoretical`. Before training it is ISTA (:math:`W_k = D / L`,
    :math:`\theta_k = \lambda / L`), or, if ``W`` is given, :func:`dsclib.pursuit.scheduled_ista`
    with :math:`\theta_k = \lambda`. With ``train_weights=False`` only :math:`\theta_k` and the
    step sizes :math:`\gamma_k` are trained: ALISTA :cite:p:`liu2019alista`, whose W are
    :func:`dsclib.analysis.analysis_weights`.

    Parameters
    ----------
    D : tensor, shape (m, n)
        Dictionary; not trained.
    steps : int
        Number of layers K.
    lam : float
        Penalty > 0 of the ISTA it starts from, in the units of ``D'y``; with ``W`` the
        threshold it starts from, in the units of the codes.
    W : tensor, shape (m, n), optional
        Weights of all layers at the start.
    train_weights : bool
        Whether the weights are parameters, one (m, n) a layer, or stay as they are.

    Attributes
    ----------
    W : tensor, shape (K, m, n)
    step_sizes : Parameter, shape (K,)
        :math:`\gamma_k`, 1 at the start.
    raw_thresholds : Parameter, shape (K,)
        :math:`\theta_k` is their softplus, which is positive whatever they are, and changes
        small thresholds by small steps.

    Raises
    ------
    ValueError
        If ``D`` is zero, ``W`` is not shaped like it, ``lam`` is not positive or ``steps < 1``;
        from the methods if signals do not fit ``D``.
    """

    def __init__(self, D, steps: int, *, lam: float = 0.1, W=None, train_weights: bool = True):
        super().__init__()
        D, steps = as_dictionary(D).detach(), as_count(steps, "steps")
        theta = as_number(lam, "lam", positive=True)
        if W is None:
            L = Dense(D).lipschitz()
            if L == 0:
                raise ValueError("D is zero, expected at least one atom that is not: check D")
            W, theta = D / L, theta / L
        W = as_weights(W, D).detach().expand(steps, *D.shape).clone()
        self.register_buffer("D", D.clone())
        if train_weights:
            self.W = nn.Parameter(W)
        else:
            self.register_buffer("W", W)
        self.step_sizes = nn.Parameter(W.new_ones(steps))
        # The inverse of softplus, log(exp(theta) - 1), in a form that cannot overflow.
        log_threshold = theta + math.log(-math.expm1(-theta))
        self.raw_thresholds = nn.Parameter(W.new_full((steps,), log_threshold))

    @property
    def thresholds(self) -> Tensor:
        r"""Thresholds :math:`\theta_k > 0` of the layers, (K,)."""
        return F.softplus(self.raw_thresholds)

    def forward(self, y) -> Tensor:
        """Codes (B, n) of the signals ``y`` (B, m): the last iterate."""
        return self.iterates(y)[-1]

    def iterates(self, y) -> list[Tensor]:
        """Codes (B, n) after 0, ..., K layers."""
        y = as_signals(y, self.D, "y")
        codes = [y.new_zeros(len(y), self.D.shape[1])]
        for W, step, theta in zip(self.W, self.step_sizes, self.thresholds):
            x = codes[-1]
            z = x + step * ((y - x @ self.D.T) @ W)
            codes.append(z - z.clamp(-theta, theta))  # soft threshold
        return codes
