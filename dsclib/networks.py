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
:func:`approximate_threshold` is the threshold as other activations than ReLU compute it, and
:func:`dsclib.transformers.ista_encoder` the iteration as blocks of a transformer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._convolutional import (
    analysis_kernel,
    as_analysis,
    as_biases,
    as_convolution,
    as_network_input,
    overlap_kernel,
)
from ._factor import convolution, kernel_three
from ._lista import Lista
from .activations import ApproximateThreshold, approximate_threshold
from .dsc import DeepSparseModel
from .transformers import (
    IstaBlock,
    IstaTransformer,
    OffsetAttention,
    OffsetConvolution,
    attention_error,
    attention_leak,
    ista_encoder,
    ista_transformer,
)

__all__ = [
    "ApproximateThreshold",
    "IstaBlock",
    "IstaCNN",
    "IstaTransformer",
    "Lista",
    "OffsetAttention",
    "OffsetConvolution",
    "approximate_threshold",
    "attention_error",
    "attention_leak",
    "ista_cnn",
    "ista_encoder",
    "ista_transformer",
]


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
        if self.operators:
            y = as_network_input(y, self[0].weight, self.operators)
        return super().forward(y)


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
    mode = "circular" if D.boundary == "circular" else "zeros"
    analysis, before = analysis_kernel(W)
    overlap = overlap_kernel(W, D)
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
    as_convolution(model.operators[0])
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
        chain.append((D, as_analysis(V, D, layer), as_biases(theta, D, layer)))
    return chain
