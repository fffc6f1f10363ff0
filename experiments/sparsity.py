"""What sparse features cost: accuracy against density, every strategy, on all training images.

    python experiments/sparsity.py

writes chapters/sparsity-training/fronts.json, which the chapter shows. Every run is kept as soon
as it is there: after an interruption call the same command again. ``--data cifar10`` does the same
on CIFAR-10. Nothing is chosen by the test images: some training images are kept for that
(``--validation``), and every run is measured on both.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from dsclib import datasets, sparsity
from dsclib.metrics import accuracy
from dsclib.training import fit
from dsclib.vision import small_cnn

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "chapters" / "sparsity-training"
LAYERS = {"conv1": "relu1", "conv2": "relu2"}
WEIGHTS = {  # of each strategy; of keep_largest the share that stays
    "l1": (0.1, 0.3, 0.8, 1.0, 3.0, 10.0),
    "group_l1": (0.1, 0.3, 1.0, 1.1, 3.0, 10.0),
    "hoyer": (0.03, 0.1, 0.3, 0.37, 1.0, 3.0),
    "log_sum": (0.03, 0.1, 0.12, 0.3, 1.0, 3.0),
    "kl_rate": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "reconstruction + l1": (0.1, 0.3, 0.8, 1.0, 3.0, 10.0),
    "threshold + log_sum": (0.03, 0.1, 0.11, 0.3, 1.0, 3.0),
    "keep_largest": (0.4, 0.3, 0.2, 0.1, 0.05, 0.02),
}
BASELINE = "baseline"


@dataclass(frozen=True)
class Settings:
    """What every run of a data set shares."""

    data: str
    images: int  # for training
    validation: int  # for choices, the last ones of the training images
    channels: tuple[int, int]
    epochs: int  # of the baseline, before a strategy begins
    more_epochs: int  # with the strategy, or without: as many steps for all
    batch_size: int
    lr: float  # constant in the baseline, then falling linearly to 0
    reconstruction: float = 0.1  # its weight, beside that of l1


SETTINGS = {
    "fashion_mnist": Settings("fashion_mnist", 55_000, 5_000, (16, 32), 4, 2, 128, 2e-3),
    "cifar10": Settings("cifar10", 45_000, 5_000, (32, 64), 10, 4, 128, 2e-3),
    "digits": Settings("digits", 1_200, 237, (16, 32), 40, 20, 64, 2e-3),
}


@contextmanager
def attached(model, strategy: str, weight: float, reconstruction: float):
    """The strategy's hooks on ``model``: gives what is trained, and the cost of a forward pass."""
    layers, parts, costs = list(LAYERS.values()), [model], []
    with ExitStack() as stack:
        if strategy == "keep_largest":
            keep = sparsity.FeatureTransform(
                model, layers, lambda z: sparsity.keep_largest(z, weight)
            )
            stack.enter_context(keep)
        elif strategy != BASELINE:
            *other, penalty = strategy.split(" + ")
            if other == ["threshold"]:
                first = next(model.parameters())
                parts += [
                    sparsity.Threshold(model.get_submodule(conv).out_channels).to(first)
                    for conv in LAYERS
                ]
                stack.enter_context(sparsity.FeatureTransform(model, layers, parts[1:]))
            if other == ["reconstruction"]:
                explain = sparsity.LayeredReconstruction(model, LAYERS, reconstruction)
                costs.append(stack.enter_context(explain))
            rule = getattr(sparsity, penalty)
            costs.append(stack.enter_context(sparsity.FeaturePenalty(model, layers, rule, weight)))
        yield nn.ModuleList(parts), lambda: sum(cost() for cost in costs)


