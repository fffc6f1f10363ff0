r"""Deep sparse coding: the code of a signal is itself a signal with a sparse code, J times.

.. math:: y = x_0 + e_0, \qquad x_{j-1} = D_j x_j + e_j, \quad \|x_j\|_0 \le s_j,
          \qquad j = 1, \dots, J

With :math:`e_j = 0` for j >= 1 and convolutional :math:`D_j` it is the multilayer convolutional
model :cite:p:`papyan2017convolutional`. Here are the model, what is certain about its solutions,
and models for which it is; the pursuits come from :mod:`dsclib.deep_pursuit`.

Inner dictionaries :math:`D_2, \dots, D_J` have sparse atoms, so that a sparse :math:`x_j` makes a
sparse :math:`x_{j-1}`. For a convolution :math:`s_j` is local, the largest number of active atoms
in any stripe.
"""

from __future__ import annotations

import torch

from ._checks import as_count, as_groups, generator, per_layer
from ._deep_model import DeepSparseModel, Sample
from .deep_pursuit import (
    layered_pursuit,
    layered_thresholding,
    multilayer_fista,
    multilayer_objective,
)
from .dictionaries import (
    group_incoherent,
    incoherent,
    incoherent_conv,
    sparse_atoms,
    sparse_filters,
)
from .operators import Conv1d

__all__ = [
    "DeepSparseModel",
    "Sample",
    "layered_pursuit",
    "layered_thresholding",
    "multilayer_fista",
    "multilayer_objective",
    "sparse_conv_model",
    "sparse_model",
]


def sparse_model(
    sizes, nonzeros=(), *, group_size: int = 1, seed: int | None = None, dtype=None
) -> DeepSparseModel:
    r"""A dense model: an incoherent dictionary on a chain of sparse ones.

    :math:`D_1` is :func:`dsclib.dictionaries.incoherent`, or with groups
    :func:`dsclib.dictionaries.group_incoherent`; :math:`D_j` for j >= 2 is
    :func:`dsclib.dictionaries.sparse_atoms`. If :math:`s_{j-1}` is at least the nonzeros of an
    atom of :math:`D_j` times :math:`s_j`, samples have no inner errors.

    Parameters
    ----------
    sizes : sequence of J + 1 ints
        m, n_1, ..., n_J.
    nonzeros : sequence of J - 1 ints
        Nonzero entries (blocks) of an atom of :math:`D_2, \dots, D_J`.
    group_size : int
        Atoms a group d in every layer; must divide every size.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    DeepSparseModel

    Raises
    ------
    ValueError
        If ``nonzeros`` does not fit ``sizes``, or ``group_size`` does not divide every size.

    Examples
    --------
    Every layer of these is certified for the sparsity s: rates of at most 0.75, samples exact.

    >>> model = sparse_model((128, 144))  # s = (10,)
    >>> model = sparse_model((128, 144, 54), (3,))  # s = (9, 3)
    >>> model = sparse_model((128, 144, 54, 36), (3, 3))  # s = (9, 3, 1)
    >>> model = sparse_model((192, 200, 72, 26, 20), (3, 3, 2))  # s = (18, 6, 2, 1)

    And so are these with groups, of which s counts the active ones.

    >>> model = sparse_model((128, 144), group_size=4)  # s = (6,)
    >>> model = sparse_model((128, 144, 52), (3,), group_size=4)  # s = (6, 2)
    >>> model = sparse_model((128, 144, 52, 32), (3, 2), group_size=4)  # s = (6, 2, 1)
    """
    sizes = [as_count(n, f"sizes[{j}]") for j, n in enumerate(sizes)]
    depth = len(sizes) - 1
    if depth < 1:
        raise ValueError(f"sizes has {len(sizes)} entries, expected (m, n_1, ..., n_J)")
    nonzeros = per_layer(nonzeros, depth - 1, "nonzeros")
    d = as_count(group_size, "group_size")
    for n in sizes if d > 1 else ():
        as_groups(n, d, "entries")
    first, *seeds = _seeds(seed, depth)
    if d == 1:
        dictionaries = [incoherent(sizes[0], sizes[1], seed=first, dtype=dtype)]
    else:
        dictionaries = [group_incoherent(sizes[0], sizes[1] // d, d, seed=first, dtype=dtype)]
    for j, s in enumerate(seeds, start=1):
        options = dict(group_size=d, rows=d, seed=s, dtype=dtype)
        dictionaries.append(sparse_atoms(sizes[j], sizes[j + 1], nonzeros[j - 1], **options))
    return DeepSparseModel(dictionaries, d)


def sparse_conv_model(
    layers, nonzeros=(), *, boundary: str = "circular", seed: int | None = None, dtype=None
) -> DeepSparseModel:
    r"""A convolutional model: incoherent filters on a chain of sparse ones.

    :math:`D_1` has the filters of :func:`dsclib.dictionaries.incoherent_conv`, :math:`D_j` for
    j >= 2 those of :func:`dsclib.dictionaries.sparse_filters`. Samples have no inner errors if
    :math:`s_{j-1}` is at least the entries that :math:`s_j` active atoms in a stripe put into a
    stripe of layer j - 1; in the examples that is the nonzeros of an atom times :math:`s_j`.

    Parameters
    ----------
    layers : sequence of J triples
        Number of filters, their length and the stride, (C_j, L_j, q_j), outermost first.
    nonzeros : sequence of J - 1 ints
        Nonzero entries of a filter of :math:`D_2, \dots, D_J`.
    boundary : {"circular", "zero"}
        As in :class:`dsclib.operators.Conv1d`.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    DeepSparseModel

    Raises
    ------
    ValueError
        If ``layers`` is empty or not of triples, or ``nonzeros`` does not fit.

    Examples
    --------
    Every layer of these is certified for the local sparsity s: rates below 0.7, samples exact.

    >>> model = sparse_conv_model([(18, 32, 16)])  # s = (6,)
    >>> model = sparse_conv_model([(18, 32, 16), (14, 4, 2)], (3,))  # s = (6, 2)
    >>> layers = [(18, 32, 16), (14, 4, 2), (20, 4, 2)]
    >>> model = sparse_conv_model(layers, (3, 2))  # s = (6, 2, 1)
    >>> Y, codes, errors = model.sample(10, (6, 2, 1), positions=4)  # Y of shape (10, 256)
    """
    layers = [tuple(layer) for layer in layers]
    if not layers or any(len(layer) != 3 for layer in layers):
        raise ValueError(f"layers = {layers!r}, expected triples (filters, length, stride)")
    nonzeros = per_layer(nonzeros, len(layers) - 1, "nonzeros")
    first, *seeds = _seeds(seed, len(layers))
    C, L, q = layers[0]
    operators = [Conv1d(incoherent_conv(C, L, q, seed=first, dtype=dtype), q, boundary)]
    for (C, L, q), r, s in zip(layers[1:], nonzeros, seeds):
        channels = len(operators[-1].filters)
        filters = sparse_filters(C, channels, L, q, r, seed=s, dtype=dtype)
        operators.append(Conv1d(filters, q, boundary))
    return DeepSparseModel(operators)


def _seeds(seed: int | None, count: int) -> list[int]:
    gen = generator(seed)
    return torch.randint(2**31, (count,), generator=gen).tolist()
