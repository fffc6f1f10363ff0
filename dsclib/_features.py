"""Features as they come out of a layer: one tensor, signals first, with an axis of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import as_tensor


def describe(x) -> str:
    """What came, for a message."""
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    kind = "" if x.is_floating_point() else f"{x.dtype} "
    return f"a {kind}tensor of shape {tuple(x.shape)}"


def as_features(output, name: str) -> Tensor:
    """What the layer ``name`` returned, if that is one tensor with a batch axis and another."""
    if not _are_features(output):
        raise ValueError(
            f"layer {name!r} returned {describe(output)}, expected one tensor (B, C, ...) of real "
            "numbers with no empty axis: choose a part of it, or a later one, that returns one"
        )
    return output


def as_batch(z) -> Tensor:
    """Features (B, C, ...), their shape checked.

    Not their values: that would stop a GPU and break a compiled graph, and NaN shows in the loss.
    """
    z = z if isinstance(z, Tensor) else as_tensor(z, "z")
    if not _are_features(z):
        raise ValueError(
            f"z is {describe(z)}, expected features (B, C, ...) of real numbers with no empty "
            "axis: for a single signal use z[None]"
        )
    return z


def as_summands(z) -> Tensor:
    """Features (B, C, ...) to be summed: half precision is too coarse for that."""
    z = as_batch(z)
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def channels_first(z: Tensor, axis: int) -> Tensor:
    """The features with their channels on axis 1."""
    if not isinstance(axis, int) or not -z.ndim < axis < z.ndim or axis == 0:
        raise ValueError(
            f"axis = {axis}, but the features have shape {tuple(z.shape)} and axis 0 is the "
            "batch, expected the axis of the channels: 1 for maps, -1 for tokens"
        )
    return z.movedim(axis, 1)


def _are_features(z) -> bool:
    return isinstance(z, Tensor) and z.ndim >= 2 and z.is_floating_point() and z.numel() > 0
