"""Orthogonal matching pursuit for many signals at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ._checks import as_count, as_number, as_tensor
from ._solution import Solution, as_problem

_BLOCK = 1024  # signals in step: more would not fit the processor's cache


@torch.no_grad()
def omp(Y, D, sparsity: int, tol=None) -> Solution:
    r"""Orthogonal matching pursuit: pick the atom closest to the residual, fit, repeat.

    .. math:: i_k = \arg\max_i \frac{|d_i' r^{k-1}|}{\|d_i\|_2}, \qquad
              r^k = y - D_{S_k} x_{S_k}, \quad x_{S_k} = \arg\min_x \|y - D_{S_k} x\|_2

    :cite:p:`pati1993orthogonal`. The picked atoms are kept as an orthonormal basis, one a
    signal, so that a fit costs one projection and many signals advance in step, in the spirit
    of :cite:p:`rubinstein2008efficient`. Not differentiable: the support is a step function.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals.
    D : tensor, shape (m, n)
        Dictionary, atoms of any length.
    sparsity : int
        Atoms a signal at most, 1 to min(m, n).
    tol : float or tensor, shape (B,), optional
        Residual norm at which a signal is good enough and gets no further atom.

    Returns
    -------
    Solution
        ``gap`` is None. ``history`` (iterations + 1, B) holds the residual norms. A signal has
        fewer than ``sparsity`` atoms once none of them explains any more of it.

    Raises
    ------
    ValueError
        If shapes do not match, numbers are not finite, ``sparsity`` is not between 1 and
        min(m, n), or ``tol`` is negative.
    """
    Y, D = as_problem(Y, D)
    sparsity = as_count(sparsity, "sparsity", at_most=min(D.shape))
    dtype, Y, D = Y.dtype, Y.double(), D.double()
    enough = torch.as_tensor(_enough(tol, Y)).to(Y).expand(len(Y))
    lengths = D.norm(dim=0)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    atoms = (D / lengths).T.contiguous()
    blocks = zip(Y.split(_BLOCK), enough.split(_BLOCK), strict=True)
    codes, histories = zip(*(_block(y, atoms, sparsity, e) for y, e in blocks), strict=True)
    steps = max(map(len, histories))
    # A block that was done early keeps its last residual norms.
    histories = [torch.cat([h, h[-1:].expand(steps - len(h), -1)]) for h in histories]
    history = torch.cat(histories, dim=1)
    return Solution((torch.cat(codes) / lengths).to(dtype), None, steps - 1, history.to(dtype))


def _block(Y: Tensor, atoms: Tensor, sparsity: int, enough: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, n) and residual norms (steps + 1, B) of some signals, for unit atoms (n, m)."""
    B, m = Y.shape
    support = torch.zeros(B, sparsity, dtype=torch.long, device=Y.device)
    basis, coordinates = Y.new_zeros(B, sparsity, m), Y.new_zeros(B, sparsity)
    triangle = torch.eye(sparsity).to(Y).repeat(B, 1, 1)  # picked atoms = triangle' basis
    energy = Y.norm(dim=1)
    residual, history = Y.clone(), [energy]
    rows = torch.arange(B, device=Y.device)  # the signals that are still at work
    for k in range(sparsity):
        rows = rows[history[-1][rows] > enough[rows]]
        match = (residual[rows] @ atoms.T).abs()
        match.scatter_(1, support[rows, :k], -1.0)  # no atom twice
        best, pick = match.max(dim=1)
        new, old = atoms[pick], basis[rows, :k]
        shares = Y.new_zeros(len(rows), k, 1)
        for _ in range(2):  # Gram-Schmidt; the second pass removes the rounding of the first
            share = old @ new[:, :, None]
            new = new - (old.mT @ share)[:, :, 0]
            shares += share
        height = new.norm(dim=1)
        good = (best > 1e-13 * energy[rows]) & (height > 1e-10)
        if not good.any():
            break
        rows, new, height = rows[good], new[good] / height[good, None], height[good]
        support[rows, k], basis[rows, k] = pick[good], new
        triangle[rows, :k, k], triangle[rows, k, k] = shares[good][:, :, 0], height
        coordinates[rows, k] = (new * residual[rows]).sum(dim=1)
        residual[rows] -= coordinates[rows, k, None] * new
        history.append(residual.norm(dim=1))
    fit = torch.linalg.solve_triangular(triangle, coordinates[:, :, None], upper=True)[:, :, 0]
    codes = Y.new_zeros(B, len(atoms)).scatter_add(1, support, fit)
    return codes, torch.stack(history)


def _enough(tol, Y: Tensor) -> Tensor | float:
    """The residual norm at which a signal needs no further atom."""
    if tol is None or not np.ndim(tol):
        return 0.0 if tol is None else as_number(tol, "tol")
    tol = as_tensor(tol, "tol", "(B,)", like=Y)
    if len(tol) != len(Y) or (tol < 0).any():
        raise ValueError(
            f"tol has {len(tol)} entries down to {tol.min().item():.4g}, expected {len(Y)}, one "
            "for every signal, all >= 0: pass a number to use one for all"
        )
    return tol.to(Y)
