"""What every pursuit shares: its answer, its certificate and its stopping rule."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import as_count, as_dictionary, as_number, as_signals, as_tensor, match
from .proximal import group_norms

_CHECK_EVERY = 10  # iterations between two looks at the gap, which costs half an iteration


class ConvergenceWarning(UserWarning):
    """A pursuit used up its iterations before it reached its tolerance."""


@dataclass(frozen=True)
class Solution:
    """What a pursuit found.

    Attributes
    ----------
    codes : Tensor, shape (B, n)
        The codes, in the dtype and on the device of the signals.
    gap : Tensor, shape (B,), or None
        Relative duality gap of every signal; None where there is no certificate.
    iterations : int
        Iterations done, those of the signal that needed most.
    history : Tensor, shape (iterations + 1, ...)
        How it went, the start included; every solver says what it records.
    """

    codes: Tensor
    gap: Tensor | None
    iterations: int
    history: Tensor


def as_problem(Y, D) -> tuple[Tensor, Tensor]:
    """The signals (B, m) and the dictionary (m, n), checked."""
    if not isinstance(D, Tensor) and isinstance(Y, Tensor) and Y.is_floating_point():
        D = as_tensor(D, "D", "(m, n)", like=Y)
    D = as_dictionary(D)
    return as_signals(Y, D), D


def as_codes(codes, Y: Tensor, D: Tensor, name: str) -> Tensor:
    """Codes (B, n) that belong to the signals ``Y`` and the dictionary ``D``."""
    codes = as_tensor(codes, name, "(B, n)", like=D)
    match(codes, D, name, "D")
    if codes.shape != (Y.shape[0], D.shape[1]):
        raise ValueError(
            f"{name} has shape {tuple(codes.shape)}, expected {(Y.shape[0], D.shape[1])}: "
            "one row for every signal in Y, one column for every atom of D"
        )
    return codes


def objective(residual: Tensor, codes: Tensor, lam: float, group_size: int = 1) -> Tensor:
    """P of every signal, shape (B,)."""
    penalty = group_norms(codes, group_size).sum(dim=1)
    return residual.square().sum(dim=1) / 2 + lam * penalty


def relative_gap(Y: Tensor, D: Tensor, codes: Tensor, lam: float, group_size: int = 1) -> Tensor:
    """Relative duality gap (B,); the formula is in :func:`dsclib.pursuit.duality_gap`."""
    residual = Y - codes @ D.T
    squares, inner = residual.square().sum(dim=1), (Y * residual).sum(dim=1)
    steepest = group_norms(residual @ D, group_size).amax(dim=1)
    best = inner.clamp(min=0) / squares  # maximises Q along the ray, were all of it feasible
    scale = torch.where(squares > 0, torch.minimum(best, lam / steepest), 0.0)
    dual = scale * inner - scale**2 * squares / 2
    primal = objective(residual, codes, lam, group_size)
    return torch.where(primal > 0, (primal - dual).clamp(min=0) / primal, 0.0)


def as_tolerance(tol, max_iterations) -> tuple[float | None, int]:
    """The two ways to stop, checked."""
    tol = None if tol is None else as_number(tol, "tol")
    return tol, as_count(max_iterations, "max_iterations", at_least=0)


def warn_unless_converged(solver: str, gap: Tensor, tol: float | None, iterations: int) -> None:
    """Say by how much a solver missed its tolerance, and what to do."""
    if tol is None or bool((gap <= tol).all()):
        return
    worst = gap.max().item()
    warnings.warn(
        f"{solver} stopped after {iterations} iterations with {int((gap > tol).sum())} of "
        f"{len(gap)} signals above tol = {tol:g}; the largest relative duality gap is "
        f"{worst:.2g}, {worst / tol if tol else float('inf'):.2g} times too much: raise "
        "max_iterations or tol, or pass tol=None if you want that many iterations",
        ConvergenceWarning,
        stacklevel=4,
    )


class Run:
    """One run of a proximal gradient method: its inputs in float64, its history, its end."""

    def __init__(self, solver, Y, D, lam, tol, max_iterations, start, callback):
        Y, D = as_problem(Y, D)
        self.solver, self.callback, self.dtype = solver, callback, Y.dtype
        self.lam = as_number(lam, "lam", positive=True)
        self.tol, self.max_iterations = as_tolerance(tol, max_iterations)
        if start is None:
            start = Y.new_zeros(Y.shape[0], D.shape[1])
        self.start = as_codes(start, Y, D, "start").double()
        self.Y, self.D = Y.double(), D.double()
        largest = torch.linalg.matrix_norm(self.D, 2) ** 2
        self.lipschitz = torch.where(largest > 0, largest, 1.0)
        self.history: list[Tensor] = []
        self.gap = None

    @torch.no_grad()
    def goes_on(self, codes: Tensor, fit: Tensor) -> bool:
        """Record an iterate and its fit D x; False once it is good enough or the last."""
        k = len(self.history)
        self.history.append(objective(self.Y - fit, codes, self.lam))
        if self.callback is not None:
            self.callback(k, codes.detach().to(self.dtype))
        last = k == self.max_iterations
        look = self.tol is not None and k % _CHECK_EVERY == 0
        if last or look:
            self.gap = relative_gap(self.Y, self.D, codes, self.lam)
        return not last and not (look and bool((self.gap <= self.tol).all()))

    def solution(self, codes: Tensor) -> Solution:
        """The answer, with a warning if the last certificate was not good enough."""
        k = len(self.history) - 1
        warn_unless_converged(self.solver, self.gap, self.tol, k)
        history = torch.stack(self.history).to(self.dtype)
        return Solution(codes.to(self.dtype), self.gap.to(self.dtype), k, history)
