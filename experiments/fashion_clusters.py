"""Clusters of Fashion-MNIST (all 60,000 images) and of digits, beside rivals and ablations.

    python experiments/fashion_clusters.py

writes chapters/group-sparse-autoencoders/fashion_clusters.json, which the chapter shows. Every
result is kept as soon as it is there, and training writes a checkpoint after every epoch: after an
interruption call the same command again. Labels are used to score the test images and for the
rows called "true classes", nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import nn
from tqdm import tqdm

from dsclib import clustering, datasets
from dsclib.autoencoders import GroupSparseAutoencoder
from dsclib.clustering import cluster_start, nearest_subspace_loss, spectral_clusters, unit_rows
from dsclib.metrics import clustering_accuracy
from dsclib.training import fit

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "chapters" / "group-sparse-autoencoders" / "fashion_clusters.json"


@dataclass(frozen=True)
class Settings:
    """Chosen with the labels of training images; see the chapter."""

    images: int  # drawn from the training images by the seed
    starts: int  # spectral clusterings that vote
    start_size: int  # images in each
    n_neighbors: int
    n_vectors: int
    group_size: int
    lam: float
    lr: float
    epochs: int
    batch_size: int
    components: int  # of the rival that uses PCA
    hidden: tuple[int, int]  # units of the ReLU autoencoder, outer and inner
    rival_epochs: int
    rival_size: int  # images for scikit-learn's spectral clustering


SETTINGS = {
    "fashion_mnist": Settings(
        60_000, 20, 2_000, 15, 13, 20, 0.5, 1e-4, 2, 400, 50, (256, 32), 5, 4_000
    ),
    "digits": Settings(1_200, 1, 1_200, 7, 13, 10, 0.5, 1e-4, 30, 240, 20, (64, 16), 150, 1_200),
}


class Images:
    """A data set: raw pixels, the autoencoder's input and the features of the graph."""

    def __init__(self, name: str, device: str):
        train, test = (getattr(datasets, name)(split) for split in ("train", "test"))
        self.labels, self.test_labels = train.labels, test.labels
        self.raw, self.test_raw = (s.images.flatten(1).to(device) for s in (train, test))
        small, test_small = (s.images.to(device) for s in (train, test))
        if name == "fashion_mnist":
            features, test_features = (clustering.oriented_features(x) for x in (small, test_small))
            small, test_small = (F.avg_pool2d(x[:, None], 2).sqrt() for x in (small, test_small))
        pixels, test_pixels = (unit_rows(x.flatten(1)) for x in (small, test_small))
        if name == "digits":
            features, test_features = pixels, test_pixels
        self.pixels, self.test_pixels = (
            unit_rows(x, pixels.mean(0)) for x in (pixels, test_pixels)
        )
        self.features, self.test_features = (
            unit_rows(x, features.mean(0)) for x in (features, test_features)
        )


