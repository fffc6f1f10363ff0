"""Scores against closed forms, brute force and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from dsclib.metrics import (
    accuracy,
    atom_recovery,
    clustering_accuracy,
    principal_angle,
    psnr,
    support_recovery,
)

seeds = st.integers(0, 2**31)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------- support


def test_support_recovery_counts():
    truth = torch.tensor([[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    codes = torch.tensor([[0.5, 0.0, 0.1, 0.0], [0.0, 0.0, 9.0, 0.0]])
    score = support_recovery(codes, truth)
    assert score == (2 / 3, 2 / 3, 0.5)
    assert score == (score.precision, score.recall, score.exact)
    assert all(type(value) is float for value in score)


def test_support_recovery_tolerance_is_for_the_estimate_alone():
    truth = torch.tensor([[1e-3, 0.0, 1.0]])
    codes = torch.tensor([[2e-3, 1e-3, 1.0]])
    assert support_recovery(codes, truth, tol=1e-3) == (1.0, 1.0, 1.0)
    assert support_recovery(codes, truth).exact == 0.0


def test_support_recovery_where_nothing_is_active():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert support_recovery(zero, zero) == (1.0, 1.0, 1.0)
    assert support_recovery(zero, one) == (1.0, 0.0, 0.0)
    assert support_recovery(one, zero) == (0.0, 1.0, 0.0)


def test_support_recovery_of_convolutional_codes_and_numpy():
    truth = (normal(5, 2, 7) > 1).double()
    codes = truth.clone()
    codes[0, 0, 0] = 1 - codes[0, 0, 0]
    assert support_recovery(codes, truth).exact == pytest.approx(0.8)
    assert support_recovery(codes.numpy(), truth) == support_recovery(codes, truth)
    assert support_recovery(codes.numpy().tolist(), truth) == support_recovery(codes, truth)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_support_recovery_is_the_share_of_sets(seed):
    truth, codes = normal(6, 5, seed=seed).relu(), normal(6, 5, seed=seed + 1).relu()
    true = [set(np.flatnonzero(row)) for row in truth.numpy()]
    ours = [set(np.flatnonzero(row)) for row in codes.numpy()]
    hits = sum(len(a & b) for a, b in zip(true, ours))
    expected = (
        hits / max(sum(map(len, ours)), 1),
        hits / max(sum(map(len, true)), 1),
        sum(a == b for a, b in zip(true, ours)) / 6,
    )
    assert support_recovery(codes, truth) == pytest.approx(expected)


# ---------------------------------------------------------------- atoms


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_atom_recovery_forgets_order_sign_and_length(seed):
    truth = normal(8, 5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(5, generator=generator, dtype=torch.float64) + 0.1
    D = (truth * factors)[:, torch.randperm(5, generator=generator)]
    torch.testing.assert_close(atom_recovery(D, truth), torch.ones(5, dtype=torch.float64))


def test_atom_recovery_matches_brute_force():
    D, truth = normal(3, 5, seed=1), normal(3, 4, seed=2)
    cosines = ((truth / truth.norm(dim=0)).T @ (D / D.norm(dim=0))).abs()
    best = max(
        (cosines[range(4), list(order)] for order in itertools.permutations(range(5), 4)),
        key=torch.sum,
    )
    torch.testing.assert_close(atom_recovery(D, truth), best)


def test_atom_recovery_is_one_to_one_and_in_the_order_of_the_truth():
    truth = torch.eye(3)
    D = torch.stack([truth[:, 2], truth[:, 0], truth[:, 0]], dim=1)
    assert atom_recovery(D, truth).tolist() == [1.0, 0.0, 1.0]
    D = torch.cat([torch.zeros(3, 1), truth[:, :2]], dim=1)
    assert atom_recovery(D, truth).tolist() == [1.0, 1.0, 0.0]


def test_atom_recovery_has_a_gradient():
    D = normal(6, 4, seed=3).requires_grad_()
    truth = normal(6, 4, seed=4)
    assert torch.autograd.gradcheck(lambda D: atom_recovery(D, truth), D)


# ---------------------------------------------------------------- angles


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_principal_angle_agrees_with_scipy(seed, p, q):
    A, B = normal(6, p, seed=seed), normal(6, q, seed=seed + 1)
    expected = subspace_angles(A.numpy(), B.numpy()).max()
    assert principal_angle(A, B).item() == pytest.approx(expected, abs=1e-9)
    assert principal_angle(B, A).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, math.pi / 2 - 1e-12, math.pi / 2])
def test_principal_angle_is_exact_at_both_ends(angle):
    e = torch.eye(5, dtype=torch.float64)
    mix = normal(2, 2, seed=5)
    A = e[:, :2] @ mix
    B = torch.stack([e[:, 0], math.cos(angle) * e[:, 1] + math.sin(angle) * e[:, 2]], dim=1)
    assert principal_angle(A, B).item() == pytest.approx(angle, abs=5e-15, rel=0)


def test_principal_angle_of_batches():
    A, B = normal(3, 7, 2, seed=6), normal(7, 2, seed=7)
    angles = principal_angle(A, B)
    assert angles.shape == (3,)
    for a, angle in zip(A, angles):
        torch.testing.assert_close(principal_angle(a, B), angle)
    assert principal_angle(A.float(), B.float()).dtype == torch.float32


# ---------------------------------------------------------------- clusterings


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_clustering_accuracy_matches_brute_force(pairs):
    truth, labels = (torch.tensor(x) for x in zip(*pairs))
    best = max(
        sum(order[label] == true for true, label in pairs)
        for order in itertools.permutations(range(4))
    )
    assert clustering_accuracy(truth, labels) == pytest.approx(best / len(pairs))


def test_clustering_accuracy_takes_any_integers_and_numbers_of_clusters():
    truth = torch.tensor([5, 5, -1, -1, 2**40, 2**40])
    assert clustering_accuracy(truth, [7, 7, 3, 3, 0, 0]) == 1.0
    assert clustering_accuracy(truth, np.arange(6)) == 0.5
    assert clustering_accuracy(truth, torch.zeros(6, dtype=torch.uint8)) == pytest.approx(1 / 3)


# ---------------------------------------------------------------- classifiers


def classifier():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.9)
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_accuracy_is_the_share_of_right_answers(seed, count, batch_size):
    model = classifier()
    images = normal(count, 4, seed=seed, dtype=torch.float32)
    labels = torch.randint(3, (count,), generator=torch.Generator().manual_seed(seed))
    answers = model.eval()(images).argmax(1)
    model.train()
    share = accuracy(model, images, labels, batch_size)
    assert type(share) is float
    assert share == pytest.approx((answers == labels).double().mean().item())
    assert accuracy(model, images, answers, batch_size) == 1.0


def test_accuracy_leaves_the_model_as_it_was():
    model = classifier()
    model[1].eval()
    modes = [part.training for part in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    images, labels = normal(5, 4, dtype=torch.float32), [0, 1, 2, 0, 1]
    share = accuracy(model, images, labels)
    assert accuracy(model, images.double().numpy(), np.array(labels)) == share
    with pytest.raises(RuntimeError):
        accuracy(model, images[:, :3], labels)
    assert [part.training for part in model.modules()] == modes and torch.is_grad_enabled()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert accuracy(lambda_module(), normal(5, 4), labels) == pytest.approx(0.4)


def lambda_module():
    """Has no weights: always answers class 1."""

    class Always(torch.nn.Module):
        def forward(self, x):
            return torch.eye(3)[torch.ones(len(x), dtype=torch.long)]

    return Always()


# ---------------------------------------------------------------- images


def test_psnr_closed_form():
    reference = torch.rand(9, 7, generator=torch.Generator().manual_seed(0))
    assert psnr(reference + 0.1, reference) == pytest.approx(20, abs=1e-4)
    assert psnr(255 * reference + 25.5, 255 * reference, peak=255) == pytest.approx(20, abs=1e-4)
    assert psnr(reference, reference) == math.inf
    assert type(psnr(reference.numpy() + 0.01, reference)) is float


def test_psnr_of_white_noise_is_its_variance():
    reference = torch.full((200, 200), 0.5, dtype=torch.float64)
    noisy = reference + 0.05 * normal(200, 200, seed=8)
    assert psnr(noisy, reference) == pytest.approx(-20 * math.log10(0.05), abs=0.1)


# ---------------------------------------------------------------- bad input

X = torch.ones(2, 3)
EYE = torch.eye(3)
NAN = torch.tensor([[math.nan, 1.0]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: support_recovery(X, torch.ones(2, 4)), "same shape"),
        (lambda: support_recovery(X[0], X[0]), r"codes\[None\]"),
        (lambda: support_recovery(X, X, tol=-1), "tol = -1"),
        (lambda: support_recovery(X, X, tol=math.nan), "tol = nan"),
        (lambda: support_recovery(X, X.double()), "torch.float64"),
        (lambda: support_recovery(NAN, NAN), "NaN"),
        (lambda: support_recovery("abc", X), "codes"),
        (lambda: atom_recovery(EYE[:, :2], EYE), "every true atom needs a partner"),
        (lambda: atom_recovery(torch.ones(4, 3), EYE), "atoms are columns"),
        (lambda: atom_recovery(EYE, EYE * torch.tensor([1.0, 0.0, 1.0])), "1 zero atoms of 3"),
        (lambda: atom_recovery(EYE[0], EYE), "2 axes"),
        (lambda: atom_recovery(EYE, EYE[:, :0]), "no empty axis"),
        (lambda: principal_angle(EYE[0], EYE), r"A\[:, None\]"),
        (lambda: principal_angle(EYE, torch.ones(3, 2)), "B with shape .* dependent"),
        (lambda: principal_angle(torch.zeros(3, 1), EYE), "dependent"),
        (lambda: principal_angle(torch.rand(2, 3), EYE), "A with shape .* dependent"),
        (lambda: principal_angle(EYE, torch.eye(4)), "with one m"),
        (lambda: principal_angle(EYE.expand(2, 3, 3), EYE.expand(5, 3, 3)), "that broadcast"),
        (lambda: principal_angle(EYE, EYE[:, :0]), "no empty axis"),
        (lambda: clustering_accuracy([0, 1], [0, 1, 2]), "labels has length 3, expected 2"),
        (lambda: clustering_accuracy([0.5, 1.0], [0, 1]), "expected integers"),
        (lambda: clustering_accuracy([[0, 1]], [0, 1]), "shape"),
        (lambda: clustering_accuracy([0, 1], []), "labels has"),
        (lambda: clustering_accuracy([0, 1], ["cat", "dog"]), "number the classes"),
        (lambda: accuracy(classifier(), normal(2, 4), [0]), "images has 2 entries but labels 1"),
        (lambda: accuracy(classifier(), normal(0, 4), []), "labels has"),
        (lambda: accuracy(classifier(), torch.ones(2, 4), [0.0, 1.0]), "expected integers"),
        (lambda: accuracy(classifier(), torch.ones(2, 4), [0, 3]), "labels run from 0 to 3"),
        (lambda: accuracy(classifier(), torch.ones(2, 4), [0, -1]), "labels run from -1 to 0"),
        (lambda: accuracy(classifier(), torch.ones(2, 4), [0, 1], 0), "batch_size = 0"),
        (lambda: accuracy(torch.nn.Flatten(0), torch.ones(2, 4), [0, 1]), r"returned \(8,\)"),
        (lambda: accuracy(torch.nn.Identity(), torch.full((2, 3), NAN[0, 0]), [0, 1]), "NaN"),
        (lambda: psnr(X, X[:1]), "expected the same"),
        (lambda: psnr(X[:0], X[:0]), "not empty"),
        (lambda: psnr(X, X, peak=0), "peak = 0"),
        (lambda: psnr(255 * EYE, 255 * EYE), "255 for bytes"),
        (lambda: psnr(NAN, NAN), "NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
