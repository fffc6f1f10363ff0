"""What the features of a model cost: recorded by hooks in each forward pass, then added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_number, per_layer
from ._features import as_features, as_summands, describe
from ._hooks import Hooks, find_layers, uncompiled
from ._penalties import l1


class _Cost(Hooks):
    """What the layers of a model cost in its last forward pass, weighted and added up."""

    def __init__(self, model, names, weight):
        super().__init__()
        self.layers = tuple(names)
        self.weight = weight
        self._forget()
        root = uncompiled(model)
        self._watch(root, root.register_forward_pre_hook, self._forget)
        self.attached = True

    @property
    def weight(self) -> tuple[float, ...]:
        """One weight a layer; may be set at any time, to a number or to one a layer."""
        return self._weight

    @weight.setter
    def weight(self, value) -> None:
        if not isinstance(value, Real | Iterable):
            raise ValueError(f"weight is {describe(value)}, expected a number >= 0 or one a layer")
        values = per_layer(value, len(self.layers), "weight")
        self._weight = tuple(as_number(w, "weight") for w in values)

    def __call__(self) -> Tensor:
        """The weighted cost of the model's last forward pass, a scalar; to be read once a pass."""
        costs = self._costs
        self._forget()
        if not costs:
            raise ValueError(
                "no feature of the layers was seen since the last call, expected a forward pass "
                "of the model: call model(x) first, inside the with block, and read the penalty "
                "once a pass; a compiled model sees only hooks set before its first call, and "
                "copies of the model are not seen"
            )
        # Weight 0 leaves a term out: 0 times its gradient could be NaN.
        zero = torch.zeros_like(costs[0][1].detach())
        return sum((w * cost for i, cost in costs if (w := self._weight[i])), zero)

    def remove(self) -> None:
        """Take every hook off the model; a second call does nothing."""
        super().remove()
        self._forget()

    def _forget(self, *call) -> None:
        # A new list: code compiled for an emptied one would depend on what it held before.
        self._costs: list[tuple[int, Tensor]] = []

    def _watch(self, layer: nn.Module, register, see) -> None:
        def hook(module, *call) -> None:
            if self.attached and module is layer:  # a copy of the model has this hook too
                see(*call)

        self._handles.append(register(hook))


class FeaturePenalty(_Cost):
    r"""A penalty on what layers of a model return, to be added to its loss.

    .. math:: \sum_{j} w_j\, p(z_j)

    ::

        with FeaturePenalty(model, nn.ReLU, l1, 0.1) as penalty:
            loss = task(model(x)) + penalty()

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it is not changed. Its outputs are the same bit for bit.
    layers : str, module, type, or list of these
        The layers whose outputs are penalised: names of ``model.named_modules()``, parts of the
        model, or a type of module for all of that type.
    penalty : callable
        Features (B, C, ...) of a batch to a scalar tensor: :func:`l1`, :func:`group_l1`,
        :func:`hoyer`, :func:`log_sum`, :func:`kl_rate`, or your own.
    weight : float or one a layer
        >= 0, in units of the loss a unit of penalty. ``penalty.weight = 0.2`` changes it later.

    Attributes
    ----------
    layers : tuple of str
        Names of the layers, in the order of ``model.named_modules()``.

    Raises
    ------
    ValueError
        If the model has no such layer, a weight is negative, a layer returns no single tensor,
        the penalty returns no scalar, or the penalty is read without a forward pass.

    Notes
    -----
    The penalty is that of the last call of ``model``, with or without gradients, and of layers
    called by themselves after it. A layer that is called several times, a shared module, counts
    each time. A frozen layer is penalised like any other: gradients reach the weights before it,
    if one of them is trained.

    Under ``torch.compile`` set the hooks before the first call; on a model that was already traced
    nothing is seen, and reading the penalty says so. Nor are copies of the model seen, such as
    ``DataParallel`` makes. A layer whose output is overwritten by the next one, a
    ``ReLU(inplace=True)``, cannot be penalised, as autograd says in ``backward()``: choose the
    one that overwrites it.
    """

    def __init__(self, model, layers, penalty=l1, weight=1.0):
        if not callable(penalty):
            raise ValueError(
                f"penalty is {describe(penalty)}, expected a function of the features, such as "
                "dsclib.sparsity.l1"
            )
        found = find_layers(model, layers)
        super().__init__(model, found, weight)
        self.penalty = penalty
        for index, layer in enumerate(found.values()):
            self._watch(layer, layer.register_forward_hook, partial(self._add, index))

    def _add(self, index: int, inputs, output) -> None:
        name = self.layers[index]
        cost = self.penalty(as_features(output, name))
        if not isinstance(cost, Tensor) or cost.ndim:
            raise ValueError(
                f"the penalty of layer {name!r} is {describe(cost)}, expected a scalar tensor: "
                "end it with .mean() or .sum()"
            )
        self._costs.append((index, cost))


