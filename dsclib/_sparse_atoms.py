"""Dictionaries of sparse atoms, for the inner layers of a deep model."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import as_count, as_groups, generator
from ._supports import even_supports

_DRAWS = 100  # of the places of taps of a kind that several filters share


def sparse_atoms(
    m: int,
    n: int,
    nonzeros: int,
    *,
    group_size: int = 1,
    rows: int = 1,
    seed: int | None = None,
    dtype=None,
) -> Tensor:
    r"""Atoms with few nonzero entries that share few rows: inner dictionaries of a deep model.

    .. math:: d_i = \tfrac{1}{\sqrt k} \sum_{r \in R_i} \pm e_r, \qquad |R_i| = k, \qquad
              |d_i^\top d_j| \le \tfrac{1}{k} \, |R_i \cap R_j|

    A code with s active entries makes a signal with at most s k nonzero entries, which is the
    sparse code of the next layer :cite:p:`papyan2017convolutional`, :cite:p:`sulam2019multilayer`.

    Parameters
    ----------
    m, n : int
        Length of a signal and number of atoms.
    nonzeros : int
        Nonzero entries k of an atom; with ``rows`` = b nonzero blocks of b consecutive rows.
    group_size : int
        Atoms d of a group; must divide ``n``. The atoms of a group share their support and are
        orthonormal.
    rows : int
        Rows b of a block: the group size of the layer above; must divide ``m``, and k b >= d.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (m, n)
        Every row (block) is used about equally often. For G = n / d groups and M = m / b
        blocks: with G k <= M no two groups share a block, and the coherence is 0; with
        G k <= 2 M and k < G any two share at most one, and it is 1 / k at most (b >= d).

    Raises
    ------
    ValueError
        If a size is not a positive whole number in its range, ``rows`` does not divide ``m``,
        ``group_size`` does not divide ``n``, or a support is too small for its group.

    Notes
    -----
    For b >= d each block of a group is a random orthonormal frame over :math:`\sqrt k`, so that
    blocks weigh the same. More shared rows than asked for above are avoided by a search.
    """
    m, n = as_count(m, "m"), as_count(n, "n")
    d, b = as_groups(n, group_size), as_count(rows, "rows", at_most=m)
    if m % b:
        raise ValueError(f"rows = {b} does not divide m = {m}, expected a divisor")
    k = as_count(nonzeros, "nonzeros", at_most=m // b)
    if k * b < d:
        raise ValueError(
            f"nonzeros = {k} blocks of {b} rows hold {k * b} entries, expected at least {d} for "
            f"a group of {d} orthonormal atoms: take nonzeros >= {-(-d // b)}"
        )
    random = generator(seed)
    G, M = n // d, m // b
    supports = torch.randperm(M, generator=random)[even_supports(G, k, M, _numpy(random))]
    frames = torch.randn(G, k, b, d, generator=random, dtype=torch.float64)
    if b >= d:
        frames = _orthonormal(frames) / math.sqrt(k)
    else:
        frames = _orthonormal(frames.flatten(1, 2)).unflatten(1, (k, b))
    D = torch.zeros(M, b, G, d, dtype=torch.float64)
    D[supports, :, torch.arange(G)[:, None]] = frames
    return _finish(D.reshape(m, n), dtype)


def sparse_filters(
    n_filters: int,
    channels: int,
    length: int,
    stride: int,
    nonzeros: int,
    *,
    seed: int | None = None,
    dtype=None,
) -> Tensor:
    r"""Filters with few nonzero taps whose shifted copies share few of them.

    .. math:: f_c = \tfrac{1}{\sqrt k} \sum_{(a, i) \in R_c} \pm e_{a i}, \qquad |R_c| = k

    The convolutional form of :func:`sparse_atoms`. Taps of one channel a multiple of the stride
    q apart meet under some shift, so that there are K min(q, L) kinds of taps, and no two
    filters should share a kind.

    Parameters
    ----------
    n_filters, channels, length, stride : int
        Number of filters C, channels K of a signal, length L of a filter and stride q.
    nonzeros : int
        Nonzero taps k of a filter, at most K L.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (n_filters, channels, length)
        Filters of length 1, for :class:`dsclib.operators.Conv1d`. With C k <= K min(q, L) no two
        atoms share a sample, and the coherence is 0; with C k <= 2 K min(q, L) and k < C any two
        share at most one, and it is 1 / k at most.

    Raises
    ------
    ValueError
        If a size is not a positive whole number or ``nonzeros`` is more than there are taps.
    """
    C, K = as_count(n_filters, "n_filters"), as_count(channels, "channels")
    L, q = as_count(length, "length"), as_count(stride, "stride")
    k = as_count(nonzeros, "nonzeros", at_most=K * L)
    random = generator(seed)
    rng = _numpy(random)
    kinds = min(q, L) if k <= K * min(q, L) else L  # of taps in a channel
    supports = even_supports(C, k, K * kinds, rng)
    # Row numbers go round the channels and along the diagonals of the kinds, to use both evenly.
    channel = supports % K
    kind = rng.permutation(kinds)[(supports // K + channel) % kinds]
    channel = rng.permutation(K)[channel]
    fewest = math.inf
    for _ in range(_DRAWS):
        blocks = _blocks(channel * kinds + kind, -(-(L - kind) // kinds), rng)
        taps = torch.zeros(C, K, L, dtype=torch.float64)
        taps[torch.arange(C)[:, None], channel, kind + kinds * blocks] = 1
        meetings = _meetings(taps, q)
        if meetings < fewest:
            best, fewest = taps, meetings
        if fewest == 0:
            break
    signs = 2 * torch.randint(2, best.shape, generator=random) - 1
    return _finish(best * signs / math.sqrt(k), dtype)


def _blocks(kinds: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A block below ``sizes`` for every tap: taps of a kind, then kind after kind, take turns."""
    label = rng.permutation(kinds.max() + 1)[kinds.ravel()]
    turn = np.empty(kinds.size, dtype=int)
    turn[np.lexsort((rng.random(kinds.size), label))] = np.arange(kinds.size)
    return turn.reshape(kinds.shape) % sizes


def _meetings(taps: Tensor, stride: int) -> float:
    """Pairs of taps beyond the first that two shifted filters share, over all pairs of them."""
    beyond = -(-taps.shape[-1] // stride) - 1
    shared = F.conv1d(F.pad(taps, (beyond * stride, beyond * stride)), taps, stride=stride)
    shared[:, :, beyond].fill_diagonal_(0)
    return (shared * (shared - 1)).sum().item()


def _orthonormal(noise: Tensor) -> Tensor:
    """Random orthonormal columns (..., m, d), uniformly distributed, from Gaussian noise."""
    Q, R = torch.linalg.qr(noise)
    return Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def _numpy(random: torch.Generator | None) -> np.random.Generator:
    return np.random.default_rng(torch.randint(2**62, (), generator=random).item())


def _finish(D: Tensor, dtype) -> Tensor:
    return D.to(torch.get_default_dtype() if dtype is None else dtype).contiguous()
