r"""Pursuits as networks: layers of convolution and ReLU that are the iteration, to rounding.

One step of :func:`dsclib.pursuit.scheduled_ista` is :math:`x \leftarrow S_\theta(x - W'D x + b)`
with :math:`b = W'y`. Three remarks make it a layer of a plain CNN, without skip connections
(:func:`ista_cnn`):

- If W and D are convolutions of stride q with filters of length L, then W'D is a convolution of
  codes, of stride 1 and kernel 2 p - 1 with :math:`p = \lceil L / q \rceil`: an atom overlaps
  p - 1 positions on either side.
- :math:`S_\theta(z) = \operatorname{ReLU}(z - \theta) - \operatorname{ReLU}(-z - \theta)`, so a
  layer computes :math:`x_+` and :math:`x_-` and the next one their difference, being linear.
- What is nonnegative passes a ReLU unchanged: :math:`b_+` and :math:`b_-` are carried along.

With L = 2 q the kernel is 3; any other is factored into kernels of 3, exactly. :class:`Lista` is
the dense iteration with weights and thresholds that are trained :cite:p:`gregor2010learning`.
:func:`approximate_threshold` is the threshold as other activations than ReLU compute it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_tensor, match
from ._factor import convolution, kernel_three
from ._lista import Lista
from .activations import ApproximateThreshold, approximate_threshold
from .dsc import DeepSparseModel
from .operators import Dense

__all__ = ["ApproximateThreshold", "IstaCNN", "Lista", "approximate_threshold", "ista_cnn"]


class IstaCNN(nn.Sequential):
    """The layers that :func:`ista_cnn` makes; a slice of them is a plain chain of layers.

    Attributes
    ----------
    operators : tuple
        The dictionaries, outermost first; empty for a slice.
    """

    operators: tuple = ()

    def forward(self, y) -> Tensor:
        """Codes (B, C, T) or (B, C, T1, T2) of the signals ``y``.

        ``y`` is (B, N) or (B, K, N), in two dimensions (B, N1, N2) or (B, K, N1, N2).
        ``ValueError`` if its channels or sizes do not fit, or its dtype is another than that
        of the network.
        """
        return super().forward(self._signals(y) if self.operators else y)

    def _signals(self, y) -> Tensor:
        kernel = self[0].weight
        y = as_tensor(y, "y", like=kernel)
        match(y, kernel, "y", "network")
        channels, axes = kernel.shape[1], kernel.ndim - 2
        if y.ndim == axes + 1 and channels == 1:
            y = y.unsqueeze(1)
        if y.ndim != axes + 2 or y.shape[1] != channels:
            sizes = "N" if axes == 1 else "N1, N2"
            raise ValueError(
                f"y has shape {tuple(y.shape)}, expected (B, {channels}, {sizes}): "
                "a batch of signals with the channels of the first dictionary"
            )
        size = tuple(y.shape[2:])
        for j, operator in enumerate(self.operators, start=1):
            try:
                size = operator.code_shape(size)[1:]
            except ValueError as err:
                raise ValueError(f"y does not fit layer {j}, {operator!r}: {err}") from None
        return y


def ista_cnn(operator, thresholds, W=None, *, nonnegative: bool = False, factor: bool = True):
    r"""The iteration of the book's theorem as a plain CNN: Conv, ReLU, Conv, ..., nothing else.

    .. math:: \begin{bmatrix} x_+ \\ x_- \\ b_+ \\ b_- \end{bmatrix} \leftarrow
              \operatorname{ReLU}\left(\begin{bmatrix}
              M & -M & I & -I \\ -M & M & -I & I \\ 0 & 0 & I & 0 \\ 0 & 0 & 0 & I
              \end{bmatrix}
              \begin{bmatrix} x_+ \\ x_- \\ b_+ \\ b_- \end{bmatrix}
              - \begin{bmatrix} \theta_k \\ \theta_k \\ 0 \\ 0 \end{bmatrix}\right),
              \qquad M = I - W'D

    The first layer, of the stride of the dictionary, computes :math:`b = W'y` and the first
    step from it; the last one answers :math:`x_+ - x_-`. In a chain
    of dictionaries the codes of one are the signals of the next, and the first layer of the
    next reads :math:`x_+ - x_-` itself. Nonnegative codes have no :math:`x_-` and need no last
    layer.

    Parameters
    ----------
    operator : Conv1d or Conv2d of :mod:`dsclib.operators`, or a chain of J of one kind
        The dictionary; a chain is a list, outermost first, in which filters have one channel
        for every filter of the dictionary before, or a :class:`dsclib.dsc.DeepSparseModel`.
    thresholds : tensor, shape (K,), or a list of J of them for a chain
        One threshold >= 0 a step, K steps, in the units of the codes.
    W : operator like the dictionary, or a list of J of them for a chain, optional
        Analysis weights; where it is None, the dictionary.
    nonnegative : bool
        For the iteration with :math:`\operatorname{ReLU}(z - \theta_k)`, in all of the chain.
    factor : bool
        Kernel size 3 (3 x 3) everywhere. Otherwise a step is one layer of kernel 2 p - 1, and
        the first layer has kernel L (zero boundary), or L preceded by L - q zero taps.

    Returns
    -------
    IstaCNN
        An ``nn.Sequential`` of Conv and ReLU in the dtype and on the device of the filters. It
        maps signals to what :func:`dsclib.pursuit.scheduled_ista` answers. Its weights are
        parameters, free of the graph of ``operator`` and ready to be trained on.

    Raises
    ------
    ValueError
        If operators, weights and thresholds are not as many or do not fit each other, a
        threshold is negative, or ``factor`` meets filters of even length at stride 1 with
        boundary "zero"; called on signals that do not fit the dictionaries.

    Notes
    -----
    Factored, a layer of a larger kernel becomes several, whose channels hold shifted copies of
    one another; the ReLU between them change nothing, since copies are nonnegative. A step is
    max(p - 1, 1) layers. With L = 2 q and q = 16, 8, 4, 2 the first layer becomes 5, 4, 3, 2.
    Circular layers have padding 1; with zero boundary all padding is in the first of a layer's
    factors. Circular padding never exceeds a signal that the dictionary takes, as torch demands.
    """
    chain = _chain(operator, thresholds, W)
    one = chain[0][0].filters.new_ones(1, 1)
    both = torch.cat([one, -one])  # u -> [u; -u], of which the ReLU leaves [u+; u-]
    writes = one if nonnegative else both  # the signs with which codes leave a layer ...
    reads = one  # ... and with which the next one adds them up; signals come as they are
    layers: list[nn.Module] = []
    for D, V, theta in chain:
        layers += _pursuit(D, V, theta, reads, writes, both)
        reads = writes.T
    if not nonnegative:
        count = len(chain[-1][0].filters)
        one = torch.eye(count).to(one).reshape(count, count, *[1] * len(D.reach))
        layers.append(convolution(_signed(reads, one)))
    if factor:
        parts = [
            [layer] if isinstance(layer, nn.ReLU) else kernel_three(layer, signed=i == 0)
            for i, layer in enumerate(layers)
        ]
        layers = [layer for part in parts for layer in part]
    network = IstaCNN(*layers)
    network.operators = tuple(D for D, _, _ in chain)
    return network


def _pursuit(D, W, thresholds: Tensor, reads: Tensor, writes: Tensor, both: Tensor) -> list:
    """Conv and ReLU, a pair a threshold, from the signals of one dictionary to its codes.

    Columns of signs say what a layer writes: ``writes`` x and ``both`` b. Rows say how the next
    adds that up again: ``reads`` for the signals, ``writes.T`` and ``both.T`` for x and b.
    """
    circular, axes = D.boundary == "circular", len(D.reach)
    mode = "circular" if circular else "zeros"
    # Torch pads both sides alike, atoms reach to one side only: zero taps for the other.
    before = [max(L - D.stride, 0) if circular else 0 for L in D.filters.shape[-axes:]]
    analysis = F.pad(_kernel(W), [pad for n in reversed(before) for pad in (n, 0)])
    overlap = _overlap(W, D)
    one = _identity(overlap)
    M, eye = one - overlap, torch.eye(2).to(one)
    stem = torch.cat([_signed(writes @ reads, analysis), _signed(both @ reads, analysis)])
    codes = torch.cat([_signed(writes @ writes.T, M), _signed(writes @ both.T, one)], dim=1)
    carry = torch.cat([_signed(0 * both @ writes.T, one), _signed(eye, one)], dim=1)
    step = torch.cat([codes, carry])  # the matrix in the docstring of ista_cnn
    layers, count = [], len(codes)
    for k, theta in enumerate(thresholds, start=1):
        weight = stem if k == 1 else step
        bias = torch.cat([-theta.expand(count), theta.new_zeros(len(step) - count)])
        if k == len(thresholds):
            weight, bias = weight[:count], bias[:count]  # b has served
        where = (D.stride, before) if k == 1 else (1, [p - 1 for p in D.reach])
        layers += [convolution(weight, bias, *where, mode), nn.ReLU()]
    return layers


def _kernel(operator) -> Tensor:
    """The filters as the weight (C, K, *L) of a convolution."""
    filters, axes = operator.filters.detach().contiguous(), len(operator.reach)
    return filters.unsqueeze(1) if filters.ndim == axes + 1 else filters


def _overlap(W, D) -> Tensor:
    """W'D as the weight (C, C, 2 p - 1) of a convolution of codes, an axis at a time.

    Tap j holds the inner products of the analysis filters with the filters of D j - p + 1
    positions further on, read off as one convolution of the filters of D.
    """
    convolve = F.conv1d if len(D.reach) == 1 else F.conv2d
    pad = [(p - 1) * D.stride for p in reversed(D.reach) for _ in range(2)]
    products = convolve(F.pad(_kernel(D), pad), _kernel(W), stride=D.stride)
    return products.flip(*range(2, products.ndim)).transpose(0, 1).contiguous()


def _identity(kernel: Tensor) -> Tensor:
    """The convolution that changes nothing, as large as ``kernel``."""
    one = torch.zeros_like(kernel)
    one[:, :, *[length // 2 for length in kernel.shape[2:]]] = torch.eye(len(kernel)).to(kernel)
    return one


def _signed(signs: Tensor, kernel: Tensor) -> Tensor:
    """Blocks of ``kernel``, one with each of the ``signs`` (rows, columns)."""
    return torch.kron(signs.reshape(*signs.shape, *[1] * (kernel.ndim - 2)), kernel)


def _chain(operator, thresholds, W) -> list[tuple]:
    """Dictionary, weights and thresholds of every layer, or a sentence about what is wrong."""
    if not isinstance(operator, DeepSparseModel | list | tuple):
        operator, thresholds, W = [operator], [thresholds], [W]
    model = operator if isinstance(operator, DeepSparseModel) else DeepSparseModel(operator)
    if isinstance(model.operators[0], Dense):
        raise ValueError(
            f"operator is {model.operators[0]!r}, expected Conv1d or Conv2d of dsclib.operators: "
            "a matrix D of m rows is Conv1d(D.T, stride=m)"
        )
    W = [None] * model.depth if W is None else W
    for name, given in ("thresholds", thresholds), ("W", W):
        if not isinstance(given, list | tuple | Tensor) or len(given) != model.depth:
            came = f"{len(given)}" if isinstance(given, list | tuple | Tensor) else f"{given!r:.60}"
            raise ValueError(
                f"{name}: {came}, expected a list of {model.depth}, one entry a layer, "
                "outermost first"
            )
    chain = []
    for j, (D, V, theta) in enumerate(zip(model.operators, W, thresholds), start=1):
        layer = f" of layer {j}" if model.depth > 1 else ""
        V = D if V is None else V
        if type(V) is not type(D) or repr(V) != repr(D):  # filter shape, stride, boundary
            raise ValueError(f"W{layer} is {V!r:.80}, expected {D!r}, like the dictionary")
        match(V.filters, D.filters, f"W{layer}", f"dictionary{layer}")
        theta = as_tensor(theta, f"thresholds{layer}", "(K,)", like=D.filters).to(D.filters)
        if (theta < 0).any():
            raise ValueError(
                f"thresholds{layer} go down to {theta.min().item():.4g}, expected all >= 0: "
                "a threshold is how much a step shrinks"
            )
        chain.append((D, V, theta.detach()))
    return chain
