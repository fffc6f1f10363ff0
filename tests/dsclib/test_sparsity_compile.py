"""Under torch.compile: hooks set before the first call are traced, and later ones say so."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from dsclib.metrics import accuracy
from dsclib.sparsity import (
    FeaturePenalty,
    FeatureTransform,
    LayeredReconstruction,
    Threshold,
    density,
    features,
    firing_rates,
    group_l1,
    hoyer,
    keep_largest,
    kl_rate,
    l1,
    log_sum,
    multiply_adds,
)
from dsclib.vision import small_cnn

PAIRS = {"conv1": "relu1", "conv2": "relu2"}
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Network(nn.Module):
    """A module of one's own: compile() in place does nothing for a bare nn.Sequential."""

    def __init__(self):
        super().__init__()
        for name, layer in small_cnn((4, 6), image_size=8, seed=0).named_children():
            setattr(self, name, layer)

    def forward(self, x):
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.linear(self.flatten(x))


def grads(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "penalty, backend",
    [(p, "eager") for p in (l1, group_l1, log_sum)] + [(p, "aot_eager") for p in (hoyer, kl_rate)],
)
def test_penalties_and_their_gradients(penalty, backend):
    model = Network()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with FeaturePenalty(model, nn.ReLU, penalty, 2.0) as cost:
        expected = grads(model, model(X).square().sum() + cost())
        found = grads(model, compiled(X).square().sum() + cost())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_reconstruction_and_transforms(backend):
    model, thresholds = Network(), [Threshold(4), lambda z: keep_largest(z, 0.3)]
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with FeatureTransform(model, nn.ReLU, thresholds), LayeredReconstruction(model, PAIRS) as cost:
        expected = grads(model, model(X).square().sum() + cost())
        found = grads(model, compiled(X).square().sum() + cost())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_hooks_may_be_set_on_what_compile_returns():
    compiled = torch.compile(Network(), backend="eager", fullgraph=True)
    with FeaturePenalty(compiled, nn.ReLU) as penalty:
        assert penalty.layers == ("relu1", "relu2")
        compiled(X)
        value = penalty()
    model = Network()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        model(X)
        torch.testing.assert_close(penalty(), value)
    with FeaturePenalty(nn.Sequential(compiled), compiled) as penalty:  # as a part
        assert penalty.layers == ("0._orig_mod",)


def test_is_compiled_once_and_once_more_without_hooks():
    model, counter = Network(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with (
        FeaturePenalty(model, nn.ReLU) as penalty,
        LayeredReconstruction(model, PAIRS, 0.1) as reconstruction,
    ):
        for weight in 0.1, 0.2, 0.5, 0.0, 3.0:
            penalty.weight = weight
            compiled(X)
            penalty() + reconstruction()
            compiled(X)  # not read
            compiled(X)
        assert counter.frame_count == 1
    for _ in range(3):
        torch.testing.assert_close(compiled(X), model(X))
    assert counter.frame_count == 2
    for cost in penalty, reconstruction:
        with pytest.raises(ValueError, match="no feature of the layers was seen"):
            cost()


def test_hooks_set_after_the_first_call_say_that_they_see_nothing():
    model = Network()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(X)
    for make in (
        lambda: FeaturePenalty(model, nn.ReLU),
        lambda: LayeredReconstruction(model, PAIRS),
    ):
        with make() as cost:
            compiled(X)
            with pytest.raises(ValueError, match="sees only hooks set before its first call"):
                cost()


def test_model_compiled_in_place():
    model, twin = Network(), Network()
    model.compile(backend="eager", fullgraph=True)
    for network in model, twin:
        with FeaturePenalty(network, nn.ReLU) as penalty:
            network(X)
            network.value = penalty().detach()
    torch.testing.assert_close(model.value, twin.value)
    assert torch.equal(model(X), twin(X))


@pytest.mark.parametrize("in_place", [False, True])
def test_measures_run_uncompiled(in_place):
    model, labels = Network(), torch.arange(5)
    expected = (
        density(model, nn.ReLU, X),
        multiply_adds(model, X),
        firing_rates(model, nn.ReLU, X)["relu2"].tolist(),
        features(model, "relu1", X)["relu1"].sum().item(),
        accuracy(model, X, labels),
    )
    counter = CompileCounter()
    if in_place:
        compiled = model
        model.compile(backend=counter, fullgraph=True)
    else:
        compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(X)
    for of in compiled, model, nn.ModuleList([compiled])[0]:
        assert expected == (
            density(of, nn.ReLU, X),
            multiply_adds(of, X),
            firing_rates(of, nn.ReLU, X)["relu2"].tolist(),
            features(of, "relu1", X)["relu1"].sum().item(),
            accuracy(of, X, labels),
        )
    before = counter.frame_count
    compiled(X)
    assert counter.frame_count == before  # what was compiled is still there
