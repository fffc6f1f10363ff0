"""Checks at the door: what comes in becomes a tensor once, or is refused with a sentence.

Every message says what came, what was expected and how to mend it.
"""

from __future__ import annotations

import numbers

import numpy as np
import torch
from torch import Tensor


def as_tensor(x, name: str, shape: str | None = None, *, like: Tensor | None = None) -> Tensor:
    """Return ``x`` as a finite float32 or float64 tensor.

    ``shape`` names the expected axes, for example ``"(B, m)"``; their number is checked.
    NumPy arrays, lists and integers are converted (integers to torch's default dtype);
    ``like`` gives the dtype and device that such non-tensors take on.
    """
    if isinstance(x, Tensor):
        out = x
    else:
        try:
            out = torch.as_tensor(np.asarray(x))
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"{name} is a {type(x).__name__} that cannot become a tensor ({err}): "
                "pass a torch tensor or a NumPy array of numbers"
            ) from None
        if like is not None:
            out = out.to(dtype=like.dtype, device=like.device)
    if out.is_complex():
        raise ValueError(f"{name} is complex, real numbers were expected: pass {name}.real")
    if not out.is_floating_point():
        out = out.to(torch.get_default_dtype())
    if out.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} has dtype {out.dtype}, expected float32 or float64: use {name}.float()"
        )
    if shape is not None:
        check_axes(out, name, shape)
    if not torch.isfinite(out.detach()).all():
        bad = int((~torch.isfinite(out.detach())).sum())
        raise ValueError(
            f"{name} holds {bad} NaN or infinite entries of {out.numel()}, expected finite "
            "numbers: find where they arise, or replace them (torch.nan_to_num)"
        )
    return out


def check_axes(x: Tensor, name: str, shape: str) -> None:
    """Refuse ``x`` unless it has as many axes as ``shape`` names, none of them empty."""
    axes = [a.strip() for a in shape.strip("()").split(",") if a.strip()]
    if x.ndim != len(axes):
        hint = f"for a single one use {name}[None]" if x.ndim == len(axes) - 1 else "reshape it"
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected {len(axes)} axes {shape}: {hint}"
        )
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {shape} with no empty axis")


def as_dictionary(D, name: str = "D", *, unit: bool = False) -> Tensor:
    """Return ``D`` as a matrix (m, n); with ``unit`` refuse atoms whose length is not 1."""
    D = as_tensor(D, name, "(m, n)")
    if unit:
        norms = D.detach().norm(dim=0)
        off = (norms - 1).abs().max().item()
        if off > 1e-3 if D.dtype == torch.float32 else off > 1e-6:
            raise ValueError(
                f"{name} has atoms of length {norms.min():.4g} to {norms.max():.4g}, expected "
                f"unit-norm columns: divide by {name}.norm(dim=0)"
            )
    return D


def as_signals(Y, D: Tensor, name: str = "Y", dictionary: str = "D") -> Tensor:
    """Return ``Y`` as a batch (B, m) of signals for the dictionary ``D`` (m, n), by its name."""
    Y = as_tensor(Y, name, "(B, m)", like=D)
    match(Y, D, name, dictionary)
    if Y.shape[1] != D.shape[0]:
        hint = f"pass {name}.T" if Y.shape[0] == D.shape[0] else "check which axis is which"
        raise ValueError(
            f"{name} has shape {tuple(Y.shape)}, expected (B, {D.shape[0]}) since "
            f"{dictionary} has {D.shape[0]} rows; signals are rows of a batch: {hint}"
        )
    return Y


def as_weights(W, D: Tensor, name: str = "W") -> Tensor:
    """Return analysis weights ``W``, shaped like ``D``; ``None`` stands for ``W = D``."""
    if W is None:
        return D
    W = as_tensor(W, name, "(m, n)", like=D)
    match(W, D, name, "D")
    if W.shape != D.shape:
        raise ValueError(
            f"{name} has shape {tuple(W.shape)}, expected that of D, {tuple(D.shape)}: "
            "one analysis vector per atom"
        )
    return W


