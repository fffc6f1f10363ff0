"""Maps that make features sparse, and hooks that put them into a model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_count, as_number
from ._features import as_batch, as_features, channels_first, describe
from ._hooks import Hooks, find_layers


class FeatureTransform(Hooks):
    r"""Let the outputs of layers go through a map, for instance one that makes zeros.

    .. math:: z_j \leftarrow g_j(z_j)

    ::

        thresholds = nn.ModuleList([Threshold(16), Threshold(32)])
        with FeatureTransform(model, ["relu1", "relu2"], thresholds):
            fit(nn.ModuleList([model, thresholds]), ...)

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it is the same as before once the hooks are off.
    layers : str, module, type, or list of these
        The layers whose outputs are replaced.
    transform : callable or one a layer
        Features (B, C, ...) to features of the same shape: a :class:`Threshold`, or
        ``lambda z: keep_largest(z, 0.1)``. Several go to the layers in the order of
        ``model.named_modules()``.

    Attributes
    ----------
    layers : tuple of str
        Names of the layers, in the order of ``model.named_modules()``.

    Raises
    ------
    ValueError
        If the model has no such layer, a map is not callable or there are not as many as layers,
        or one changes the shape.

    Notes
    -----
    Hooks run in the order in which they were set: a :class:`FeaturePenalty` made later sees the
    new features. Trained maps are no part of the model: keep them, and train them together
    with it in one ``nn.ModuleList``. A copy of the model made meanwhile has the maps too, until
    the hooks of the original come off.
    """

    def __init__(self, model, layers, transform):
        found = find_layers(model, layers)
        several = isinstance(transform, nn.ModuleList) or not callable(transform)
        if several and not isinstance(transform, Iterable):
            raise ValueError(
                f"transform is {describe(transform)}, expected a function or module of the "
                "features, or one a layer"
            )
        transforms = list(transform) if several else [transform] * len(found)
        if len(transforms) != len(found) or not all(map(callable, transforms)):
            raise ValueError(
                f"transform has {len(transforms)} entries for the layers {', '.join(found)}, "
                "expected one function or module for each, or one for all"
            )
        super().__init__()
        self.layers = tuple(found)
        self.attached = True
        for (name, layer), g in zip(found.items(), transforms):
            self._handles.append(layer.register_forward_hook(self._hook(name, g)))

    def _hook(self, name: str, transform):
        def hook(module, inputs, output):
            if not self.attached:
                return output
            new = transform(as_features(output, name))
            if not isinstance(new, Tensor) or new.shape != output.shape:
                raise ValueError(
                    f"the transform of layer {name!r} made {describe(new)} of "
                    f"{describe(output)}, expected the same shape"
                )
            return new

        return hook


class Threshold(nn.Module):
    r"""A one-sided soft threshold whose nonnegative thresholds are trained, one a channel.

    .. math:: z_c \mapsto \operatorname{ReLU}(z_c - t_c), \qquad
              t_c = \log(1 + e^{\tau_c}) > 0

    The proximal map of :math:`t_c z_c` on :math:`z_c \ge 0`, so the threshold is the weight of an
    l1 penalty that the layer sets for itself. After a ReLU or in place of one. Thresholds are few
    beside the biases that can do their work: give them a larger learning rate of their own.

    Parameters
    ----------
    channels : int
        Size C of the channel axis.
    start : float
        > 0, all thresholds before training, in the units of the features.
    axis : int
        The axis of the channels: 1 for maps (B, C, H, W) and units (B, C), -1 for tokens.

    Attributes
    ----------
    raw : Parameter, shape (C,)
        What is trained: :math:`\tau`.

    Raises
    ------
    ValueError
        If a number is out of range, or the features have another number of channels.
    """

    def __init__(self, channels: int, start: float = 0.1, axis: int = 1):
        super().__init__()
        channels, start = as_count(channels, "channels"), as_number(start, "start", positive=True)
        if not isinstance(axis, int) or axis == 0:
            raise ValueError(
                f"axis = {axis!r}, expected the axis of the channels: 1 for maps, -1 for tokens; "
                "0 is the batch"
            )
        t = torch.tensor(start, dtype=torch.float64)
        raw = t + (-torch.expm1(-t)).log()  # the inverse of log(1 + exp(.)), which cannot overflow
        self.raw = nn.Parameter(raw.to(torch.get_default_dtype()).repeat(channels))
        self.axis = axis

    @property
    def thresholds(self) -> Tensor:
        """The thresholds t (C,), positive."""
        return F.softplus(self.raw)

    def forward(self, z: Tensor) -> Tensor:
        """Features shaped like ``z``, in its dtype."""
        if channels_first(z, self.axis).shape[1] != len(self.raw):
            raise ValueError(
                f"z has shape {tuple(z.shape)}, expected {len(self.raw)} channels on axis "
                f"{self.axis}: make Threshold(channels, axis=...) for this layer"
            )
        shape = [1] * z.ndim
        shape[self.axis] = -1
        return (z - self.thresholds.to(z.dtype).view(shape)).relu()

    def extra_repr(self) -> str:
        return f"{len(self.raw)}, axis={self.axis}"


def keep_largest(z: Tensor, share: float, axis: int | None = None) -> Tensor:
    r"""Keep the largest features, a given share of them, and set the others to zero.

    .. math:: z \mapsto T_k(z), \qquad k = \max(1, \operatorname{round}(\text{share} \cdot n))

    The projection :func:`dsclib.proximal.top_k` over the n features of a signal, or along one
    axis; as an activation of networks see :cite:t:`makhzani2014ksparse`.

    Parameters
    ----------
    z : Tensor, shape (B, C, ...)
        Features of a batch.
    share : float
        Between 0 (not included) and 1.
    axis : int, optional
        Compete along this axis only: 1 lets the channels of each position compete. All features
        of a signal compete if it is not given.

    Returns
    -------
    Tensor
        Shaped like ``z``, differentiable: the gradient is 0 where a feature is set to zero.

    Raises
    ------
    ValueError
        If ``share`` is not in (0, 1], ``z`` is no batch, or it has no such axis.
    """
    z, share = as_batch(z), as_number(share, "share", positive=True, at_most=1.0)
    rows = z.flatten(1) if axis is None else channels_first(z, axis).movedim(1, -1)
    k = max(1, round(share * rows.shape[-1]))
    # As in top_k, whose look for NaN would stop a GPU at each layer and break a compiled graph.
    largest = rows.detach().abs().topk(k, dim=-1, sorted=False).indices
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter(-1, largest, True)
    rows = rows.masked_fill(~kept, 0.0)
    return rows.view_as(z) if axis is None else rows.movedim(-1, axis)
