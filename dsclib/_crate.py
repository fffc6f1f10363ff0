"""A CRATE block and its two halves: attention in subspaces and one step of ISTA."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_count, as_number, check_axes


class SubspaceAttention(nn.Module):
    r"""Self-attention in which one matrix a head serves as query, key and value.

    .. math:: z_t \mapsto O \operatorname*{concat}_h \sum_j
              \operatorname{softmax}_j\Bigl(\tfrac{1}{\sqrt p}\,
              (U_h' z_t)'(U_h' z_j)\Bigr)\, U_h' z_j

    Each head sees tokens by their p = width / heads coordinates :math:`U_h' z` only, and asks
    how alike they are there :cite:p:`yu2023white`. In the derivation O is
    :math:`[U_1 \dots U_H]`; in the networks of that paper it is trained by itself.

    Parameters
    ----------
    width : int
        Features of a token.
    heads : int
        Number H of heads, a divisor of ``width``.
    tied : bool
        Whether :math:`O = [U_1 \dots U_H]`; otherwise O is a parameter.

    Attributes
    ----------
    project : Linear
        Its weight is :math:`[U_1 \dots U_H]'`, (width, width), p rows a head.
    output : Linear or None
        Its weight is O, None if tied.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``; called on tokens of another width.
    """

    def __init__(self, width: int, heads: int, tied: bool = False):
        super().__init__()
        self.heads = as_heads(heads, width)
        self.project = nn.Linear(width, width, bias=False)
        self.output = None if tied else nn.Linear(width, width, bias=False)

    def coordinates(self, z: Tensor) -> Tensor:
        """Coordinates :math:`U_h' z` (B, heads, T, p) of the tokens ``z`` (B, T, width)."""
        as_tokens(z, self.project.in_features)
        return self.project(z).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def weights(self, z: Tensor) -> Tensor:
        """Attention (B, heads, T, T) of the tokens ``z``: row t says where token t looks."""
        u = self.coordinates(z)
        return (u @ u.mT / math.sqrt(u.shape[-1])).softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        """What to add to the tokens ``z`` (B, T, width)."""
        u = self.coordinates(z)
        answers = F.scaled_dot_product_attention(u, u, u).transpose(1, 2).flatten(2)
        return answers @ self.project.weight if self.output is None else self.output(answers)


class IstaLayer(nn.Module):
    r"""One step of ISTA for nonnegative codes of its input, from its input.

    .. math:: x = \operatorname{ReLU}\bigl(z + \gamma D'(z - D z) - \gamma \lambda\bigr)

    The proximal gradient step of length :math:`\gamma` for
    :math:`\tfrac12 \|z - D x\|^2 + \lambda \sum_i x_i` over :math:`x \ge 0`, taken at
    :math:`x = z`, hence with a square D :cite:p:`yu2023white`.

    Parameters
    ----------
    width : int
        Features of a token.
    step : float
        :math:`\gamma > 0`; up to 1 over the largest eigenvalue of :math:`D'D` no further step
        raises the objective.
    lam : float
        :math:`\lambda \ge 0`, in the units of ``D'z``.

    Attributes
    ----------
    D : Parameter, shape (width, width)
        At the start random, with columns of length about :math:`\sqrt 2`.

    Raises
    ------
    ValueError
        If ``width`` is no whole number >= 1, ``step`` is not positive or ``lam`` is negative;
        called on tokens of another width.
    """

    def __init__(self, width: int, step: float = 0.1, lam: float = 0.1):
        super().__init__()
        width = as_count(width, "width")
        self.step = as_number(step, "step", positive=True)
        self.lam = as_number(lam, "lam")
        self.D = nn.Parameter(torch.empty(width, width))
        nn.init.kaiming_uniform_(self.D)

    def forward(self, z: Tensor) -> Tensor:
        """Codes (B, T, width) of the tokens ``z``, nonnegative."""
        as_tokens(z, len(self.D))
        one = torch.eye(len(self.D)).to(self.D)
        # From z itself the step is linear before the ReLU: one product with I + step D'(I - D).
        weight = one + self.step * self.D.T @ (one - self.D)
        return F.relu(F.linear(z, weight) - self.step * self.lam)

    def iterates(self, z: Tensor, steps: int) -> list[Tensor]:
        """The tokens ``z`` and the codes after 1, ..., ``steps`` steps; the first is the layer."""
        as_tokens(z, len(self.D))
        codes = [z]
        for _ in range(as_count(steps, "steps")):
            residual = z - codes[-1] @ self.D.T
            codes.append(F.relu(codes[-1] + self.step * (residual @ self.D - self.lam)))
        return codes

    def objective(self, x: Tensor, z: Tensor) -> Tensor:
        r"""Values (B, T) of :math:`\tfrac12 \|z - D x\|^2 + \lambda \sum_i x_i`."""
        return (z - x @ self.D.T).square().sum(-1) / 2 + self.lam * x.sum(-1)


class CrateBlock(nn.Module):
    """Attention with its residual, then a step of ISTA without; both read normalised tokens.

    Parameters
    ----------
    width, heads : int
        Features of a token; heads, a divisor of ``width``.
    step, lam, tied : float, float, bool
        See :class:`IstaLayer` and :class:`SubspaceAttention`.

    Attributes
    ----------
    attention : SubspaceAttention
    features : IstaLayer
        What it answers are the features of the block, and its tokens.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width`` or a number is out of its range; called on tokens
        of another width.
    """

    def __init__(self, width: int, heads: int, step: float, lam: float, tied: bool):
        super().__init__()
        heads = as_heads(heads, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = SubspaceAttention(width, heads, tied)
        self.features = IstaLayer(width, step, lam)

    def attend(self, z: Tensor) -> Tensor:
        """Attention (B, heads, T, T) of the tokens ``z`` (B, T, width)."""
        as_tokens(z, len(self.norms[0].weight))
        return self.attention.weights(self.norms[0](z))

    def forward(self, z: Tensor) -> Tensor:
        """Tokens (B, T, width) after the block."""
        as_tokens(z, len(self.norms[0].weight))
        z = z + self.attention(self.norms[0](z))
        return self.features(self.norms[1](z))


def as_heads(heads: int, width: int) -> int:
    """Return ``heads`` if it divides ``width``."""
    width, heads = as_count(width, "width"), as_count(heads, "heads")
    if width % heads:
        raise ValueError(
            f"heads = {heads} does not divide width = {width}, expected a divisor: "
            f"with {heads} heads take width = {heads * max(1, round(width / heads))}"
        )
    return heads


def as_tokens(z: Tensor, width: int) -> None:
    """Refuse ``z`` unless it is (B, T, width)."""
    check_axes(z, "z", "(B, T, width)")
    if z.shape[-1] != width:
        raise ValueError(
            f"z has shape {tuple(z.shape)}, expected (B, T, {width}): the layer was built for "
            f"tokens of width {width}"
        )
