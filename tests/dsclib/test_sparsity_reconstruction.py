"""LayeredReconstruction is the relative residual of a dense matrix, for every linear layer."""

import gc
import re
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsclib.sparsity import FeaturePenalty, FeatureTransform, LayeredReconstruction, keep_largest
from dsclib.vision import small_cnn

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def matrix(layer, shape):
    """The layer without its bias as a dense matrix (outputs, inputs), column by column."""
    inputs = torch.eye(shape.numel(), dtype=DOUBLE).view(-1, *shape)
    zero = layer(torch.zeros(1, *shape, dtype=DOUBLE))
    return (layer(inputs) - zero).flatten(1).T


def residual(x, z, A):
    """The formula, its least squares solved by torch."""
    x, r = x.flatten(1), z.flatten(1) @ A
    values = []
    for x_b, r_b in zip(x, r):
        c = torch.linalg.lstsq(r_b[:, None], x_b[:, None]).solution[0, 0] if r_b.any() else 0.0
        values.append((x_b - c * r_b).square().sum() / x_b.square().sum() if x_b.any() else 0 * c)
    return sum(values) / len(values)


def cost_of(model, layers, x, weight=1.0):
    with LayeredReconstruction(model, layers, weight) as reconstruction:
        model(x)
        return reconstruction()


def pair(linear):
    return nn.Sequential(linear, nn.ReLU()).to(DOUBLE)


LAYERS = [
    (lambda: nn.Linear(5, 7), (4, 5)),
    (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (4, 2, 9)),
    (lambda: nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), (3, 2, 5, 6)),
    (lambda: nn.Conv2d(1, 3, (3, 2), stride=(2, 1), bias=False), (3, 1, 6, 5)),
    (lambda: nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), (3, 1, 4, 5)),
    (lambda: nn.Conv2d(1, 3, 3, padding="same"), (3, 1, 4, 5)),
    (lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 4)),
]


@pytest.mark.parametrize("make, shape", LAYERS)
def test_is_the_residual_of_the_dense_matrix(make, shape):
    torch.manual_seed(0)
    model, x = pair(make()), randn(*shape)
    expected = residual(x, model(x), matrix(model[0], torch.Size(shape[1:])))
    torch.testing.assert_close(cost_of(model, {"0": "1"}, x), expected)


def test_linear_layers_on_tokens_have_one_scale_a_signal():
    torch.manual_seed(0)
    model, x = pair(nn.Linear(5, 7)), randn(3, 4, 5)
    A = torch.block_diag(*[model[0].weight] * 4)
    expected = residual(x, model(x), A)
    torch.testing.assert_close(cost_of(model, {"0": "1"}, x), expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-8, 1e8))
def test_scales_do_not_matter(seed, scale):
    torch.manual_seed(seed)
    linear, x = nn.Linear(5, 7, bias=False).to(DOUBLE), randn(4, 5, seed=seed)
    with torch.no_grad():
        before = cost_of(nn.Sequential(linear, nn.ReLU()), {"0": "1"}, x)
        assert 0 <= before <= 1 + 1e-12
        torch.testing.assert_close(
            cost_of(nn.Sequential(linear, nn.ReLU()), {"0": "1"}, scale * x), before
        )
        linear.weight.mul_(scale)
        torch.testing.assert_close(cost_of(nn.Sequential(linear, nn.ReLU()), {"0": "1"}, x), before)


def test_zero_signals_and_signals_without_features():
    model = pair(nn.Linear(3, 4))
    with torch.no_grad():
        model[0].bias.fill_(-1)
    x = randn(3, 3)
    x[0] = 0
    x[1] *= 1e-3  # below the biases: no features
    alone = cost_of(model, {"0": "1"}, 100 * x[2:])
    x[2] *= 100
    x.requires_grad_()
    cost = cost_of(model, {"0": "1"}, x)
    torch.testing.assert_close(cost, (0 + 1 + alone) / 3)
    cost.backward()
    assert (x.grad[:2] == 0).all() and x.grad.isfinite().all()
    assert model[0].weight.grad.isfinite().all()


def test_a_tight_frame_without_biases_explains_all():
    Q = torch.linalg.qr(randn(4, 4)).Q
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU()).to(DOUBLE)
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([Q, -Q]))  # [Q; -Q]' ReLU([Q; -Q] x) = x
    assert cost_of(model, {"0": "1"}, randn(5, 4)).abs() < 1e-12


@pytest.mark.parametrize("number, shape", [(0, (2, 5)), (1, (2, 2, 5)), (2, (2, 2, 3, 3))])
def test_gradients(number, shape):
    torch.manual_seed(1)
    make = LAYERS[number][0]
    linear = make().to(DOUBLE)
    model = nn.Sequential(linear, nn.Softplus())
    x = randn(*shape).requires_grad_()

    assert torch.autograd.gradcheck(lambda x: cost_of(model, {"0": "1"}, x), x)

    cost_of(model, {"0": "1"}, x).backward()
    direction, eps, values = randn(*linear.weight.shape, seed=2), 1e-6, []
    slope = (linear.weight.grad * direction).sum()
    for sign in 1, -1:
        with torch.no_grad():
            linear.weight.add_(sign * eps * direction)
            values.append(cost_of(model, {"0": "1"}, x))
            linear.weight.sub_(sign * eps * direction)
    assert ((values[0] - values[1]) / (2 * eps)).item() == pytest.approx(slope.item(), rel=1e-6)


