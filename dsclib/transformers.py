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
- The MLP, with ReLU, adds b and is the threshold.

Softmax never attends to one token alone. What a head gives to the others is
:func:`attention_leak`, about :math:`2 e^{-\text{bias}}` for sequences of any length; what it
costs is :func:`attention_error`, and that takes the place of noise in the theorem.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ._checks import as_count, as_number
from ._convolutional import (
    analysis_kernel,
    as_analysis,
    as_biases,
    as_convolution,
    as_network_input,
    overlap_kernel,
)
from ._factor import convolution


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


def attention_error(operator, bias, active: int | None = None, bound=1.0, W=None) -> float:
    r"""What leaking attention adds to a step: :math:`\tau`, which joins the noise.

    .. math:: \tau = 2\, \varepsilon\, \Gamma_s\, B, \qquad
              \Gamma_s = \max_c \sum_\delta \max_{|A| = s} \sum_{c' \in A}
              \bigl|(W'D)_\delta[c, c']\bigr|

    In the max norm, for every state x with :math:`\|x\|_\infty \le B` and at most s nonzero
    entries in any one token, :math:`\|\text{attention}(x) + W'D x\|_\infty \le \tau`.
    :math:`\varepsilon` is the :func:`attention_leak`, :math:`(W'D)_\delta` the tap of W'D at
    offset :math:`\delta`. How many tokens there are does not matter.

    Parameters
    ----------
    operator : Conv1d or Conv2d of :mod:`dsclib.operators`
        The dictionary.
    bias : float
        :math:`\beta > 0` of :func:`ista_transformer`.
    active : int, optional
        Nonzero entries s of a token, at most; a local sparsity serves. ``None`` is all C.
    bound : float
        B, in the units of the codes.
    W : operator like the dictionary, optional
        Analysis weights; the dictionary if not given.

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
    *Error of a head.* Where :math:`v_0` is wanted it answers :math:`\sum_j \pi_j v_j` with
    :math:`\sum_j \pi_j = 1` and :math:`\sum_{j \ne 0} \pi_j \le \varepsilon`: off by
    :math:`|\sum_{j \ne 0} \pi_j (v_j - v_0)| \le 2 \varepsilon \max_j |v_j|` in every entry.
    Values are a tap times a token; heads add up.

    *The theorem, with* :math:`\sigma + \tau` *for* :math:`\sigma`. Thresholds must rise too, so
    that what leaks to tokens off the support stays below them. Take B as the ``bound`` on
    :math:`x^*` and

    >>> tau = attention_error(D, bias, s, bound)
    >>> schedule = threshold_schedule(D, s, steps, bound, noise + tau)
    >>> network = ista_transformer(D, schedule.thresholds, bias)

    Then no block activates a wrong atom and block k leaves the error ``schedule.errors[k]``:
    the rate is that of the iteration, only the floor
    :math:`2 (\sigma + \tau) / (1 - \rho)` is higher. The one thing to add to the proof is that
    every state is within B, so that the same :math:`\tau` serves all blocks. Suppose it of
    :math:`x^k`. On the support :math:`z = x^* + w` with
    :math:`|w_i| \le \mu_1(s - 1) E_k + \sigma + \tau \le \theta_k`, hence
    :math:`|S_{\theta_k}(z_i)| \le \max(|x^*_i| + |w_i| - \theta_k, 0) \le |x^*_i|`. Off the
    support :math:`|z_i| \le \mu_1(s) E_k + \sigma + \tau = \theta_k` and the code stays zero.

    *Against the CNN* of the same thresholds: both stay on the support, where a step multiplies
    what they differ by with at most :math:`\mu_1(s - 1)`. After k blocks that is at most
    :math:`\tau\, (1 - \mu_1(s - 1)^k) / (1 - \mu_1(s - 1))`.
    """
    D = as_convolution(operator)
    taps = overlap_kernel(as_analysis(W, D), D).abs().double().flatten(2)  # (C, C, heads)
    count = len(taps)
    active = count if active is None else as_count(active, "active", at_most=count)
    gain = taps.topk(active, dim=1).values.sum(dim=(1, 2)).max().item()
    return 2 * attention_leak(bias, len(D.reach)) * gain * as_number(bound, "bound")


