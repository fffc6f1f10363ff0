"""Random local supports: entries are added wherever no stripe is full yet."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(operator, active: Tensor, s: int, random) -> Tensor:
    """Make random entries of ``active`` (B, C, *T) true until no stripe takes another."""
    shape = active.shape[2:]
    cells = [_cells(T, p, operator.boundary) for T, p in zip(shape, operator.reach)]
    colours = [[]]
    for axis in cells:
        colours = [[*colour, part] for colour in colours for part in (axis[::2], axis[1::2])]
    colours = [colour for colour in colours if all(len(part) for part in colour)]
    used = active.sum(dim=1, dtype=torch.int32)
    added = s > 0
    while added:
        added = False
        for colour in colours:
            free = (active.shape[1] - used).masked_fill_(_full(operator, used, s), 0)
            # The largest of u^(1/w) falls on each place with probability ~ its weight w.
            score = torch.rand(free.shape, generator=random, dtype=torch.float64)
            score = torch.where(free > 0, score ** (1 / free), -1.0)
            score, place = _best_of_cells(score, colour)
            which, cell = (score >= 0).nonzero(as_tuple=True)
            if len(which) == 0:
                continue
            added = True
            at = which, *(index[which, cell] for index in place)
            taken = active[at[0], :, *at[1:]]
            channel = torch.rand(taken.shape, generator=random).masked_fill_(taken, -1).argmax(1)
            active[at[0], channel, *at[1:]] = True
            used[at] += 1
    return active


def _full(operator, used: Tensor, s: int) -> Tensor:
    """Whether some stripe over a position holds ``s`` active entries already."""
    held = over_stripes(operator, used, torch.sum, 0)
    return over_stripes(operator, held, torch.amax, 0) >= s


def over_stripes(operator, values: Tensor, reduce, fill) -> Tensor:
    """Reduce ``values`` (B, *T) over the stripe of every position."""
    for axis in range(len(operator.reach)):
        values = reduce(operator.stripes(values, axis, fill), dim=-1)
    return values


def _cells(positions: int, reach: int, boundary: str) -> Tensor:
    """Cut an axis into cells at least as wide as a stripe: their positions, a row a cell.

    Around a circle the number of cells is even, or one, so that two colours can take turns.
    Rows of narrower cells repeat their last position.
    """
    n = positions // (2 * reach - 1)
    if boundary == "circular":
        n -= n % 2
    n = max(n, 1)
    edges = torch.arange(n + 1) * positions // n
    widest = int(edges.diff().max())
    return torch.minimum(edges[:-1, None] + torch.arange(widest), edges[1:, None] - 1)


def _best_of_cells(score: Tensor, cells: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Best score in every cell (B, number of cells), and where it is on each axis."""
    axes = len(cells)
    for axis, part in enumerate(cells):
        at = 1 + 2 * axis
        score = score.index_select(at, part.flatten()).unflatten(at, part.shape)
    score = score.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2))
    best, inside = score.flatten(axes + 1).max(dim=-1)
    inside = torch.unravel_index(inside, [part.shape[1] for part in cells])
    place = []
    for axis, (part, i) in enumerate(zip(cells, inside)):
        cell = torch.arange(len(part)).reshape(-1, *[1] * (axes - 1 - axis))
        place.append(part[cell, i].flatten(1))
    return best.flatten(1), place
