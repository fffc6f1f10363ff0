"""Data for training: tensors to be shuffled, or anything that gives batches once an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ._checks import as_tensor, generator


class Shuffled:
    """Batches of equally long tensors, in a new random order each time they are iterated."""

    def __init__(self, tensors, size: int, random: torch.Generator | None):
        self.tensors, self.size, self.generator = tensors, size, random

    def __len__(self) -> int:
        return math.ceil(len(self.tensors[0]) / self.size)

    def __iter__(self):
        order = torch.randperm(len(self.tensors[0]), generator=self.generator)
        for index in order.split(self.size):
            yield [x[index.to(x.device)] for x in self.tensors]


def as_batches(data, like: Tensor, size: int, seed):
    """The data as something to iterate once an epoch."""
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if isinstance(data, tuple):
        tensors = [_as_data(x, f"data[{i}]", like) for i, x in enumerate(data)]
        if len({len(x) for x in tensors}) != 1 or len(tensors[0]) == 0:
            raise ValueError(
                f"data has tensors of length {[len(x) for x in tensors]}, expected at least one "
                "tensor, all of the same length > 0: entry i of each belongs to signal i"
            )
        return Shuffled(tensors, size, generator(seed))
    if isinstance(data, Iterator) or not hasattr(data, "__iter__"):
        raise ValueError(
            f"data is a {type(data).__name__}, expected a tuple of tensors or what can be "
            "iterated once an epoch: pass a DataLoader or a list of batches"
        )
    if isinstance(data, list) and any(isinstance(x, Tensor | np.ndarray) for x in data):
        raise ValueError(
            "data is a list of tensors, expected a tuple of tensors, which are then shuffled and "
            "cut into batches: use tuple(data), or a list of tuples if these are the batches"
        )
    if seed is not None:
        raise ValueError(
            f"seed = {seed}, but data is a {type(data).__name__} with an order of its own: leave "
            "seed out, and for a DataLoader pass generator=torch.Generator().manual_seed(seed)"
        )
    return data


def _as_data(x, name: str, like: Tensor) -> Tensor:
    """One tensor of the data: numbers are checked, labels and bytes stay what they are."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "iub":
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex():
        x = as_tensor(x, name, like=like)
    if x.ndim == 0:
        raise ValueError(f"{name} is a single number, expected a tensor with one entry a signal")
    return x.detach()
