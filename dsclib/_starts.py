"""Where the training of an autoencoder starts; public as :mod:`dsclib.autoencoders`."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ._checks import as_count, as_dictionary, as_groups, as_number, as_tensor, generator

_RANK = 1e-6  # directions of a cluster weaker than this, relative to its strongest, are noise


@torch.no_grad()
def data_start(Y, n_groups: int, group_size: int = 1, *, seed: int | None = None) -> Tensor:
    r"""Groups of signals: a random one for each, and those that point its way most.

    The group of y holds y and the d - 1 other signals of largest
    :math:`|y^\top y'| / (\|y\| \|y'\|)`: where signals of one subspace are alike, a group starts
    inside one.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals; those that are zero (a constant image whose mean was subtracted) are not used.
    n_groups, group_size : int
        Groups G and atoms d in each.
    seed : int, optional
        For the choice of the G signals; torch's default generator if not given.

    Returns
    -------
    Tensor, shape (m, G d)
        Columns of length 1.

    Raises
    ------
    ValueError
        If fewer than G or fewer than d signals are nonzero.
    """
    Y, G, d = as_data(Y, n_groups, group_size)
    lengths = Y.norm(dim=1, keepdim=True)
    units = (Y / lengths.clamp(min=torch.finfo(Y.dtype).tiny))[lengths[:, 0] > 0]
    if len(units) < max(G, d):
        raise ValueError(
            f"Y has {len(units)} nonzero signals of {len(Y)}, expected at least {max(G, d)} for "
            f"{G} groups of {d}: pass more signals or ask for less"
        )
    chosen = torch.randperm(len(units), generator=generator(seed))[:G].to(units.device)
    likeness = (units[chosen] @ units.T).abs()
    likeness[torch.arange(G), chosen] = 2.0  # first comes the signal itself
    return units[likeness.topk(d, dim=1).indices.flatten()].T.contiguous()


@torch.no_grad()
def kmeans_start(Y, n_groups: int, group_size: int = 1, *, seed: int | None = None) -> Tensor:
    r"""Groups of centres: k-means into G clusters, and in each of them into d.

    Parameters
    ----------
    Y, n_groups, group_size, seed
        As for :func:`data_start`; the seed is that of k-means.

    Returns
    -------
    Tensor, shape (m, G d)
        Columns of length 1. A cluster of fewer than d different signals is completed by the
        principal directions of all signals, made orthogonal to what there is.

    Raises
    ------
    ValueError
        If there are fewer than G signals, or d is larger than m.
    """
    Y, G, d = as_data(Y, n_groups, group_size, orthonormal=True)
    random, groups = numpy_generator(seed), []
    for members in _clusters(Y, G, random):
        parts = _clusters(members, min(d, len(members)), random) if len(members) else []
        centres = [part.mean(dim=0) for part in parts if len(part)]
        units = [c / c.norm() for c in centres if c.norm() > 0]
        columns = torch.stack(units, dim=1) if units else Y.new_zeros(Y.shape[1], 0)
        groups.append(complete(columns, d, Y))
    return torch.hstack(groups)


@torch.no_grad()
def pca_start(Y, n_groups: int, group_size: int = 1, *, seed: int | None = None) -> Tensor:
    r"""Groups of principal directions: k-means into G clusters, and the best subspace of each.

    Group g spans the d-dimensional subspace (through the origin, so that no mean is subtracted)
    that is nearest to the signals of cluster g: its first direction is about their mean.

    Parameters
    ----------
    Y, n_groups, group_size, seed
        As for :func:`data_start`; the seed is that of k-means.

    Returns
    -------
    Tensor, shape (m, G d)
        Orthonormal groups, the strongest direction first, signed so that the signals of the
        cluster have a nonnegative mean along it. A cluster that spans fewer than d dimensions
        is completed by the principal directions of all signals.

    Raises
    ------
    ValueError
        If there are fewer than G signals, or d is larger than m.
    """
    Y, G, d = as_data(Y, n_groups, group_size, orthonormal=True)
    clusters = _clusters(Y, G, numpy_generator(seed))
    return torch.hstack([complete(directions(members, d), d, Y) for members in clusters])


@torch.no_grad()
def nearby_start(D, distance: float, group_size: int = 1, *, seed: int | None = None) -> Tensor:
    r"""A start at a known distance from the truth, for experiments.

    .. math:: W_g = D_g + \delta\, U_g, \qquad U_g^\top U_g = I

    with random :math:`U_g`, so that every column is moved by :math:`\delta`, and
    :math:`\|W_g - D_g\|_2 = \delta`.

    Parameters
    ----------
    D : tensor, shape (m, n)
        Dictionary.
    distance : float
        :math:`\delta \ge 0`, in the units of the columns.
    group_size : int
        Atoms d of a group; must divide n, and be at most m.
    seed : int, optional
        For the U_g; torch's default generator if not given.

    Returns
    -------
    Tensor, shape (m, n)

    Raises
    ------
    ValueError
        If ``distance`` is negative, or ``group_size`` does not divide n or is larger than m.
    """
    D, distance = as_dictionary(D).detach(), as_number(distance, "distance")
    m, n = D.shape
    d = as_groups(n, group_size)
    _fits(d, m)
    noise = torch.randn(n // d, m, d, generator=generator(seed), dtype=torch.float64)
    U = torch.linalg.qr(noise).Q.transpose(0, 1).reshape(m, n)
    return D + distance * U.to(D)


def as_data(Y, n_groups, group_size, orthonormal: bool = False) -> tuple[Tensor, int, int]:
    Y = as_tensor(Y, "Y", "(B, m)").detach()
    G, d = as_count(n_groups, "n_groups"), as_count(group_size, "group_size")
    if len(Y) < G:
        raise ValueError(
            f"Y has {len(Y)} signals, expected at least one for each of {G} groups: pass more "
            "signals, or ask for fewer groups"
        )
    if orthonormal:
        _fits(d, Y.shape[1])
    return Y, G, d


def _fits(d: int, m: int) -> None:
    if d > m:
        raise ValueError(
            f"group_size = {d}, expected at most the {m} entries of a signal: there are no more "
            "independent directions"
        )


def numpy_generator(seed) -> np.random.RandomState:
    """Randomness for scikit-learn; without a seed it is drawn from torch's default generator."""
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    return np.random.RandomState(as_count(seed, "seed", at_least=0, at_most=2**32 - 1))


