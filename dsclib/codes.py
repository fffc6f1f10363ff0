r"""Random sparse codes, dense or local, and the cut of a code to a given sparsity.

A code of a matrix has so many active entries (or groups) in all. A code of a convolutional
dictionary is as long as its signal, and what the theory counts is its local sparsity: the
active entries in one stripe, that is among all atoms that overlap a given one
:cite:p:`papyan2017working`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import as_count, as_groups, as_number, generator
from ._packing import over_stripes, pack
from .operators import Conv1d, Conv2d, Dense
from .proximal import top_k


def sparse_codes(
    count: int,
    n: int,
    sparsity: int,
    *,
    magnitudes: tuple[float, float] | None = None,
    group_size: int = 1,
    nonnegative: bool = False,
    seed: int | None = None,
    dtype=None,
) -> Tensor:
    r"""Random codes with exactly ``sparsity`` active entries, or groups.

    .. math:: \|x\|_0 = s, \qquad \text{every support of size } s \text{ equally likely}

    Parameters
    ----------
    count, n : int
        Number of codes B and their length n.
    sparsity : int
        Active entries s of a code, 0 to n; with groups, active groups, 0 to n / d.
    magnitudes : (float, float), optional
        Size of an active entry, uniform in [low, high], its sign random; for groups the
        Euclidean norm of the group, its direction random. ``None`` draws active entries from
        the standard normal distribution.
    group_size : int
        Entries d of a group; must divide ``n``.
    nonnegative : bool
        Replace the active entries by their absolute values.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (count, n)

    Raises
    ------
    ValueError
        If a size is not a whole number in its range, ``group_size`` does not divide ``n``, or
        the magnitudes are not 0 <= low <= high.
    """
    count, n = as_count(count, "count"), as_count(n, "n")
    d = as_groups(n, group_size, "entries of a code")
    s = as_count(sparsity, "sparsity", at_least=0, at_most=n // d)
    bounds, random = _bounds(magnitudes), generator(seed)
    support = torch.rand(count, n // d, generator=random, dtype=torch.float64).topk(s).indices
    values = _values((count, s, d), bounds, nonnegative, random)
    codes = torch.zeros(count, n // d, d, dtype=torch.float64)
    codes.scatter_(1, support[..., None].expand(-1, -1, d), values)
    return codes.flatten(1).to(torch.get_default_dtype() if dtype is None else dtype)


def local_codes(
    operator: Conv1d | Conv2d,
    count: int,
    positions,
    sparsity: int,
    *,
    magnitudes: tuple[float, float] | None = None,
    nonnegative: bool = False,
    seed: int | None = None,
    dtype=None,
) -> Tensor:
    r"""Random codes of a convolutional dictionary, sparse in every stripe.

    .. math:: \max_t \, \#\{(c, t') : x_{c t'} \ne 0,\; |t' - t| \le p - 1\} = s

    Active entries are added at random as long as one fits: no further entry could be active
    without a stripe of more than s. A long signal so holds as many as it can be expected to.

    Parameters
    ----------
    operator : Conv1d or Conv2d
        Says how far an atom reaches, how many filters C there are, and how the boundary is.
    count : int
        Number of codes B.
    positions : int or (int, int)
        Positions T of an atom, or (T1, T2), a number an axis: with a circular boundary the
        length of the signal divided by the stride.
    sparsity : int
        Local sparsity s, from 0 to the number of atoms in a stripe.
    magnitudes : (float, float), optional
        Size of an active entry, uniform in [low, high], its sign random. ``None`` draws active
        entries from the standard normal distribution.
    nonnegative : bool
        Replace the active entries by their absolute values.
    seed, dtype : optional
        ``None`` stands for torch's default generator and the dtype of the filters.

    Returns
    -------
    Tensor, shape (count, C, T) or (count, C, T1, T2)
        Its ``operator.local_sparsity`` is ``sparsity``.

    Raises
    ------
    ValueError
        If the operator is not a convolution, ``positions`` does not fit it, the sparsity is
        out of its range, or the magnitudes are not 0 <= low <= high.

    Notes
    -----
    Every axis is cut into cells no narrower than a stripe, of two colours in turn. No stripe
    meets two cells of one colour, so all cells of a colour may add an entry at the same time,
    at a place none of whose stripes is full. The number of such rounds grows with s, not with
    the length of the signal.
    """
    if not isinstance(operator, (Conv1d, Conv2d)):
        raise ValueError(
            f"operator is a {type(operator).__name__}, expected a Conv1d or Conv2d: for a "
            "matrix use sparse_codes"
        )
    shape = _positions(positions, len(operator.reach))
    widths = [min(2 * p - 1, T) for p, T in zip(operator.reach, shape)]
    C = len(operator.filters)
    count = as_count(count, "count")
    capacity = C * torch.Size(widths).numel()
    s = as_count(sparsity, "sparsity", at_least=0, at_most=capacity)
    bounds, random = _bounds(magnitudes), generator(seed)
    active = pack(operator, torch.zeros(count, C, *shape, dtype=torch.bool), s, random)
    if operator.boundary == "circular":  # turn each code, so that no place is preferred
        for axis, T in enumerate(shape, start=2):
            turn = torch.randint(T, (count, 1), generator=random)
            index = ((torch.arange(T) + turn) % T).reshape(
                [T if k == axis else count if k == 0 else 1 for k in range(active.ndim)]
            )
            active = active.gather(axis, index.expand_as(active))
    codes = torch.zeros(active.shape, dtype=torch.float64)
    codes[active] = _values((int(active.sum()), 1), bounds, nonnegative, random)[:, 0]
    return codes.to(operator.filters.device, operator.filters.dtype if dtype is None else dtype)


def keep_largest(operator, codes, sparsity: int, group_size: int = 1) -> Tensor:
    r"""Cut codes down to a sparsity, keeping the largest entries.

    Matrix: the s entries (groups) of largest magnitude (norm) of every code. Convolution: an
    entry stays if and only if it is among the s largest of every stripe that it lies in, so
    that the local sparsity is at most s.

    Parameters
    ----------
    operator : Dense, Conv1d or Conv2d
        The dictionary the codes belong to.
    codes : tensor, shape (B, n), (B, C, T) or (B, C, T1, T2)
        Codes of the operator.
    sparsity : int
        Entries s kept, at least 0: of a code (groups: groups of it), or of a stripe.
    group_size : int
        Entries d of a group, for a matrix; convolutions take 1.

    Returns
    -------
    Tensor
        Shaped like ``codes``, with the same entries where it is not zero.

    Raises
    ------
    ValueError
        If the codes do not fit the operator, ``sparsity`` is negative or more than there are
        entries, or the groups do not fit.

    Notes
    -----
    Of equal magnitudes one counts as the larger, so that never more than s are kept.
    """
    if not isinstance(operator, (Dense, Conv1d, Conv2d)):
        raise ValueError(
            f"operator is a {type(operator).__name__}, expected a Dense, Conv1d or Conv2d: "
            "wrap a matrix as Dense(D)"
        )
    codes = operator.as_codes(codes, "codes")
    if isinstance(operator, Dense):
        d = as_groups(codes.shape[1], group_size, "entries of a code")
        groups = codes.unflatten(1, (-1, d))
        s = as_count(sparsity, "sparsity", at_least=0, at_most=groups.shape[1])
        if s == 0:
            return torch.zeros_like(codes)
        if d == 1:
            return top_k(codes, s)
        kept = top_k(groups.detach().norm(dim=2), s) > 0
        return (groups * kept[..., None]).flatten(1)
    if as_count(group_size, "group_size") != 1:
        raise ValueError(f"group_size = {group_size}, expected 1 for a convolution")
    s = as_count(sparsity, "sparsity", at_least=0, at_most=codes[0].numel())
    return codes * _leading(operator, codes.detach(), s) if s else torch.zeros_like(codes)


def _leading(operator, codes: Tensor, s: int) -> Tensor:
    """Which entries are among the ``s`` largest of every stripe that holds them."""
    order = codes.abs().flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(-1, -1 - order.shape[1], -1).to(order).expand_as(order))
    rank = rank.view_as(codes)  # -1 for the largest, then -2, ...: no two are equal
    beyond = -rank[0].numel() - 1  # smaller than all
    largest = rank.topk(min(s, rank.shape[1]), dim=1).values
    for axis in range(len(operator.reach)):
        windows = operator.stripes(largest, axis, beyond).movedim(-1, 1).flatten(1, 2)
        largest = windows.topk(min(s, windows.shape[1]), dim=1).values
    bar = largest[:, -1] if largest.shape[1] == s else torch.full_like(largest[:, 0], beyond)
    return rank >= over_stripes(operator, bar, torch.amax, beyond)[:, None]


def _positions(positions, axes: int) -> tuple[int, ...]:
    shape = tuple(positions) if isinstance(positions, (tuple, list)) else (positions,)
    if len(shape) != axes:
        expected = "a number T" if axes == 1 else "a pair (T1, T2)"
        raise ValueError(f"positions = {positions!r}, expected {expected}")
    return tuple(as_count(T, "positions") for T in shape)


def _bounds(magnitudes) -> tuple[float, float] | None:
    if magnitudes is None:
        return None
    try:
        low, high = magnitudes
    except (TypeError, ValueError):
        raise ValueError(
            f"magnitudes = {magnitudes!r}, expected a pair (low, high), or None"
        ) from None
    high = as_number(high, "magnitudes[1]", positive=True)
    return as_number(low, "magnitudes[0]", at_most=high), high


def _values(shape, bounds, nonnegative: bool, random) -> Tensor:
    """Random groups (..., d): normal, or of a norm uniform in the bounds."""
    values = torch.randn(shape, generator=random, dtype=torch.float64)
    if bounds is not None:
        low, high = bounds
        size = torch.rand((*shape[:-1], 1), generator=random, dtype=torch.float64)
        values *= (low + (high - low) * size) / values.norm(dim=-1, keepdim=True)
    return values.abs() if nonnegative else values