class LayeredReconstruction(_Cost):
    r"""How badly the features of each layer explain what the layer was given.

    .. math:: \sum_j w_j \, \frac{1}{B} \sum_{b=1}^{B} \min_{c}
              \frac{\|x_{j-1} - c\, A_j\T z_j\|_2^2}{\|x_{j-1}\|_2^2}

    The residual of deep sparse coding, relative and with tied weights: layer j is linear,
    :math:`A_j x_{j-1}` plus a bias, :math:`z_j` is what its activation returns, and
    :math:`A_j\T` is in the place of the dictionary. The scale c is the best for each signal, so
    that neither small nor large weights pay. With an :func:`l1` penalty on the same features this
    is a training of the model of the deep sparse coding chapters :cite:p:`li2024convergence`.

    Parameters
    ----------
    model : torch.nn.Module
        Any model; it is not changed.
    layers : dict of str to str
        From the name of each linear layer (``Linear``, ``Conv1d``, ``Conv2d`` or ``Conv3d``) to
        the name of the layer that returns its features, its activation.
    weight : float or one a layer
        >= 0. ``reconstruction.weight = 0.2`` changes it later.

    Attributes
    ----------
    layers : tuple of str
        Names of the linear layers, in the order given.

    Raises
    ------
    ValueError
        If a layer is not there or is not linear, it and its activation are not called in turns,
        the shapes of its output and of the features differ, or a weight is negative.

    Notes
    -----
    Between 0 and 1 a layer; a signal without features has 1, a signal 0 has 0. One activation
    may serve several layers. What :class:`FeaturePenalty` says of compiled and copied models
    holds here too.
    """

    def __init__(self, model, layers: dict[str, str], weight=1.0):
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(
                f"layers is {layers!r}, expected a dict from each linear layer to its activation, "
                "such as {'conv1': 'relu1'}"
            )
        pairs = [(_named(model, a), _named(model, b)) for a, b in layers.items()]
        for name, (linear, _) in zip(layers, pairs):
            if not isinstance(linear, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                raise ValueError(
                    f"layer {name!r} is a {type(linear).__name__}, expected Linear, Conv1d, Conv2d "
                    "or Conv3d: map each linear layer to the layer that returns its features"
                )
        super().__init__(model, layers, weight)
        self._activations = tuple(layers.values())
        for index, (linear, activation) in enumerate(pairs):
            keep, compare = partial(self._keep, index), partial(self._compare, index, linear)
            self._watch(linear, linear.register_forward_hook, keep)
            self._watch(activation, activation.register_forward_hook, compare)

    def __call__(self) -> Tensor:
        """The weighted cost of the model's last forward pass, a scalar; to be read once a pass."""
        for index in self._given:
            raise self._not_in_turns(index, "was called and")
        return super().__call__()

    def _forget(self, *call) -> None:
        super()._forget()
        self._given: dict[int, Tensor] = {}

    def _keep(self, index: int, inputs, output) -> None:
        if index in self._given:
            raise self._not_in_turns(index, "was called twice and")
        self._given[index] = inputs[0]

    def _compare(self, index: int, linear: nn.Module, inputs, output) -> None:
        if index in self._given:  # an activation may serve other layers too
            given, name = self._given.pop(index), self._activations[index]
            self._costs.append((index, _residual(linear, given, as_features(output, name), name)))

    def _not_in_turns(self, index: int, what: str) -> ValueError:
        return ValueError(
            f"layer {self.layers[index]!r} {what} {self._activations[index]!r} was not called "
            "after it, expected each call to be followed by one of the layer that returns its "
            "features: check the names in layers"
        )


def _named(model, name) -> nn.Module:
    if not isinstance(name, str):
        raise ValueError(f"layers has {describe(name)}, expected names of model.named_modules()")
    return next(iter(find_layers(model, name).values()))


def _residual(linear: nn.Module, given: Tensor, z: Tensor, name: str) -> Tensor:
    """Mean relative squared residual of the best multiple of the transposed layer."""

    def apply(u):
        if isinstance(linear, nn.Linear):
            return F.linear(u, linear.weight)
        return linear._conv_forward(u, linear.weight, None)

    made, transpose = torch.func.vjp(apply, torch.zeros_like(given))
    if z.shape != made.shape:
        raise ValueError(
            f"layer {name!r} returns {describe(z)}, expected {tuple(made.shape)}, the shape that "
            "the linear layer returns: choose the activation before any pooling"
        )
    x, r = as_summands(given).flatten(1), as_summands(transpose(z.to(made))[0]).flatten(1)
    cosine = F.cosine_similarity(x, r, dim=1, eps=1e-30)
    return (1 - cosine.square()).masked_fill(x.detach().eq(0).all(dim=1), 0.0).mean()
