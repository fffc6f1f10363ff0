"""Attacks: exact where the answer is known, inside their box, and they leave the model alone."""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsclib.attacks import fgsm, margin, pgd
from dsclib.metrics import accuracy
from dsclib.sparsity import FeaturePenalty, FeatureTransform, Threshold, keep_largest
from dsclib.vision import small_cnn

ANY = (-float("inf"), float("inf"))
BOTH = pytest.mark.parametrize("attack", [fgsm, pgd])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def classes(n, count, seed=0):
    return torch.randint(count, (n,), generator=torch.Generator().manual_seed(seed))


def linear(features=12, count=2, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(features, count).double()


def network(seed=0):
    """Dropout and batch normalisation: in ``train()`` mode the answers would be others."""
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 4)]
    return nn.Sequential(*layers).double()


def losses(model, x, labels):
    return F.cross_entropy(model(x), labels, reduction="none").detach()


X, T = uniform(30, 12), classes(30, 4)


# ---------------------------------------------------------------- what the attacks find


@pytest.mark.parametrize("eps", [0.0, 0.03, 2.0])
def test_fgsm_is_exact_on_a_linear_model_of_two_classes(eps):
    """The loss is softplus(z_other - z_t): it grows by eps times the l1 norm of the weights."""
    model, labels = linear(), classes(30, 2)
    worst = margin(model(X), labels) + eps * (model.weight[0] - model.weight[1]).abs().sum()
    attacked = fgsm(model, X, labels, eps, limits=ANY)
    torch.testing.assert_close(margin(model(attacked), labels), worst)
    torch.testing.assert_close(losses(model, attacked, labels), F.softplus(worst).detach())
    torch.testing.assert_close(fgsm(model, X, labels, eps, limits=ANY, loss=margin), attacked)


def test_fgsm_and_pgd_are_exact_within_limits_too():
    """The corner of the box, found pixel by pixel."""
    model, labels, eps = linear(), classes(30, 2), 0.2
    slope = (model.weight[1] - model.weight[0]).detach() * (1 - 2 * labels)[:, None]
    corner = torch.where(slope > 0, (X + eps).clamp(max=1), (X - eps).clamp(min=0))
    torch.testing.assert_close(fgsm(model, X, labels, eps), corner)
    torch.testing.assert_close(pgd(model, X, labels, eps, seed=0), corner)


def test_no_point_of_the_ball_beats_the_corner():
    model, labels, eps = linear(), classes(30, 2), 0.1
    worst = losses(model, fgsm(model, X, labels, eps), labels)
    for seed in range(20):
        other = (X + eps * (2 * uniform(30, 12, seed=seed) - 1)).clamp(0, 1)
        assert (losses(model, other, labels) <= worst + 1e-12).all()


def test_equals_the_formula_in_the_open():
    model, eps = network().eval(), 0.05
    z = X.clone().requires_grad_()
    F.cross_entropy(model(z), T).backward()
    expected = (X + eps * z.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, X, T, eps), expected)


def test_pgd_equals_the_loop_in_the_open():
    model, eps, step = network().eval(), 0.1, 0.03
    low, high = (X - eps).clamp(min=0), (X + eps).clamp(max=1)
    z = low + (high - low) * uniform(30, 12, seed=5)
    seen = [z]
    for _ in range(6):
        z = z.clone().requires_grad_()
        F.cross_entropy(model(z), T, reduction="sum").backward()
        z = (z + step * z.grad.sign()).clamp(low, high).detach()
        seen.append(z)
    values = torch.stack([losses(model, z, T) for z in seen])
    best = torch.stack(seen)[values.argmax(dim=0), torch.arange(30)]
    torch.testing.assert_close(pgd(model, X, T, eps, steps=6, step_size=step, seed=5), best)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_work_finds_more(seed):
    model = network(seed).eval()
    found = [
        losses(model, x, T)
        for x in (
            X,
            pgd(model, X, T, 0.2, steps=0, seed=seed),
            fgsm(model, X, T, 0.2),
            pgd(model, X, T, 0.2, seed=seed),
        )
    ]
    clean, random, fast, strong = (v.mean() for v in found)
    assert clean < fast < strong
    assert random < fast
    assert (found[3] > found[2] - 0.02).all()  # local maxima differ, by little


def test_restarts_keep_the_best_of_each_input():
    """The runs share one generator, so the first of three is the only one of the first call."""
    model = network().eval()
    few = losses(model, pgd(model, X, T, 0.3, steps=3, seed=4), T)
    more = losses(model, pgd(model, X, T, 0.3, steps=3, restarts=3, seed=4), T)
    assert (more >= few).all()
    assert (more > few).any()


