r"""Sparse features for any torch model, through forward hooks: the model itself is not changed.

A network is trained on a loss plus a penalty on the features of chosen layers,

.. math:: \min_\theta \; \frac{1}{B} \sum_{i=1}^{B} \ell(f_\theta(y_i), t_i)
          + \sum_{j} w_j\, p\bigl(z_j(y_1), \dots, z_j(y_B)\bigr),

:math:`z_j` being the output of layer j: :class:`FeaturePenalty`. Or its features go through a map
that makes zeros, a trained :class:`Threshold` or :func:`keep_largest`: :class:`FeatureTransform`.
Or each layer has to explain what it was given, as in deep sparse coding:
:class:`LayeredReconstruction`. :func:`density` and :func:`multiply_adds` say what came of it.

Layers are chosen by name as in ``model.named_modules()``, as modules, by type (``nn.ReLU``), or
as a list of these. Hooks are on from construction to the end of the ``with`` block, or to
``remove()``.
"""

from __future__ import annotations

from ._activity import density, features, firing_rates
from ._costs import FeaturePenalty, LayeredReconstruction
from ._penalties import group_l1, hoyer, kl_rate, l1, log_sum
from ._products import MultiplyAdds, multiply_adds
from ._transforms import FeatureTransform, Threshold, keep_largest

__all__ = [
    "FeaturePenalty",
    "FeatureTransform",
    "LayeredReconstruction",
    "MultiplyAdds",
    "Threshold",
    "density",
    "features",
    "firing_rates",
    "group_l1",
    "hoyer",
    "keep_largest",
    "kl_rate",
    "l1",
    "log_sum",
    "multiply_adds",
]
