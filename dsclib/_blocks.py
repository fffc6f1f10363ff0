"""A block and what mixes its tokens: attention to fixed offsets, or a convolution.

Public in :mod:`dsclib.transformers` and :mod:`dsclib.networks`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ._factor import convolution
from .activations import ApproximateThreshold


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


class OffsetConvolution(nn.Module):
    r"""What the heads of :class:`OffsetAttention` compute if nothing leaks: a convolution.

    .. math:: h_t \mathrel{+}= [-(W'D x)_t;\, 0]

    Parameters
    ----------
    kernel : tensor, shape (C, C, K) or (C, C, K1, K2)
        W'D, an odd number of taps an axis.
    mode : {"circular", "zeros"}
        What lies beyond the boundary.
    """

    def __init__(self, kernel: Tensor, mode: str):
        super().__init__()
        padding = [length // 2 for length in kernel.shape[2:]]
        self.convolution = convolution(-kernel, padding=padding, mode=mode)

    def forward(self, h: Tensor, grid) -> Tensor:
        """What to add to the tokens ``h`` (B, T, 2 C), which lie on a ``grid`` (T1, T2) or (T,)."""
        count = h.shape[2] // 2
        x = h[..., :count].transpose(1, 2).unflatten(2, grid)
        return F.pad(self.convolution(x).flatten(2).transpose(1, 2), (0, count))


class IstaBlock(nn.Module):
    r"""A transformer block, without normalisation: a mixer and an MLP, each with its residual.

    .. math:: \begin{bmatrix} z \\ b \end{bmatrix} = \begin{bmatrix} x - W'D x \\ b
              \end{bmatrix}, \qquad \begin{bmatrix} x \\ b \end{bmatrix} \leftarrow
              \begin{bmatrix} z + \bigl(T_\theta(z + b) - (r(z) - r(-z))\bigr) \\ b
              \end{bmatrix}

    The MLP has four hidden units a channel, two for :math:`T_\theta(v) = r(v - \theta) -
    r(-v - \theta)` and two for :math:`r(z) - r(-z)`, which is z: exactly for every rectifier r
    of :func:`dsclib.networks.approximate_threshold` but that of ELU. Nonnegative codes need
    only one for :math:`T_\theta`.

    Parameters
    ----------
    mixer : OffsetAttention or OffsetConvolution
    theta : tensor, shape (C,)
    rectify : Module
        The activation r.
    nonnegative : bool

    Attributes
    ----------
    mixer : OffsetAttention or OffsetConvolution
    mlp : Sequential
        Linear, activation, Linear.
    """

    def __init__(self, mixer: nn.Module, theta: Tensor, rectify: nn.Module, nonnegative: bool):
        super().__init__()
        self.mixer = mixer
        # Rows of the first layer as they read [z; b], columns of the second as they write z.
        reads = [[1, 1], [1, 0], [-1, 0]] if nonnegative else [[1, 1], [-1, -1], [1, 0], [-1, 0]]
        writes = [[1, -1, 1], [0, 0, 0]] if nonnegative else [[1, -1, -1, 1], [0, 0, 0, 0]]
        one = torch.eye(len(theta)).to(theta)
        shrink = theta.new_zeros(len(reads), len(theta))
        shrink[: len(reads) - 2] = -theta
        self.mlp = nn.Sequential(
            _linear(torch.kron(theta.new_tensor(reads), one), shrink.flatten()),
            rectify,
            _linear(torch.kron(theta.new_tensor(writes), one)),
        )

    def forward(self, h: Tensor, where) -> Tensor:
        """Tokens (B, T, 2 C) after a step; ``where`` is what the mixer asks for."""
        h = h + self.mixer(h, where)
        return h + self.mlp(h)


class Rectifier(nn.Module):
    """The activation of an MLP."""

    def __init__(self, activation: ApproximateThreshold):
        super().__init__()
        self.activation = activation

    def forward(self, u: Tensor) -> Tensor:
        return self.activation.rectify(u)

    def extra_repr(self) -> str:
        return self.activation.activation


def position_logits(bias: Tensor, offsets, grid, boundary: str) -> Tensor:
    """Minus ``bias`` times the distance of every token from where each head looks.

    (heads, T, T) for tokens on a ``grid``; with boundary "zero" a last column is for a token of
    zeros, on which heads that look beyond the boundary rest.
    """
    circular = boundary == "circular"
    pairs = [_distances(grid, offset, circular, bias.device) for offset in offsets]
    distances, beyond = (torch.stack(each) for each in zip(*pairs))
    logits = -bias * distances.to(bias)
    if circular:
        return logits
    rest = torch.full_like(bias, -torch.inf).where(~beyond, 0)
    return torch.cat([logits, rest.unsqueeze(2)], dim=2)


def _distances(grid, offset, circular: bool, device) -> tuple[Tensor, Tensor]:
    """Distances (T, T) of tokens from those at ``offset``, and which of these there are not."""
    total = torch.zeros(1, 1, dtype=torch.long, device=device)
    beyond = torch.zeros(1, dtype=torch.bool, device=device)
    for T, shift in zip(grid, offset):
        at = torch.arange(T, device=device)
        goal = at + shift
        d = (at - goal[:, None]).abs()
        if circular:
            d = (at - goal[:, None]) % T
            d = torch.minimum(d, T - d)
        total = (total[:, None, :, None] + d[:, None, :]).flatten(2).flatten(0, 1)
        beyond = (beyond[:, None] | (goal < 0) | (goal >= T)).flatten()
    return total, beyond


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with this weight (out, in) and bias (out,)."""
    layer = skip_init(nn.Linear, *reversed(weight.shape), bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
