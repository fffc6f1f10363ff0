r"""Scores: how close an estimate comes to the truth.

Codes are compared by their support, dictionaries by matched atoms, subspaces by an angle,
clusterings by matched labels, images by a signal-to-noise ratio. A score of a whole batch is
a Python float; one score per atom or per subspace is a tensor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ._checks import as_dictionary, as_labels, as_number, as_pair
from ._evaluation import batches_of, evaluating
from ._subspaces import principal_angle, subspace_recovery

__all__ = [
    "SupportRecovery",
    "accuracy",
    "atom_recovery",
    "clustering_accuracy",
    "principal_angle",
    "psnr",
    "subspace_recovery",
    "support_recovery",
]


class SupportRecovery(NamedTuple):
    """Three fractions between 0 and 1 that say how well supports are found."""

    precision: float
    recall: float
    exact: float


def support_recovery(codes, truth, tol: float = 0.0) -> SupportRecovery:
    r"""Compare the support of codes with the true support.

    .. math:: \text{precision} = \frac{\sum_b |\hat S_b \cap S_b|}{\sum_b |\hat S_b|}, \quad
              \text{recall} = \frac{\sum_b |\hat S_b \cap S_b|}{\sum_b |S_b|}, \quad
              \text{exact} = \frac1B \sum_b [\hat S_b = S_b]

    Parameters
    ----------
    codes : tensor, shape (B, n) or (B, ...)
        Estimated codes; :math:`\hat S_b` holds the entries of signal b with
        :math:`|x| > \text{tol}`. For groups pass the group norms, (B, G).
    truth : tensor, shaped like ``codes``
        True codes; :math:`S_b` holds their nonzero entries.
    tol : float
        Magnitude up to which an estimated entry counts as zero, in the units of ``codes``.

    Returns
    -------
    SupportRecovery
        ``(precision, recall, exact)``: active entries and true entries are counted over the
        whole batch, ``exact`` is the share of signals whose support is exactly right. Where
        nothing is active, precision is 1; where nothing is true, recall is 1.

    Raises
    ------
    ValueError
        If the shapes differ, there is no batch axis, or ``tol`` is negative.
    """
    codes, truth = as_pair(codes, truth, "codes", "truth")
    if codes.shape != truth.shape or codes.ndim < 2:
        raise ValueError(
            f"codes has shape {tuple(codes.shape)} and truth {tuple(truth.shape)}, expected the "
            "same shape (B, n) for both: for a single signal use codes[None] and truth[None]"
        )
    active, true = codes.abs() > as_number(tol, "tol"), truth != 0
    hits, n_active, n_true = (int(a.sum()) for a in (active & true, active, true))
    exact = (active == true).flatten(1).all(dim=1).double().mean().item()
    return SupportRecovery(
        hits / n_active if n_active else 1.0, hits / n_true if n_true else 1.0, exact
    )


def atom_recovery(D, truth) -> Tensor:
    r"""Match learned atoms with true ones, one to one, up to order and sign.

    .. math:: c_i = \frac{|\langle d_{\pi(i)}, d^*_i \rangle|}{\|d_{\pi(i)}\|\,\|d^*_i\|},
              \qquad \pi = \arg\max_{\pi \text{ injective}} \textstyle\sum_i c_i

    The score of dictionary recovery :cite:p:`agarwal2016learning`; the matching is a linear
    assignment, solved exactly.

    Parameters
    ----------
    D : tensor, shape (m, n')
        Learned dictionary, n' >= n; columns of any length, a zero column matches nothing.
    truth : tensor, shape (m, n)
        True dictionary, no zero column.

    Returns
    -------
    Tensor, shape (n,)
        Cosine magnitude of every true atom with its partner, in the order of ``truth``;
        1 is perfect. Differentiable in ``D``, the matching held fixed.

    Raises
    ------
    ValueError
        If the atoms differ in length, D has fewer atoms than truth, or a true atom is zero.
    """
    D, truth = as_pair(D, truth, "D", "truth")
    D, truth = as_dictionary(D), as_dictionary(truth, "truth")
    if D.shape[0] != truth.shape[0] or D.shape[1] < truth.shape[1]:
        raise ValueError(
            f"D has shape {tuple(D.shape)}, expected ({truth.shape[0]}, n') with "
            f"n' >= {truth.shape[1]} since truth has shape {tuple(truth.shape)}: "
            "atoms are columns, and every true atom needs a partner"
        )
    lengths = truth.norm(dim=0)
    if (lengths == 0).any():
        raise ValueError(
            f"truth has {int((lengths == 0).sum())} zero atoms of {truth.shape[1]}, expected "
            "none: drop those columns"
        )
    tiny = torch.finfo(D.dtype).tiny
    cosines = ((truth / lengths).mT @ (D / D.norm(dim=0).clamp_min(tiny))).abs()
    rows, columns = linear_sum_assignment(cosines.detach().cpu().numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)].clamp(max=1.0)


def clustering_accuracy(truth, labels) -> float:
    r"""Accuracy of a clustering under the best one-to-one naming of its clusters.

    .. math:: \max_{\pi \text{ injective}} \frac1N \sum_{i=1}^N [\,t_i = \pi(l_i)\,]

    Parameters
    ----------
    truth : integer tensor, shape (N,)
        True classes, any integers.
    labels : integer tensor, shape (N,)
        Clusters, any integers; their number may differ from that of the classes, and what is
        left without a partner counts as wrong.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the labels are not integers, not (N,), empty, or of different lengths.
    """
    truth, labels = as_labels(truth, "truth"), as_labels(labels, "labels")
    if len(truth) != len(labels):
        raise ValueError(
            f"labels has length {len(labels)}, expected {len(truth)} since truth has that many: "
            "pass one label per item"
        )
    classes, t = truth.unique(return_inverse=True)
    clusters, c = labels.unique(return_inverse=True)
    cells = len(classes) * len(clusters)
    counts = (t * len(clusters) + c).bincount(minlength=cells).view(len(classes), -1)
    counts = counts.numpy()
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(truth))


def accuracy(model, images, labels, batch_size: int = 1000) -> float:
    """Share of images whose largest score is that of their class.

    Parameters
    ----------
    model : torch.nn.Module
        Images (B, ...) to scores (B, classes). It runs in ``eval()`` mode without gradients, and
        its mode is put back.
    images : tensor, shape (N, ...)
        Moved batch by batch to the model's device.
    labels : tensor, shape (N,)
        Classes 0, 1, ...
    batch_size : int
        Images in one pass of the model.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If there are not as many labels as images, or none, the model returns no scores or NaN,
        or a label has no score.
    """
    labels = as_labels(labels, "labels")
    if len(labels) != len(images):
        raise ValueError(
            f"images has {len(images)} entries but labels {len(labels)}, expected as many labels "
            "as images: cut both alike"
        )
    found = []
    with evaluating(model):
        for x in batches_of(images, model, batch_size, "images"):
            scores = model(x)
            _check_scores(scores, len(x), labels)
            found.append(scores.argmax(dim=1).cpu())
    return (torch.cat(found) == labels).double().mean().item()


def psnr(image, reference, peak: float = 1.0) -> float:
    r"""Peak signal-to-noise ratio in decibels.

    .. math:: 10 \log_{10} \frac{\text{peak}^2}{\operatorname{mean}\,(x - x^*)^2}

    The score of image denoising :cite:p:`elad2006image`.

    Parameters
    ----------
    image : tensor, any shape
        Estimate; the mean runs over all entries.
    reference : tensor, shaped like ``image``
        Clean image, its values within a range of length ``peak``.
    peak : float
        Length of the range of values: 1 for images in [0, 1], 255 for bytes.

    Returns
    -------
    float
        Decibels; ``inf`` for equal images.

    Raises
    ------
    ValueError
        If the shapes differ or are empty, or ``reference`` does not fit into ``peak``.
    """
    image, reference = as_pair(image, reference, "image", "reference")
    peak = as_number(peak, "peak", positive=True)
    if image.shape != reference.shape or image.numel() == 0:
        raise ValueError(
            f"image has shape {tuple(image.shape)} and reference {tuple(reference.shape)}, "
            "expected the same for both, not empty: crop or reshape one of them"
        )
    spread = (reference.max() - reference.min()).item()
    if spread > peak * (1 + 1e-5):
        raise ValueError(
            f"reference spreads over a range of {spread:.4g}, expected at most peak = {peak:g}: "
            "pass the length of the range of values as peak (255 for bytes)"
        )
    error = (image - reference).double().square().mean().item()
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def _check_scores(scores, count: int, labels: Tensor) -> None:
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != count:
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"the model returned {came}, expected scores ({count}, classes): check its last layer"
        )
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, expected 0 to "
            f"{scores.shape[1] - 1}, one of the {scores.shape[1]} scores of the model"
        )
    if scores.isnan().any():
        raise ValueError(
            "the model returned NaN, expected scores: its weights or the images have it"
        )
