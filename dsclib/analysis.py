r"""Analysis weights: what to correlate a signal with, in place of the atoms themselves.

Any W with :math:`w_i^\top d_i = 1` may stand in the book's theorem, and its rate is read off
:math:`|w_i^\top d_j|`. Here are the W that make the largest of these as small as can be, for a
matrix and for the filters of a convolution, by linear programs.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor

from ._checks import as_count, as_dictionary, as_tensor, check_axes
from .coherence import interactions


def analysis_weights(D) -> Tensor:
    r"""Analysis weights: for every atom the vector that answers least to all the others.

    .. math:: w_i \in \arg\min_w \max_{j \ne i} |w^\top d_j|
              \quad\text{subject to}\quad w^\top d_i = 1

    Used in place of D they lower the coherence, hence the rate :cite:p:`liu2019alista`.

    Parameters
    ----------
    D : tensor, shape (m, n)
        Unit-norm atoms.

    Returns
    -------
    Tensor, shape (m, n)
        W; column by column never worse than W = D.

    Raises
    ------
    ValueError
        If the atoms are not of length 1, or the linear program fails.

    Notes
    -----
    Solved through the dual program, which is basis pursuit :cite:p:`chen1998atomic`: write
    :math:`d_i` as a combination of the other atoms with the smallest l1 norm. The minimum is
    one over that norm, and the multipliers, scaled, are :math:`w_i`. Where no combination
    exists the minimum is 0 and the pseudo-inverse of D attains it. A matrix of 64 x 128 takes
    a few seconds. The minimum is over the largest entry of a row: the cumulative
    coherence for s > 1 usually falls with it, but need not.
    """
    D = as_dictionary(D, unit=True).detach()
    atoms = D.double().cpu().numpy()
    pinv = np.linalg.pinv(atoms)
    W = np.stack([_analysis_vector(atoms, pinv, i) for i in range(atoms.shape[1])], axis=1)
    W = atoms @ (pinv @ W)  # the shortest vectors with these inner products
    W = torch.from_numpy(W / (W * atoms).sum(axis=0)).to(D)
    worse = interactions(D, W).amax(dim=1) > interactions(D).amax(dim=1)
    return torch.where(worse, D, W)


def analysis_filters(filters, stride: int, axes: int = 1) -> Tensor:
    r"""Analysis weights of a convolutional dictionary, as filters of the same shape.

    .. math:: w_c \in \arg\min_w \max_{(b, k) \ne (c, 0)}
              \Bigl|\sum_i w(i)\, f_b(i - k q)\Bigr|
              \quad\text{subject to}\quad \sum_i w(i)\, f_c(i) = 1

    over all filters b and all shifts k under which they overlap. The operator of the
    :math:`w_c` is the analysis operator W of the dictionary, for signals of any length.

    Parameters
    ----------
    filters : tensor, shape (C, L), (C, K, L), or with two axes (C, h, w), (C, K, h, w)
        Filters of length 1, as for :class:`dsclib.operators.Conv1d` or ``Conv2d``.
    stride : int
        Distance q of neighbouring positions, in samples.
    axes : {1, 2}
        1 for sequences, 2 for images.

    Returns
    -------
    Tensor
        Shaped like ``filters``; filter by filter never worse than the filters themselves.

    Raises
    ------
    ValueError
        If the filters are not of length 1 or not of the shape that ``axes`` asks for, or the
        linear program fails.

    Notes
    -----
    As :func:`analysis_weights` :cite:p:`liu2019alista`, with the shifted filters, cut to the
    window of the unshifted ones, for atoms.
    """
    axes, q = as_count(axes, "axes", at_most=2), as_count(stride, "stride")
    f = as_tensor(filters, "filters").detach()
    window = ("L",) if axes == 1 else ("h", "w")
    channels = ("K",) if f.ndim == axes + 2 else ()
    check_axes(f, "filters", f"({', '.join(('C', *channels, *window))})")
    as_dictionary(f.flatten(1).T, "filters", unit=True)
    atoms, own = _window_atoms(f.double().cpu(), q, axes)
    pinv = np.linalg.pinv(atoms)
    W = np.stack([_analysis_vector(atoms, pinv, i) for i in own], axis=1)
    W = atoms @ (pinv @ W)
    W /= (W * atoms[:, own]).sum(axis=0)

    def worst(V):
        M = np.abs(V.T @ atoms)
        M[np.arange(len(own)), own] = 0
        return M.max(axis=1)

    W = np.where(worst(W) < worst(atoms[:, own]), W, atoms[:, own])
    return torch.from_numpy(W.T.copy()).reshape(f.shape).to(f)


def _window_atoms(f: Tensor, stride: int, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """All shifted filters cut to the window of one, as columns, and which are not shifted."""
    window = f.shape[-axes:]
    beyond = [-(-length // stride) - 1 for length in window]
    wide = F.pad(f, [k * stride for k in reversed(beyond) for _ in range(2)])
    shifted = []
    for shift in itertools.product(*(range(2 * k + 1) for k in beyond)):
        part = wide
        for axis, (k, length) in enumerate(zip(shift, window)):
            part = part.narrow(axis - axes, k * stride, length)
        shifted.append(part.flatten(1))
    atoms = torch.stack(shifted, dim=1)  # (C, shifts, samples of the window)
    own = len(shifted) // 2 + len(shifted) * np.arange(len(f))
    return atoms.flatten(0, 1).T.numpy(), own


def _analysis_vector(atoms: np.ndarray, pinv: np.ndarray, i: int) -> np.ndarray:
    others = np.delete(atoms, i, axis=1)
    if others.shape[1] == 0:
        return atoms[:, i]
    cost = np.ones(2 * others.shape[1])
    found = linprog(cost, A_eq=np.hstack([others, -others]), b_eq=atoms[:, i], method="highs")
    if found.status == 2:  # infeasible: the other atoms do not span this one
        return pinv[i]
    if not found.success:
        raise ValueError(
            f"the linear program of atom {i} of D failed ({found.message}): "
            "look for atoms that are almost equal"
        )
    return found.eqlin.marginals / found.fun
