"""A trained model on data: in ``eval()`` mode, without gradients, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ._checks import as_count


@contextmanager
def eval_mode(model):
    """``eval()`` mode; the mode of every part is put back."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def evaluating(model):
    """``eval()`` mode without gradients."""
    with eval_mode(model), torch.no_grad():
        yield


def batches_of(x, model, batch_size: int, name: str = "x") -> Iterator[Tensor]:
    """Inputs of the model in batches, on its device; arrays of numbers in its dtype."""
    size = as_count(batch_size, "batch_size")
    weight = next(model.parameters(), None)
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(np.asarray(x))
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"{name} is a {type(x).__name__} that cannot become a tensor ({err}), expected "
                "one tensor of inputs: for a model of several inputs write a module around it"
            ) from None
        if weight is not None and x.is_floating_point():
            x = x.to(weight.dtype)
    if not x.ndim or not len(x):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected inputs (B, ...) of the model, B >= 1"
        )
    device = x.device if weight is None else weight.device
    return (batch.to(device) for batch in x.split(size))
