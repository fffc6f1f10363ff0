"""The deep sparse model itself, for :mod:`dsclib.dsc`: a chain of dictionaries."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from . import theory
from ._chain import as_chain, weights_of
from ._checks import as_count, as_groups, as_number, as_tensor, generator, per_layer
from .codes import keep_largest, local_codes, sparse_codes
from .coherence import cumulative_coherence
from .operators import Conv1d, Conv2d, Dense
from .proximal import group_norms


class Sample(NamedTuple):
    """Signals y, codes (x_1, ..., x_J) and errors (e_0, ..., e_J) drawn from a model."""

    signals: Tensor
    codes: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]


class DeepSparseModel:
    r"""A chain of dictionaries :math:`D_1, \dots, D_J`, outermost first.

    Parameters
    ----------
    dictionaries : sequence
        Matrices (m, n_1), (n_1, n_2), ..., or operators of one kind: in a chain of convolutions
        the signals of layer j have as many channels as layer j - 1 has filters.
    group_size : int or sequence of J ints
        Atoms a group, one number for all layers or one a layer; 1 for convolutions.

    Attributes
    ----------
    operators : tuple
        :class:`dsclib.operators.Dense`, or the convolutions.
    depth : int
        J.
    group_sizes : tuple of int

    Raises
    ------
    ValueError
        If a layer does not fit the one before it, naming the layer.
    """

    def __init__(self, dictionaries, group_size=1):
        if isinstance(dictionaries, Tensor | Dense | Conv1d | Conv2d):
            dictionaries = [dictionaries]
        self.operators = as_chain(dictionaries)
        self.depth = len(self.operators)
        self.group_sizes = tuple(
            _group_size(operator, d, j)
            for j, (operator, d) in enumerate(
                zip(self.operators, per_layer(group_size, self.depth, "group_size")), start=1
            )
        )

    def __repr__(self) -> str:
        groups = "" if max(self.group_sizes) == 1 else f", group_size={self.group_sizes}"
        return f"DeepSparseModel([{', '.join(map(repr, self.operators))}]{groups})"

    def synthesize(self, codes) -> Tensor:
        r"""Signals :math:`D_1 \cdots D_J x_J` of the deepest codes."""
        return self.expand(codes)[0]

    def expand(self, codes) -> tuple[Tensor, ...]:
        r"""All layers of the deepest codes without errors, :math:`(x_0, x_1, \dots, x_J)`."""
        chain = [as_tensor(codes, "codes", like=weights_of(self.operators[-1]))]
        for operator in reversed(self.operators):
            chain.append(operator.synthesize(chain[-1]))
        return tuple(reversed(chain))

    @torch.no_grad()
    def sample(
        self,
        count: int,
        sparsity,
        *,
        noise=0.0,
        positions=None,
        magnitudes: tuple[float, float] | None = (0.5, 1.0),
        nonnegative: bool = False,
        seed: int | None = None,
    ) -> Sample:
        r"""Draw signals with the codes and errors that make them.

        The deepest codes are random. Going out, noise is added to the active entries of
        :math:`D_j x_j`, and the largest entries that :math:`s_{j-1}` allows are kept. What this
        changes is :math:`e_j`, so :math:`x_{j-1} = D_j x_j + e_j` holds to rounding.

        Parameters
        ----------
        count : int
            Number of signals B.
        sparsity : sequence of J ints
            :math:`s_1, \dots, s_J`: active atoms (groups), per stripe for a convolution.
        noise : float or sequence of J + 1 floats
            :math:`\|e_0\|_2 / \|x_0\|_2` of every signal, or such relative lengths for
            :math:`e_0, e_1, \dots, e_J`, those of the inner layers before the truncation.
        positions : int or tuple, optional
            Positions of the deepest codes; for convolutions only, and needed there.
        magnitudes : pair of floats, or None
            Sizes of the deepest entries, see :func:`dsclib.codes.sparse_codes`.
        nonnegative : bool
            Nonnegative codes in every layer: negative entries of the inner layers go to the
            error, of which there are none if :math:`D_2, \dots, D_J` are nonnegative.
        seed : int, optional
            ``None`` stands for torch's default generator.

        Returns
        -------
        Sample
            Signals, codes :math:`(x_1, \dots, x_J)`, errors :math:`(e_0, \dots, e_J)`.

        Raises
        ------
        ValueError
            If ``sparsity`` or ``noise`` has not one entry a layer, a layer has not as many atoms,
            or ``positions`` is missing or of no use.
        """
        sparsity = self._sparsity(sparsity)
        noise = self._errors(noise, "noise", rest=0.0)
        deepest, d = self.operators[-1], self.group_sizes[-1]
        gen = generator(seed)
        seed = None if gen is None else int(torch.randint(2**31, (), generator=gen))
        like = weights_of(deepest)
        options = dict(magnitudes=magnitudes, nonnegative=nonnegative, seed=seed, dtype=like.dtype)
        if isinstance(deepest, Dense):
            if positions is not None:
                raise ValueError(f"positions = {positions!r}, expected None for a dense model")
            n = like.shape[1]
            x = sparse_codes(count, n, sparsity[-1], group_size=d, **options)
        else:
            if positions is None:
                raise ValueError("positions is missing: say how long the deepest codes are")
            x = local_codes(deepest, count, positions, sparsity[-1], **options)
        codes, errors = [x.to(like.device)], []
        for j in range(self.depth - 1, 0, -1):
            made, d = self.operators[j].synthesize(codes[-1]), self.group_sizes[j - 1]
            made = _without_dust(made)
            active = group_norms(made, d) > 0
            active = active if d == 1 else active.repeat_interleave(d, dim=-1)
            x = made + _noise(made, noise[j + 1], gen, active)
            x = x.clamp(min=0) if nonnegative else x
            codes.append(keep_largest(self.operators[j - 1], x, sparsity[j - 1], d))
            errors.append(codes[-1] - made)
        made = self.operators[0].synthesize(codes[-1])
        errors.append(_noise(made, noise[1], gen))
        x = made + errors[-1]
        errors.append(_noise(x, noise[0], gen))
        return Sample(x + errors[-1], tuple(reversed(codes)), tuple(reversed(errors)))

    def certified_sparsity(self, weights=None) -> tuple[int, ...]:
        r"""Largest :math:`s_j` of every layer with a rate below 1.

        Parameters
        ----------
        weights : sequence of J, optional
            Analysis weights like the dictionaries, or None for those themselves.

        Returns
        -------
        tuple of int
            See :func:`dsclib.theory.certified_sparsity`.

        Raises
        ------
        ValueError
            If the atoms of a layer have not length 1, or weights are not normalised.
        """
        weights = [None] * self.depth if weights is None else weights
        weights = per_layer(weights, self.depth, "weights")
        layers = zip(self.operators, weights, self.group_sizes)
        return tuple(theory.certified_sparsity(D, W, d) for D, W, d in layers)

    def stability(self, sparsity, eps) -> tuple[float, ...]:
        r"""How far apart two solutions of one signal can be, layer by layer.

        .. math:: \delta_0 = 2 \varepsilon_0, \qquad \delta_j =
                  \frac{2 \varepsilon_j + \delta_{j-1}}{\sqrt{1 - \mu_1^{(j)}(2 s_j - 1)}}

        For :math:`(x_j), (x_j')` that both explain y with :math:`\|e_j\|_2 \le \varepsilon_j`:
        :math:`\|x_j - x_j'\|_2 \le \delta_j`. Without errors this is 0: the solution is unique.

        Parameters
        ----------
        sparsity : sequence of J ints
            :math:`s_1, \dots, s_J`: active atoms (groups), per stripe for a convolution.
        eps : sequence of J + 1 floats
            :math:`\varepsilon_0, \dots, \varepsilon_J` in the units of signals and codes.

        Returns
        -------
        tuple of J + 1 floats
            :math:`\delta_0, \dots, \delta_J`.

        Raises
        ------
        ValueError
            If :math:`\mu_1^{(j)}(2 s_j - 1) \ge 1` in a layer, with the layer and the numbers.

        Notes
        -----
        One step is :func:`dsclib.theory.stability_bound`, applied to an input that is itself
        uncertain; for the exact case see :cite:p:`papyan2017convolutional`.
        """
        sparsity = self._sparsity(sparsity)
        eps = self._errors(eps, "eps")
        deltas = [2 * eps[0]]
        layers = zip(self.operators, self.group_sizes, sparsity)
        for j, (operator, d, s) in enumerate(layers, start=1):
            mu = cumulative_coherence(operator.local_matrix(), None, d)
            crowd = mu[min(2 * s - 1, len(mu) - 1)]
            if crowd >= 1:
                raise ValueError(
                    f"layer {j}: s = {s} has mu_1({2 * s - 1}) = {crowd:.4g}, expected less than "
                    "1: take a smaller s or a less coherent dictionary in this layer"
                )
            deltas.append((2 * eps[j] + deltas[-1]) / math.sqrt(1 - crowd))
        return tuple(deltas)

    def to_dense(self, size=None) -> DeepSparseModel:
        """The same model as matrices, for signals of ``size`` samples (N, or (N1, N2)).

        Signals and codes are flattened, ``x.flatten(1)``. A dense model is returned as it is.
        """
        if isinstance(self.operators[0], Dense):
            return self
        matrices = []
        for operator in self.operators:
            matrices.append(operator.to_matrix(size))
            _, *size = operator.code_shape(tuple(size) if isinstance(size, list) else size)
        return DeepSparseModel(matrices)

    def _sparsity(self, sparsity) -> list[int]:
        counts = []
        values = per_layer(sparsity, self.depth, "sparsity")
        for j, (operator, d, s) in enumerate(zip(self.operators, self.group_sizes, values)):
            most = operator.matrix.shape[1] // d if isinstance(operator, Dense) else None
            counts.append(as_count(s, f"sparsity[{j}]", at_most=most))
        return counts

    def _errors(self, values, name: str, rest: float | None = None) -> list[float]:
        """J + 1 numbers; a single one is the first, and all others are ``rest``."""
        single = isinstance(values, numbers.Real) or getattr(values, "ndim", 1) == 0
        values = [values] if single else list(values)
        if single and rest is not None:
            values += [rest] * self.depth
        if len(values) != self.depth + 1:
            raise ValueError(
                f"{name} has {len(values)} entries, expected {self.depth + 1}: one for the signal "
                f"and one for each of the {self.depth} layers"
            )
        return [as_number(v, f"{name}[{j}]") for j, v in enumerate(values)]


def _without_dust(x: Tensor) -> Tensor:
    """Zero what rounding left where equal entries of atoms cancel: it is not active."""
    largest = x.flatten(1).abs().amax(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(x.abs() > 64 * torch.finfo(x.dtype).eps * largest, x, 0.0)


def _noise(x: Tensor, level: float, gen, where: Tensor | None = None) -> Tensor:
    """Gaussian noise ``level`` times as long as each ``x``, zero outside ``where``."""
    if level == 0:
        return torch.zeros_like(x)
    e = torch.randn(x.shape, generator=gen, dtype=x.dtype).to(x.device)
    e = e if where is None else e * where
    lengths = [t.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny) for t in (x, e)]
    scale = level * lengths[0] / lengths[1]
    return e * scale.reshape(-1, *[1] * (x.ndim - 1))


def _group_size(operator, d, j: int) -> int:
    if isinstance(operator, Dense):
        return as_groups(operator.matrix.shape[1], d, f"atoms of layer {j}")
    if d != 1:
        raise ValueError(f"layer {j}: group_size = {d!r}, expected 1 for a convolution")
    return 1
