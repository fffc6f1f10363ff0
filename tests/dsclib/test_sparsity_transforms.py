"""FeatureTransform, trained thresholds, and the largest features."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsclib.proximal import nonnegative_soft_threshold, top_k
from dsclib.sparsity import FeatureTransform, Threshold, features, keep_largest, l1
from dsclib.training import fit
from dsclib.vision import small_cnn

DOUBLE = torch.float64


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cnn():
    return small_cnn((4, 6), image_size=8, seed=0)


X, LABELS = (
    torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.arange(12) % 10,
)

# ---------------------------------------------------------------- the hooks


def test_features_are_replaced_and_come_back():
    model = cnn()
    outputs = model(X)
    first = keep_largest(model.relu1(model.conv1(X)), 0.1)
    second = keep_largest(model.relu2(model.conv2(first)), 0.1)
    expected = model.linear(model.flatten(second))
    with FeatureTransform(model, nn.ReLU, lambda z: keep_largest(z, 0.1)) as transform:
        assert transform.layers == ("relu1", "relu2")
        assert torch.equal(model(X), expected)
        found = features(model, nn.ReLU, X)
        assert torch.equal(found["relu2"], second)
    assert torch.equal(model(X), outputs)
    with pytest.raises(ValueError, match="was removed"), transform:
        pass
    with pytest.raises(KeyError), FeatureTransform(model, nn.ReLU, torch.tanh):
        raise KeyError
    assert torch.equal(model(X), outputs)


def test_one_transform_a_layer_in_the_order_of_the_model():
    model, doubled, tripled = cnn(), (lambda z: 2 * z), (lambda z: 3 * z)
    first, second = (features(model, nn.ReLU, X)[name] for name in ("relu1", "relu2"))
    with FeatureTransform(model, ["relu2", "relu1"], (doubled, tripled)):
        assert torch.equal(features(model, "relu1", X)["relu1"], 2 * first)
    with FeatureTransform(model, nn.ReLU, nn.ModuleList([nn.Identity(), nn.Tanh()])):
        torch.testing.assert_close(features(model, "relu2", X)["relu2"], second.tanh())


def test_hooks_run_in_the_order_they_were_set():
    model = cnn()
    z = features(model, "relu1", X)["relu1"]
    with FeatureTransform(model, "relu1", torch.exp), FeatureTransform(model, "relu1", torch.cos):
        torch.testing.assert_close(features(model, "relu1", X)["relu1"], z.exp().cos())


def test_copies_have_the_maps_until_the_hooks_come_off():
    model = cnn()
    outputs = model(X)
    with FeatureTransform(model, nn.ReLU, torch.tanh):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(X), model(X))
    assert torch.equal(twin(X), outputs)


# ---------------------------------------------------------------- thresholds


@settings(max_examples=40, deadline=None)
@given(start=st.floats(1e-6, 1e4))
def test_starts_where_it_is_told(start):
    thresholds = Threshold(3, start).thresholds
    assert thresholds.shape == (3,)
    assert thresholds.tolist() == pytest.approx([start] * 3, rel=1e-5, abs=1e-6)
    assert (thresholds > 0).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 30))
def test_is_the_proximal_map_for_any_parameters(seed, spread):
    threshold = Threshold(4).double()
    with torch.no_grad():
        threshold.raw.copy_(spread * randn(4, seed=seed, dtype=DOUBLE))
    t = threshold.thresholds.detach()
    assert (t > 0).all()
    for shape in (3, 4), (3, 4, 2, 2):
        z, t_of_channel = randn(*shape, dtype=DOUBLE), t.view(4, *[1] * (len(shape) - 2))
        x = threshold(z)
        torch.testing.assert_close(x, nonnegative_soft_threshold(z, t_of_channel))
        rivals = (x + 0.3 * randn(200, *shape, dtype=DOUBLE)).relu()
        values = [(v - z).square() / 2 + t_of_channel * v for v in (x, rivals)]
        best, others = (v.flatten(-len(shape)).sum(-1) for v in values)
        assert (others >= best).all()


def test_axes_and_dtypes():
    threshold, z = Threshold(5, axis=-1), randn(2, 3, 5)
    assert torch.equal(threshold(z), Threshold(5)(z.mT).mT)
    assert torch.equal(threshold(randn(2, 5)), Threshold(5)(randn(2, 5)))
    for dtype in torch.bfloat16, torch.float16, DOUBLE:
        assert threshold(z.to(dtype)).dtype == dtype
    assert repr(threshold) == "Threshold(5, axis=-1)"


def test_gradients():
    threshold, z = Threshold(3).double(), randn(4, 3, 2, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, raw: (z - F.softplus(raw)[:, None]).relu(),
                                    (z, threshold.raw))  # fmt: skip
    threshold(z).sum().backward()
    active = (z > threshold.thresholds[:, None]).sum((0, 2))
    torch.testing.assert_close(threshold.raw.grad, -active * threshold.raw.sigmoid())


@pytest.mark.parametrize("sign", [1, -1])
def test_training_moves_them_to_where_they_should_be(sign):
    """Fit ReLU(z - t) to ReLU(z - 0.3) or ReLU(z - 0.05) from t = 0.15."""
    z, goal = torch.rand(500, 2), 0.3 if sign > 0 else 0.05
    threshold = Threshold(2, 0.15)
    fit(
        threshold,
        lambda model, z: (model(z) - (z - goal).relu()).square().mean(),
        z,
        epochs=40,
        lr=0.05,
        seed=0,
    )
    assert threshold.thresholds.tolist() == pytest.approx([goal] * 2, abs=0.01)


def test_thresholds_train_together_with_the_model():
    model, thresholds = cnn(), nn.ModuleList([Threshold(4), Threshold(6)])
    with FeatureTransform(model, nn.ReLU, thresholds):
        fit(
            nn.ModuleList([model, thresholds]),
            lambda parts, x, t: F.cross_entropy(parts[0](x), t),
            (X, LABELS),
            epochs=2,
            lr=0.01,
        )
    assert all((t.thresholds - 0.1).abs().max() > 1e-4 for t in thresholds)
    twin = nn.ModuleList([Threshold(4, 0.7), Threshold(6, 0.7)])
    twin.load_state_dict(thresholds.state_dict())
    for a, b in zip(thresholds, twin):
        assert torch.equal(a.thresholds, b.thresholds)


# ---------------------------------------------------------------- the largest


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(3, 8), (2, 3, 4), (2, 3, 2, 2)]),
    share=st.floats(0.01, 1.0),
)
def test_keep_largest_is_top_k(seed, shape, share):
    z = randn(*shape, seed=seed)
    n = z[0].numel()
    kept = keep_largest(z, share)
    k = max(1, round(share * n))
    assert torch.equal(kept.flatten(1), top_k(z.flatten(1), k))
    assert kept.shape == z.shape and (kept.flatten(1).count_nonzero(1) == k).all()
    by_channel = keep_largest(z, share, axis=1)
    k = max(1, round(share * shape[1]))
    assert torch.equal(by_channel.movedim(1, -1), top_k(z.movedim(1, -1), k))
    assert torch.equal(keep_largest(z, share, axis=-1), top_k(z, max(1, round(share * shape[-1]))))


def test_never_more_than_asked_for():
    assert keep_largest(torch.ones(2, 10), 0.3).count_nonzero() == 6
    assert keep_largest(torch.zeros(2, 10), 0.3).count_nonzero() == 0
    assert keep_largest(torch.full((1, 4), torch.inf), 0.5).isfinite().sum() == 2  # not NaN


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16, torch.float16])
def test_gradient_of_keep_largest_is_that_of_what_is_kept(dtype):
    z = randn(3, 10).to(dtype).requires_grad_()
    kept = keep_largest(z, 0.2)
    kept.sum().backward()
    assert kept.dtype == dtype and torch.equal(z.grad, (kept != 0).to(dtype))


def called(transform):
    model = nn.Sequential(nn.ReLU())
    with FeatureTransform(model, "0", transform):
        model(torch.rand(2, 3))


Z = torch.rand(2, 6)
BAD = [
    (lambda: FeatureTransform(cnn(), nn.GELU, torch.tanh), "the model has no GELU"),
    (lambda: FeatureTransform(cnn(), nn.ReLU, None), "transform is a NoneType"),
    (lambda: FeatureTransform(cnn(), nn.ReLU, [torch.tanh]), "has 1 entries for the layers relu1"),
    (lambda: FeatureTransform(cnn(), nn.ReLU, [torch.tanh, 3]), "one function or module for each"),
    (lambda: FeatureTransform(cnn(), nn.ReLU, nn.ModuleList([Threshold(4)])), "has 1 entries"),
    (lambda: called(l1), "transform of layer '0' made a tensor of shape ()"),
    (lambda: called(lambda z: (z, z)), "made a tuple of a tensor of shape (2, 3)"),
    (lambda: Threshold(0), "channels = 0"),
    (lambda: Threshold(3, 0.0), "start = 0.0"),
    (lambda: Threshold(3, math.inf), "start = inf"),
    (lambda: Threshold(3, axis=0), "axis = 0, expected the axis of the channels"),
    (lambda: Threshold(3, axis=1.0), "axis = 1.0, expected the axis"),
    (lambda: Threshold(3)(Z), "expected 3 channels on axis 1"),
    (lambda: Threshold(6, axis=2)(Z), "axis = 2, but the features have shape (2, 6)"),
    (lambda: keep_largest(Z, 0.0), "share = 0.0"),
    (lambda: keep_largest(Z, 1.5), "share = 1.5"),
    (lambda: keep_largest(Z, 0.5, axis=2), "axis = 2"),
    (lambda: keep_largest(Z, 0.5, axis=0), "axis 0 is the batch"),
    (lambda: keep_largest(Z[0], 0.5), "z[None]"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_refuses_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