def test_layers_add_up_with_their_weights():
    model = small_cnn((4, 6), image_size=8, seed=0).to(DOUBLE)
    x, pairs = randn(3, 1, 8, 8), {"conv2": "relu2", "conv1": "relu1"}
    first = cost_of(model, {"conv1": "relu1"}, x)
    second = cost_of(model, {"conv2": "relu2"}, x)
    torch.testing.assert_close(cost_of(model, pairs, x, (2.0, 0.5)), 2 * second + 0.5 * first)
    outputs = model(x)
    with LayeredReconstruction(model, pairs) as reconstruction, FeaturePenalty(model, nn.ReLU):
        assert reconstruction.layers == ("conv2", "conv1")
        assert torch.equal(model(x), outputs)
        reconstruction.weight = 0.0
        assert reconstruction() == 0


def test_one_activation_may_serve_several_layers():
    torch.manual_seed(0)
    relu = nn.ReLU()
    shared = nn.Sequential(nn.Linear(5, 6), relu, nn.Linear(6, 4), relu).to(DOUBLE)
    twin = nn.Sequential(shared[0], nn.ReLU(), shared[2], nn.ReLU())
    x = randn(4, 5)
    expected = cost_of(twin, {"0": "1", "2": "3"}, x)
    torch.testing.assert_close(cost_of(shared, {"0": "1", "2": "1"}, x), expected)
    # and one pair of layers may be called several times in turns
    again = nn.Sequential(nn.Linear(5, 5), relu).to(DOUBLE)
    again.extend([again[0], relu])
    first = cost_of(again[:2], {"0": "1"}, x)
    second = cost_of(again[:2], {"0": "1"}, relu(again[0](x)))
    torch.testing.assert_close(cost_of(again, {"0": "1"}, x), first + second)


def test_sees_transformed_features():
    torch.manual_seed(0)
    model, x = pair(nn.Linear(5, 10)), randn(4, 5)
    expected = residual(x, keep_largest(model(x), 0.2), model[0].weight)
    with FeatureTransform(model, "1", lambda z: keep_largest(z, 0.2)):
        torch.testing.assert_close(cost_of(model, {"0": "1"}, x), expected)


def test_half_precision():
    torch.manual_seed(0)
    model, x = pair(nn.Linear(5, 7)).float(), randn(40, 5).float()
    expected = cost_of(model, {"0": "1"}, x).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = cost_of(model, {"0": "1"}, x)
    cost.backward()
    assert cost.dtype == torch.float32 and cost.item() == pytest.approx(expected, rel=0.02)
    half = cost_of(model.half(), {"0": "1"}, 1000 * x.half())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected, abs=0.1)


def test_nothing_is_kept():
    model = small_cnn((4, 6), image_size=8, seed=0)
    reconstruction = LayeredReconstruction(model, {"conv1": "relu1"})
    with pytest.raises(ValueError, match="'relu1' returns"):
        with reconstruction:
            model.conv1(torch.rand(1, 1, 8, 8))
            model.relu1(torch.rand(3, 3))  # fails before its input is forgotten
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    reconstruction, kept = LayeredReconstruction(model, {"conv1": "relu1"}), []
    with reconstruction:
        x = torch.rand(2, 1, 8, 8)
        kept.append(weakref.ref(x))
        model.conv1(x)  # and no activation
    del x
    gc.collect()
    assert kept[0]() is None


def cnn():
    return small_cnn((4, 6), image_size=8, seed=0)


X = torch.rand(2, 1, 8, 8)


class Branch(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.linear, self.relu, self.calls = nn.Linear(4, 4), nn.ReLU(), calls

    def forward(self, x):
        for layer in self.calls:
            x = getattr(self, layer)(x)
        return x


def branch(*calls):
    return cost_of(Branch(calls), {"linear": "relu"}, torch.rand(2, 4))


PAIR = {"conv1": "relu1"}
BAD = [
    (lambda: LayeredReconstruction(cnn(), {}), "layers is {}, expected a dict"),
    (lambda: LayeredReconstruction(cnn(), ["conv1"]), "layers is ['conv1'], expected a dict"),
    (lambda: LayeredReconstruction(cnn(), {"conv1": nn.ReLU}), "layers has a type"),
    (lambda: LayeredReconstruction(cnn(), {"conv3": "relu1"}), "no layer 'conv3'"),
    (lambda: LayeredReconstruction(cnn(), {"conv1": "relu3"}), "no layer 'relu3'"),
    (lambda: LayeredReconstruction(cnn(), {"relu1": "conv2"}), "layer 'relu1' is a ReLU"),
    (lambda: LayeredReconstruction(cnn(), PAIR, -1.0), "weight = -1.0"),
    (lambda: LayeredReconstruction(cnn(), PAIR, [1.0, 1.0]), "weight has 2 entries, expected 1"),
    (lambda: LayeredReconstruction("cnn", PAIR), "model is a str"),
    (lambda: LayeredReconstruction(cnn(), PAIR)(), "call model(x) first"),
    (lambda: cost_of(cnn(), {"conv1": "relu2"}, X), "'relu2' returns a tensor of shape (2, 6,"),
    (lambda: branch("linear"), "'linear' was called and 'relu' was not called after it"),
    (lambda: branch("linear", "linear", "relu"), "'linear' was called twice and 'relu' was not"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_refuses_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
