"""What a layer has to multiply, and how much of it is by zero."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._activity import watch
from ._hooks import find_layers

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LINEAR = (nn.Linear, *_CONVOLUTIONS)


class MultiplyAdds(NamedTuple):
    """Multiplications of a weight and a feature, each with its addition, of one layer a signal.

    ``total`` counts all of them, ``active`` those whose factors are both nonzero; zeros added
    by padding count in neither.
    """

    active: float
    total: float


def multiply_adds(model, x, batch_size: int = 1000) -> dict[str, MultiplyAdds]:
    """Multiply-adds of each linear and convolutional layer, all and active ones.

    A product with a factor 0 adds nothing, and hardware that skips such products does only the
    active ones. Ordinary hardware does all.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, compiled or not. It runs uncompiled, in ``eval()`` mode without gradients, and
        its mode is put back. Counted are ``Linear``, ``Conv1d``, ``Conv2d`` and ``Conv3d``;
        products inside attention, transposed convolutions and other layers are not.
    x : tensor, shape (B, ...)
        Inputs of the model, moved batch by batch to its device.
    batch_size : int
        Signals in one pass of the model.

    Returns
    -------
    dict of str to MultiplyAdds
        By the name of the layer, means over the signals. A layer called several times a pass
        counts each time; layers that are not called are left out.

    Raises
    ------
    ValueError
        If the model has or calls no layer of these types, or ``x`` is empty.
    """
    found = {n: m for n, m in find_layers(model, nn.Module).items() if isinstance(m, _LINEAR)}
    if not found:
        raise ValueError("the model has no Linear, Conv1d, Conv2d or Conv3d, expected at least one")
    active, total = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0)

    def count(name, layer, inputs, output):
        weight, z = layer.weight, inputs[0]
        z = z if z.ndim >= weight.ndim else z[None]  # a single signal
        ones = torch.ones_like(z[:1], dtype=torch.float32)
        active[name] += _products(layer, (z != 0).float(), (weight != 0).float())
        total[name] += _products(layer, ones, torch.ones_like(weight, dtype=ones.dtype)) * len(z)

    watch(model, found, x, batch_size, count)
    called = [name for name in found if total[name]]
    return {name: MultiplyAdds(active[name] / len(x), total[name] / len(x)) for name in called}


def _products(layer, z: Tensor, weight: Tensor) -> float:
    """The layer without its bias, on indicators: each output counts its products."""
    conv = isinstance(layer, _CONVOLUTIONS)
    out = layer._conv_forward(z, weight, None) if conv else F.linear(z, weight)
    return out.round().sum(dtype=torch.float64).item()  # some algorithms for convolutions round
