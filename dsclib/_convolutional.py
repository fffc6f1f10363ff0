"""What every network of a convolutional dictionary needs: W' and W'D as kernels, and checks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._checks import as_tensor, match
from .operators import Conv1d, Conv2d


def analysis_kernel(W) -> tuple[Tensor, list[int]]:
    """W' as the weight (C, K, *L) of a convolution of signals, and its padding an axis.

    Torch pads both sides alike, atoms reach to one side only: circular, the kernel begins with
    as many zero taps as there is padding.
    """
    kernel, axes = _kernel(W), len(W.reach)
    circular = W.boundary == "circular"
    before = [max(L - W.stride, 0) if circular else 0 for L in kernel.shape[-axes:]]
    return F.pad(kernel, [pad for n in reversed(before) for pad in (n, 0)]), before


def overlap_kernel(W, D) -> Tensor:
    """W'D as the weight (C, C, 2 p - 1) of a convolution of codes, an axis at a time.

    Tap j holds the inner products of the analysis filters with the filters of D j - p + 1
    positions further on, read off as one convolution of the filters of D.
    """
    convolve = F.conv1d if len(D.reach) == 1 else F.conv2d
    pad = [(p - 1) * D.stride for p in reversed(D.reach) for _ in range(2)]
    products = convolve(F.pad(_kernel(D), pad), _kernel(W), stride=D.stride)
    return products.flip(*range(2, products.ndim)).transpose(0, 1).contiguous()


def _kernel(operator) -> Tensor:
    """The filters as the weight (C, K, *L) of a convolution."""
    filters, axes = operator.filters.detach().contiguous(), len(operator.reach)
    return filters.unsqueeze(1) if filters.ndim == axes + 1 else filters


def as_convolution(operator):
    """Return ``operator`` if it is a convolutional dictionary."""
    if not isinstance(operator, Conv1d | Conv2d):
        raise ValueError(
            f"operator is {operator!r:.80}, expected Conv1d or Conv2d of dsclib.operators: "
            "a matrix D of m rows is Conv1d(D.T, stride=m)"
        )
    return operator


def as_analysis(W, D, layer: str = ""):
    """Return analysis weights, an operator like ``D``; ``None`` stands for ``W = D``."""
    W = D if W is None else W
    if type(W) is not type(D) or repr(W) != repr(D):  # filter shape, stride, boundary
        raise ValueError(f"W{layer} is {W!r:.80}, expected {D!r}, like the dictionary")
    match(W.filters, D.filters, f"W{layer}", f"dictionary{layer}")
    return W


def as_biases(thresholds, D, layer: str = "") -> Tensor:
    """Return the thresholds (K,) of a network, free of their graph."""
    theta = as_tensor(thresholds, f"thresholds{layer}", "(K,)", like=D.filters).to(D.filters)
    if (theta < 0).any():
        raise ValueError(
            f"thresholds{layer} go down to {theta.min().item():.4g}, expected all >= 0: "
            "a threshold is how much a step shrinks"
        )
    return theta.detach()


def as_network_input(y, kernel: Tensor, operators) -> Tensor:
    """Return signals ``y`` with an axis for channels if a chain of dictionaries takes them.

    ``kernel`` is the weight of the first layer of the network.
    """
    y = as_tensor(y, "y", like=kernel)
    match(y, kernel, "y", "network")
    channels, axes = kernel.shape[1], kernel.ndim - 2
    if y.ndim == axes + 1 and channels == 1:
        y = y.unsqueeze(1)
    if y.ndim != axes + 2 or y.shape[1] != channels:
        sizes = "N" if axes == 1 else "N1, N2"
        raise ValueError(
            f"y has shape {tuple(y.shape)}, expected (B, {channels}, {sizes}): "
            "a batch of signals with the channels of the first dictionary"
        )
    size = tuple(y.shape[2:])
    for j, operator in enumerate(operators, start=1):
        try:
            size = operator.code_shape(size)[1:]
        except ValueError as err:
            raise ValueError(f"y does not fit layer {j}, {operator!r}: {err}") from None
    return y
