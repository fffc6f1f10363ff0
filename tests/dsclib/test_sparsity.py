"""FeaturePenalty: it adds what it says and nothing else, and it leaves nothing behind."""

import copy
import gc
import io
import pickle
import re
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dsclib.sparsity import (
    FeaturePenalty,
    FeatureTransform,
    density,
    group_l1,
    hoyer,
    keep_largest,
    kl_rate,
    l1,
    log_sum,
)
from dsclib.training import fit
from dsclib.vision import small_cnn

DOUBLE = torch.float64


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def cnn(seed=0):
    return small_cnn((4, 6), image_size=8, seed=seed)


X, LABELS = rand(12, 1, 8, 8), torch.arange(12) % 10


def by_hand(model, x):
    first = model.relu1(model.conv1(x))
    return first, model.relu2(model.conv2(first))


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- what it adds


@pytest.mark.parametrize("penalty", [l1, group_l1, hoyer, log_sum, kl_rate])
def test_loss_and_gradients_are_those_by_hand(penalty):
    model = cnn()
    first, second = by_hand(model, X)
    expected = 0.3 * penalty(first) + 2.0 * penalty(second)
    expected.backward()
    gradients_by_hand = gradients(model)
    model.zero_grad()
    outputs = model(X)
    with FeaturePenalty(model, ["relu1", "relu2"], penalty, [0.3, 2.0]) as cost:
        assert torch.equal(model(X), outputs)
        value = cost()
    torch.testing.assert_close(value, expected)
    value.backward()
    for a, b in zip(gradients(model)[:4], gradients_by_hand[:4], strict=True):
        torch.testing.assert_close(a, b)
    assert model.linear.weight.grad is None


def test_layers_are_found_by_name_module_and_type():
    model = cnn()

    def found(layers):
        with FeaturePenalty(model, layers) as penalty:
            assert penalty.attached
            return penalty.layers

    both = ("relu1", "relu2")
    for layers in nn.ReLU, ["relu2", "relu1"], (model.relu1, "relu2"), {nn.ReLU}, iter(both):
        assert found(layers) == both
    assert found(["relu1", model.relu1, nn.ReLU]) == both  # each once
    assert found("conv1") == found(model.conv1) == ("conv1",)
    assert found([nn.ReLU, nn.Conv2d]) == ("conv1", "relu1", "conv2", "relu2")
    assert found("") == found(model) == ("",)
    nested = nn.Sequential(model, nn.ReLU())
    with FeaturePenalty(nested, nn.ReLU) as penalty:
        assert penalty.layers == ("0.relu1", "0.relu2", "1")


def test_the_whole_model_is_a_layer():
    model = cnn()
    with FeaturePenalty(model, "") as penalty:
        expected = l1(model(X))
        torch.testing.assert_close(penalty(), expected)


def test_shared_modules_count_each_call_once():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 5), relu, nn.Linear(5, 3), relu)
    x = rand(6, 4)
    first = relu(model[0](x))
    expected = 2 * (l1(first) + l1(relu(model[2](first))))
    with FeaturePenalty(model, [nn.ReLU, "3"], weight=2.0) as penalty:
        assert penalty.layers == ("1",)
        model(x)
        torch.testing.assert_close(penalty(), expected)


def test_only_the_last_pass_counts_and_is_read_once():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        model(X)
        expected = penalty()
        for seed in range(5):  # such as the steps of an attack
            model(rand(3, 1, 8, 8, seed=seed + 1))
        model(X)
        assert torch.equal(penalty(), expected)
        with pytest.raises(ValueError, match="since the last call"):
            penalty()


def test_a_pass_that_failed_leaves_nothing():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        model(X)
        expected = penalty()
        with pytest.raises(RuntimeError):
            model(rand(2, 1, 9, 30))
        model(X)
        assert torch.equal(penalty(), expected)


def test_weights_may_change():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU, l1, 0.5) as penalty:
        assert penalty.weight == (0.5, 0.5)
        values = []
        for weight in 1.0, (1.0, 0.0), [0, 1], torch.tensor([2.0, 2.0]), torch.tensor(0.0):
            penalty.weight = weight
            model(X)
            values.append(penalty().item())
    assert values[1] + values[2] == pytest.approx(values[0])
    assert values[3] == pytest.approx(2 * values[0]) and values[4] == 0


def test_weight_zero_hides_what_is_not_finite():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU, lambda z: (z - z).mean().sqrt() / 0, 0.0) as penalty:
        loss = model(X).sum() + penalty()
        loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_several_penalties_and_a_transform():
    model = cnn()
    first, second = by_hand(model, X)
    with FeaturePenalty(model, "relu1", l1) as before:
        with FeatureTransform(model, "relu1", lambda z: keep_largest(z, 0.2)):
            with FeaturePenalty(model, "relu1", l1) as after, FeaturePenalty(model, "relu2", hoyer):
                model(X)
                torch.testing.assert_close(before(), l1(first))
                torch.testing.assert_close(after(), l1(keep_largest(first, 0.2)))
        model(X)
        torch.testing.assert_close(before(), l1(first))
        with pytest.raises(ValueError, match="inside the with block"):
            after()
    assert not hooks(model)


