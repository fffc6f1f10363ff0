r"""Pursuits for a deep sparse model: all codes :math:`x_1, \dots, x_J` of a signal.

The layered ones solve one layer after the other, each for the codes that the last one found.
:func:`multilayer_fista` treats the deepest code as the only unknown. Every function takes a
:class:`dsclib.dsc.DeepSparseModel`, dense, in groups or convolutional, and answers with a tuple of
J codes, outermost layer first. All are differentiable where their parts are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import as_count, as_number, as_tensor, match, per_layer
from ._deep_model import DeepSparseModel
from ._solution import Solution
from .operators import Dense
from .proximal import (
    group_norms,
    group_soft_threshold,
    nonnegative_soft_threshold,
    soft_threshold,
)


def layered_thresholding(
    Y, model: DeepSparseModel, thresholds, *, nonnegative: bool = False
) -> tuple[Tensor, ...]:
    r"""One thresholded analysis a layer: the forward pass of a convolutional network.

    .. math:: x_j = GS_{t_j}(D_j^\top x_{j-1}), \qquad x_0 = y

    With ``nonnegative=True`` it is :math:`\operatorname{ReLU}(D_j^\top x_{j-1} - t_j)`, layers of
    a network with weights :math:`D_j` and biases :math:`-t_j` :cite:p:`papyan2017convolutional`.

    Parameters
    ----------
    Y : tensor, shape (B, m) or as the outermost operator takes them
        Signals.
    model : DeepSparseModel
        J layers.
    thresholds : number or sequence of J
        :math:`t_j \ge 0` in the units of :math:`D_j^\top x_{j-1}`, each a number or a tensor that
        broadcasts against the codes (one a filter: shape (C, 1)). A number serves all layers.
    nonnegative : bool
        ReLU in place of the two-sided threshold; only without groups.

    Returns
    -------
    tuple of Tensor
        Codes :math:`(x_1, \dots, x_J)`.

    Raises
    ------
    ValueError
        If shapes do not match, a threshold is negative, their number is not J, or groups are
        to be nonnegative.
    """
    operators, groups = _layers(model)
    if isinstance(thresholds, Tensor) and thresholds.ndim:
        thresholds = thresholds.unbind()
    thresholds = per_layer(thresholds, len(operators), "thresholds")
    if nonnegative and max(groups) > 1:
        raise ValueError(
            f"nonnegative=True with groups of {max(groups)}, expected groups of 1: a group has no "
            "sign, use nonnegative=False or a model with group_size=1"
        )
    codes, x = [], _signals(Y, operators[0])
    for operator, d, t in zip(operators, groups, thresholds):
        z = operator.analyze(x)
        x = nonnegative_soft_threshold(z, t) if nonnegative else _shrink(z, t, d)
        codes.append(x)
    return tuple(codes)


def layered_pursuit(
    Y, model: DeepSparseModel, solve: Callable[[Tensor, object, int], Tensor | Solution]
) -> tuple[Tensor, ...]:
    r"""Any pursuit, layer by layer: the codes found are the signals of the next layer.

    .. math:: x_j = \operatorname{solve}(x_{j-1}, D_j, j - 1), \qquad x_0 = y

    An error in :math:`x_j` is noise to layer j + 1: what
    :func:`dsclib.theory.deep_error_bound` adds up :cite:p:`papyan2017convolutional`.

    Parameters
    ----------
    Y : tensor, shape (B, m) or as the outermost operator takes them
        Signals.
    model : DeepSparseModel
        J layers.
    solve : callable
        ``solve(signals, dictionary, layer)`` with layer = 0, ..., J - 1 returns codes, or a
        :class:`dsclib.pursuit.Solution`. The dictionary is a matrix if the model is dense, else
        the operator; :meth:`dsclib.dsc.DeepSparseModel.to_dense` makes matrices of operators.

    Returns
    -------
    tuple of Tensor
        Codes :math:`(x_1, \dots, x_J)`.

    Raises
    ------
    ValueError
        If ``solve`` returns codes that the layer cannot have, with the layer.

    Examples
    --------
    >>> layered_pursuit(Y, model, lambda y, D, layer: omp(y, D, sparsity[layer]))  # doctest: +SKIP
    """
    operators, _ = _layers(model)
    codes, x = [], _signals(Y, operators[0])
    for layer, operator in enumerate(operators):
        shape = operator.analyze(x).shape
        x = solve(x, operator.matrix if isinstance(operator, Dense) else operator, layer)
        x = x.codes if isinstance(x, Solution) else x
        if not isinstance(x, Tensor) or x.shape != shape:
            came = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"solve returned {came} for layer {layer}, expected codes {tuple(shape)}: return a "
                "tensor or a Solution, one code for every signal it was given"
            )
        codes.append(x)
    return tuple(codes)


def multilayer_objective(Y, model: DeepSparseModel, codes, lams) -> Tensor:
    r"""Objective of the multilayer Lasso, of the deepest codes alone.

    .. math:: P(x) = \tfrac12 \|y - D_1 \cdots D_J\, x\|_2^2
              + \sum_{j=1}^{J} \lambda_j \|D_{j+1} \cdots D_J\, x\|_1

    For groups the norms are sums of group lengths. With J = 1 it is the Lasso.

    Parameters
    ----------
    Y : tensor, shape (B, m) or as the outermost operator takes them
        Signals.
    model : DeepSparseModel
        J layers.
    codes : tensor, shape (B, n_J) or as the innermost operator takes them
        Deepest codes x.
    lams : number or sequence of J
        Penalties :math:`\lambda_j \ge 0`, outermost layer first; a number serves all layers.

    Returns
    -------
    Tensor, shape (B,)

    Raises
    ------
    ValueError
        If shapes do not match or a penalty is negative.

    Notes
    -----
    Multilayer basis pursuit of :cite:p:`sulam2019multilayer`.
    """
    operators, groups = _layers(model)
    lams = _penalties(lams, len(operators))
    Y = _signals(Y, operators[0])
    fit, *layers = model.expand(codes)
    if fit.shape != Y.shape:
        raise ValueError(
            f"codes make signals of shape {tuple(fit.shape)}, expected {tuple(Y.shape)}, that of "
            "Y: one deepest code for every signal"
        )
    value = (Y - fit).flatten(1).square().sum(dim=1) / 2
    for x, lam, d in zip(layers, lams, groups):
        value = value + lam * group_norms(x.flatten(1), d).sum(dim=1)
    return value


def multilayer_fista(
    Y,
    model: DeepSparseModel,
    lams,
    steps: int,
    *,
    momentum: bool = True,
    callback: Callable[[int, tuple[Tensor, ...]], None] | None = None,
) -> tuple[Tensor, ...]:
    r"""ML-FISTA and ML-ISTA: gradient steps and thresholds on all layers in turn.

    With :math:`\hat x_j = D_{j+1} \cdots D_J\, z`, all from one guess z of the deepest code,

    .. math:: x_j = GS_{\lambda_j / L_j}\bigl(\hat x_j
              - \tfrac1{L_j} D_j^\top (D_j \hat x_j - x_{j-1})\bigr), \qquad
              x_0 = y, \quad L_j = \|D_j\|_2^2,

    for j = 1, ..., J; then z is :math:`x_J`, or with ``momentum=True`` a point ahead of it as in
    :func:`dsclib.pursuit.fista` (without restart) :cite:p:`sulam2019multilayer`.

    Parameters
    ----------
    Y : tensor, shape (B, m) or as the outermost operator takes them
        Signals.
    model : DeepSparseModel
        J layers, atoms of any length.
    lams : number or sequence of J
        Penalties :math:`\lambda_j \ge 0` in the units of :math:`D_j^\top x_{j-1}`, outermost
        layer first; a number serves all layers.
    steps : int
        Steps, each through all layers; the first starts from z = 0.
    momentum : bool
        False is ML-ISTA.
    callback : callable, optional
        ``callback(k, codes)`` for k = 0, ..., steps, with the tuple of detached codes.

    Returns
    -------
    tuple of Tensor
        Codes :math:`(x_1, \dots, x_J)` of the last step. All are sparse, and
        :math:`x_{j-1} = D_j x_j` holds approximately.

    Raises
    ------
    ValueError
        If shapes do not match, a penalty is negative or not one a layer, or ``steps < 1``.

    Notes
    -----
    It aims at the minimum of :func:`multilayer_objective` over the deepest code and stops near,
    not at it, unless J = 1, where it is FISTA: the thresholds of the layers stand in for the
    proximal step of their sum, which has no closed form.
    """
    operators, groups = _layers(model)
    lams = _penalties(lams, len(operators))
    steps = as_count(steps, "steps")
    Y = _signals(Y, operators[0])
    lipschitz = [operator.lipschitz() or 1.0 for operator in operators]
    z = Y
    for operator in operators:
        z = operator.analyze(z)
    z = torch.zeros_like(z)
    _, *codes = model.expand(z)
    t = 1.0
    for k in range(steps):
        if callback is not None:
            callback(k, tuple(x.detach() for x in codes))
        before, fits, x = codes[-1], model.expand(z), Y
        for j, (operator, lam, L, d) in enumerate(zip(operators, lams, lipschitz, groups)):
            x = _shrink(fits[j + 1] - operator.analyze(fits[j] - x) / L, lam / L, d)
            codes[j] = x
        t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
        z = x + (t - 1) / t_next * (x - before) if momentum else x
        t = t_next
    if callback is not None:
        callback(steps, tuple(x.detach() for x in codes))
    return tuple(codes)


def _layers(model):
    if not isinstance(model, DeepSparseModel):
        raise ValueError(
            f"model is a {type(model).__name__}, expected a DeepSparseModel: build it with "
            "DeepSparseModel(dictionaries)"
        )
    return model.operators, model.group_sizes


def _signals(Y, operator) -> Tensor:
    like = operator.matrix if isinstance(operator, Dense) else operator.filters
    Y = as_tensor(Y, "Y", like=like)
    match(Y, like, "Y", "the model")
    return Y


def _penalties(lams, depth: int) -> list[float]:
    lams = per_layer(lams, depth, "lams")
    return [as_number(lam, f"lams[{j}]") for j, lam in enumerate(lams)]


def _shrink(z: Tensor, t, group_size: int) -> Tensor:
    return soft_threshold(z, t) if group_size == 1 else group_soft_threshold(z, t, group_size)
