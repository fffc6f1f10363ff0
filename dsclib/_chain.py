"""The dictionaries of a deep model: operators, each for the codes of the one before."""

from __future__ import annotations

from torch import Tensor

from ._checks import match
from .operators import Conv1d, Conv2d, Dense


def as_chain(dictionaries) -> tuple:
    """Return ``dictionaries`` as operators of one kind that fit on each other, or refuse them."""
    kinds = Dense, Conv1d, Conv2d
    if isinstance(dictionaries, (Tensor, *kinds)):
        raise ValueError(
            f"dictionaries is a single {type(dictionaries).__name__}, expected a sequence of them, "
            "one a layer: use [D]"
        )
    layers = tuple(D if isinstance(D, kinds) else Dense(D) for D in dictionaries)
    if not layers:
        raise ValueError("dictionaries is empty, expected one a layer, outermost first: use [D]")
    for j, (above, D) in enumerate(zip(layers, layers[1:]), start=2):
        if type(D) is not type(above):
            raise ValueError(
                f"layer {j} is {D!r} on {above!r}, expected operators of one kind: turn all into "
                "matrices with to_matrix(size)"
            )
        match(weights_of(D), weights_of(above), f"layer {j}", f"layer {j - 1}")
        if isinstance(D, Dense):
            came, expected, what = D.matrix.shape[0], above.matrix.shape[1], ("rows", "atoms")
        else:
            came, expected, what = D.channels, len(above.filters), ("channels", "filters")
        if came != expected:
            raise ValueError(
                f"layer {j} has {came or 'no'} {what[0]}, expected {expected}, one for each of the "
                f"{what[1]} of layer {j - 1}: its signals are the codes of that layer"
            )
    return layers


def weights_of(operator) -> Tensor:
    """The numbers an operator is made of: its matrix or its filters."""
    return operator.matrix if isinstance(operator, Dense) else operator.filters