def test_the_best_point_of_a_run_is_kept_where_large_steps_overshoot():
    model = network().eval()
    few = losses(model, pgd(model, X, T, 0.3, steps=4, step_size=0.4, seed=4), T)
    more = losses(model, pgd(model, X, T, 0.3, steps=9, step_size=0.4, seed=4), T)
    assert (more >= few).all()


def test_the_margin_is_positive_where_the_answer_is_wrong():
    model = network().eval()
    for eps in (0.0, 0.1, 0.5):
        attacked = pgd(model, X, T, eps, loss=margin, seed=0)
        value = margin(model(attacked), T)
        assert accuracy(model, attacked, T) == (value <= 0).double().mean().item()
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert margin(scores, torch.tensor([1, 0])).tolist() == [-1.0, 2.0]


def test_the_margin_moves_what_the_cross_entropy_no_longer_feels():
    """In float32 the loss of a very sure network is 0, and so is its gradient."""
    model = linear().float()
    with torch.no_grad():
        model.weight.mul_(1e7)
    x, labels = X.float(), model(X.float()).argmax(dim=1)
    assert torch.equal(fgsm(model, x, labels, 0.1), x)
    assert (fgsm(model, x, labels, 0.1, loss=margin) != x).any(dim=1).all()


# ---------------------------------------------------------------- where they stay


@BOTH
@given(eps=st.floats(0, 5), seed=st.integers(0, 99), double=st.booleans())
@settings(max_examples=25, deadline=None)
def test_never_leaves_the_ball_or_the_limits(attack, eps, seed, double):
    dtype = torch.float64 if double else torch.float32
    x = uniform(5, 12, seed=seed, dtype=dtype)
    attacked = attack(network().to(dtype), x, T[:5], eps)
    assert attacked.dtype == dtype and attacked.shape == x.shape
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert (attacked - x).abs().max() <= eps + 1e-6


@BOTH
def test_eps_zero_returns_the_input(attack):
    for x in (X, X.float(), torch.zeros_like(X), torch.ones_like(X)):
        attacked = attack(network().to(x), x, T, 0)
        assert torch.equal(attacked, x)
        assert attacked.data_ptr() != x.data_ptr()


@BOTH
def test_other_limits(attack):
    model, x = network(), 6 * X - 3
    attacked = attack(model, x, T, 1.0, limits=(-3, 3))
    assert attacked.min() >= -3 and attacked.max() <= 3
    assert (attacked - x).abs().max() > 0.9
    assert attack(model, x, T, 1.0, limits=ANY).abs().max() > 3


def test_images_arrays_and_lists():
    model = small_cnn(image_size=8, seed=0).double()
    images, labels = uniform(6, 1, 8, 8), classes(6, 10)
    attacked = pgd(model, images, labels, 0.1, steps=2, seed=0)
    assert attacked.shape == images.shape
    same = pgd(model, images.numpy(), labels.tolist(), 0.1, steps=2, seed=0)
    assert torch.equal(attacked, same)
    numbers = np.asarray(labels, dtype=np.uint8)
    assert torch.equal(attacked, pgd(model, images, numbers, 0.1, steps=2, seed=0))


