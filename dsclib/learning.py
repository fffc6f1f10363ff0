r"""Dictionary learning: find the atoms that make given signals sparse.

Alternates two steps that each lower the same objective: codes for the current dictionary
(:func:`dsclib.pursuit.lasso`, started from the last codes), then atoms for the current codes, one
after the other, from two small matrices that sum up all signals :cite:p:`mairal2010online`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import as_count, as_dictionary, as_number, as_tensor, generator
from ._solution import objective
from .pursuit import lasso

_TOL = 1e-4  # relative gap of the codes inside the loop; the codes returned meet lasso's default


@dataclass(frozen=True)
class Learned:
    """A dictionary and the codes it gives.

    Attributes
    ----------
    dictionary : Tensor, shape (m, n)
        Unit-norm atoms.
    codes : Tensor, shape (B, n)
        Lasso codes of the signals for this dictionary, relative duality gap at most 1e-6.
    history : Tensor, shape (iterations,)
        Mean objective a signal, measured in each pass with the codes just found.
    """

    dictionary: Tensor
    codes: Tensor
    history: Tensor


@torch.no_grad()
def learn_dictionary(
    Y,
    n_atoms: int,
    lam: float,
    *,
    iterations: int = 20,
    batch_size: int | None = None,
    start=None,
    seed: int | None = None,
) -> Learned:
    r"""Learn a dictionary of unit-norm atoms for which the signals have sparse codes.

    .. math:: \min_{D, X} \sum_i \tfrac12 \|y_i - D x_i\|_2^2 + \lambda \|x_i\|_1
              \quad\text{subject to}\quad \|d_j\|_2 = 1

    With all signals at once the objective never rises. In batches the dictionary is updated
    after each of them from discounted sums over the batches seen, which gets there in fewer
    passes :cite:p:`mairal2010online`. An atom that no signal uses becomes the signal
    represented worst. The problem is not convex: the start matters.

    Parameters
    ----------
    Y : tensor, shape (B, m)
        Signals; subtract the mean of patches first.
    n_atoms : int
        Atoms to learn, n; at most B unless ``start`` is given.
    lam : float
        Penalty > 0 in the units of ``Y``, since atoms have length 1.
    iterations : int
        Passes over the signals.
    batch_size : int, optional
        Signals a batch; all of them if not given. 256 to 1024 is a good choice for B > 5,000.
    start : tensor, shape (m, n), optional
        First dictionary, unit-norm atoms; different random signals if not given.
    seed : int, optional
        For the choice of the first atoms and the order of the batches; torch's default
        generator if not given.

    Returns
    -------
    Learned

    Raises
    ------
    ValueError
        If shapes do not match, numbers are not finite, ``lam`` is not positive, fewer than
        ``n_atoms`` signals are nonzero and no start is given, or a start atom is not of length 1.
    """
    Y = as_tensor(Y, "Y", "(B, m)")
    n = as_count(n_atoms, "n_atoms")
    lam = as_number(lam, "lam", positive=True)
    iterations = as_count(iterations, "iterations")
    batch_size = len(Y) if batch_size is None else batch_size
    size = as_count(batch_size, "batch_size", at_most=len(Y))
    random = generator(seed)
    like, Y = Y, Y.double().cpu()
    D = _start(Y, n, start, random)
    codes = Y.new_zeros(len(Y), n)
    gram, cross = Y.new_zeros(n, n), Y.new_zeros(Y.shape[1], n)
    history = []
    for _ in range(iterations):
        total = 0.0
        for batch in torch.randperm(len(Y), generator=random).split(size):
            y, x = Y[batch], lasso(Y[batch], D, lam, _TOL, start=codes[batch]).codes
            codes[batch] = x
            total += objective(y - x @ D.T, x, lam).sum().item()
            keep = 1 - len(batch) / len(Y)  # forgets what is older than about one pass
            gram, cross = keep * gram + x.T @ x, keep * cross + y.T @ x
            _update(D, gram, cross)
        _revive(D, gram, cross, Y, codes)
        history.append(total / len(Y))
    codes = lasso(Y, D, lam, start=codes).codes
    return Learned(D.to(like), codes.to(like), torch.tensor(history).to(like))


def _update(D: Tensor, gram: Tensor, cross: Tensor) -> None:
    """One pass over the atoms, each moved to its best place on the sphere given the others."""
    # NumPy on the same memory: for vectors this short, torch's calls cost more than the sums.
    D, gram, cross = D.numpy(), gram.numpy(), cross.numpy()
    for j in range(D.shape[1]):
        v = cross[:, j] - D @ gram[:, j] + gram[j, j] * D[:, j]
        length = math.sqrt(v @ v)
        if length > 0 and gram[j, j] > 0:
            D[:, j] = v / length


def _revive(D: Tensor, gram: Tensor, cross: Tensor, Y: Tensor, codes: Tensor) -> None:
    """Replace the atoms that no code uses by the signals that are represented worst."""
    dead = (codes == 0).all(dim=0).nonzero()[:, 0]
    missed = (Y - codes @ D.T).norm(dim=1)
    worst = missed.topk(min(len(dead), len(Y))).indices
    worst = worst[missed[worst] > 0]
    dead = dead[: len(worst)]
    D[:, dead] = (Y[worst] / Y[worst].norm(dim=1, keepdim=True)).T
    gram[dead, :], gram[:, dead], cross[:, dead] = 0.0, 0.0, 0.0


def _start(Y: Tensor, n: int, start, random) -> Tensor:
    """The given dictionary, checked, or ``n`` different signals of length 1."""
    if start is not None:
        start = as_dictionary(start, "start", unit=True).to(Y)
        if start.shape != (Y.shape[1], n):
            raise ValueError(
                f"start has shape {tuple(start.shape)}, expected {(Y.shape[1], n)}: "
                "one unit-norm column for every atom to learn"
            )
        return start.clone()
    lengths = Y.norm(dim=1)
    nonzero = (lengths > 0).nonzero()[:, 0]
    if len(nonzero) < n:
        raise ValueError(
            f"n_atoms = {n} but only {len(nonzero)} of the {len(Y)} signals in Y are nonzero, "
            "expected at least one for each atom: pass more signals, fewer atoms or a start"
        )
    chosen = nonzero[torch.randperm(len(nonzero), generator=random)[:n]]
    return (Y[chosen] / lengths[chosen, None]).T
