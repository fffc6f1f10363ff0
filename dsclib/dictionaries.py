"""Dictionaries: how to build one, and (from :mod:`dsclib.coherence`) how alike its atoms are.

A dictionary is a matrix D (m, n) whose columns, the atoms, have length 1: a signal is
Y = X @ D.T for signals Y (B, m) and codes X (B, n).
"""

from __future__ import annotations

import math

import torch
from scipy.linalg import hadamard
from torch import Tensor

from ._checks import as_count, as_groups, generator
from ._sparse_atoms import sparse_atoms, sparse_filters
from .analysis import analysis_filters, analysis_weights
from .coherence import babel, mutual_coherence, welch_bound

__all__ = [
    "analysis_filters",
    "analysis_weights",
    "babel",
    "dirac_hadamard",
    "gaussian",
    "group_incoherent",
    "group_orthonormal",
    "incoherent",
    "incoherent_conv",
    "mutual_coherence",
    "overcomplete_dct",
    "sparse_atoms",
    "sparse_filters",
    "welch_bound",
]


def gaussian(m: int, n: int, *, seed: int | None = None, dtype=None) -> Tensor:
    r"""Independent atoms, uniform on the sphere: normalised columns of Gaussian noise.

    Their coherence is about :math:`2\sqrt{\log(n)/m}`, far above :func:`welch_bound`.

    Parameters
    ----------
    m, n : int
        Length of a signal and number of atoms.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (m, n)

    Raises
    ------
    ValueError
        If a size is not a positive whole number.
    """
    m, n = as_count(m, "m"), as_count(n, "n")
    D = torch.randn(n, m, generator=generator(seed), dtype=torch.float64).T
    return _finish(D / D.norm(dim=0), dtype)


def dirac_hadamard(m: int, *, dtype=None) -> Tensor:
    r"""Two orthonormal bases side by side: spikes and Hadamard waves.

    .. math:: D = \bigl[\, I \;\; H_m / \sqrt m \,\bigr], \qquad \mu = 1/\sqrt m

    The example of two bases that are as unlike as can be :cite:p:`donoho2003optimally`.

    Parameters
    ----------
    m : int
        Length of a signal, a power of two, at least 2.
    dtype : optional
        ``None`` stands for torch's default dtype.

    Returns
    -------
    Tensor, shape (m, 2 m)

    Raises
    ------
    ValueError
        If ``m`` is not a power of two.
    """
    m = as_count(m, "m", at_least=2)
    if m & (m - 1):
        below = 1 << (m.bit_length() - 1)
        raise ValueError(f"m = {m}, expected a power of two: the nearest are {below}, {2 * below}")
    waves = torch.from_numpy(hadamard(m, dtype=float)) / math.sqrt(m)
    return _finish(torch.hstack([torch.eye(m, dtype=torch.float64), waves]), dtype)


def overcomplete_dct(side: int, atoms_per_side: int, *, dtype=None) -> Tensor:
    r"""Products of cosines for square image patches, more of them than pixels.

    .. math:: a_k(i) = \cos\bigl(\pi k (i + \tfrac12) / K\bigr), \; k = 0, \dots, K - 1,
              \qquad D = A \otimes A

    with the mean taken off every :math:`a_k, k > 0`, and unit columns: the fixed dictionary
    that learned ones are compared with :cite:p:`elad2006image`. With K = side it is the
    orthonormal DCT.

    Parameters
    ----------
    side : int
        Side of a patch in pixels, at least 2; a patch is flattened row by row.
    atoms_per_side : int
        Frequencies K a direction, at least ``side``.
    dtype : optional
        ``None`` stands for torch's default dtype.

    Returns
    -------
    Tensor, shape (side**2, atoms_per_side**2)
        Atom 0 is constant, all others have mean zero.

    Raises
    ------
    ValueError
        If ``side < 2`` or ``atoms_per_side < side``.
    """
    side = as_count(side, "side", at_least=2)
    K = as_count(atoms_per_side, "atoms_per_side", at_least=side)
    i = torch.arange(side, dtype=torch.float64)[:, None] + 0.5
    A = torch.cos(math.pi / K * i * torch.arange(K))
    A[:, 1:] -= A[:, 1:].mean(dim=0)
    A /= A.norm(dim=0)
    return _finish(torch.kron(A, A), dtype)


def group_orthonormal(
    m: int, n_groups: int, group_size: int, *, seed: int | None = None, dtype=None
) -> Tensor:
    r"""Random subspaces: blocks of atoms, orthonormal inside each block.

    .. math:: D = [D_1, \dots, D_G], \qquad D_g^\top D_g = I_d

    Parameters
    ----------
    m : int
        Length of a signal.
    n_groups, group_size : int
        Number of blocks G and atoms d in each, d at most m.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (m, n_groups * group_size)

    Raises
    ------
    ValueError
        If a size is not a positive whole number or ``group_size > m``.
    """
    m, G = as_count(m, "m"), as_count(n_groups, "n_groups")
    d = as_count(group_size, "group_size", at_most=m)
    noise = torch.randn(G, m, d, generator=generator(seed), dtype=torch.float64)
    blocks = torch.linalg.qr(noise).Q
    return _finish(blocks.permute(1, 0, 2).reshape(m, G * d), dtype)