class Trial:
    """One seed: which images, and all random numbers. Starts are computed once, when asked for."""

    def __init__(self, images: Images, settings: Settings, seed: int, folder: Path):
        self.images, self.settings, self.seed, self.folder = images, settings, seed, folder
        order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
        chosen = order[: settings.images]
        self.truth = images.labels[chosen]
        self.raw, self.pixels, self.features = (
            x[chosen.to(x.device)] for x in (images.raw, images.pixels, images.features)
        )

    def kmeans(self, train, test):
        """Labels of ``train`` and of ``test``."""
        model = KMeans(10, n_init=3, random_state=self.seed).fit(train.cpu().numpy())
        return torch.from_numpy(model.labels_).long(), model.predict(test.cpu().numpy())

    @cached_property
    def pixel_kmeans(self):
        return self.kmeans(self.pixels, self.images.test_pixels)

    @cached_property
    def kmeans_start(self):
        return self.groups(self.pixel_kmeans[0])

    @property
    def vectors(self):
        return self.settings.n_vectors

    @cached_property
    def spectral(self):
        return self.graph(self.features, self.vectors)

    def graph(self, Y, n_vectors, seed=None):
        """Labels of as many rows of Y as a start has."""
        s, seed = self.settings, self.seed if seed is None else seed
        return spectral_clusters(
            Y[: s.start_size], 10, n_neighbors=s.n_neighbors, n_vectors=n_vectors, seed=seed
        )

    @cached_property
    def start(self):
        """Groups of the consensus of several spectral clusterings, or of a single one."""
        s = self.settings
        if s.starts == 1:
            return self.groups(self.spectral)
        random, votes = torch.Generator().manual_seed(self.seed), []
        for r in range(s.starts):
            part = torch.randperm(len(self.pixels), generator=random)[: s.start_size]
            part = part.to(self.pixels.device)
            labels = self.graph(self.features[part], s.n_vectors, seed=r)
            W = cluster_start(self.pixels[part], labels, s.group_size)
            votes.append(self.model(W).predict_cluster(self.pixels))
        labels = clustering.consensus_clusters(votes, 10, n_vectors=s.n_vectors, seed=self.seed)
        return self.groups(labels)

    def groups(self, labels):
        return cluster_start(self.pixels[: len(labels)], labels, self.settings.group_size)

    def model(self, W, **options):
        s, (m, n) = self.settings, W.shape
        options = {"lam": s.lam, "columns": "orthonormal", **options}
        return GroupSparseAutoencoder(m, n // s.group_size, s.group_size, weight=W, **options)

    def predict(self, W):
        return self.model(W).predict_cluster(self.images.test_pixels)

    def train(self, name, W, faster=1, loss=GroupSparseAutoencoder.loss, **options):
        """Test labels after training from W; the checkpoint carries ``name``."""
        s, model = self.settings, self.model(W, **options)
        fit(
            model, loss, self.pixels, epochs=s.epochs, batch_size=s.batch_size, lr=s.lr * faster,
            seed=self.seed, after_step=lambda model, step: model.project_(), progress=False,
            checkpoint=self.folder / f"{name}-{self.seed}.pt",
        )  # fmt: skip
        return model.predict_cluster(self.images.test_pixels)

    def winner(self, name, W, faster=1):
        return self.train(name, W, faster, nearest_subspace_loss, lam=0.0)

    @cached_property
    def relu_codes(self):
        """Codes of a ReLU autoencoder with two layers on each side, training and test."""
        s, m = self.settings, self.raw.shape[1]
        torch.manual_seed(self.seed)
        widths = [m, *s.hidden, s.hidden[0], m]
        layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*layers[:-1]).to(self.raw.device)
        fit(
            net, lambda net, y: (net(y) - y).square().sum(1).mean(), self.raw, seed=self.seed,
            epochs=s.rival_epochs, progress=False, checkpoint=self.folder / f"relu-{self.seed}.pt",
        )  # fmt: skip
        with torch.no_grad():
            return net[:4](self.raw), net[:4](self.images.test_raw)

    def pca(self):
        model = PCA(self.settings.components, random_state=self.seed)
        train, test = self.raw.cpu().numpy(), self.images.test_raw.cpu().numpy()
        train = model.fit_transform(train)
        return self.kmeans(torch.from_numpy(train), torch.from_numpy(model.transform(test)))[1]

    def peer(self, train, test):
        """scikit-learn's spectral clustering, the other images by their nearest neighbour."""
        part = train[: self.settings.rival_size]
        model = SpectralClustering(
            10, affinity="nearest_neighbors", n_neighbors=10, random_state=self.seed
        )
        return neighbour(torch.from_numpy(model.fit(part.cpu().numpy()).labels_), part, test)


def neighbour(labels, train, test):
    nearest = [torch.cdist(y, train).argmin(dim=1) for y in test.split(2000)]
    return labels.to(test.device)[torch.cat(nearest)]


