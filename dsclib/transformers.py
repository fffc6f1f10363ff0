r"""Attention as convolution: a transformer block that is one step of the iteration.

Tokens are the positions of a convolutional dictionary, and a token holds :math:`[x; b]`, the
code found so far and the correlations :math:`b = W'y` at its position. One step
:math:`x \leftarrow S_\theta(x - W'D x + b)` is one block:

- W'D is a convolution of codes of kernel 2 p - 1. One attention head serves one offset
  :math:`\delta` of it: its logits fall by ``bias`` for every position away from the token at
  that offset, a relative position bias :cite:p:`press2022train`, and its value matrix is the tap
  of W'D there. In one dimension that is 2 p - 1 heads (3 for L = 2 q), in two
  :math:`(2 p - 1)^2` (9), as in :cite:p:`cordonnier2020relationship`.
- The residual connection adds x.
- The MLP adds b and is the threshold.

Softmax never attends to one token alone. What a head gives to the others is
:func:`attention_leak`, about :math:`2 e^{-\text{bias}}` for sequences of any length; what it
costs is :func:`attention_error`, and that takes the place of noise in the theorem. The theorem
itself, for blocks of attention or convolution and MLPs of any activation, is at
:func:`ista_encoder`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._attention import attention_error, attention_leak
from ._blocks import IstaBlock, OffsetAttention, OffsetConvolution, Rectifier, position_logits
from ._checks import as_choice, as_number
from ._convolutional import (
    analysis_kernel,
    as_analysis,
    as_biases,
    as_convolution,
    as_network_input,
    overlap_kernel,
)
from ._factor import convolution
from .activations import ApproximateThreshold, approximate_threshold

__all__ = [
    "IstaBlock",
    "IstaTransformer",
    "OffsetAttention",
    "OffsetConvolution",
    "attention_error",
    "attention_leak",
    "ista_encoder",
    "ista_transformer",
]


class IstaTransformer(nn.Module):
    """The network that :func:`ista_encoder` and :func:`ista_transformer` make.

    Attributes
    ----------
    embedding : Conv1d or Conv2d of torch
        Signals to correlations b, one token a stride.
    blocks : ModuleList of IstaBlock
    bias : Parameter, shape (), or None
        By how much logits fall from one position to the next, for all heads.
    offsets : list of tuples
        Where each head looks, in positions along every axis, first head first.
    eta : float
        How far the MLP of a block, as it is made, is from the soft threshold, at most.
    """

    def __init__(
        self,
        D,
        W,
        thresholds: Tensor,
        mixers: Sequence[str],
        bias: float | None,
        activation: ApproximateThreshold,
        nonnegative: bool,
    ):
        super().__init__()
        self.operator = D
        self.eta = activation.eta if activation.carries else 2 * activation.eta
        self.offsets = list(itertools.product(*(range(1 - p, p) for p in D.reach)))
        kernel, before = analysis_kernel(W)
        mode = "circular" if D.boundary == "circular" else "zeros"
        self.embedding = convolution(kernel, None, D.stride, before, mode)
        overlap = overlap_kernel(W, D)
        self.bias = None if bias is None else nn.Parameter(overlap.new_tensor(bias))
        self.blocks = nn.ModuleList()
        for name, theta in zip(mixers, thresholds):
            if name == "attention":
                mixer = OffsetAttention(overlap.flatten(2))
            else:
                mixer = OffsetConvolution(overlap, mode)
            exact = activation.activation == "relu"
            rectify = nn.ReLU() if exact else Rectifier(activation)
            theta = theta.expand(len(overlap))
            self.blocks.append(IstaBlock(mixer, theta, rectify, nonnegative))

    def forward(self, y) -> Tensor:
        """Codes (B, C, T) or (B, C, T1, T2) of the signals ``y``.

        ``y`` is (B, N) or (B, K, N), in two dimensions (B, N1, N2) or (B, K, N1, N2).
        ``ValueError`` if its channels or sizes do not fit, or its dtype is another than that
        of the network.
        """
        return self.iterates(y)[-1]

    def iterates(self, y) -> list[Tensor]:
        """Codes after 0, ..., K blocks."""
        b = self.embedding(as_network_input(y, self.embedding.weight, [self.operator]))
        count, grid = b.shape[1], b.shape[2:]
        logits = None if self.bias is None else self._logits(grid)
        h = torch.cat([torch.zeros_like(b), b], dim=1).flatten(2).transpose(1, 2)
        tokens = [h]
        for block in self.blocks:
            where = logits if isinstance(block.mixer, OffsetAttention) else grid
            tokens.append(block(tokens[-1], where))
        return [h[..., :count].transpose(1, 2).unflatten(2, grid) for h in tokens]

    def attention(self, size) -> Tensor:
        """Attention weights (heads, T, T) of every block that attends, for signals of ``size``.

        Parameters
        ----------
        size : int or pair of ints
            N, or (N1, N2), with or without channels.

        Returns
        -------
        Tensor
            Row t of head i says where token t looks for ``offsets[i]``; rows sum to 1. In two
            dimensions T = T1 T2, tokens row by row. With boundary "zero" a last column (T + 1)
            is what rests on a token of zeros.

        Raises
        ------
        ValueError
            If no block attends, or ``size`` does not fit the dictionary.
        """
        if self.bias is None:
            raise ValueError("mixers are all 'convolution', expected 'attention' in some block")
        return self._logits(self.operator.code_shape(size)[1:]).softmax(dim=-1)

    def _logits(self, grid) -> Tensor:
        return position_logits(self.bias, self.offsets, grid, self.operator.boundary)


def ista_encoder(
    operator,
    thresholds,
    mixers: Sequence[str],
    bias=None,
    W=None,
    *,
    nonnegative: bool = False,
    threshold: ApproximateThreshold | None = None,
):
    r"""The iteration of the book's theorem as blocks of mixer and MLP, each with its residual.

    .. math:: x \leftarrow T_{\theta_k}\bigl(x - \operatorname{mix}_k(x) + b\bigr), \qquad
              \operatorname{mix}_k(x) \approx W'D x, \qquad b = W'y

    Block k mixes tokens by a convolution, which is W'D exactly, or by attention, which leaks.

    Parameters
    ----------
    operator : Conv1d or Conv2d of :mod:`dsclib.operators`
        The dictionary. For a chain of them put one encoder a dictionary in a
        ``torch.nn.Sequential``.
    thresholds : tensor, shape (K,)
        One threshold >= 0 a block, in the units of the codes.
    mixers : sequence of K names
        "convolution" or "attention": who mixes the tokens of block k.
    bias : float, optional
        :math:`\beta > 0`, by how much the logits of attention fall from one position to the
        next; needed if a block attends.
    W : operator like the dictionary, optional
        Analysis weights; the dictionary if not given.
    nonnegative : bool
        For the iteration with :math:`\operatorname{ReLU}(z - \theta_k)`.
    threshold : ApproximateThreshold, optional
        What :func:`dsclib.networks.approximate_threshold` makes, for an MLP with another
        activation than ReLU.

    Returns
    -------
    IstaTransformer
        In the dtype and on the device of the filters. Its weights are parameters, free of the
        graph of ``operator`` and ready to be trained on.

    Raises
    ------
    ValueError
        If the operator is not one convolution, ``W`` is not like it, a threshold is negative,
        mixers are not a list of K of these names, ``bias`` is not positive though a block
        attends, or ``threshold`` is something else; called on signals that do not fit.

    Notes
    -----
    *The theorem.* Let :math:`|x^*| \le B`, at most s entries of it active in a stripe, and
    :math:`\|W'e\|_\infty \le \sigma`. Thresholds must rise, so that what leaks stays below them:

    >>> eta = threshold.eta  # for ELU 2 * threshold.eta; the network tells it as network.eta
    >>> tau = attention_error(D, bias, s, B, W, eta)  # 0 if no block attends
    >>> schedule = threshold_schedule(D, s, K, B, sigma + tau, W, eta=eta)
    >>> network = ista_encoder(D, schedule.thresholds, mixers, bias, W, threshold=threshold)

    Then no block lets a wrong atom above :math:`\eta`, every state is within
    :math:`B + \eta`, and block k leaves the error ``schedule.errors[k]``: the rate is that of
    the iteration, the floor :math:`(2 (\nu \eta + \sigma + \tau) + \eta) / (1 - \rho)`.

    *Proof.* :math:`\tau` is noise to the proof of :func:`dsclib.theory.threshold_schedule`. To
    add is that all states are ones that :math:`\tau` serves. Suppose it of :math:`x^k`. On the
    support :math:`v = z + b = x^* + w` with
    :math:`|w_i| \le \mu_1(s - 1) E_k + \nu \eta + \sigma + \tau \le \theta_k`, hence
    :math:`|S_{\theta_k}(v_i)| \le \max(|x^*_i| + |w_i| - \theta_k, 0) \le |x^*_i|`; off it
    :math:`|v_i| \le \mu_1(s) E_k + \nu \eta + \sigma + \tau = \theta_k` and
    :math:`S_{\theta_k}(v_i) = 0`. The block answers something within :math:`\eta` of
    :math:`S_{\theta_k}(v)`: at most :math:`B + \eta` on the support, :math:`\eta` off it.

    *What* :math:`\eta` *is.* With :math:`\delta(u) = r(u) - \operatorname{ReLU}(u)` the block
    answers :math:`T_\theta(v) + z - (r(z) - r(-z)) = T_\theta(v) - \delta(z) + \delta(-z)`.
    An even :math:`\delta` cancels, which leaves ``threshold.eta``; all are even but that of
    ELU. There all values of :math:`\delta` lie within [-1/t, 0], so what is missed by
    :math:`T_\theta` and what is missed by carrying z are at most 1/t each and ``network.eta``
    is 2/t. Nothing less will do: both are near 1/t, with one sign, if v is large and z is minus
    a large number.

    *Against the CNN* of the same thresholds, with :math:`\eta = 0`: both stay on the support,
    where a step multiplies what they differ by with at most :math:`\mu_1(s - 1)`. After k blocks
    that is at most :math:`\tau\, (1 - \mu_1(s - 1)^k) / (1 - \mu_1(s - 1))`.
    """
    D = as_convolution(operator)
    theta, W = as_biases(thresholds, D), as_analysis(W, D)
    named = isinstance(mixers, list | tuple)
    if not named or len(mixers) != len(theta):
        came = f"{len(mixers)} names" if named else f"{mixers!r:.60}"
        raise ValueError(
            f"mixers: {came}, expected {len(theta)} names, one a threshold: "
            f"for the same in all blocks use ['attention'] * {len(theta)}"
        )
    mixers = [as_choice(name, "mixers", ("convolution", "attention")) for name in mixers]
    if "attention" in mixers:
        bias = as_number(bias, "bias", positive=True, at_most=torch.finfo(theta.dtype).max)
    else:
        bias = None
    threshold = approximate_threshold("relu") if threshold is None else threshold
    if not isinstance(threshold, ApproximateThreshold):
        raise ValueError(
            f"threshold is {threshold!r:.60}, expected what approximate_threshold(...) makes"
        )
    return IstaTransformer(D, W, theta, mixers, bias, threshold, nonnegative)


def ista_transformer(operator, thresholds, bias, W=None, *, nonnegative: bool = False):
    r"""The iteration of the book's theorem as a transformer, up to what attention leaks.

    An overlapping patch embedding computes :math:`b = W'y`; each block is one step,

    .. math:: x \leftarrow S_{\theta_k}\Bigl(x - \sum_\delta (W'D)_\delta
              \sum_j \operatorname{softmax}_j\bigl(-\beta\, |j - t - \delta|\bigr)\, x_j + b\Bigr)

    It is :func:`ista_encoder` with attention in all blocks and ReLU. As :math:`\beta` grows it
    becomes :func:`dsclib.networks.ista_cnn`.

    Parameters
    ----------
    operator, thresholds, bias, W, nonnegative
        As for :func:`ista_encoder`.

    Returns
    -------
    IstaTransformer

    Raises
    ------
    ValueError
        As :func:`ista_encoder`.

    Notes
    -----
    Circular positions are as far apart as the shorter way round. With boundary "zero" a head
    that looks beyond the end rests on a token of zeros. Attention costs :math:`T^2` a head,
    where the convolution costs T: this network is for understanding. Its attention does not
    look at content, its heads share nothing, and nothing is normalised; in the transformers
    that :cite:p:`yu2023white` derive from sparse coding attention compresses tokens against
    subspaces that depend on content, and only the MLP is a step of ISTA.
    """
    thresholds = as_biases(thresholds, as_convolution(operator))
    mixers = ["attention"] * len(thresholds)
    return ista_encoder(operator, thresholds, mixers, bias, W, nonnegative=nonnegative)