def _clusters(Y: Tensor, k: int, random: np.random.RandomState) -> list[Tensor]:
    """The signals of each of k clusters; where too few signals differ, some clusters are empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # says that clusters are empty
        labels = KMeans(k, n_init=3, random_state=random).fit(Y.cpu().numpy()).labels_
    labels = torch.from_numpy(labels).to(Y.device)
    return [Y[labels == g] for g in range(k)]


def directions(Y: Tensor, d: int) -> Tensor:
    """Up to d orthonormal directions (m, r) along which signals (B, m) are longest."""
    m = Y.shape[1]
    gram = (Y.double().T @ Y.double()).cpu().numpy()
    values, V = (torch.from_numpy(x) for x in eigh(gram, subset_by_index=[m - d, m - 1]))
    values, V = values.flip(0), V.flip(1)
    V = V[:, (values > 0) & (values > _RANK**2 * values[0])].to(Y.device)
    return (V * torch.where(Y.double().sum(dim=0) @ V < 0, -1.0, 1.0)).to(Y.dtype)


def complete(columns: Tensor, d: int, Y: Tensor) -> Tensor:
    """``columns`` (m, r), and d - r directions of the signals ``Y`` orthogonal to all others.

    Of an orthonormal basis, some vector is at least 1/sqrt(m) away from any smaller subspace.
    """
    m, r = columns.shape
    if r == d:
        return columns
    Q = torch.linalg.qr(columns).Q
    candidates = torch.linalg.eigh(Y.double().T @ Y.double()).eigenvectors.flip(1).to(Y.dtype)
    for v in candidates.T:
        for _ in range(2):  # once more against rounding
            v = v - Q @ (Q.T @ v)
        if Q.shape[1] < d and v.norm() > 0.5 / math.sqrt(m):
            Q = torch.hstack([Q, (v / v.norm())[:, None]])
    return torch.hstack([columns, Q[:, r:]])
