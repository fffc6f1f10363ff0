r"""Small networks for images: the blocks of CRATE, the usual transformer, a plain CNN.

An image is cut into patches, each becomes a token, and blocks of attention and of a layer
between the features of a token take turns. :class:`CrateBlock` is the block that
:cite:t:`yu2023white` derive from sparse coding: :class:`SubspaceAttention`, whose heads have one
matrix where the usual ones have three, and :class:`IstaLayer`, one step of ISTA where the usual
block has a perceptron with one hidden layer. :class:`VitBlock` is the usual block
:cite:p:`dosovitskiy2021image`. :func:`vision_transformer` makes a classifier of either, and
:func:`small_cnn` one of two convolutions.

Everything here is trained; for weights that are computed see :mod:`dsclib.transformers`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ._checks import as_choice, as_count, as_tensor, match
from ._crate import CrateBlock, IstaLayer, SubspaceAttention, as_heads, as_tokens

__all__ = [
    "CrateBlock",
    "IstaLayer",
    "SubspaceAttention",
    "VisionTransformer",
    "VitBlock",
    "small_cnn",
    "vision_transformer",
]

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class VitBlock(nn.Module):
    """Attention and a perceptron with one hidden layer, each with its residual.

    Parameters
    ----------
    width, heads, hidden : int
        Features of a token; heads, a divisor of ``width``; units of the hidden layer.
    activation : {"gelu", "relu"}

    Attributes
    ----------
    attention : MultiheadAttention of torch
    features : Module
        The activation; what it answers are the features of the block.

    Raises
    ------
    ValueError
        If ``heads`` does not divide ``width``, ``hidden`` is no whole number >= 1 or the
        activation is none of the above; called on tokens of another width.
    """

    def __init__(self, width: int, heads: int, hidden: int, activation: str):
        super().__init__()
        heads, hidden = as_heads(heads, width), as_count(hidden, "hidden")
        as_choice(activation, "activation", tuple(_ACTIVATIONS))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.features = _ACTIVATIONS[activation]()

    def attend(self, z: Tensor) -> Tensor:
        """Attention (B, heads, T, T) of the tokens ``z`` (B, T, width)."""
        as_tokens(z, len(self.norms[0].weight))
        h = self.norms[0](z)
        return self.attention(h, h, h, average_attn_weights=False)[1]

    def forward(self, z: Tensor) -> Tensor:
        """Tokens (B, T, width) after the block."""
        as_tokens(z, len(self.norms[0].weight))
        h = self.norms[0](z)
        z = z + self.attention(h, h, h, need_weights=False)[0]
        return z + self.narrow(self.features(self.widen(self.norms[1](z))))


class VisionTransformer(nn.Module):
    """The classifier that :func:`vision_transformer` makes.

    Attributes
    ----------
    embedding : Linear
        Patches to tokens.
    positions : Parameter, shape (T, width)
        Added to the tokens.
    blocks : ModuleList of CrateBlock or VitBlock
    norm : LayerNorm
    head : Linear
        Reads all tokens, normalised.
    """

    def __init__(self, blocks, image_size: int, patch: int, width: int, classes: int):
        super().__init__()
        self.image_size, self.patch = image_size, patch
        self.embedding = nn.Linear(patch**2, width)
        self.positions = nn.Parameter(0.3 * torch.randn((image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(self.positions.numel(), classes)

    def embed(self, images) -> Tensor:
        """Tokens (B, T, width) of ``images`` (B, H, W), patches row by row."""
        images = as_tensor(images, "images", "(B, H, W)", like=self.positions)
        match(images, self.positions, "images", "positions")
        if images.shape[1:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images has shape {tuple(images.shape)}, expected (B, {self.image_size}, "
                f"{self.image_size}): resize them, or build the network with another image_size"
            )
        rows = images.unfold(1, self.patch, self.patch)
        patches = rows.unfold(2, self.patch, self.patch).flatten(3).flatten(1, 2)
        return self.embedding(patches) + self.positions

    def forward(self, images) -> Tensor:
        """Logits (B, classes) of ``images`` (B, H, W)."""
        z = self.embed(images)
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z).flatten(1))

    def features(self, images) -> list[Tensor]:
        """What each block computes between the features of its tokens, (B, T, width or hidden).

        After the step of ISTA in CRATE, after the activation of the perceptron in a ViT.
        """
        kept: list[Tensor] = []
        hooks = [
            block.features.register_forward_hook(lambda *call: kept.append(call[2]))
            for block in self.blocks
        ]
        try:
            self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return kept

    def attention(self, images) -> list[Tensor]:
        """Attention (B, heads, T, T) of every block; row t says where token t looks."""
        z, maps = self.embed(images), []
        for block in self.blocks:
            maps.append(block.attend(z))
            z = block(z)
        return maps


def vision_transformer(
    block: str,
    width: int = 48,
    depth: int = 3,
    heads: int = 3,
    *,
    hidden: int | None = None,
    activation: str = "gelu",
    step: float = 0.1,
    lam: float = 0.1,
    tied: bool = False,
    image_size: int = 28,
    patch: int = 7,
    classes: int = 10,
    seed: int | None = None,
) -> VisionTransformer:
    """A small classifier of images, of CRATE blocks or of the usual ones.

    Patches, a linear embedding, trained positions, ``depth`` blocks, and a linear layer that
    reads all tokens. A block has about 3 width^2 weights in CRATE (2 width^2 if tied), and
    4 width^2 + 2 width hidden in a ViT.

    Parameters
    ----------
    block : {"crate", "vit"}
    width, depth, heads : int
        Features of a token; number of blocks, 0 for a linear layer on the tokens; heads, a
        divisor of ``width``.
    hidden : int, optional
        Of a ViT: units of the hidden layer, 4 width if not given.
    activation : {"gelu", "relu"}
        Of a ViT.
    step, lam, tied : float, float, bool
        Of CRATE, see :class:`IstaLayer` and :class:`SubspaceAttention`.
    image_size, patch : int
        Sides of the images and of their patches in pixels, the second a divisor of the first.
    classes : int
    seed : int, optional
        Of the random weights; torch's default generator if not given.

    Returns
    -------
    VisionTransformer
        In torch's default dtype, to be trained.

    Raises
    ------
    ValueError
        If a name is none of the above, a number is out of its range, ``heads`` does not divide
        ``width`` or ``patch`` the ``image_size``; called on images of another size.
    """
    as_choice(block, "block", ("crate", "vit"))
    as_choice(activation, "activation", tuple(_ACTIVATIONS))
    heads = as_heads(heads, width)
    hidden = 4 * width if hidden is None else as_count(hidden, "hidden")
    image_size, patch = as_count(image_size, "image_size"), as_count(patch, "patch")
    if image_size % patch:
        raise ValueError(
            f"patch = {patch} does not divide image_size = {image_size}, expected a divisor: "
            "crop or pad the images, or take other patches"
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(as_count(seed, "seed", at_least=0))
        blocks = [
            CrateBlock(width, heads, step, lam, tied)
            if block == "crate"
            else VitBlock(width, heads, hidden, activation)
            for _ in range(as_count(depth, "depth", at_least=0))
        ]
        return VisionTransformer(blocks, image_size, patch, width, as_count(classes, "classes"))


def small_cnn(
    channels: tuple[int, int] = (16, 32),
    *,
    image_size: int = 28,
    colours: int = 1,
    classes: int = 10,
    seed: int | None = None,
) -> nn.Sequential:
    """A small convolutional classifier, plain enough to take apart.

    Its layers are called ``conv1``, ``relu1``, ``conv2``, ``relu2``, ``flatten`` and ``linear``:
    filters of 5 x 5 and then 3 x 3 pixels, both with stride 2, and a linear layer.

    Parameters
    ----------
    channels : two ints
        Filters of the two convolutions.
    image_size : int
        Side of the images in pixels.
    colours, classes : int
        Channels of the images; numbers the network returns for each.
    seed : int, optional
        Of the random weights; torch's default generator if not given.

    Returns
    -------
    torch.nn.Sequential
        From images (B, colours, image_size, image_size) to scores (B, classes), in torch's
        default dtype, to be trained.

    Raises
    ------
    ValueError
        If a number is out of its range, or ``channels`` are not two.
    """
    if not isinstance(channels, tuple | list) or len(channels) != 2:
        raise ValueError(
            f"channels = {channels!r}, expected two numbers, the filters of each convolution: "
            "such as (16, 32)"
        )
    first, second = (as_count(c, "channels") for c in channels)
    side = -(-as_count(image_size, "image_size") // 4)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(as_count(seed, "seed", at_least=0))
        layers = {
            "conv1": nn.Conv2d(as_count(colours, "colours"), first, 5, stride=2, padding=2),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(first, second, 3, stride=2, padding=1),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "linear": nn.Linear(second * side**2, as_count(classes, "classes")),
        }
    return nn.Sequential(OrderedDict(layers))