METHODS = {
    "k-means, raw pixels": lambda t: t.kmeans(t.raw, t.images.test_raw)[1],
    "PCA + k-means": lambda t: t.pca(),
    "ReLU autoencoder + k-means": lambda t: t.kmeans(*t.relu_codes)[1],
    "ReLU autoencoder, unit codes + k-means": lambda t: t.kmeans(*map(unit_rows, t.relu_codes))[1],
    "scikit-learn spectral, raw pixels": lambda t: t.peer(t.raw, t.images.test_raw),
    "scikit-learn spectral, features": lambda t: t.peer(t.features, t.images.test_features),
    "k-means, unit pixels": lambda t: t.pixel_kmeans[1],
    "k-means, features": lambda t: t.kmeans(t.features, t.images.test_features)[1],
    "k-means start": lambda t: t.predict(t.kmeans_start),
    "k-means start, trained": lambda t: t.train("k", t.kmeans_start),
    "k-means start, winner trained": lambda t: t.winner("kw", t.kmeans_start),
    "k-means start, winner trained, rate x 10": lambda t: t.winner("kwf", t.kmeans_start, 10),
    "one graph of pixels": lambda t: t.predict(t.groups(t.graph(t.pixels, t.vectors))),
    "one graph, 10 eigenvectors": lambda t: t.predict(t.groups(t.graph(t.features, 10))),
    "one graph": lambda t: t.predict(t.groups(t.spectral)),
    "one graph, nearest neighbour": lambda t: neighbour(
        t.spectral, t.features[: len(t.spectral)], t.images.test_features
    ),
    "start": lambda t: t.predict(t.start),
    "start, trained": lambda t: t.train("s", t.start),
    "start, trained, rate x 10": lambda t: t.train("sf", t.start, 10),
    "start, trained, rate x 10, free columns": lambda t: t.train(
        "sff", t.start, 10, columns="free"
    ),
    "start, trained, 10 FISTA steps": lambda t: t.train(
        "su", t.start, columns="free", steps=10, lam=0.7
    ),
    "start, winner trained": lambda t: t.winner("sw", t.start),
    "start, winner trained, rate x 10": lambda t: t.winner("swf", t.start, 10),
    "true classes": lambda t: t.predict(t.groups(t.truth)),
    "true classes, trained": lambda t: t.train("c", t.groups(t.truth)),
}


def scores(truth, labels) -> dict:
    truth, labels = truth.numpy(), np.asarray(torch.as_tensor(labels).cpu())
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (truth, labels), 1)
    return {
        "accuracy": round(clustering_accuracy(truth, labels), 4),
        "nmi": round(float(normalized_mutual_info_score(truth, labels)), 4),
        "ari": round(float(adjusted_rand_score(truth, labels)), 4),
        "confusion": counts.tolist(),
    }


def write_json(path: Path, content) -> None:
    """Write beside ``path``, then rename: at ``path`` there is always one whole file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def run(name: str, seeds, folder: Path, device: str) -> dict:
    """All methods, all seeds of one data set; what is in ``folder`` already is not done again."""
    settings, folder = SETTINGS[name], folder / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.json"
    run_settings = json.loads(json.dumps({**asdict(settings), "device": device}))
    done = json.loads(kept.read_text()) if kept.exists() else {"settings": run_settings}
    if done["settings"] != run_settings:
        raise SystemExit(f"{kept} has other settings: delete {folder}, or name another --work")
    images = Images(name, device)
    with tqdm(total=len(seeds) * len(METHODS), desc=name) as bar:
        for seed in seeds:
            trial = Trial(images, settings, seed, folder)
            for method, labels in METHODS.items():
                bar.set_postfix_str(f"seed {seed}, {method}")
                if f"{seed}: {method}" not in done:
                    began = time.perf_counter()
                    result = scores(images.test_labels, labels(trial))
                    result["seconds"] = round(time.perf_counter() - began, 2)
                    done[f"{seed}: {method}"] = result
                    write_json(kept, done)
                bar.update()
    table = {}
    for method in METHODS:
        results = [done[f"{seed}: {method}"] for seed in seeds]
        keys = ["accuracy", "nmi", "ari", "seconds"]
        table[method] = {key: [r[key] for r in results] for key in keys}
    confusion = [done[f"{seed}: start, trained"]["confusion"] for seed in seeds]
    return {"settings": run_settings, "methods": table, "confusion": confusion}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "_build" / "fashion_clusters")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(arguments)
    cores = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} used by torch"
    machine = cores if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    results = {name: run(name, args.seeds, args.work, args.device) for name in args.data}
    write_json(args.output, {"seeds": args.seeds, "machine": machine, **results})


if __name__ == "__main__":
    main()
