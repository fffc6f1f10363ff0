r"""Clusters of images, and the groups of atoms that stand for them.

A group-sparse autoencoder assigns a signal to the group that says most about it, for orthonormal
groups the nearest subspace. What it finds depends on its start. Here the start is a clustering of
a few thousand signals by their neighbours (:func:`spectral_clusters`), and the best subspace of
each cluster (:func:`cluster_start`). scikit-learn finds neighbours and k-means, SciPy
eigenvectors, both on the CPU.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.cluster import KMeans
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from ._checks import as_count, as_labels, as_number, as_tensor
from ._starts import as_data, complete, directions, numpy_generator
from .proximal import group_hard_threshold, group_norms


def unit_rows(Y, mean=None) -> Tensor:
    r"""Signals of length 1, after ``mean`` was subtracted; a zero signal stays zero.

    .. math:: y_i \mapsto (y_i - m) / \|y_i - m\|_2

    ``Y`` is (B, m), ``mean`` (m,) or not given. A black image is zero; a constant one is zero
    where its own mean was subtracted before.
    """
    Y = as_tensor(Y, "Y", "(B, m)")
    if mean is not None:
        Y = Y - as_tensor(mean, "mean", "(m,)", like=Y)
    return Y / Y.norm(dim=1, keepdim=True).clamp(min=torch.finfo(Y.dtype).tiny)


@torch.no_grad()
def oriented_features(images, n_orientations: int = 8, cells: int = 4) -> Tensor:
    r"""One fixed convolutional layer: how much the image rises in each direction, and where.

    .. math:: f_k = \operatorname{pool}\bigl(\operatorname{ReLU}(a_k * y)\bigr), \qquad
              a_k = \cos\tfrac{2\pi k}{K}\, \partial_1 b + \sin\tfrac{2\pi k}{K}\, \partial_2 b

    with a 3 x 3 binomial blur b and central differences; the mean over cells x cells fields.
    A small relative of histograms of oriented gradients :cite:p:`dalal2005histograms`.

    Parameters
    ----------
    images : tensor, shape (N, H, W)
        Grey images; what lies outside counts as 0.
    n_orientations, cells : int
        Directions K, and fields along each side.

    Returns
    -------
    Tensor, shape (N, K * cells * cells)
        Rows of length 1; a black image gives zeros.

    Raises
    ------
    ValueError
        If the images are not finite, or smaller than cells x cells.
    """
    images = as_tensor(images, "images", "(N, H, W)")
    K = as_count(n_orientations, "n_orientations")
    cells = as_count(cells, "cells", at_most=min(images.shape[1:]))
    angle = 2 * math.pi * torch.arange(K) / K
    slopes = torch.zeros(K, 1, 3, 3)
    slopes[:, 0, 1, 2], slopes[:, 0, 1, 0] = angle.cos(), -angle.cos()
    slopes[:, 0, 2, 1], slopes[:, 0, 0, 1] = angle.sin(), -angle.sin()
    blur = torch.tensor([1.0, 2.0, 1.0]) / 4
    filters = F.conv2d(slopes, (blur[:, None] * blur)[None, None], padding=2).to(images)
    features = images.new_empty(len(images), K * cells**2)
    for part, rows in zip(images.split(250), features.split(250)):
        maps = F.conv2d(part[:, None], filters, padding=2).relu()
        rows.copy_(F.adaptive_avg_pool2d(maps, cells).flatten(1))
    return unit_rows(features)


@torch.no_grad()
def spectral_clusters(
    Y,
    n_clusters: int,
    *,
    n_neighbors: int = 15,
    n_vectors: int | None = None,
    power: float = 5.0,
    seed: int | None = None,
) -> Tensor:
    r"""Cluster signals by the company they keep.

    .. math:: A_{ij} = N_{ij} \bigl(c_{ij} + 10^{-3}\bigr), \qquad
              \Delta^{-1/2} A \Delta^{-1/2} u_k = \nu_k u_k, \qquad
              e_i = \bigl(\nu_k^p\, u_{k,i}\bigr)_k

    N joins signals of which one is among the nearest of the other, c counts common neighbours
    :cite:p:`jarvis1973clustering`, and :math:`\Delta` holds the row sums of A. The rows
    :math:`e_i`, scaled to length 1, go to k-means :cite:p:`ng2002spectral`.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals; distances are Euclidean. Memory grows with B, time a little faster.
    n_clusters : int
        Clusters G.
    n_neighbors : int
        Nearest signals that each is joined to.
    n_vectors : int, optional
        Eigenvectors, those of the largest :math:`\nu_k`; G if not given.
    power : float
        p: how much the leading ones count. 0 weighs all alike, as usual.
    seed : int, optional
        For k-means; drawn from torch's default generator if not given.

    Returns
    -------
    Tensor, shape (B,)
        int64 labels 0, ..., G - 1, on the device of ``Y``.

    Raises
    ------
    ValueError
        If there are not more signals than neighbours, eigenvectors and clusters.
    """
    Y, G, _ = as_data(Y, n_clusters, 1)
    n_vectors = G if n_vectors is None else n_vectors
    n_vectors = as_count(n_vectors, "n_vectors", at_most=len(Y) - 1)
    n_neighbors = as_count(n_neighbors, "n_neighbors", at_most=len(Y) - 1)
    nearest = csr_array(kneighbors_graph(Y.cpu().numpy(), n_neighbors))
    N = ((nearest + nearest.T) > 0).astype(float)
    values, U = _leading(N.multiply(N @ N) + 1e-3 * N, n_vectors)
    rows = torch.from_numpy(U * values ** as_number(power, "power"))
    return _kmeans(unit_rows(rows), G, seed).to(Y.device)


@torch.no_grad()
def cluster_start(Y, labels, group_size: int) -> Tensor:
    r"""A group of atoms for each cluster: its principal directions, no mean subtracted.

    ``Y`` is (B, m), ``labels`` (B,) holds 0, ..., G - 1. Returns orthonormal groups (m, G d), each
    spanning the d-dimensional subspace nearest to its cluster, the strongest direction first. A
    cluster that spans fewer than d dimensions is completed by principal directions of all
    signals. ``ValueError`` if a cluster below the largest label is empty.
    """
    labels = as_labels(labels, "labels")
    Y, G, d = as_data(Y, max(int(labels.max()) + 1, 1), group_size, orthonormal=True)
    if len(labels) != len(Y) or labels.min() < 0:
        raise ValueError(
            f"labels has length {len(labels)} and smallest value {int(labels.min())}, expected "
            f"{len(Y)} labels >= 0, one a signal of Y"
        )
    if empty := (labels.bincount(minlength=G) == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"clusters {empty} of {G} are empty, expected a signal in each: number the clusters "
            "anew (labels.unique(return_inverse=True)[1]), or ask for fewer"
        )
    labels = labels.to(Y.device)
    return torch.hstack([complete(directions(Y[labels == g], d), d, Y) for g in range(G)])


def spectral_start(Y, n_groups: int, group_size: int, *, features=None, **options) -> Tensor:
    """Groups (m, G d) of ``Y`` (B, m) from :func:`spectral_clusters` of ``features`` (B, f).

    ``features`` are the signals themselves if not given; ``options`` are those of
    :func:`spectral_clusters`. The groups are those of :func:`cluster_start`.
    """
    labels = spectral_clusters(Y if features is None else features, n_groups, **options)
    return cluster_start(Y, labels, group_size)


@torch.no_grad()
def consensus_clusters(
    votes, n_clusters: int, *, n_vectors: int | None = None, seed: int | None = None
) -> Tensor:
    r"""One clustering out of R: signals belong together that most clusterings put together.

    With the indicator matrix :math:`H \in \{0, 1\}^{B \times RG}` of all clusters and the row sums
    :math:`\Delta` of :math:`H H^\top`, which counts agreements, the leading eigenvectors of
    :math:`\Delta^{-1/2} H H^\top \Delta^{-1/2}`, times the square root of their eigenvalues, go
    to k-means as in :func:`spectral_clusters`. No B x B matrix is formed
    :cite:p:`strehl2002cluster`.

    ``votes`` (R, B) holds labels from 0 on, a clustering a row. Returns int64 labels (B,);
    ``ValueError`` if votes are no such labels, or fewer signals than clusters.
    """
    G = as_count(n_clusters, "n_clusters")
    votes = [as_labels(v, f"votes[{r}]") for r, v in enumerate(votes)]
    if len({len(v) for v in votes}) != 1 or min(v.min() for v in votes) < 0 or len(votes[0]) < G:
        raise ValueError(
            f"votes has rows of length {sorted({len(v) for v in votes})}, expected labels >= 0 of "
            f"the same signals in each row, no fewer than n_clusters = {G}"
        )
    H = torch.cat([F.one_hot(v).double() for v in votes], dim=1)
    H = H / (H @ H.sum(dim=0)).sqrt()[:, None]
    values, V = torch.linalg.eigh(H.T @ H)
    k = G if n_vectors is None else as_count(n_vectors, "n_vectors", at_most=len(V))
    return _kmeans(unit_rows(H @ V[:, -k:]), G, seed)


def nearest_subspace_loss(model, Y) -> Tensor:
    r"""Mean of :math:`\tfrac12 \|y - W_g x_g\|_2^2` over ``Y`` (B, m), the strongest group alone.

    g is the group of largest :math:`\|x_g\|_2`, x the code of a
    :class:`dsclib.autoencoders.GroupSparseAutoencoder`. With ``lam = 0`` and orthonormal groups
    half the squared distance to the nearest subspace.
    """
    codes = model.encode(Y)
    second = group_norms(codes.detach(), model.group_size).topk(2, dim=1).values[:, 1:]
    winner = group_hard_threshold(codes, second, model.group_size)
    return (Y - model.decode(winner)).square().sum(dim=1).mean() / 2


def _leading(A, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k leading eigenvectors of a graph, normalised, and their eigenvalues, cut off at 0.

    Those of eigenvalue 1 are known, one for each part of the graph. They are taken out first: a
    Lanczos iteration misses copies of an eigenvalue. All are kept, even where they are over k.
    """
    scale = np.sqrt(A.sum(axis=1))
    parts, part = connected_components(A)
    Q = scale[:, None] * (part[:, None] == np.arange(parts))
    Q /= np.linalg.norm(Q, axis=0)
    if parts >= k:
        return np.ones(parts), Q
    A = diags_array(1 / scale) @ A @ diags_array(1 / scale)
    rest = LinearOperator(A.shape, lambda x: A @ x - Q @ (Q.T @ x), dtype=float)
    first = np.random.default_rng(0).standard_normal(len(Q))
    values, V = eigsh(rest, k=k - parts, which="LA", v0=first)
    return np.append(np.ones(parts), np.maximum(values, 0)), np.hstack([Q, V])


def _kmeans(rows: Tensor, k: int, seed) -> Tensor:
    fit = KMeans(k, n_init=6, random_state=numpy_generator(seed)).fit(rows.numpy())
    return torch.from_numpy(fit.labels_).long()