def test_accumulated_gradients():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        for half in X.split(6):
            model(half)
            (penalty() / 2).backward()
        halves = gradients(model)[:4]
        model.zero_grad()
        model(X)
        penalty().backward()
    for a, b in zip(halves, gradients(model)[:4]):
        torch.testing.assert_close(a, b)


def test_without_gradients_it_is_a_number():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        model(X)
        expected = penalty().item()
        for mode in torch.no_grad, torch.inference_mode:
            with mode():
                model(X)
                assert penalty().item() == expected


def test_frozen_layers():
    model = cnn()
    model.conv2.requires_grad_(False)
    with FeaturePenalty(model, "relu2") as penalty:
        model(X)
        penalty().backward()
        assert model.conv2.weight.grad is None and model.conv1.weight.grad.abs().sum() > 0
        model.requires_grad_(False)
        model(X)
        assert not penalty().requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, DOUBLE])
def test_other_dtypes(dtype):
    model, x = cnn().to(dtype), X.to(dtype)
    with FeaturePenalty(model, nn.ReLU, hoyer) as penalty:
        model(x).float().mean().backward()
        model.zero_grad()
        model(x)
        cost = penalty()
        cost.backward()
    assert cost.dtype == (DOUBLE if dtype == DOUBLE else torch.float32)
    assert model.conv1.weight.grad.dtype == dtype and model.conv1.weight.grad.isfinite().all()


def test_autocast():
    model = cnn()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        model(X)
        expected = penalty().item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(X)
            loss = F.cross_entropy(scores, LABELS) + penalty()
        assert scores.dtype == torch.bfloat16 and loss.dtype == torch.float32
        loss.backward()
        model(X)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(X)
        assert penalty().item() == pytest.approx(expected, rel=0.02)


def test_activation_checkpointing():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = cnn()

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    model = Model()
    with FeaturePenalty(model, nn.ReLU) as penalty:
        for _ in range(2):
            model.zero_grad()
            (model(X).sum() + penalty()).backward()
    found = gradients(model)
    model.zero_grad()
    first, second = by_hand(model.body, X)
    (model.body(X).sum() + l1(first) + l1(second)).backward()
    for a, b in zip(found, gradients(model)):
        torch.testing.assert_close(a, b)


