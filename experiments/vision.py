"""CRATE beside vision transformers of its size on all of Fashion-MNIST.

    python experiments/vision.py

writes chapters/architectures/vision.json, which the chapter shows. A network that is in the file
is not trained again: after an interruption call the same command once more, and for a fresh start
delete the file. On two cores a network takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dsclib.datasets import fashion_mnist
from dsclib.vision import vision_transformer

OUTPUT = Path(__file__).resolve().parent.parent / "chapters" / "architectures" / "vision.json"
EPOCHS, BATCH, RATE = 3, 100, 5e-3
VIT = {"block": "vit", "width": 32, "heads": 2, "hidden": 64}
KINDS = {  # as in the chapter
    "CRATE": {"block": "crate", "width": 48},
    "ViT, GELU": VIT,
    "ViT, ReLU": VIT | {"activation": "relu"},
    "no block": {"block": "crate", "width": 48, "depth": 0},
}


def train(network, images, labels, seed: int, epochs: int, name: str) -> None:
    """AdamW with one cycle of the learning rate; the order of the images is the seed's."""
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, betas=(0.9, 0.95))
    steps = epochs * -(-len(images) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    with tqdm(total=steps, desc=name, disable=None) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=order).split(BATCH):
                batch = batch.to(images.device)
                loss = F.cross_entropy(network(images[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                cycle.step()
                bar.update()


@torch.no_grad()
def measure(network, images, labels) -> dict:
    """Accuracy on ``images``, and the share of nonzero features of each block."""
    found = torch.cat([network(x).argmax(dim=1) for x in images.split(1000)])
    return {
        "accuracy": (found == labels).double().mean().item(),
        "density": [(f != 0).double().mean().item() for f in network.features(images[:1000])],
    }


def write(path: Path, results: dict) -> None:
    """All or nothing: a file that is there is complete."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    settings = {"epochs": chosen.epochs, "batch": BATCH, "rate": RATE, "device": chosen.device}
    results = {"settings": settings, "runs": {}}
    if chosen.output.exists():
        results = json.loads(chosen.output.read_text())
        if results["settings"] != settings:
            parser.error(f"{chosen.output} was made with {results['settings']}, now {settings}")

    data = [fashion_mnist(split) for split in ("train", "test")]
    mean, deviation = data[0].images.mean(), data[0].images.std()
    (images, labels), (unseen, truth) = (
        (((s.images - mean) / deviation).to(chosen.device), s.labels.to(chosen.device))
        for s in data
    )
    for seed in range(chosen.seeds):
        for kind, options in KINDS.items():
            runs = results["runs"].setdefault(kind, [])
            if any(run["seed"] == seed for run in runs):
                continue
            network = vision_transformer(**options, seed=seed).to(chosen.device)
            start = time.perf_counter()
            train(network, images, labels, seed, chosen.epochs, f"{kind}, seed {seed}")
            run = {"seed": seed, "seconds": round(time.perf_counter() - start)}
            runs.append(run | measure(network, unseen, truth))
            write(chosen.output, results)


if __name__ == "__main__":
    main()