class OffsetAttention(nn.Module):
    r"""Multi-head attention in which position alone decides: one head an offset.

    .. math:: h_t \mathrel{+}= O \operatorname*{concat}_\delta \sum_j
              \operatorname{softmax}_j(\ell_\delta)_{t j}\, V_\delta h_j

    Torch's scaled dot product attention with queries and keys of zero: the logits
    :math:`\ell_\delta` come in as the attention mask.

    Parameters
    ----------
    taps : tensor, shape (C, C, heads)
        W'D; value matrices :math:`V_\delta` write minus its taps, O adds the heads up.
    """

    def __init__(self, taps: Tensor):
        super().__init__()
        count, _, self.heads = taps.shape
        one = torch.eye(count).to(taps)
        values = -taps.permute(2, 0, 1).flatten(0, 1)  # reads x of [x; b]
        self.value = _linear(torch.cat([values, torch.zeros_like(values)], dim=1))
        self.output = _linear(torch.cat([one.repeat(1, self.heads), 0 * one.repeat(1, self.heads)]))

    def forward(self, h: Tensor, logits: Tensor) -> Tensor:
        """What to add to the tokens ``h`` (B, T, 2 C), with ``logits`` (heads, T, T or T + 1).

        A last column of its own is for a token of zeros, on which heads that look beyond the
        boundary rest.
        """
        h = F.pad(h, (0, 0, 0, logits.shape[2] - logits.shape[1]))
        values = self.value(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys = values.new_zeros(1).expand(*values.shape[:3], 1)
        queries = keys[:, :, : logits.shape[1]]
        answers = F.scaled_dot_product_attention(queries, keys, values, attn_mask=logits)
        return self.output(answers.transpose(1, 2).flatten(2))


class IstaBlock(nn.Module):
    r"""A transformer block, without normalisation: attention and MLP, each with its residual.

    .. math:: \begin{bmatrix} z \\ b \end{bmatrix} = \begin{bmatrix} x - W'D x \\ b
              \end{bmatrix}, \qquad \begin{bmatrix} x \\ b \end{bmatrix} \leftarrow
              \begin{bmatrix} z + \bigl(S_\theta(z + b) - z\bigr) \\ b \end{bmatrix}

    The MLP has four hidden units a channel, two for :math:`S_\theta` and two for z, since
    :math:`z = \operatorname{ReLU}(z) - \operatorname{ReLU}(-z)`.

    Attributes
    ----------
    attention : OffsetAttention
    mlp : Sequential
        Linear, ReLU, Linear.
    """

    def __init__(self, taps: Tensor, threshold: Tensor, nonnegative: bool = False):
        super().__init__()
        self.attention = OffsetAttention(taps)
        # Rows of the first layer as they read [z; b], columns of the second as they write z.
        reads = [[1, 1], [1, 0], [-1, 0]] if nonnegative else [[1, 1], [-1, -1], [1, 0], [-1, 0]]
        writes = [[1, -1, 1], [0, 0, 0]] if nonnegative else [[1, -1, -1, 1], [0, 0, 0, 0]]
        one = torch.eye(len(taps)).to(taps)
        shrink = taps.new_zeros(len(reads), len(taps))
        shrink[: len(reads) - 2] = -threshold
        self.mlp = nn.Sequential(
            _linear(torch.kron(taps.new_tensor(reads), one), shrink.flatten()),
            nn.ReLU(),
            _linear(torch.kron(taps.new_tensor(writes), one)),
        )

    def forward(self, h: Tensor, logits: Tensor) -> Tensor:
        """Tokens (B, T, 2 C) after a step; ``logits`` as in :class:`OffsetAttention`."""
        h = h + self.attention(h, logits)
        return h + self.mlp(h)


class IstaTransformer(nn.Module):
    """The network that :func:`ista_transformer` makes.

    Attributes
    ----------
    embedding : Conv1d or Conv2d of torch
        Signals to correlations b, one token a stride.
    blocks : ModuleList of IstaBlock
    bias : Parameter, shape ()
        By how much logits fall from one position to the next, for all heads.
    offsets : list of tuples
        Where each head looks, in positions along every axis, first head first.
    """

    def __init__(self, D, W, thresholds: Tensor, bias: float, nonnegative: bool = False):
        super().__init__()
        self.operator = D
        kernel, before = analysis_kernel(W)
        mode = "circular" if D.boundary == "circular" else "zeros"
        self.embedding = convolution(kernel, None, D.stride, before, mode)
        taps = overlap_kernel(W, D).flatten(2)
        self.blocks = nn.ModuleList(IstaBlock(taps, theta, nonnegative) for theta in thresholds)
        self.bias = nn.Parameter(taps.new_tensor(bias))
        self.offsets = list(itertools.product(*(range(1 - p, p) for p in D.reach)))

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
        logits = self._logits(grid)
        h = torch.cat([torch.zeros_like(b), b], dim=1).flatten(2).transpose(1, 2)
        tokens = [h]
        for block in self.blocks:
            tokens.append(block(tokens[-1], logits))
        return [h[..., :count].transpose(1, 2).unflatten(2, grid) for h in tokens]

    def attention(self, size) -> Tensor:
        """Attention weights (heads, T, T) of every block, for signals of ``size``.

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
        """
        return self._logits(self.operator.code_shape(size)[1:]).softmax(dim=-1)

    def _logits(self, grid) -> Tensor:
        """Minus ``bias`` times the distance of every token from where each head looks."""
        distances, beyond = zip(*(self._distances(grid, offset) for offset in self.offsets))
        logits = -self.bias * torch.stack(distances).to(self.bias)
        if self.operator.boundary == "circular":
            return logits
        rest = torch.full_like(self.bias, -torch.inf).where(~torch.stack(beyond), 0)
        return torch.cat([logits, rest.unsqueeze(2)], dim=2)

    def _distances(self, grid, offset) -> tuple[Tensor, Tensor]:
        """Distances (T, T) of tokens from those at ``offset``, and which of these there are not."""
        total = torch.zeros(1, 1, dtype=torch.long, device=self.bias.device)
        beyond = torch.zeros(1, dtype=torch.bool, device=self.bias.device)
        for T, shift in zip(grid, offset):
            at = torch.arange(T, device=self.bias.device)
            goal = at + shift
            d = (at - goal[:, None]).abs()
            if self.operator.boundary == "circular":
                d = (at - goal[:, None]) % T
                d = torch.minimum(d, T - d)
            total = (total[:, None, :, None] + d[:, None, :]).flatten(2).flatten(0, 1)
            beyond = (beyond[:, None] | (goal < 0) | (goal >= T)).flatten()
        return total, beyond


def ista_transformer(operator, thresholds, bias, W=None, *, nonnegative: bool = False):
    r"""The iteration of the book's theorem as a transformer, up to what attention leaks.

    An overlapping patch embedding computes :math:`b = W'y`; each block is one step,

    .. math:: x \leftarrow S_{\theta_k}\Bigl(x - \sum_\delta (W'D)_\delta
              \sum_j \operatorname{softmax}_j\bigl(-\beta\, |j - t - \delta|\bigr)\, x_j + b\Bigr)

    As :math:`\beta` grows it becomes :func:`dsclib.networks.ista_cnn`; how fast, and which
    thresholds keep the theorem meanwhile, says :func:`attention_error`.

    Parameters
    ----------
    operator : Conv1d or Conv2d of :mod:`dsclib.operators`
        The dictionary. For a chain of them put one transformer a dictionary in a
        ``torch.nn.Sequential``.
    thresholds : tensor, shape (K,)
        One threshold >= 0 a block, in the units of the codes.
    bias : float
        :math:`\beta > 0`, by how much logits fall from one position to the next.
    W : operator like the dictionary, optional
        Analysis weights; the dictionary if not given.
    nonnegative : bool
        For the iteration with :math:`\operatorname{ReLU}(z - \theta_k)`.

    Returns
    -------
    IstaTransformer
        In the dtype and on the device of the filters. Its weights are parameters, free of the
        graph of ``operator`` and ready to be trained on.

    Raises
    ------
    ValueError
        If the operator is not one convolution, ``W`` is not like it, a threshold is negative or
        ``bias`` is not positive; called on signals that do not fit the dictionary.

    Notes
    -----
    Circular positions are as far apart as the shorter way round. With boundary "zero" a head
    that looks beyond the end rests on a token of zeros. Attention costs :math:`T^2` a head,
    where the convolution costs T: this network is for understanding. Its attention does not
    look at content, its heads share nothing, and nothing is normalised; in the transformers
    that :cite:p:`yu2023white` derive from sparse coding attention compresses tokens against
    subspaces that depend on content, and only the MLP is a step of ISTA.
    """
    D = as_convolution(operator)
    bias = as_number(bias, "bias", positive=True, at_most=torch.finfo(D.filters.dtype).max)
    return IstaTransformer(D, as_analysis(W, D), as_biases(thresholds, D), bias, nonnegative)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with this weight (out, in) and bias (out,)."""
    layer = skip_init(nn.Linear, *reversed(weight.shape), bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