def run(network, strategy: str, weight: float, data: dict, settings: Settings, seed: int) -> dict:
    """Train a copy of ``network`` with the strategy and measure it, its hooks still on."""
    model, began = copy.deepcopy(network), time.perf_counter()
    with attached(model, strategy, weight, settings.reconstruction) as (parts, cost):

        def loss(parts, images, labels):
            return F.cross_entropy(parts[0](images), labels) + cost()

        optimizer = torch.optim.Adam(parts.parameters(), lr=settings.lr)
        batches = -(-len(data["train"][0]) // settings.batch_size)
        steps = settings.more_epochs * batches

        def slower(parts, step):
            optimizer.param_groups[0]["lr"] = settings.lr * (1 - step / steps)

        fit(
            parts, loss, data["train"], epochs=settings.more_epochs, optimizer=optimizer,
            batch_size=settings.batch_size, seed=seed, after_step=slower, progress=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        measured = {part: measure(model, *data[part]) for part in ("validation", "test")}
    return {**measured, "training seconds": round(seconds, 2)}


def measure(model, images, labels) -> dict:
    """Accuracy; layer by layer density, dead channels, and products of nonzero factors."""
    rates = sparsity.firing_rates(model, list(LAYERS.values()), images)
    sample = sparsity.features(model, list(LAYERS.values()), images[:1000])
    sizes = [z[0].numel() for z in sample.values()]
    densities = [rate.mean().item() for rate in rates.values()]
    products = sparsity.multiply_adds(model, images)
    return {
        "accuracy": accuracy(model, images, labels),
        "density": sum(d * n for d, n in zip(densities, sizes, strict=True)) / sum(sizes),
        "densities": densities,
        "dead": [int((rate == 0).sum()) for rate in rates.values()],
        "rare": [int((rate < 0.01).sum()) for rate in rates.values()],  # dead ones included
        "mean of active": [z[z != 0].mean().item() if z.any() else 0.0 for z in sample.values()],
        "active products": {name: count.active for name, count in products.items()},
    }


def load(settings: Settings, device: str) -> dict:
    """Images and labels for training, for choices, and for the result."""
    train, test = (getattr(datasets, settings.data)(split) for split in ("train", "test"))
    images, unseen = (s.images if s.images.ndim == 4 else s.images[:, None] for s in (train, test))
    images, unseen = images.to(device), unseen.to(device)
    kept, n = len(images) - settings.validation, settings.images
    if not 0 < n <= kept:
        raise SystemExit(
            f"{settings.data} has {len(images)} training images, not {n} to train on and "
            f"{settings.validation} to choose by: change --images or --validation"
        )
    return {
        "train": (images[:kept][:n], train.labels[:kept][:n]),
        "validation": (images[kept:], train.labels[kept:]),
        "test": (unseen, test.labels),
    }


def build(data: dict, settings: Settings, seed: int):
    images = data["train"][0]
    return small_cnn(
        settings.channels, image_size=images.shape[-1], colours=images.shape[1], seed=seed
    ).to(images.device)


def start(data: dict, settings: Settings, seed: int, folder: Path):
    """The baseline of a seed, trained or read from the checkpoint of an earlier call."""
    network = build(data, settings, seed)
    fit(
        network, lambda network, x, t: F.cross_entropy(network(x), t), data["train"],
        epochs=settings.epochs, batch_size=settings.batch_size, lr=settings.lr, seed=seed,
        checkpoint=folder / f"baseline-{seed}.pt", progress=False,
    )  # fmt: skip
    return network


def write_json(path: Path, content) -> None:
    """Write beside ``path``, then rename: at ``path`` there is always one whole file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def all_runs(settings: Settings, seeds, strategies, folder: Path, device: str) -> dict:
    """Every strategy, weight and seed; what is in ``folder`` already is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, about = (
        folder / "runs.json",
        json.loads(json.dumps({**asdict(settings), "device": device})),
    )
    done = json.loads(kept.read_text()) if kept.exists() else {"settings": about, "runs": {}}
    if done["settings"] != about:
        raise SystemExit(f"{kept} has other settings: delete {folder}, or name another --work")
    wanted = [(BASELINE, 0.0), *((s, w) for s in strategies for w in WEIGHTS[s])]
    data = load(settings, device)
    with tqdm(total=len(seeds) * len(wanted), desc=settings.data) as bar:
        for seed in seeds:
            network = None
            for strategy, weight in wanted:
                bar.set_postfix_str(f"seed {seed}, {strategy} {weight:g}")
                key = f"{strategy}, {weight:g}, seed {seed}"
                if key not in done["runs"]:
                    if network is None:
                        network = start(data, settings, seed, folder)
                    result = run(network, strategy, weight, data, settings, seed + 100)
                    who = {"strategy": strategy, "weight": weight, "seed": seed}
                    done["runs"][key] = {**who, **result}
                    write_json(kept, done)
                bar.update()
    runs = [done["runs"][f"{s}, {w:g}, seed {seed}"] for s, w in wanted for seed in seeds]
    counts = sparsity.multiply_adds(build(data, settings, 0), data["test"][0][:1])
    products = {name: count.total for name, count in counts.items()}
    return {"settings": about, "products": products, "runs": runs}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=list(SETTINGS), default="fashion_mnist")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--images", type=int, help="training images used")
    parser.add_argument("--validation", type=int, help="training images kept for choices")
    parser.add_argument("--epochs", type=int, help="of the baseline, before a strategy begins")
    parser.add_argument("--more-epochs", type=int, help="with the strategy, or without")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "_build" / "sparsity")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    chosen = {name: value for name, value in vars(args).items() if value is not None}
    names = {field.name for field in fields(Settings)}
    settings = replace(
        SETTINGS[args.data], **{name: value for name, value in chosen.items() if name in names}
    )
    name = "fronts.json" if args.data == "fashion_mnist" else f"fronts-{args.data}.json"
    cores = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} used by torch"
    machine = cores if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    results = all_runs(settings, args.seeds, args.strategies, args.work / args.data, args.device)
    write_json(args.output or OUTPUT / name, {"machine": machine, **results})


if __name__ == "__main__":
    main()
