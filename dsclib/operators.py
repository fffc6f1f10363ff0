r"""A dictionary as a linear map: synthesize a signal from codes, analyze a signal into codes.

Every operator has ``synthesize`` (D x) and its exact adjoint ``analyze`` (D'y), and costs no
more than its atoms are long: the convolutional ones are linear in the length of the signal.
Their atoms are copies of a few filters, shifted by multiples of the stride q
:cite:p:`papyan2017working`.

Boundaries of a convolution: ``"circular"`` wraps atoms around the end, so that T positions
make a signal of T q samples; ``"zero"`` keeps every atom inside, so that T positions make
(T - 1) q + L samples.

Two atoms overlap if on every axis their positions are less than the reach p = ceil(L / q)
apart. All atoms that overlap an atom, itself included, are its stripe: 2 p - 1 positions an
axis. How many entries of a code are active in any one stripe is its local sparsity, and
takes the place of their number in every guarantee.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    as_choice,
    as_count,
    as_dictionary,
    as_signals,
    as_tensor,
    check_axes,
    match,
)


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

    channels = None
    reach = ()

    def __init__(self, D):
        self.matrix = as_dictionary(D)

    def __repr__(self) -> str:
        return "Dense(m={}, n={})".format(*self.matrix.shape)

    def synthesize(self, x) -> Tensor:
        """Signals (B, m) of the codes ``x`` (B, n)."""
        return self.as_codes(x, "x") @ self.matrix.T

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

    def local_sparsity(self, codes) -> Tensor:
        """Number of nonzero entries (B,) of each code: all atoms are one stripe."""
        return (self.as_codes(codes, "codes") != 0).sum(dim=1)

    def lipschitz(self) -> float:
        r"""Largest eigenvalue of :math:`D^\top D`, the squared spectral norm, by SVD."""
        return torch.linalg.matrix_norm(self.matrix.detach().double(), ord=2).item() ** 2

    def as_codes(self, x, name: str = "x") -> Tensor:
        """Return ``x`` as a tensor if it is a batch of codes of this operator."""
        x = as_tensor(x, name, "(B, n)", like=self.matrix)
        match(x, self.matrix, name, "D")
        n = self.matrix.shape[1]
        if x.shape[1] != n:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected (B, {n}) since D has {n} atoms: "
                "check which axis is which"
            )
        return x


class _Convolution:
    """What the one- and the two-dimensional convolution share; an axis at a time."""

    _axes: int
    _shapes: tuple[str, str, str, str]  # of filters, codes, signals and a size
    _channel_shapes: tuple[str, str]  # of filters and signals that have channels
    _grid: int  # frequencies an axis in lipschitz(), per block an atom reaches beyond its own
    _convolve: staticmethod
    _transpose: staticmethod

    def __init__(self, filters, stride: int, boundary: str = "circular"):
        filters = as_tensor(filters, "filters")
        many = filters.ndim == self._axes + 2
        check_axes(filters, "filters", (self._channel_shapes if many else self._shapes)[0])
        self.filters = filters
        self.channels = filters.shape[1] if many else None
        self.stride = as_count(stride, "stride")
        self.boundary = as_choice(boundary, "boundary", ("circular", "zero"))
        self._kernel = filters if many else filters[:, None]
        self._window = tuple(filters.shape[-self._axes :])
        # Blocks of one stride that an atom reaches over, a number an axis.
        self.reach = tuple(-(-length // self.stride) for length in self._window)

    def __repr__(self) -> str:
        shape = tuple(self.filters.shape)
        return f"{type(self).__name__}({shape}, stride={self.stride}, boundary={self.boundary!r})"

    def synthesize(self, x) -> Tensor:
        """Signals of the codes ``x``: every entry adds its filter at its position."""
        x = self.as_codes(x, "x")
        size = tuple(self._signal_length(t, L) for t, L in zip(x.shape[2:], self._window))
        self._positions(size, "x")
        y = self._transpose(x, self._kernel, stride=self.stride)
        if self.boundary == "circular":
            for axis, n in enumerate(size, start=2):
                y = _fold(y, axis, n)
        return y[:, 0] if self.channels is None else y

    def analyze(self, y) -> Tensor:
        """Inner products of the signals ``y`` with every atom, shaped like codes."""
        shape = self._shapes[2] if self.channels is None else self._channel_shapes[1]
        y = as_tensor(y, "y", shape, like=self.filters)
        match(y, self.filters, "y", "filters")
        if self.channels is None:
            y = y[:, None]
        elif y.shape[1] != self.channels:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, expected {shape} with K = {self.channels}, the "
                "channels of the filters: check which axis is which"
            )
        self._positions(y.shape[2:], "y")
        if self.boundary == "circular":
            for axis, length in enumerate(self._window, start=2):
                beyond = max(length - self.stride, 0)
                y = torch.cat([y, y.narrow(axis, 0, beyond)], dim=axis)
        return self._convolve(y, self._kernel, stride=self.stride)

    def local_sparsity(self, codes) -> Tensor:
        """Largest number (B,) of nonzero entries of each code in any stripe."""
        active = (self.as_codes(codes, "codes") != 0).sum(dim=1)
        for axis in range(self._axes):
            active = self.stripes(active, axis).sum(dim=-1)
        return active.flatten(1).amax(dim=1)

    def stripes(self, values, axis: int, fill: float = 0) -> Tensor:
        """Gather, for every position, what its stripe holds along one axis.

        ``values`` has shape (..., T) or (..., T1, T2), ``axis`` is 0 or 1. A new last axis
        runs over the at most 2 p - 1 positions; ``fill`` stands for those beyond a zero
        boundary. A circular axis shorter than 2 p - 1 is one stripe, each position once.
        """
        dim, beyond = axis - self._axes, self.reach[axis] - 1
        T = values.shape[dim]
        if self.boundary == "zero":
            pad = [0, 0] * (-1 - dim) + [beyond, beyond]
            values = F.pad(values, pad, value=fill)
        elif 2 * beyond >= T:
            return values.unsqueeze(-1).transpose(dim - 1, -1).expand(*values.shape, T)
        else:
            ends = values.narrow(dim, T - beyond, beyond), values.narrow(dim, 0, beyond)
            values = torch.cat([ends[0], values, ends[1]], dim=dim)
        return values.unfold(dim, 2 * beyond + 1, 1)

    def code_shape(self, size) -> tuple[int, ...]:
        """Shape of one code, (C, T) or (C, T1, T2), of a signal of ``size`` samples.

        ``size`` is N, or (N1, N2), whether or not there are channels. ``ValueError`` if no
        whole number of atoms fits it.
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
        size = tuple(self.stride * (2 * k - 1) for k in self.reach)
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
        missing = [k * q - length for k, length in zip(self.reach, self._window)]
        P = F.pad(self._kernel.detach().double(), [p for m in reversed(missing) for p in (0, m)])
        for axis, k in enumerate(self.reach):
            points = max(1, self._grid * (k - 1))
            at = 2 + 2 * axis
            P = torch.fft.fft(P.unflatten(at, (k, q)), n=points, dim=at)
            factor /= math.cos(math.pi * (k - 1) / points)
        # (C, K, frequencies and phases in turn) -> (frequencies, K and phases, C)
        P = P.permute(*range(2, P.ndim, 2), 1, *range(3, P.ndim, 2), 0)
        P = P.flatten(0, self._axes - 1).flatten(1, self._axes + 1)
        gram = P @ P.mH if P.shape[1] <= P.shape[2] else P.mH @ P
        return factor * torch.linalg.eigvalsh(gram).max().item()

    def as_codes(self, x, name: str = "x") -> Tensor:
        """Return ``x`` as a tensor if it is a batch of codes of this operator."""
        x = as_tensor(x, name, self._shapes[1], like=self.filters)
        match(x, self.filters, name, "filters")
        if x.shape[1] != len(self.filters):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected {self._shapes[1]} with "
                f"C = {len(self.filters)}, one channel a filter: check which axis is which"
            )
        return x

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

    Codes (B, C, T), signals (B, N) with N = T q (circular) or (T - 1) q + L (zero); signals
    (B, K, N) if the filters have K channels.

    Parameters
    ----------
    filters : tensor, shape (C, L) or (C, K, L)
        One filter a row, or for signals of K channels one a slice; length 1 where a theorem
        needs unit atoms.
    stride : int
        Distance q of neighbouring positions, in samples.
    boundary : {"circular", "zero"}
        Whether atoms wrap around the end of the signal or stay inside it.

    Attributes
    ----------
    channels : int or None
        K, or ``None`` where filters and signals have no axis for channels.
    reach : tuple of int
        Strides an atom reaches over, p = ceil(L / q), a number an axis.

    Raises
    ------
    ValueError
        If the filters are not finite or have the wrong number of axes, ``stride < 1`` or the
        boundary is unknown; from the methods if a signal has other channels, or is not of a
        length that a whole number of strides fills.
    """

    _axes, _grid = 1, 1024
    _shapes = "(C, L)", "(B, C, T)", "(B, N)", "a number N"
    _channel_shapes = "(C, K, L)", "(B, K, N)"
    _convolve, _transpose = staticmethod(F.conv1d), staticmethod(F.conv_transpose1d)


class Conv2d(_Convolution):
    r"""A convolutional dictionary for images.

    .. math:: y_{ij} = \sum_{c, t, u} x_{c t u}\, f_c(i - q t, j - q u)

    Codes (B, C, T1, T2), signals (B, N1, N2), or (B, K, N1, N2) if the filters have K
    channels; sizes, boundaries and attributes as in :class:`Conv1d`, an axis at a time.

    Parameters
    ----------
    filters : tensor, shape (C, h, w) or (C, K, h, w)
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
    _channel_shapes = "(C, K, h, w)", "(B, K, N1, N2)"
    _convolve, _transpose = staticmethod(F.conv2d), staticmethod(F.conv_transpose2d)