def test_relu_in_place():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    x = rand(6, 4) - 0.5
    with FeaturePenalty(model, nn.ReLU, hoyer) as penalty:
        model(x)
        cost = penalty()
        torch.testing.assert_close(cost, hoyer(F.relu(model[0](x))))
        cost.backward()
    with FeaturePenalty(model, "0", log_sum) as penalty:  # what the ReLU overwrites
        model(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            penalty().backward()


# ---------------------------------------------------------------- what it leaves behind


def test_hooks_come_off_whatever_happens():
    model = cnn()
    for error in KeyError, KeyboardInterrupt:
        with pytest.raises(error), FeaturePenalty(model, nn.ReLU) as penalty:
            model(X)
            raise error
        assert not hooks(model) and not penalty.attached
    with pytest.raises(ZeroDivisionError), FeaturePenalty(model, nn.ReLU, lambda z: 1 / 0):
        model(X)
    assert not hooks(model)
    penalty = FeaturePenalty(model, nn.ReLU)
    assert hooks(model)
    penalty.remove()
    penalty.remove()
    assert not hooks(model)
    with pytest.raises(ValueError, match="was removed"), penalty:
        pass
    for bad in (nn.GELU, l1, 1.0), (nn.ReLU, 3, 1.0), (nn.ReLU, l1, -1.0), (nn.ReLU, l1, [1.0]):
        with pytest.raises(ValueError):
            FeaturePenalty(model, *bad)
        assert not hooks(model)


def test_the_model_is_as_before():
    model = cnn()
    state, outputs, text = copy.deepcopy(model.state_dict()), model(X), repr(model)
    with FeaturePenalty(model, nn.ReLU) as penalty, FeatureTransform(model, "relu1", torch.tanh):
        assert model.state_dict().keys() == state.keys() and repr(model) == text
        model(X)
        penalty()
    for twin in model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert torch.equal(twin(X), outputs) and repr(twin) == text and not hooks(twin)
        assert all(torch.equal(state[k], v) for k, v in twin.state_dict().items())
    torch.save(model, io.BytesIO())


def test_copies_are_not_seen():
    model = cnn()
    expected = sum(map(l1, by_hand(model, X)))
    with FeaturePenalty(model, nn.ReLU) as penalty:
        twin = copy.deepcopy(model)
        model(X)
        twin(rand(3, 1, 8, 8, seed=1))
        torch.testing.assert_close(penalty(), expected)
        twin(X)
        with pytest.raises(ValueError, match="copies of the model are not seen"):
            penalty()
        model.relu1._replicate_for_data_parallel()(rand(2, 3))  # as DataParallel does
        with pytest.raises(ValueError, match="copies of the model are not seen"):
            penalty()
    assert torch.equal(twin(X), model(X))


def test_nothing_is_kept_alive():
    model, features, graphs = cnn(), [], []

    def watched(z):
        cost = z.abs().mean()
        features.append(weakref.ref(z))
        graphs.append(weakref.ref(cost))
        return cost

    with FeaturePenalty(model, nn.ReLU, watched) as penalty:
        model(X)
        value = penalty()
        value.backward()
        del value
        gc.collect()
        assert not any(r() is not None for r in features + graphs)
        model(X)  # not read
    gc.collect()
    assert not any(r() is not None for r in features + graphs)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- training


def task(model, x, labels):
    return F.cross_entropy(model(x), labels)


def test_weight_zero_trains_bit_for_bit_as_without():
    plain, with_hooks = cnn(), cnn()
    fit(plain, task, (X, LABELS), epochs=3, batch_size=5, seed=0)
    with FeaturePenalty(with_hooks, nn.ReLU, l1, 0.0) as penalty:
        fit(
            with_hooks,
            lambda model, x, t: task(model, x, t) + penalty(),
            (X, LABELS),
            epochs=3,
            batch_size=5,
            seed=0,
        )
    assert same(plain.parameters(), with_hooks.parameters())


def test_interrupted_training_goes_on_as_if_never_interrupted(tmp_path):
    def train(model, epochs, **options):
        with FeaturePenalty(model, nn.ReLU, l1, 0.5) as penalty:
            return fit(
                model,
                lambda model, x, t: task(model, x, t) + penalty(),
                (X, LABELS),
                epochs=epochs,
                batch_size=5,
                seed=0,
                **options,
            )

    whole, parts = cnn(), cnn()
    train(whole, 4)
    train(parts, 2, checkpoint=tmp_path / "run.pt")
    train(cnn(seed=1), 4, checkpoint=tmp_path / "run.pt")
    resumed = cnn(seed=2)
    train(resumed, 4, checkpoint=tmp_path / "run.pt")
    assert same(whole.parameters(), resumed.parameters())


def trained_density(penalty, weight):
    model = cnn()
    with FeaturePenalty(model, nn.ReLU, penalty, weight) as cost:
        fit(model, lambda m, x, t: task(m, x, t) + cost(), (X, LABELS), epochs=30, lr=2e-2)
    return sum(density(model, nn.ReLU, X).values())


@pytest.fixture(scope="module")
def baseline():
    return trained_density(l1, 0.0)


@pytest.mark.parametrize("penalty", [l1, group_l1, hoyer, log_sum, kl_rate])
def test_training_makes_features_sparser(penalty, baseline):
    assert trained_density(penalty, 1.0) < 0.85 * baseline


# ---------------------------------------------------------------- bad input


class Two(nn.Module):
    def forward(self, x):
        return x, x


def called(model, *args):
    with FeaturePenalty(model, *args):
        model(rand(3, 4))


BAD = [
    (lambda: FeaturePenalty("cnn", nn.ReLU), "model is a str, expected a torch.nn.Module"),
    (lambda: FeaturePenalty(cnn(), "relu3"), "no layer 'relu3', expected a name"),
    (lambda: FeaturePenalty(cnn(), "relu3"), "such as 'relu2', 'relu1'"),
    (lambda: FeaturePenalty(cnn(), nn.GELU), "no GELU, expected one of its types: Conv2d, Flatten"),
    (lambda: FeaturePenalty(cnn(), cnn().relu1), "a ReLU in layers is no part of the model"),
    (lambda: FeaturePenalty(cnn(), []), "layers is empty"),
    (lambda: FeaturePenalty(cnn(), None), "layers is a NoneType"),
    (lambda: FeaturePenalty(cnn(), {"relu1": 1.0}), "layers is a dict"),
    (lambda: FeaturePenalty(cnn(), [["relu1"]]), "layers has a list"),
    (lambda: FeaturePenalty(cnn(), [3]), "layers has a int"),
    (lambda: FeaturePenalty(cnn(), int), "layers has the type int"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU, "l1"), "penalty is a str, expected a function"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU, l1, -0.1), "weight = -0.1"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU, l1, float("nan")), "weight = nan"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU, l1, None), "weight is a NoneType"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU, l1, "much"), "weight has 4 entries, expected 2"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU, l1, [1.0] * 3), "weight has 3 entries, expected 2"),
    (
        lambda: called(nn.Sequential(nn.ReLU()), "0", lambda z: z),
        "penalty of layer '0' is a tensor",
    ),
    (lambda: called(nn.Sequential(nn.ReLU()), "0", lambda z: 1.0), "layer '0' is a float"),
    (lambda: called(Two(), ""), "layer '' returned a tuple, expected one tensor"),
    (lambda: called(nn.Sequential(nn.Flatten(0)), "0"), "returned a tensor of shape (12,)"),
    (lambda: FeaturePenalty(cnn(), nn.ReLU)(), "call model(x) first"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_refuses_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_scripted_models_are_refused():
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(cnn())
    for make in FeaturePenalty, FeatureTransform, density:
        with pytest.raises(ValueError, match="scripted or traced by torch.jit"):
            make(scripted, "relu1", l1)
