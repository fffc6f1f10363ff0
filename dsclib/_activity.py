"""What a model does on data: its features, and how many of them are nonzero."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ._checks import as_number
from ._evaluation import batches_of, evaluating
from ._features import as_features, channels_first
from ._hooks import find_layers, uncompiled


def features(model, layers, x, batch_size: int = 1000) -> dict[str, Tensor]:
    """What layers of a model return on ``x``.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, compiled or not. It runs uncompiled, in ``eval()`` mode without gradients, and
        its mode is put back.
    layers : str, module, type, or list of these
        As in :class:`FeaturePenalty`.
    x : tensor, shape (B, ...)
        Inputs of the model, moved batch by batch to its device.
    batch_size : int
        Signals in one pass of the model.

    Returns
    -------
    dict of str to Tensor
        Features (B, C, ...) by the name of the layer, on the model's device. Layers that are not
        called are left out; one called several times a pass has its calls one after another in
        each pass.

    Raises
    ------
    ValueError
        If the model has no such layer, none is called, one returns no single tensor or, called
        several times, tensors of several shapes, or ``x`` is empty.
    """
    kept: dict[str, list[Tensor]] = {}

    def keep(name, layer, inputs, output):
        z = as_features(output, name).clone()  # a later layer may overwrite it
        calls = kept.setdefault(name, [])
        if calls:
            _check_alike(name, tuple(calls[0].shape[1:]), tuple(z.shape[1:]))
        calls.append(z)

    watch(model, find_layers(model, layers), x, batch_size, keep)
    return _in_order(model, {name: torch.cat(calls) for name, calls in kept.items()})


def firing_rates(
    model, layers, x, *, tol: float = 0.0, axis: int = 1, batch_size: int = 1000
) -> dict[str, Tensor]:
    """How often each channel fires: the share of its entries that are nonzero.

    A channel of rate 0 is dead on ``x``.

    Parameters
    ----------
    model, layers, x, batch_size
        As in :func:`features`; no features are kept.
    tol : float
        Entries of magnitude at most ``tol`` count as zero.
    axis : int
        The axis of the channels: 1 for maps, -1 for tokens (B, T, C).

    Returns
    -------
    dict of str to Tensor
        Rates (C,), float64 on the CPU, by the name of the layer: means over all signals,
        positions and calls. Layers that are not called are left out.

    Raises
    ------
    ValueError
        As in :func:`features`, or if ``tol`` is negative or ``axis`` is the batch.
    """
    tol = as_number(tol, "tol")
    fired: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def count(name, layer, inputs, output):
        on = channels_first(as_features(output, name), axis).abs() > tol
        counts = on.sum(dim=(0, *range(2, on.ndim))).cpu()
        if name in fired:
            _check_alike(name, f"{len(fired[name])} channels", f"{len(counts)} channels")
        fired[name] = fired.get(name, 0) + counts
        seen[name] = seen.get(name, 0) + on.numel() // len(counts)

    watch(model, find_layers(model, layers), x, batch_size, count)
    return _in_order(model, {name: fired[name].double() / seen[name] for name in fired})


def density(model, layers, x, *, tol: float = 0.0, batch_size: int = 1000) -> dict[str, float]:
    r"""The share of features that are nonzero, layer by layer.

    .. math:: \frac{1}{B n} \sum_{b=1}^{B} \|z_b\|_0

    Parameters
    ----------
    model, layers, x, batch_size
        As in :func:`features`; no features are kept.
    tol : float
        Entries of magnitude at most ``tol`` count as zero.

    Returns
    -------
    dict of str to float
        Between 0 and 1, by the name of the layer; over all calls, of whatever shape, if it is
        called several times. Layers that are not called are left out.

    Raises
    ------
    ValueError
        As in :func:`features`, but shapes may differ; or if ``tol`` is negative.
    """
    tol = as_number(tol, "tol")
    counts: dict[str, tuple[int, int]] = {}

    def count(name, layer, inputs, output):
        on = as_features(output, name).abs() > tol
        nonzero, all_ = counts.get(name, (0, 0))
        counts[name] = nonzero + int(on.sum()), all_ + on.numel()

    watch(model, find_layers(model, layers), x, batch_size, count)
    return _in_order(model, {name: nonzero / all_ for name, (nonzero, all_) in counts.items()})


def watch(model, found: dict[str, nn.Module], x, batch_size: int, see) -> None:
    """Run the model on ``x`` in batches; ``see(name, layer, inputs, output)`` at each layer."""
    model = uncompiled(model)
    called = set()

    def hook(name):
        def seen(*call):
            called.add(name)
            see(name, *call)

        return seen

    # Compiled code would not see these hooks; without this module there is none.
    compiled = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    handles = [layer.register_forward_hook(hook(name)) for name, layer in found.items()]
    try:
        with eager, evaluating(model):
            for batch in batches_of(x, model, batch_size):
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise ValueError(
            f"none of the layers {', '.join(map(repr, found))} is called when the model runs, "
            "expected one at least: choose layers that model(x) uses"
        )


def _in_order(model, values: dict) -> dict:
    """In the order of ``model.named_modules()``, not in that of the calls."""
    return {name: values[name] for name, _ in uncompiled(model).named_modules() if name in values}


def _check_alike(name: str, first, other) -> None:
    if first != other:
        raise ValueError(
            f"layer {name!r} is called several times, with {first} and with {other}, expected the "
            "same each time: choose layers that are called once, or use density"
        )