def group_incoherent(
    m: int, n_groups: int, group_size: int, *, seed: int | None = None, dtype=None
) -> Tensor:
    r"""Subspaces that meet at the angles of incoherent vectors.

    .. math:: D_g^\top D_h = (b_g^\top b_h)\, R_{gh}, \qquad R_{gh} \text{ orthogonal},

    where :math:`b_1, \dots, b_G` are the columns of ``incoherent(m / d, G)``: the vectors are
    widened to d dimensions, and the basis of each subspace and of the whole space is turned at
    random. The block coherence is that of B, far below that of :func:`group_orthonormal`.

    Parameters
    ----------
    m : int
        Length of a signal, a multiple of ``group_size``.
    n_groups, group_size : int
        Number of blocks G and atoms d in each.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (m, n_groups * group_size)
        With :math:`D_g^\top D_g = I_d`.

    Raises
    ------
    ValueError
        If a size is not a positive whole number or ``group_size`` does not divide ``m``.
    """
    m, G = as_count(m, "m"), as_count(n_groups, "n_groups")
    d = as_groups(m, group_size, "entries of a signal")
    B = incoherent(m // d, G, seed=seed, dtype=torch.float64)
    random = generator(seed)
    bases = torch.linalg.qr(torch.randn(G, d, d, generator=random, dtype=torch.float64)).Q
    frame = torch.linalg.qr(torch.randn(m, m, generator=random, dtype=torch.float64)).Q
    return _finish(frame @ torch.einsum("mg,gde->mdge", B, bases).reshape(m, G * d), dtype)


def incoherent(
    m: int, n: int, *, seed: int | None = None, iterations: int = 500, dtype=None
) -> Tensor:
    r"""Atoms pushed apart until their coherence is near the Welch bound.

    Minimises a smooth stand-in for :math:`\max_{i \ne j} |d_i^\top d_j|` over the spheres.
    Finding the very best is a packing problem with no known solution in general
    :cite:p:`strohmer2003grassmannian`; see :func:`welch_bound` for how near it comes.

    Parameters
    ----------
    m, n : int
        Length of a signal and number of atoms. With n <= m the atoms are orthonormal.
    iterations : int
        Gradient steps; each takes of the order of ``m * n**2`` multiplications.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (m, n)

    Raises
    ------
    ValueError
        If a size or ``iterations`` is not a positive whole number.
    """
    m, n = as_count(m, "m"), as_count(n, "n")
    iterations = as_count(iterations, "iterations")
    start = torch.randn(n, m, generator=generator(seed), dtype=torch.float64)
    if n <= m:
        return _finish(torch.linalg.qr(start.T).Q, dtype)
    others = 1 - torch.eye(n, dtype=torch.float64)
    return _finish(_spread(start, lambda U: U @ U.T * others, iterations).T, dtype)


def incoherent_conv(
    n_filters: int,
    length: int,
    stride: int,
    *,
    seed: int | None = None,
    iterations: int = 500,
    dtype=None,
) -> Tensor:
    r"""Filters whose shifted copies are as unlike as can be.

    Minimises a smooth stand-in for the coherence of the convolutional dictionary,

    .. math:: \mu = \max_{(a, 0) \ne (b, k)} \Bigl|\sum_i f_a(i + k q)\, f_b(i)\Bigr|,

    over all pairs of filters a, b and all shifts by multiples k of the stride q under which
    they overlap :cite:p:`papyan2017working`.

    Parameters
    ----------
    n_filters, length, stride : int
        Number of filters C, their length L and the stride q, in samples.
    iterations : int
        Gradient steps.
    seed, dtype : optional
        ``None`` stands for torch's default generator and default dtype.

    Returns
    -------
    Tensor, shape (n_filters, length)
        Filters of length 1, for :class:`dsclib.operators.Conv1d`.

    Raises
    ------
    ValueError
        If a size or ``iterations`` is not a positive whole number.
    """
    C, L = as_count(n_filters, "n_filters"), as_count(length, "length")
    q = as_count(stride, "stride")
    iterations = as_count(iterations, "iterations")
    others = 1 - torch.eye(C, dtype=torch.float64)

    def overlaps(U):
        return torch.stack([U @ U.T * others, *(U[:, k:] @ U[:, :-k].T for k in range(q, L, q))])

    start = torch.randn(C, L, generator=generator(seed), dtype=torch.float64)
    return _finish(_spread(start, overlaps, iterations), dtype)


@torch.enable_grad()  # also where a caller has switched gradients off
def _spread(F: Tensor, overlaps, iterations: int) -> Tensor:
    """Unit rows that nearly minimise the largest magnitude among ``overlaps(rows)``.

    log-sum-exp stands in for the maximum, sharpened from 3 to 1000 as the step shrinks.
    """
    F = F.clone().requires_grad_()
    adam = torch.optim.Adam([F], lr=0.03)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for k in range(iterations):
        c = overlaps(F / F.norm(dim=1, keepdim=True)).abs().flatten()
        sharpness = 3.0 * (1000 / 3) ** (k / iterations) / c.detach().max().clamp(min=1e-9)
        adam.zero_grad()
        (torch.logsumexp(sharpness * c, 0) / sharpness).backward()
        adam.step()
        slower.step()
    F = F.detach()
    return F / F.norm(dim=1, keepdim=True)


def _finish(D: Tensor, dtype) -> Tensor:
    return D.to(torch.get_default_dtype() if dtype is None else dtype).contiguous()
