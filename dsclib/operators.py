r"""A dictionary as a linear map: synthesize a signal from codes, analyze a signal into codes.

Every operator has ``synthesize`` (D x) and its exact adjoint ``analyze`` (D'y), and costs no
more than its atoms are long: the convolutional ones are linear in the length of the signal.
Their atoms are copies of a few filters, shifted by multiples of the stride q
:cite:p:`papyan2017working`.

Boundaries of a convolution: ``"circular"`` wraps atoms around the end, so that T positions
make a signal of T q samples; ``"zero"`` keeps every atom inside, so that T positions make
(T - 1) q + L samples.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import as_choice, as_count, as_dictionary, as_signals, as_tensor, match


class Dense:
    r"""A dictionary given as a matrix.

    .. math:: \text{synthesize}(x) = D x, \qquad \text{analyze}(y) = D^\top y

    Parameters
    ----------
    D : tensor, shape (m, n)
        Atoms as columns.

    Raises
    ------
    ValueError
        If ``D`` is not a finite matrix.
    """

    def __init__(self, D):
        self.matrix = as_dictionary(D)

    def __repr__(self) -> str:
        return "Dense(m={}, n={})".format(*self.matrix.shape)

    def synthesize(self, x) -> Tensor:
        """Signals (B, m) of the codes ``x`` (B, n)."""
        x = as_tensor(x, "x", "(B, n)", like=self.matrix)
        match(x, self.matrix, "x", "D")
        n = self.matrix.shape[1]
        if x.shape[1] != n:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (B, {n}) since D has {n} atoms: "
                "check which axis is which"
            )
        return x @ self.matrix.T

    def analyze(self, y) -> Tensor:
        """Inner products (B, n) of the signals ``y`` (B, m) with every atom."""
        return as_signals(y, self.matrix, "y") @ self.matrix

    def code_shape(self, size: int) -> tuple[int]:
        """Shape (n,) of one code of a signal of ``size`` = m samples."""
        m, n = self.matrix.shape
        if as_count(size, "size") != m:
            raise ValueError(f"size = {size}, expected {m}, the number of rows of D")
        return (n,)

    def to_matrix(self, size: int | None = None) -> Tensor:
        """The matrix D (m, n) itself; ``size``, if given, must be m."""
        if size is not None:
            self.code_shape(size)
        return self.matrix

    def local_matrix(self) -> Tensor:
        """The matrix D (m, n) itself: all atoms may overlap."""
        return self.matrix

    def lipschitz(self) -> float:
        r"""Largest eigenvalue of :math:`D^\top D`, the squared spectral norm, by SVD."""
        return torch.linalg.matrix_norm(self.matrix.detach().double(), ord=2).item() ** 2


class _Convolution:
    """What the one- and the two-dimensional convolution share; an axis at a time."""

    _axes: int
    _shapes: tuple[str, str, str, str]  # of filters, codes, signals and a size
    _grid: int  # frequencies an axis in lipschitz(), per block an atom reaches beyond its own
    _convolve: staticmethod
    _transpose: staticmethod

    def __init__(self, filters, stride: int, boundary: str = "circular"):
        self.filters = as_tensor(filters, "filters", self._shapes[0])
        self.stride = as_count(stride, "stride")
        self.boundary = as_choice(boundary, "boundary", ("circular", "zero"))
        self._window = tuple(self.filters.shape[1:])
        # Blocks of one stride that an atom reaches over, a number an axis.
        self._blocks = tuple(-(-length // self.stride) for length in self._window)

    def __repr__(self) -> str:
        shape = tuple(self.filters.shape)
        return f"{type(self).__name__}({shape}, stride={self.stride}, boundary={self.boundary!r})"

    def synthesize(self, x) -> Tensor:
        """Signals of the codes ``x``: every entry adds its filter at its position."""
        x = as_tensor(x, "x", self._shapes[1], like=self.filters)
        match(x, self.filters, "x", "filters")
        if x.shape[1] != len(self.filters):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected {self._shapes[1]} with "
                f"C = {len(self.filters)}, one channel a filter: check which axis is which"
            )
        size = tuple(self._signal_length(t, L) for t, L in zip(x.shape[2:], self._window))
        self._positions(size, "x")
        y = self._transpose(x, self.filters[:, None], stride=self.stride)[:, 0]
        if self.boundary == "circular":
            for axis, n in enumerate(size, start=1):
                y = _fold(y, axis, n)
        return y

    def analyze(self, y) -> Tensor:
        """Inner products of the signals ``y`` with every atom, shaped like codes."""
        y = as_tensor(y, "y", self._shapes[2], like=self.filters)
        match(y, self.filters, "y", "filters")
        self._positions(y.shape[1:], "y")
        if self.boundary == "circular":
            for axis, length in enumerate(self._window, start=1):
                beyond = max(length - self.stride, 0)
                y = torch.cat([y, y.narrow(axis, 0, beyond)], dim=axis)
        return self._convolve(y[:, None], self.filters[:, None], stride=self.stride)

    def code_shape(self, size) -> tuple[int, ...]:
        """Shape of one code, (C, T) or (C, T1, T2), of a signal of ``size`` samples.

        ``size`` is N, or (N1, N2). ``ValueError`` if no whole number of atoms fits it.
        """
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
        if len(sizes) != self._axes:
            raise ValueError(f"size = {size!r}, expected {self._shapes[3]}")
        sizes = [as_count(n, "size") for n in sizes]
        return (len(self.filters), *self._positions(sizes, "size"))

    def to_matrix(self, size) -> Tensor:
        """Dense dictionary (number of samples, number of codes) for signals of ``size``.

        Columns are ordered as in ``codes.flatten(1)``: all positions of the first filter,
        then all of the second; rows as in ``signals.flatten(1)``.
        """
        shape = self.code_shape(size)
        units = torch.eye(math.prod(shape)).to(self.filters)
        return self.synthesize(units.unflatten(1, shape)).flatten(1).T

    def local_matrix(self) -> Tensor:
        """The smallest dense dictionary in which atoms overlap as they do in a long signal.

        Circular, just long enough that no atom meets another around both ends: each atom
        sees its whole stripe once. Its coherence and Babel function are therefore those of
        the convolutional dictionary for signals of any length, with s counting the active
        atoms of one stripe :cite:p:`papyan2017working`.
        """
        size = tuple(self.stride * (2 * k - 1) for k in self._blocks)
        return type(self)(self.filters, self.stride).to_matrix(size)

    def lipschitz(self) -> float:
        r"""Bound on the largest eigenvalue of :math:`D^\top D`, for signals of any length.

        Never too small; above the limit for long signals by at most 5e-6 of it in one
        dimension and 1e-2 in two. It is the largest squared singular value of the polyphase
        matrices :math:`P(\omega)_{rc} = \sum_k f_c(kq + r) e^{-i\omega k}` on a grid of
        frequencies, enlarged by what can lie between: for a trigonometric polynomial of
        degree p on n points that is a factor :math:`1/\cos(\pi p / n)` an axis (Ehlich and
        Zeller, 1964).
        """
        q, factor = self.stride, 1.0
        missing = [k * q - length for k, length in zip(self._blocks, self._window)]
        P = F.pad(self.filters.detach().double(), [p for m in reversed(missing) for p in (0, m)])
        for axis, k in enumerate(self._blocks):
            points = max(1, self._grid * (k - 1))
            at = 1 + 2 * axis
            P = torch.fft.fft(P.unflatten(at, (k, q)), n=points, dim=at)
            factor /= math.cos(math.pi * (k - 1) / points)
        # (C, frequencies and phases in turn) -> (frequencies, phases, C)
        P = P.permute(*range(1, P.ndim, 2), *range(2, P.ndim, 2), 0)
        P = P.flatten(0, self._axes - 1).flatten(1, self._axes)
        gram = P @ P.mH if P.shape[1] <= P.shape[2] else P.mH @ P
        return factor * torch.linalg.eigvalsh(gram).max().item()

    def _signal_length(self, positions: int, length: int) -> int:
        if self.boundary == "circular":
            return positions * self.stride
        return (positions - 1) * self.stride + length

    def _positions(self, sizes, name: str) -> list[int]:
        """Number of positions of an atom on every axis of a signal, if it is a whole one."""
        q, positions = self.stride, []
        for n, length in zip(sizes, self._window):
            if self.boundary == "circular":
                least, rule = -(-length // q) * q, f"a multiple of {q}, the stride, from"
            else:
                least, rule = length, f"a multiple of {q}, the stride, added to"
            if n < least or (n - least) % q:
                below = max(least, n - (n - least) % q)
                near = f"{below}" if n < below else f"{below} or {below + q}"
                raise ValueError(
                    f"{name}: a signal axis of {n} samples, expected {rule} {least} for filters "
                    f"of length {length} and boundary {self.boundary!r}: crop or pad it to {near}"
                )
            positions.append(n // q if self.boundary == "circular" else (n - length) // q + 1)
        return positions


def _fold(y: Tensor, axis: int, size: int) -> Tensor:
    """Cut ``axis`` to ``size`` samples, adding what lies beyond the end to the start."""
    beyond = y.shape[axis] - size
    pad = [0, 0] * (y.ndim - 1 - axis)
    if beyond <= 0:
        return F.pad(y, [*pad, 0, -beyond])
    return y.narrow(axis, 0, size) + F.pad(y.narrow(axis, size, beyond), [*pad, 0, size - beyond])


class Conv1d(_Convolution):
    r"""A convolutional dictionary for sequences.

    .. math:: y_i = \sum_{c, t} x_{c t}\, f_c(i - q t)

    Codes (B, C, T), signals (B, N) with N = T q (circular) or (T - 1) q + L (zero).

    Parameters
    ----------
    filters : tensor, shape (C, L)
        One filter a row; length 1 where a theorem needs unit atoms.
    stride : int
        Distance q of neighbouring positions, in samples.
    boundary : {"circular", "zero"}
        Whether atoms wrap around the end of the signal or stay inside it.

    Raises
    ------
    ValueError
        If the filters are not a finite matrix, ``stride < 1`` or the boundary is unknown;
        from the methods if a signal is not of a length that a whole number of strides fills.
    """

    _axes, _grid = 1, 1024
    _shapes = "(C, L)", "(B, C, T)", "(B, N)", "a number N"
    _convolve, _transpose = staticmethod(F.conv1d), staticmethod(F.conv_transpose1d)


class Conv2d(_Convolution):
    r"""A convolutional dictionary for images.

    .. math:: y_{ij} = \sum_{c, t, u} x_{c t u}\, f_c(i - q t, j - q u)

    Codes (B, C, T1, T2), signals (B, N1, N2); sizes and boundaries as in :class:`Conv1d`, an
    axis at a time.

    Parameters
    ----------
    filters : tensor, shape (C, h, w)
        One filter a slice; length 1 where a theorem needs unit atoms.
    stride : int
        Distance q of neighbouring positions, in samples, the same in both directions.
    boundary : {"circular", "zero"}
        Whether atoms wrap around the end of the signal or stay inside it.

    Raises
    ------
    ValueError
        As :class:`Conv1d`.
    """

    _axes, _grid = 2, 32
    _shapes = "(C, h, w)", "(B, C, T1, T2)", "(B, N1, N2)", "a pair (N1, N2)"
    _convolve, _transpose = staticmethod(F.conv2d), staticmethod(F.conv_transpose2d)
