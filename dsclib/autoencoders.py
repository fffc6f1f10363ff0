r"""Autoencoders whose codes are sparse: the pursuit is the encoder, the dictionary the decoder.

.. math:: x = \operatorname{GS}_\lambda(W^\top y), \qquad \hat y = W x

One matrix W (m, n) does both, and is all there is to train :cite:p:`theodosis2021convergence`.
The encoder is one step of the iteration, or with ``steps > 1`` as many of accelerated group
thresholding. Groups are neighbours: columns d g, ..., d g + d - 1 are group g. How to choose the
first W (:func:`data_start`, :func:`kmeans_start`, :func:`pca_start`, :func:`nearby_start`)
decides what training finds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._checks import (
    as_choice,
    as_count,
    as_dictionary,
    as_number,
    as_signals,
    as_tensor,
    match,
)
from ._solution import objective
from ._starts import data_start, kmeans_start, nearby_start, pca_start
from .dictionaries import group_orthonormal
from .proximal import group_norms, group_soft_threshold, soft_threshold

__all__ = [
    "GroupSparseAutoencoder",
    "SparseAutoencoder",
    "data_start",
    "kmeans_start",
    "nearby_start",
    "pca_start",
]


class GroupSparseAutoencoder(nn.Module):
    r"""Tied autoencoder that explains a signal by few groups of atoms.

    With one step

    .. math:: x = T_\lambda(W^\top y), \qquad \hat y = W x

    and with K > 1 steps of accelerated thresholding :cite:p:`beck2009fast` on
    :math:`\tfrac12 \|y - W x\|_2^2 + \lambda \sum_g \|x_g\|_2`, L the largest eigenvalue of
    :math:`W^\top W` (held fixed in gradients),

    .. math:: x^{k+1} = T_{\lambda/L}\bigl(z^k + \tfrac1L W^\top (y - W z^k)\bigr), \qquad
              z^k = x^k + \frac{t_k - 1}{t_{k+1}} (x^k - x^{k-1}), \qquad x^0 = 0.

    T is :func:`dsclib.proximal.group_soft_threshold`, for nonnegative codes
    :math:`GS_\lambda(\operatorname{ReLU}(z))`.

    Parameters
    ----------
    n_features : int
        Length m of a signal.
    n_groups, group_size : int
        Groups G and atoms d in each; n = G d.
    lam : float
        :math:`\lambda \ge 0`: with one step the threshold, in the units of ``W'y``; with more
        the penalty of the problem they solve.
    steps : int
        K. One step is not the first of many: it has length 1 where those have length 1/L.
    nonnegative : bool
        Whether codes have no negative entries.
    columns : "free", "unit" or "orthonormal"
        What :meth:`project_` restores: nothing, columns of length 1, or orthonormal groups.
    weight : tensor, shape (m, n), optional
        First W, projected at once; if not given, random subspaces
        (:func:`dsclib.dictionaries.group_orthonormal`).
    seed, dtype, device : optional
        For the random W. ``None`` stands for torch's default generator, dtype and device; for a
        given ``weight``, for its own dtype and device.

    Attributes
    ----------
    weight : Parameter, shape (m, n)
        W; its columns are the atoms.

    Raises
    ------
    ValueError
        If a size is not a positive whole number, ``lam`` is negative, ``columns`` is none of the
        three, or ``weight`` is not finite, not (m, n), or has a zero column that should have
        length 1; from the methods if signals or codes do not fit, or W is no longer finite.

    Notes
    -----
    *The threshold of nonnegative codes* is the proximal map of
    :math:`\lambda \|x_g\|_2` on :math:`x \ge 0`. With :math:`z = z_+ - z_-`, for :math:`x \ge 0`

    .. math:: \tfrac12 \|x - z\|_2^2 + \lambda \|x\|_2
              = \Bigl[\tfrac12 \|x - z_+\|_2^2 + \lambda \|x\|_2\Bigr] + x^\top z_-
                + \tfrac12 \|z_-\|_2^2 ,

    since :math:`z_+^\top z_- = 0`. The bracket is least at :math:`GS_\lambda(z_+)`, which is
    nonnegative and zero wherever :math:`z_-` is not: it makes :math:`x^\top z_- \ge 0` least too.
    """

    def __init__(
        self,
        n_features: int,
        n_groups: int,
        group_size: int,
        lam: float,
        steps: int = 1,
        *,
        nonnegative: bool = False,
        columns: str = "free",
        weight=None,
        seed: int | None = None,
        dtype=None,
        device=None,
    ):
        super().__init__()
        m, self.n_groups = as_count(n_features, "n_features"), as_count(n_groups, "n_groups")
        self.group_size = as_count(group_size, "group_size")
        self.lam, self.steps = as_number(lam, "lam"), as_count(steps, "steps")
        self.columns = as_choice(columns, "columns", ("free", "unit", "orthonormal"))
        self.nonnegative = bool(nonnegative)
        if weight is None:
            _at_most(self.group_size, m)
            weight = group_orthonormal(m, self.n_groups, self.group_size, seed=seed, dtype=dtype)
        weight = as_dictionary(weight, "weight").detach().to(dtype=dtype, device=device)
        n = self.n_groups * self.group_size
        if weight.shape != (m, n):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, expected {(m, n)}: one row a feature, "
                "one column an atom"
            )
        if columns == "orthonormal":
            _at_most(self.group_size, m)
        if columns == "unit" and (weight == 0).all(dim=0).any():
            raise ValueError("weight has a zero column, expected none since columns = 'unit'")
        self.weight = nn.Parameter(weight.clone())
        self.project_()

    def forward(self, y) -> Tensor:
        """Reconstructions (B, m) of the signals ``y`` (B, m)."""
        return self.decode(self.encode(y))

    def encode(self, y) -> Tensor:
        """Codes (B, n) of the signals ``y`` (B, m)."""
        W = self._atoms()
        correlations = as_signals(y, W, "y", "weight") @ W
        if self.steps == 1:
            return self._threshold(correlations, self.lam)
        gram = W.T @ W
        L = torch.linalg.eigvalsh(gram.detach())[-1].clamp(min=torch.finfo(W.dtype).tiny)
        onward = torch.eye(len(gram)).to(gram) - gram / L
        x, t = torch.zeros_like(correlations), 1.0
        z = x
        for _ in range(self.steps):
            old, x = x, self._threshold(torch.addmm(correlations / L, z, onward), self.lam / L)
            t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
            z, t = x + (t - 1) / t_next * (x - old), t_next
        return x

    def decode(self, codes) -> Tensor:
        """Signals (B, m) that the ``codes`` (B, n) stand for."""
        codes = as_tensor(codes, "codes", "(B, n)", like=self.weight)
        match(codes, self.weight, "codes", "weight")
        if codes.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"codes has shape {tuple(codes.shape)}, expected (B, {self.weight.shape[1]}): "
                "one column an atom"
            )
        return codes @ self._atoms().T

    def loss(self, y) -> Tensor:
        r"""What to minimise over W: a mean over the signals ``y`` (B, m).

        One step: :math:`\tfrac12 \|y - \hat y\|_2^2`. More: the :meth:`objective` of the codes.
        """
        if self.steps > 1:
            return self.objective(y, self.encode(y))
        return (as_signals(y, self.weight, "y", "weight") - self(y)).square().sum(dim=1).mean() / 2

    def objective(self, y, codes) -> Tensor:
        r"""Mean of :math:`\tfrac12 \|y - W x\|_2^2 + \lambda \sum_g \|x_g\|_2` over a batch.

        ``y`` is (B, m), ``codes`` (B, n). Codes computed under ``torch.no_grad()`` are held fixed:
        a cheaper gradient, and the same where they minimise this (envelope theorem).
        """
        residual = as_signals(y, self.weight, "y", "weight") - self.decode(codes)
        return objective(residual, codes, self.lam, self.group_size).mean()

    @torch.no_grad()
    def active_groups(self, y) -> Tensor:
        """Which groups the codes of ``y`` (B, m) use: bool (B, G)."""
        return group_norms(self.encode(y), self.group_size) > 0

    @torch.no_grad()
    def predict_cluster(self, y) -> Tensor:
        r"""Group that says most about each signal: int64 (B,).

        .. math:: \arg\max_g \|x_g\|_2

        Among equals the first. A signal whose code is zero goes where :math:`\|(W^\top y)_g\|_2`
        (nonnegative codes: of the positive part) is largest; one that is zero, to group 0.
        """
        strength = group_norms(self.encode(y), self.group_size)
        W = self._atoms()
        correlations = as_signals(y, W, "y", "weight") @ W
        fallback = group_norms(self._threshold(correlations, 0.0), self.group_size)
        silent = (strength == 0).all(dim=1, keepdim=True)
        return torch.where(silent, fallback, strength).argmax(dim=1)

    @torch.no_grad()
    def project_(self) -> None:
        r"""Put W back where ``columns`` wants it; to be called after an optimiser's step.

        "unit" divides every column by its length (a zero column stays). "orthonormal" replaces
        each group by the nearest one with orthonormal columns, its polar factor
        :math:`U V^\top` from :math:`W_g = U \Sigma V^\top`.
        """
        W = self.weight
        if self.columns == "unit":
            W /= W.norm(dim=0).clamp(min=torch.finfo(W.dtype).tiny)
        elif self.columns == "orthonormal":
            blocks = W.unflatten(1, (-1, self.group_size)).transpose(0, 1)
            U, _, Vh = torch.linalg.svd(blocks, full_matrices=False)
            W.copy_((U @ Vh).transpose(0, 1).flatten(1))

    def extra_repr(self) -> str:
        """What print(model) says."""
        m, n = self.weight.shape
        return (
            f"n_features={m}, n_groups={self.n_groups}, group_size={self.group_size}, "
            f"lam={self.lam:g}, steps={self.steps}, columns={self.columns!r}"
            + (", nonnegative=True" if self.nonnegative else "")
        )

    def _atoms(self) -> Tensor:
        """W on its constraint, so that gradients are tangent to it; W itself once projected."""
        W = as_dictionary(self.weight, "weight")
        if self.columns == "unit":
            return W / W.norm(dim=0).clamp(min=torch.finfo(W.dtype).tiny)
        if self.columns == "orthonormal":  # one step of Newton's iteration for the polar factor
            blocks = W.unflatten(1, (-1, self.group_size)).transpose(0, 1)
            return (1.5 * blocks - 0.5 * blocks @ (blocks.mT @ blocks)).transpose(0, 1).flatten(1)
        return W

    def _threshold(self, z: Tensor, t) -> Tensor:
        if self.nonnegative:
            z = z.relu()
        if self.group_size == 1:
            return soft_threshold(z, t)
        return group_soft_threshold(z, t, self.group_size)


class SparseAutoencoder(GroupSparseAutoencoder):
    r"""Tied autoencoder that explains a signal by few atoms: groups of one.

    .. math:: x = S_\lambda(W^\top y), \qquad \hat y = W x

    With ``nonnegative=True`` the encoder is :math:`\operatorname{ReLU}(W^\top y - \lambda)`: a
    layer of a network with one bias.

    Parameters
    ----------
    n_features, n_atoms : int
        Length m of a signal, number n of atoms.
    lam, steps, nonnegative, weight, seed, dtype, device
        As for :class:`GroupSparseAutoencoder`, and so are the methods; the penalty is
        :math:`\lambda \|x\|_1`.
    columns : "free" or "unit"
        What :meth:`~GroupSparseAutoencoder.project_` restores.

    Raises
    ------
    ValueError
        As :class:`GroupSparseAutoencoder`.
    """

    def __init__(
        self,
        n_features: int,
        n_atoms: int,
        lam: float,
        steps: int = 1,
        *,
        nonnegative: bool = False,
        columns: str = "free",
        weight=None,
        seed: int | None = None,
        dtype=None,
        device=None,
    ):
        as_choice(columns, "columns", ("free", "unit"))
        n_atoms = as_count(n_atoms, "n_atoms")
        super().__init__(
            n_features,
            n_atoms,
            1,
            lam,
            steps,
            nonnegative=nonnegative,
            columns=columns,
            weight=weight,
            seed=seed,
            dtype=dtype,
            device=device,
        )


def _at_most(group_size: int, m: int) -> None:
    if group_size > m:
        raise ValueError(
            f"group_size = {group_size}, expected at most n_features = {m}: more columns than "
            "that cannot be orthonormal"
        )
