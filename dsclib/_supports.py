"""Supports of sparse atoms: which rows each atom uses, evenly and with little in common.

Atoms with equal magnitudes interact as much as they share rows, so the fewer rows any two
supports share the lower the coherence.
"""

from __future__ import annotations

import numpy as np

_ROWS, _STEPS = 64, 500  # exchanges: rows looked at in a step, and steps without gain


def even_supports(atoms: int, nonzeros: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers (atoms, nonzeros) such that all rows are used about equally often.

    The use of two rows differs by at most 1, and falls with the row number. With
    atoms * nonzeros <= rows no two atoms share a row; up to 2 * rows no two atoms share more
    than one if that is possible, which is while nonzeros < atoms; above that they share as
    few as a search by exchanges finds.
    """
    if atoms * nonzeros <= 2 * rows:
        supports = _pairs(atoms, nonzeros, rows)
        return supports[rng.permutation(atoms)]
    uses = _exchange(_spread_out(atoms, nonzeros, rows, rng), rng)
    uses = uses[:, np.argsort(-uses.sum(axis=0), kind="stable")]
    return np.nonzero(uses)[1].reshape(atoms, nonzeros)


def _pairs(atoms: int, nonzeros: int, rows: int) -> np.ndarray:
    """Every row joins two atoms at most: the rows used twice are the edges of a graph."""
    n_edges = max(0, atoms * nonzeros - rows)
    degrees = np.full(atoms, 2 * n_edges // atoms)
    degrees[: 2 * n_edges % atoms] += 1
    supports: list[list[int]] = [[] for _ in range(atoms)]
    row = 0
    for a, b in _graph(degrees):
        supports[a].append(row)
        supports[b].append(row)
        row += 1
    for support in supports:
        missing = nonzeros - len(support)
        support.extend(range(row, row + missing))
        row += missing
    return np.array(supports)


def _graph(degrees: np.ndarray) -> list[tuple[int, int]]:
    """Edges of a graph whose degrees are given and differ by at most 1.

    Without parallel edges where there are enough neighbours (Havel and Hakimi: join the node
    that lacks most to those that lack most after it); else on top of complete graphs.
    """
    lacking, n, edges = degrees.copy(), len(degrees), []
    while lacking.max() > n - 1:
        edges += [(a, b) for a in range(n) for b in range(a)]
        lacking -= n - 1
    while lacking.max() > 0:
        first, *others = np.argsort(-lacking, kind="stable")
        others = others[: lacking[first]]
        edges += [(first, b) for b in others]
        lacking[others] -= 1
        lacking[first] = 0
    return edges


def _spread_out(atoms: int, nonzeros: int, rows: int, rng) -> np.ndarray:
    """Random supports, as a 0-1 matrix (atoms, rows): each takes the rows used least."""
    uses = np.zeros((atoms, rows))
    for support in uses:
        support[np.lexsort((rng.random(rows), uses.sum(axis=0)))[:nonzeros]] = 1
    return uses


def _exchange(uses: np.ndarray, rng) -> np.ndarray:
    """Let atoms exchange rows until no two share more than one, or nothing is gained.

    A step takes two atoms that share too much and moves one shared row from one of them to
    the atom, and for the row, for which the number of pairs of shared rows falls most.
    """
    uses = uses.copy()
    shared = uses @ uses.T
    np.fill_diagonal(shared, 0)
    cost = best_cost = (shared * (shared - 1)).sum() / 4  # both orders of a pair
    best, idle = uses.copy(), 0
    while cost > 0 and idle < _STEPS:
        a, c = rng.choice(np.argwhere(shared > 1))
        r = rng.choice(np.flatnonzero(uses[a] * uses[c]))
        free = np.flatnonzero(uses[a] == 0)
        if len(free) == 0:
            break
        free = rng.permutation(free)[:_ROWS]
        # gain[b, i]: by how much the cost changes if a gets free[i] from b, and b gets r.
        loses, wins = uses[:, [r]] * (1 - uses[:, free]), uses[:, free] * (1 - uses[:, [r]])
        loses[a] = 0
        gain = (shared[a] + 1) @ wins - (shared[a] - 1) @ loses + shared @ (loses - wins)
        gain -= (shared[a] + 1)[:, None]  # b itself is among those that have the row
        gain[wins == 0] = np.inf  # b must have the row, and not have r
        least = gain.min()
        if not np.isfinite(least):
            idle += 1
            continue
        b, i = rng.choice(np.argwhere(gain == least))
        uses[[a, b], r] = 0, 1
        uses[[a, b], free[i]] = 1, 0
        for atom in (a, b):
            shared[atom] = shared[:, atom] = uses @ uses[atom]
            shared[atom, atom] = 0
        cost += least
        idle += 1
        if cost < best_cost:
            best, best_cost, idle = uses.copy(), cost, 0
    return best