def match(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    """Refuse two tensors that differ in dtype or device."""
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(
            f"{name_a} is {a.dtype} on {a.device} but {name_b} is {b.dtype} on {b.device}, "
            f"expected the same for both: use {name_a}.to({name_b})"
        )


def as_threshold(t, name: str, z: Tensor) -> Tensor | float:
    """Return a nonnegative threshold that broadcasts against ``z``."""
    if isinstance(t, numbers.Real):
        if not (0 <= t < float("inf")):
            raise ValueError(f"{name} = {t}, expected a finite number >= 0")
        return float(t)
    t = as_tensor(t, name, like=z)
    match(t, z, name, "z")
    try:
        torch.broadcast_shapes(t.shape, z.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, expected one that broadcasts against "
            f"{tuple(z.shape)}: a number, (n,), or (B, 1)"
        ) from None
    if (t.detach() < 0).any():
        raise ValueError(
            f"{name} has entries down to {t.min().item():.4g}, expected all >= 0: clamp it at 0"
        )
    return t


def as_count(k, name: str, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Return ``k`` as an integer between ``at_least`` and ``at_most``."""
    upper = "" if at_most is None else f" and at most {at_most}"
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise ValueError(f"{name} = {k!r}, expected a whole number, at least {at_least}{upper}")
    if k < at_least or (at_most is not None and k > at_most):
        raise ValueError(f"{name} = {k}, expected at least {at_least}{upper}")
    return int(k)


def as_number(x, name: str, *, positive: bool = False, at_most: float = float("inf")) -> float:
    """Return ``x`` as a finite float, >= 0 (or > 0 with ``positive``) and <= ``at_most``."""
    if isinstance(x, Tensor) and x.numel() == 1:
        x = x.item()
    low = "> 0" if positive else ">= 0"
    high = "" if at_most == float("inf") else f" and <= {at_most}"
    good = isinstance(x, numbers.Real) and not isinstance(x, bool)
    if not good or not (0 < x if positive else 0 <= x) or not x <= at_most or x == float("inf"):
        raise ValueError(f"{name} = {x!r}, expected a finite number {low}{high}")
    return float(x)


def as_groups(n: int, group_size, what: str = "atoms") -> int:
    """Return ``group_size`` if it divides ``n``."""
    d = as_count(group_size, "group_size", at_most=n)
    if n % d:
        near = min((k for k in range(1, n + 1) if n % k == 0), key=lambda k: abs(k - d))
        raise ValueError(
            f"group_size = {d} does not divide the {n} {what}, expected a divisor: "
            f"the nearest is {near}"
        )
    return d


def per_layer(values, depth: int, name: str) -> list:
    """One value for each of ``depth`` layers: a single number serves all of them."""
    if isinstance(values, Tensor | np.ndarray):
        values = values.tolist()
    if isinstance(values, numbers.Real):
        return [values] * depth
    values = list(values)
    if len(values) != depth:
        raise ValueError(
            f"{name} has {len(values)} entries, expected {depth}, one a layer, outermost first"
        )
    return values


def as_choice(x, name: str, choices) -> str:
    """Return ``x`` if it is one of ``choices``."""
    if x not in choices:
        raise ValueError(f"{name} = {x!r}, expected one of {', '.join(map(repr, choices))}")
    return x


def generator(seed, device="cpu") -> torch.Generator | None:
    """A generator seeded with ``seed``; ``None`` stands for torch's default generator."""
    if seed is None:
        return None
    return torch.Generator(device=device).manual_seed(as_count(seed, "seed", at_least=0))


def as_labels(x, name: str) -> Tensor:
    """Return ``x`` as int64 labels (N,) on the CPU."""
    try:
        labels = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x))
    except (TypeError, ValueError) as err:
        raise ValueError(
            f"{name} is a {type(x).__name__} that cannot become a tensor ({err}), expected "
            "integers (N,): number the classes first"
        ) from None
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"{name} has dtype {labels.dtype} and shape {tuple(labels.shape)}, expected integers "
            f"(N,), N >= 1: use {name}.long() or flatten it"
        )
    return labels.detach().cpu().long()


def as_pair(a, b, name_a: str, name_b: str) -> tuple[Tensor, Tensor]:
    """Two tensors of one dtype and device; one that is no tensor yet follows the other."""
    if isinstance(b, Tensor) and not isinstance(a, Tensor):
        b, a = as_pair(b, a, name_b, name_a)
        return a, b
    a = as_tensor(a, name_a)
    b = as_tensor(b, name_b, like=a)
    match(a, b, name_a, name_b)
    return a, b
