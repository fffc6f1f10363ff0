"""What a model does on data: features, rates, density and multiply-adds, against loops."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsclib.sparsity import (
    FeatureTransform,
    density,
    features,
    firing_rates,
    keep_largest,
    multiply_adds,
)
from dsclib.vision import small_cnn


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def cnn():
    return small_cnn((4, 6), image_size=8, seed=0)


class Shared(nn.Module):
    """One ReLU for two layers of different widths, under two names; one layer is never called."""

    def __init__(self, first=4, second=7):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, first, 3), nn.Conv2d(first, second, 3)
        self.relu = self.again = nn.ReLU()
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.relu(self.b(self.relu(self.a(x))))


X = rand(7, 1, 8, 8)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_features_are_those_of_a_pass_by_hand(batch_size):
    model = cnn()
    found = features(model, ["relu2", "relu1"], X, batch_size)
    assert list(found) == ["relu1", "relu2"]
    with torch.no_grad():
        first = model.relu1(model.conv1(X))
        torch.testing.assert_close(found["relu1"], first)
        torch.testing.assert_close(found["relu2"], model.relu2(model.conv2(first)))
    assert not any(z.requires_grad for z in found.values())


@pytest.mark.parametrize("tol", [0.0, 0.05])
def test_rates_and_density_with_batches_of_unequal_size(tol):
    model = cnn()
    on = {name: z.abs() > tol for name, z in features(model, nn.ReLU, X).items()}
    rates = firing_rates(model, nn.ReLU, X, tol=tol, batch_size=3)
    dense = density(model, nn.ReLU, X, tol=tol, batch_size=3)
    for name, z in on.items():
        assert rates[name].dtype == torch.float64 and rates[name].device.type == "cpu"
        torch.testing.assert_close(rates[name], z.double().mean((0, 2, 3)))
        assert dense[name] == z.sum().item() / z.numel() == pytest.approx(rates[name].mean().item())


def test_rates_of_tokens():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    x = rand(4, 6, 3) - 0.5
    by_token = firing_rates(model, "1", x)["1"]
    by_unit = firing_rates(model, "1", x, axis=-1)["1"]
    on = features(model, "1", x)["1"] > 0
    torch.testing.assert_close(by_token, on.double().mean((0, 2)))
    torch.testing.assert_close(by_unit, on.double().mean((0, 1)))


def test_shared_modules_count_each_call():
    model = Shared(first=4, second=4)
    with torch.no_grad():
        calls = [model.relu(model.a(X))]
        calls.append(model.relu(model.b(calls[0])))
    on = torch.cat([z.gt(0).transpose(0, 1).flatten(1) for z in calls], dim=1).double().mean(1)
    torch.testing.assert_close(firing_rates(model, "again", X, batch_size=2)["relu"], on)
    model, nonzero, entries = Shared(), 0, 0
    with torch.no_grad():
        first = model.relu(model.a(X))
        for z in first, model.relu(model.b(first)):
            nonzero, entries = nonzero + (z > 0).sum().item(), entries + z.numel()
    assert density(model, nn.ReLU, X, batch_size=2) == {"relu": nonzero / entries}
    for f in features, firing_rates:
        with pytest.raises(ValueError, match="'relu' is called several times, with .*4.* and .*7"):
            f(model, "relu", X)
    twice = nn.Sequential(nn.ReLU(), nn.Flatten())
    twice.append(twice[0])
    with pytest.raises(ValueError, match="several times"):
        features(twice, nn.ReLU, X)


def test_layers_that_are_not_called_are_left_out():
    model = Shared()
    assert list(density(model, ["unused", "b"], X)) == ["b"]
    assert list(multiply_adds(model, X)) == ["a", "b"]
    for f in features, firing_rates, density:
        with pytest.raises(ValueError, match="none of the layers 'unused' is called"):
            f(model, "unused", X)


def test_a_later_layer_may_overwrite_features():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True))
    with torch.no_grad():
        expected = model[0](X)
    torch.testing.assert_close(features(model, "0", X)["0"], expected)
    assert density(model, ["0", "1"], X)["0"] == 1 > density(model, ["0", "1"], X)["1"]


def test_modes_hooks_and_gradients_are_as_before():
    model = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU())
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x = rand(6, 8)
    assert density(model, "3", x) == density(model, "3", x)
    multiply_adds(model, x)
    with pytest.raises(RuntimeError):  # of the model: too long signals
        density(model, "3", rand(6, 9))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())


def test_measures_see_transformed_features():
    model = cnn()
    with FeatureTransform(model, nn.ReLU, lambda z: keep_largest(z, 0.125)):
        found = density(model, nn.ReLU, X)
        counts = multiply_adds(model, X)
    assert found["relu1"] <= 0.125 and found["relu2"] == 3 / 24
    assert counts["linear"].active == 3 * 10  # 3 of 24 features, 10 outputs


def test_takes_arrays_and_double_precision():
    model = cnn().double()
    assert density(model, nn.ReLU, X.numpy()) == density(model, nn.ReLU, X.double())
    assert multiply_adds(model, X.numpy()) == multiply_adds(model, X.double())
    words = nn.Sequential(nn.Embedding(5, 3), nn.ReLU())
    assert density(words, nn.ReLU, np.array([[0, 1], [2, 4]])).keys() == {"1"}


# ---------------------------------------------------------------- multiply-adds


def products(layer, z):
    """Pairs of a weight and an entry of z that meet, and those where both are nonzero."""
    weight, padded = layer.weight, layer.padding_mode != "zeros"
    pad = [p for p in reversed(layer.padding) for _ in range(2)]
    if padded:
        z = nn.functional.pad(z, pad, mode=layer.padding_mode)
    (B, _, *sizes), (out, per_group, *kernel) = z.shape, weight.shape
    p = [0] * len(sizes) if padded else layer.padding
    spread = [d * (k - 1) + 1 for d, k in zip(layer.dilation, kernel)]
    steps = [(n + 2 * q - e) // s + 1 for n, q, e, s in zip(sizes, p, spread, layer.stride)]
    active = total = 0
    for o, c in itertools.product(range(out), range(per_group)):
        channel = o // (out // layer.groups) * per_group + c
        for step in itertools.product(*map(range, steps)):
            for k in itertools.product(*map(range, kernel)):
                at = [t * s + d * j - q for t, s, d, j, q in
                      zip(step, layer.stride, layer.dilation, k, p)]  # fmt: skip
                if all(0 <= i < n for i, n in zip(at, sizes)):
                    total += B
                    if weight[(o, c, *k)] != 0:
                        active += int((z[(slice(None), channel, *at)] != 0).sum())
    return active, total


@settings(max_examples=25, deadline=None)
@given(
    axes=st.integers(1, 2),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    seed=st.integers(0, 1000),
)
def test_multiply_adds_of_convolutions_are_exact(
    axes, stride, padding, dilation, groups, mode, seed
):
    torch.manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layer = conv(2, 4, 2, stride, padding, dilation, groups, padding_mode=mode)
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.3] = 0
    z = torch.randn(3, 2, 6, 5) if axes == 2 else torch.randn(3, 2, 7)
    z[z < 0] = 0
    active, total = products(layer, z)
    count = multiply_adds(layer, z, batch_size=2)[""]
    assert (count.active * 3, count.total * 3) == pytest.approx((active, total), rel=1e-12)


def test_multiply_adds_of_linear_layers():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[0] = 0
    z = torch.tensor([[1.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    assert multiply_adds(layer, z)[""] == (3.0, 12.0)  # (2 + 1) features * 2 rows / 2 signals
    assert multiply_adds(layer, z.expand(5, 2, 4))[""] == (6.0, 24.0)  # tokens
    conv = nn.Conv3d(1, 2, 2)
    assert multiply_adds(conv, torch.ones(2, 1, 3, 3, 3))[""] == (2 * 8 * 8, 2 * 8 * 8)


def test_multiply_adds_count_more_than_half_precision_can():
    layer = nn.Linear(3000, 1).bfloat16()
    assert multiply_adds(layer, torch.ones(1, 3000, dtype=torch.bfloat16))[""] == (3000, 3000)


def test_shared_layers_count_each_call_and_attention_does_not_count():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            x = self.linear(self.linear(x))
            return self.attention(x, x, x)[0]

    counts = multiply_adds(Model(), rand(2, 3, 4))
    assert counts == {"linear": (2 * 3 * 16, 2 * 3 * 16)}


class Single(nn.Module):
    """Takes the batch apart: its convolution is given one signal without a batch axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(5, 2)

    def forward(self, x):
        return self.linear(self.conv(x[0])[0, 0])


