"""CRATE's blocks are what they are derived from, ViT's are torch's, and both can be trained."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsclib.datasets import digits
from dsclib.vision import (
    CrateBlock,
    IstaLayer,
    SubspaceAttention,
    VitBlock,
    small_cnn,
    vision_transformer,
)

DOUBLE = torch.float64
ROUNDING = 1e-12
KINDS = ["crate", "vit"]


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def attention(width=12, heads=3, tied=False, seed=0):
    torch.manual_seed(seed)
    return SubspaceAttention(width, heads, tied).double()


def layer(width=10, step=0.05, lam=0.2, seed=0):
    torch.manual_seed(seed)
    return IstaLayer(width, step, lam).double()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_subspace_attention_is_its_formula(heads, tied):
    module, z = attention(heads=heads, tied=tied), randn(2, 5, 12)
    p = 12 // heads
    U = module.project.weight.T.split(p, dim=1)
    answers = []
    for U_h in U:
        u = z @ U_h
        answers.append(torch.softmax(u @ u.mT / math.sqrt(p), dim=-1) @ u)
    out = torch.cat(U, dim=1) if tied else module.output.weight
    assert (module(z) - torch.cat(answers, dim=-1) @ out.T).abs().max() < ROUNDING
    weights = module.weights(z)
    assert weights.shape == (2, heads, 5, 5)
    assert (weights.sum(-1) - 1).abs().max() < ROUNDING


def test_tied_attention_is_a_gradient_step_of_an_energy():
    module, tokens = attention(tied=True), randn(1, 6, 12)
    z = tokens.clone().requires_grad_()
    beta = 1 / math.sqrt(4)
    with torch.no_grad():
        keys = module.coordinates(tokens)
    energy = -(beta * module.coordinates(z) @ keys.mT).logsumexp(-1).sum() / beta
    (gradient,) = torch.autograd.grad(energy, z)
    assert (module(tokens) + gradient).abs().max() < ROUNDING


def test_attention_does_not_know_the_order_of_tokens():
    module, z, order = attention(), randn(2, 5, 12), torch.tensor([3, 0, 4, 1, 2])
    assert (module(z[:, order]) - module(z)[:, order]).abs().max() < ROUNDING


def test_ista_layer_is_one_step_and_its_formula():
    module, z = layer(), 3 * randn(2, 5, 10)
    D = module.D
    x = F.relu(z + 0.05 * (z - z @ D.T) @ D - 0.05 * 0.2)
    assert (module(z) - x).abs().max() < ROUNDING
    start, first, _ = module.iterates(z, 2)
    assert start is z and (first - x).abs().max() < ROUNDING


def test_ista_step_minimises_its_model_of_the_objective():
    """The step is the proximal one: nothing nonnegative beats it in the quadratic model."""
    module, z = layer(), randn(1, 1, 10)
    gradient = -(z - z @ module.D.T) @ module.D

    def model(x):
        return ((gradient + 0.2) * x).sum() + (x - z).square().sum() / (2 * 0.05)

    best = module(z)
    for seed in range(200):
        rival = (best + 0.3 * randn(10, seed=seed)).relu()
        assert model(rival) >= model(best) - ROUNDING


def test_objective_falls_to_the_minimum():
    module, z = layer(), randn(3, 4, 10)
    L = torch.linalg.matrix_norm(module.D, 2) ** 2
    module.step = 1 / L.item()
    codes = module.iterates(z, 2000)
    values = torch.stack([module.objective(x, z) for x in codes[1:]])
    assert (values.diff(dim=0) <= ROUNDING).all()
    x = codes[-1]
    slope = module.lam - (z - x @ module.D.T) @ module.D  # 0 where x > 0, >= 0 elsewhere
    assert slope.min() > -1e-6 and (slope * x).abs().max() < 1e-6
    half = (z - x @ module.D.T).square().sum(-1) / 2 + 0.2 * x.sum(-1)
    assert (values[-1] - half).abs().max() < ROUNDING


def test_ista_layer_is_one_linear_map_with_bounded_symmetric_part():
    module = layer(seed=3)
    one = torch.eye(10, dtype=DOUBLE)
    M = one + module.step * module.D.T @ (one - module.D)
    assert torch.linalg.eigvalsh((M + M.T) / 2).max() <= 1 + module.step / 4 + ROUNDING


def test_first_step_may_be_worse_than_a_plain_relu():
    """The example of the chapter: no theorem says that the step improves on ReLU."""
    module = layer(width=2, step=0.1, lam=0.1)
    z = torch.tensor([[[1.0, -1.0]]], dtype=DOUBLE)
    with torch.no_grad():
        module.D.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        excess = module.objective(module(z), z) - module.objective(z.relu(), z)
    assert abs(excess.item() - (0.09**2 / 2 + 0.1 * 0.09)) < ROUNDING


def test_vit_block_is_that_of_torch():
    torch.manual_seed(0)
    for name, function in ("gelu", F.gelu), ("relu", F.relu):
        block = VitBlock(12, 3, 20, name).double()
        twin = nn.TransformerEncoderLayer(
            12, 3, 20, dropout=0, activation=function, batch_first=True, norm_first=True
        ).double()
        twin.self_attn = block.attention
        twin.linear1, twin.linear2 = block.widen, block.narrow
        twin.norm1, twin.norm2 = block.norms
        z = randn(2, 5, 12)
        assert (block(z) - twin(z)).abs().max() < ROUNDING


def test_crate_block_is_attention_and_a_step():
    torch.manual_seed(0)
    block, z = CrateBlock(12, 3, 0.1, 0.1, False).double(), randn(2, 5, 12)
    half = z + block.attention(block.norms[0](z))
    assert (block(z) - block.features(block.norms[1](half))).abs().max() < ROUNDING
    assert (block.attend(z) - block.attention.weights(block.norms[0](z))).abs().max() == 0


def test_tokens_are_patches_row_by_row():
    network = vision_transformer("vit", 9, 0, 3, image_size=6, patch=3).double()
    with torch.no_grad():
        network.embedding.weight.copy_(torch.eye(9))
        network.embedding.bias.zero_()
        network.positions.zero_()
    image = torch.arange(36, dtype=DOUBLE).reshape(1, 6, 6)
    tokens = network.embed(image)[0]
    assert torch.equal(tokens[1], image[0, :3, 3:].flatten())
    assert torch.equal(tokens[2], image[0, 3:, :3].flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_attention_of_every_block(kind):
    network = vision_transformer(kind, 12, 2, 3, image_size=8, patch=2, activation="relu", seed=0)
    images = torch.rand(5, 8, 8)
    with torch.no_grad():
        features, maps = network.features(images), network.attention(images)
        logits = network(images)
    assert logits.shape == (5, 10) and len(features) == len(maps) == 2
    for f, a in zip(features, maps):
        assert f.shape == (5, 16, 12 if kind == "crate" else 48) and (f >= 0).all()
        assert a.shape == (5, 3, 16, 16)
        assert (a.sum(-1) - 1).abs().max() < 1e-5
    assert all(not block.features._forward_hooks for block in network.blocks)
    with torch.no_grad():
        z = network.embed(images)
        for block, f in zip(network.blocks, features):
            z = block(z)
            assert kind == "vit" or torch.equal(z, f)
        assert torch.equal(network.head(network.norm(z).flatten(1)), logits)


def test_hooks_go_even_when_images_do_not_fit():
    network = vision_transformer("crate", 12, 2, image_size=8, patch=2)
    with pytest.raises(ValueError, match="image_size"):
        network.features(torch.rand(5, 7, 7))
    assert all(not block.features._forward_hooks for block in network.blocks)


def test_numbers_of_weights():
    def count(*args, **options):
        network = vision_transformer(*args, **options)
        return sum(p.numel() for p in network.parameters())

    w = 48
    norms = 4 * w
    assert count("crate", w, 3) - count("crate", w, 2) == 3 * w**2 + norms
    assert count("crate", w, 3, tied=True) - count("crate", w, 2, tied=True) == 2 * w**2 + norms
    mlp = 2 * w * 80 + 80 + w
    wide = count("vit", w, 3, hidden=80) - count("vit", w, 2, hidden=80)
    assert wide == 4 * w**2 + 4 * w + mlp + norms
    # Those of the chapter are of one size.
    assert abs(count("crate") / count("vit", 32, 3, 2, hidden=64) - 1) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    def weights(seed):
        return nn.utils.parameters_to_vector(vision_transformer(kind, seed=seed).parameters())

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)
    first = weights(None)
    torch.manual_seed(5)
    assert torch.equal(weights(None), first) and not torch.equal(weights(None), first)


@pytest.mark.parametrize(
    "kind, options", [("crate", {}), ("crate", {"tied": True}), ("vit", {})], ids=str
)
def test_learns_digits(kind, options):
    train, test = digits("train"), digits("test")
    images, labels = train.images / train.images.std(), train.labels
    network = vision_transformer(kind, 24, 2, 3, image_size=8, patch=2, seed=0, **options)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for batch in torch.randint(len(labels), (60, 50), generator=torch.Generator().manual_seed(0)):
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        answers = network(test.images / train.images.std()).argmax(1)
    assert (answers == test.labels).float().mean() > 0.75


# ---------------------------------------------------------------- the plain CNN


@pytest.mark.parametrize("side", range(1, 34, 4))
def test_small_cnn_takes_images_of_any_size(side):
    network = small_cnn((3, 5), image_size=side, colours=2, classes=7, seed=0)
    names = ["conv1", "relu1", "conv2", "relu2", "flatten", "linear"]
    assert [name for name, _ in network.named_children()] == names
    assert network(torch.rand(4, 2, side, side)).shape == (4, 7)


def test_small_cnn_is_two_convolutions_and_a_linear_layer():
    network, x = small_cnn(seed=0), torch.rand(3, 1, 28, 28)
    z = F.relu(F.conv2d(x, network.conv1.weight, network.conv1.bias, 2, 2))
    assert z.shape == (3, 16, 14, 14)
    z = F.relu(F.conv2d(z, network.conv2.weight, network.conv2.bias, 2, 1))
    assert z.shape == (3, 32, 7, 7)
    scores = F.linear(z.flatten(1), network.linear.weight, network.linear.bias)
    assert torch.equal(network(x), scores)


def test_seeds_of_small_cnn():
    def weights(seed):
        return nn.utils.parameters_to_vector(small_cnn((2, 3), seed=seed).parameters())

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.get_rng_state(), before)
    first = weights(None)
    torch.manual_seed(5)
    assert torch.equal(weights(None), first) and not torch.equal(weights(None), first)


def test_small_cnn_learns_digits():
    train, test = digits("train"), digits("test")
    network = small_cnn((8, 16), image_size=8, seed=0)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for batch in torch.randint(len(train.labels), (100, 50)):
        loss = F.cross_entropy(network(train.images[batch, None]), train.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        answers = network(test.images[:, None]).argmax(1)
    assert (answers == test.labels).float().mean() > 0.8


def test_accepts_arrays_and_double_precision():
    network = vision_transformer("crate", image_size=8, patch=2).double()
    images = torch.rand(2, 8, 8, dtype=DOUBLE)
    with torch.no_grad():
        assert torch.equal(network(images), network(images.numpy()))
        assert network(images).dtype == DOUBLE


BAD = [
    (lambda: vision_transformer("cnn"), "block = 'cnn', expected one of 'crate', 'vit'"),
    (lambda: vision_transformer("vit", activation="tanh"), "activation = 'tanh'"),
    (lambda: vision_transformer("vit", 48, 3, 5), "heads = 5 does not divide width = 48"),
    (lambda: vision_transformer("vit", 0), "width = 0"),
    (lambda: vision_transformer("vit", depth=-1), "depth = -1"),
    (lambda: vision_transformer("vit", hidden=0), "hidden = 0"),
    (lambda: vision_transformer("vit", patch=8), "patch = 8 does not divide image_size = 28"),
    (lambda: vision_transformer("vit", seed=-1), "seed = -1"),
    (lambda: vision_transformer("crate", classes=0), "classes = 0"),
    (lambda: vision_transformer("crate", step=0), "step = 0"),
    (lambda: vision_transformer("crate", lam=-1), "lam = -1"),
    (lambda: vision_transformer("crate")(torch.rand(28, 28)), "images[None]"),
    (lambda: vision_transformer("crate")(torch.rand(1, 32, 32)), "(B, 28, 28)"),
    (lambda: vision_transformer("crate").double()(torch.rand(1, 28, 28)), "torch.float32"),
    (lambda: vision_transformer("crate")(torch.full((1, 28, 28), torch.nan)), "784 NaN"),
    (lambda: small_cnn(16), "channels = 16, expected two numbers"),
    (lambda: small_cnn((16,)), "channels = (16,), expected two numbers"),
    (lambda: small_cnn((16, 0)), "channels = 0"),
    (lambda: small_cnn(image_size=0), "image_size = 0"),
    (lambda: small_cnn(colours=0), "colours = 0"),
    (lambda: small_cnn(classes=1.5), "classes = 1.5"),
    (lambda: small_cnn(seed=-1), "seed = -1"),
    (lambda: VitBlock(12, 3, 20, "tanh"), "activation = 'tanh'"),
    (lambda: VitBlock(12, 5, 20, "relu"), "heads = 5 does not divide width = 12"),
    (lambda: VitBlock(12, 3, 20, "relu")(torch.rand(5, 12)), "z[None]"),
    (lambda: CrateBlock(12, 5, 0.1, 0.1, False), "heads = 5 does not divide width = 12"),
    (lambda: CrateBlock(12, 3, 0.1, 0.1, False).attend(torch.rand(1, 5, 11)), "(B, T, 12)"),
    (lambda: attention()(randn(5, 12)), "(B, T, width)"),
    (lambda: attention()(randn(1, 5, 11)), "(B, T, 12)"),
    (lambda: layer()(randn(1, 5, 11)), "(B, T, 10)"),
    (lambda: layer().iterates(randn(1, 5, 10), 0), "steps = 0"),
]


@pytest.mark.parametrize("call, message", BAD, ids=[message for _, message in BAD])
def test_refuses_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
