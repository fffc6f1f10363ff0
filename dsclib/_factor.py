r"""Any convolution as a chain of kernel-3 convolutions with ReLU between them, exactly.

A layer may copy a channel and move it by a sample. A chain of such layers gathers, in more and
more channels, what lies further and further away, until its last layer finds all it has to add
up within three samples. Copies pass a ReLU unchanged if they are nonnegative; an input u that
is not is first split into :math:`[u; -u]`, of which the ReLU leaves :math:`[u_+; u_-]`.

The bookkeeping, on every axis: after layers of strides :math:`f_1, \dots, f_i` the channel
(c, o) holds :math:`h_t = u_c[Q t + o]` with the spacing :math:`Q = f_1 \cdots f_i`. Tap j of the
next layer, whose padding is P, makes the channel :math:`(c, o' + Q (j - P))` of :math:`(c, o')`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class _Layer(NamedTuple):
    """One kernel-3 layer of a plan; padding and span are one an axis."""

    stride: int
    spacing: int  # Q of the channels it reads
    padding: tuple[int, ...]
    span: tuple[tuple[int, int], ...]  # least and largest offset o of the channels it reads


def convolution(weight: Tensor, bias=None, stride=1, padding=0, mode="zeros") -> nn.Module:
    """A Conv1d or Conv2d with this weight ``(out, in, *kernel)`` and bias (out,)."""
    kind = nn.Conv1d if weight.ndim == 3 else nn.Conv2d
    outputs, inputs, *kernel = weight.shape
    options = {"stride": stride, "padding": padding, "padding_mode": mode}
    conv = skip_init(kind, inputs, outputs, tuple(kernel), bias=bias is not None, **options)
    conv.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def kernel_three(conv: nn.Module, *, signed: bool) -> list[nn.Module]:
    """Conv, ReLU, ..., Conv, all of kernel size 3, that together compute what ``conv`` does.

    For inputs that ``conv`` strides over without a rest; ``signed`` if they may be negative.
    Taps of ``conv`` that are zero for all outputs cost no channels.
    """
    if set(conv.kernel_size) == {3}:
        return [conv]
    plan = _plan(conv)
    weight, bias, inputs = conv.weight.detach(), conv.bias, conv.in_channels
    split = signed and len(plan) > 1
    if split:
        weight, inputs = torch.cat([weight, -weight], dim=1), 2 * inputs  # reads [u; -u]
    axes = range(weight.ndim - 2)
    used = (weight != 0).any(dim=0)
    taps = (used if used.any() else ~used).nonzero()
    wanted = [(c, tuple(j - P for j, P in zip(at, conv.padding))) for c, *at in taps.tolist()]
    sums = weight[:, *taps.T]  # (outputs, wanted); all layers but the last only copy
    layers: list[nn.Module] = []
    # From the last layer to the first: whatever one wants, the one before must hold.
    for i in reversed(range(len(plan))):
        ways = [_ways({o[axis] for _, o in wanted}, plan[i], axis) for axis in axes]
        steps = [(c, [way[at] for way, at in zip(ways, o)]) for c, o in wanted]
        sources = [(c, tuple(source for source, _ in step)) for c, step in steps]
        taps = torch.tensor([[tap for _, tap in step] for _, step in steps])
        wanted = sorted(set(sources)) if i else [(c, (0,) * len(axes)) for c in range(inputs)]
        place = {channel: k for k, channel in enumerate(wanted)}
        weight = sums.new_zeros(len(sums), len(wanted), *[3] * len(axes))
        weight[:, [place[channel] for channel in sources], *taps.T] = sums
        if split and i == 0:
            weight = weight[:, : conv.in_channels] - weight[:, conv.in_channels :]
        layer = convolution(weight, bias, plan[i].stride, plan[i].padding, conv.padding_mode)
        layers = [layer, nn.ReLU(), *layers] if layers else [layer]
        sums, bias = torch.eye(len(wanted)).to(sums), None
    return layers


def _plan(conv: nn.Module) -> list[_Layer]:
    """Strides and paddings of kernel-3 layers that see all that ``conv`` sees.

    Circular: padding 1 everywhere. Zeros: all padding in the first layer, so that no later one
    meets the boundary; chains see an odd number of samples, and if ``conv`` sees an even one
    only a stride larger than 1 leaves the number of outputs the same.
    """
    q, circular = conv.stride[0], conv.padding_mode == "circular"
    strides = [f for prime in _primes(q) for f in [1] * (prime // 2 - 1) + [prime]]
    seen = spacing = 1
    for f in strides:
        seen, spacing = seen + 2 * spacing, spacing * f
    ends = [max(P, k - 1 - P) for P, k in zip(conv.padding, conv.kernel_size)]
    must_see = 1 + 2 * max(ends) if circular else max(conv.kernel_size)
    more = max(-((seen - must_see) // (2 * q)), 0 if strides else 1)
    strides, seen = strides + [1] * more, seen + 2 * q * more
    if not circular and q == 1 and any(k % 2 == 0 for k in conv.kernel_size):
        raise ValueError(
            f"filters of size {conv.kernel_size} at stride 1 with boundary 'zero', expected odd "
            "sizes, since kernel-3 layers of stride 1 see an odd number of samples: use "
            "factor=False, boundary='circular' or a stride of at least 2"
        )
    padding = (1,) * len(ends)
    if not circular:
        padding = tuple(P + (seen - k + 1) // 2 for P, k in zip(conv.padding, conv.kernel_size))
    layers, Q, span = [], 1, ((0, 0),) * len(ends)
    for f in strides:
        layers.append(_Layer(f, Q, padding, span))
        span = tuple((low - Q * P, high + Q * (2 - P)) for (low, high), P in zip(span, padding))
        Q, padding = Q * f, padding if circular else (0,) * len(ends)
    return layers


def _ways(offsets: set[int], layer: _Layer, axis: int) -> dict[int, tuple[int, int]]:
    """For every offset that is wanted: the offset to read it from, and the tap that does.

    From left to right, always the rightmost offset within reach: it serves most of those to come.
    """
    moves = [layer.spacing * (tap - layer.padding[axis]) for tap in range(3)]
    low, high = layer.span[axis]
    ways: dict[int, tuple[int, int]] = {}
    for o in sorted(offsets):
        if o not in ways:
            source = next(o - move for move in moves if low <= o - move <= high)
            for tap, move in enumerate(moves):
                ways.setdefault(source + move, (source, tap))
    return ways


def _primes(q: int) -> list[int]:
    """Prime factors in rising order."""
    for f in range(2, q + 1):
        if q % f == 0:
            return [f, *_primes(q // f)]
    return []