def test_multiply_adds_of_a_single_signal():
    counts = multiply_adds(Single(), rand(1, 2, 4, 5) + 0.1)
    assert counts["linear"] == (10, 10)
    assert counts["conv"] == (3 * 2 * 10 * 13,) * 2  # 3 + 3 + 3 + 1 rows and 13 columns in reach


BAD = [
    (lambda: density(cnn(), nn.ReLU, X[:0]), "x has shape (0, 1, 8, 8), expected inputs (B, ...)"),
    (lambda: density(cnn(), nn.ReLU, torch.tensor(1.0)), "x has shape ()"),
    (lambda: density(cnn(), nn.ReLU, {"x": X}), "x is a dict that cannot become a tensor"),
    (lambda: features(cnn(), nn.ReLU, X, 0), "batch_size = 0"),
    (lambda: density(cnn(), nn.ReLU, X, tol=-1), "tol = -1"),
    (lambda: firing_rates(cnn(), nn.ReLU, X, axis=0), "axis 0 is the batch"),
    (lambda: firing_rates(cnn(), nn.ReLU, X, axis=4), "axis = 4"),
    (lambda: density(cnn(), nn.GELU, X), "the model has no GELU"),
    (lambda: density(nn.LSTM(3, 3), "", rand(4, 2, 3)), "layer '' returned a tuple"),
    (lambda: multiply_adds(nn.ReLU(), X), "the model has no Linear"),
    (lambda: multiply_adds(cnn(), X[:0]), "expected inputs"),
    (lambda: multiply_adds("cnn", X), "model is a str"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_refuses_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