# ---------------------------------------------------------------- the model is left alone


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(attack, training):
    model = network().train(training)
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    x = X.clone().requires_grad_()
    attacked = attack(model, x, T, 0.1)
    assert not attacked.requires_grad and x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [part.training for part in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    attack(model, X, T, 0.1)
    assert all((p.grad == 1).all() for p in model.parameters())


@BOTH
def test_attacks_in_eval_mode_and_puts_the_mode_back_after_an_error(attack):
    model = network().train()
    kwargs = {"seed": 0} if attack is pgd else {}
    in_training = attack(model, X, T, 0.1, **kwargs)
    assert torch.equal(in_training, attack(model.eval(), X, T, 0.1, **kwargs))
    model.train()
    with pytest.raises(ValueError, match="labels run from"):
        attack(model, X, T + 3, 0.1)
    assert all(part.training for part in model.modules())


@BOTH
def test_one_input_does_not_change_the_attack_on_another(attack):
    model = network()
    kwargs = {"step_size": 0.04, "steps": 3, "seed": 0} if attack is pgd else {}
    whole = attack(model, X, T, 0.1, **kwargs)
    torch.testing.assert_close(attack(model, X[:4], T[:4], 0.1, **kwargs), whole[:4])


@BOTH
def test_frozen_models_and_modes_without_gradients(attack):
    model = network()
    kwargs = {"seed": 0} if attack is pgd else {}
    expected = attack(model, X, T, 0.1, **kwargs)
    with torch.no_grad():
        assert torch.equal(attack(model, X, T, 0.1, **kwargs), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(attack(model, X, T, 0.1, **kwargs), expected)
    model.requires_grad_(False)
    assert torch.equal(attack(model, X, T, 0.1, **kwargs), expected)


def test_reproducible_by_seed():
    model = network()
    first, state = pgd(model, X, T, 0.1, steps=2, seed=3), torch.get_rng_state()
    assert torch.equal(first, pgd(model, X, T, 0.1, steps=2, seed=3))
    assert not torch.equal(first, pgd(model, X, T, 0.1, steps=2, seed=4))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(7)
    drawn = pgd(model, X, T, 0.1, steps=2)
    torch.manual_seed(7)
    assert torch.equal(drawn, pgd(model, X, T, 0.1, steps=2))


# ---------------------------------------------------------------- hooks


@BOTH
@pytest.mark.parametrize("make", [lambda: lambda z: keep_largest(z, 0.2), lambda: Threshold(20)])
def test_attacks_what_the_hooks_make_of_the_model(attack, make):
    """The same as an attack on a model that has the map as a layer of its own."""

    class Map(nn.Module):
        def forward(self, z):
            return transform(z)

    transform = make()
    if isinstance(transform, nn.Module):
        transform.double()
    model, kwargs = network(), {"seed": 0} if attack is pgd else {}
    plain = attack(model, X, T, 0.1, **kwargs)
    built = nn.Sequential(*model[:3], Map(), *model[3:])
    with FeatureTransform(model, "2", transform):
        attacked = attack(model, X, T, 0.1, **kwargs)
    assert torch.equal(attacked, attack(built, X, T, 0.1, **kwargs))
    assert not torch.equal(attacked, plain)
    assert torch.equal(attack(model, X, T, 0.1, **kwargs), plain)


def test_a_penalty_counts_the_pass_after_the_attack():
    """Adversarial training with a penalty: attack, forward, backward, in one hook's life."""
    model = network()
    with FeaturePenalty(model, nn.ReLU, weight=1.0) as penalty:
        attacked = pgd(model, X, T, 0.1, steps=2, seed=0)
        model(attacked)
        value = penalty()
        model(attacked)
        assert torch.equal(value, penalty())
        value.backward()
    assert model[0].weight.grad is not None


# ---------------------------------------------------------------- bad input


class Returns(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@BOTH
@pytest.mark.parametrize(
    "change, message",
    [
        ({"eps": -0.1}, "eps = -0.1, expected a finite number >= 0"),
        ({"eps": float("inf")}, "eps = inf"),
        ({"eps": "0.1"}, "eps = '0.1'"),
        ({"x": X[0], "labels": T[:1]}, "use x[None]"),
        ({"x": X[:0], "labels": T[:0]}, "not empty"),
        ({"x": X * torch.nan}, "NaN"),
        ({"x": 2 * X}, "expected limits around them"),
        ({"x": X - 0.5}, "pass limits=(low, high)"),
        ({"limits": (0.2, 0.3)}, "x has values from"),
        ({"labels": T[:7]}, "x has 30 entries but labels 7"),
        ({"labels": T + 1}, "labels run from 1 to 4, expected 0 to 3"),
        ({"labels": T - 1}, "labels run from -1 to 2"),
        ({"labels": T.double()}, "expected integers"),
        ({"model": lambda x: x}, "model is a function"),
        ({"model": Returns(lambda x: x.sum(dim=1))}, "the model returned (30,)"),
        ({"model": Returns(lambda x: (x, x))}, "the model returned tuple"),
        ({"model": Returns(lambda x: x.detach()), "labels": T}, "does not depend on x"),
        ({"model": Returns(lambda x: x / 0)}, "not finite"),
        ({"model": Returns(lambda x: (x - x).sqrt())}, "gradient of the loss is NaN"),
        ({"loss": lambda z, t: z}, "the loss has shape"),
        ({"model": Returns(lambda x: x[:, :1]), "labels": 0 * T, "loss": margin}, "not finite"),
    ],
)
def test_bad_input(attack, change, message):
    call = {"model": network(), "x": X, "labels": T, "eps": 0.1} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        attack(**call)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": -1}, "steps = -1"),
        ({"steps": 2.5}, "steps = 2.5"),
        ({"restarts": 0}, "restarts = 0"),
        ({"step_size": -0.1}, "step_size = -0.1"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_bad_numbers_of_pgd(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pgd(network(), X, T, 0.1, **change)
