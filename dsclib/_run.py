"""A training run: all that changes while a model is trained, and the file that keeps it.

Resuming is exact only if nothing is missing from the file and the rest has not changed, so the
file holds the state of every generator too, and in words the settings of the run that wrote it.
"""

from __future__ import annotations

import io
import operator
import os
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ._batches import Shuffled


@dataclass
class Run:
    """All that changes while a model is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator | None  # of the order of the batches
    device: torch.device
    step: int = 0
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: dict | None = None

    @property
    def best_epoch(self) -> int:
        values = self.validation
        return values.index(min(values)) if values else len(self.loss) - 1

    def stopped(self, epochs: int, patience: int | None) -> str:
        if len(self.loss) >= epochs:
            return "epochs"
        waited = len(self.loss) - 1 - self.best_epoch
        return "patience" if patience is not None and waited >= patience else ""

    def diverged(self, what: str) -> FloatingPointError:
        rates = ", ".join(f"{float(group['lr']):.3g}" for group in self.optimizer.param_groups)
        return FloatingPointError(
            f"{what} after {self.step} steps: try a learning rate below {rates}, and look in the "
            "loss for a logarithm, division or square root at 0; the model has the weights it had "
            "before the call"
        )

    def state(self) -> dict:
        """Everything in tensors, numbers, strings, lists and dicts: no code in the file."""
        random = {"default": torch.get_rng_state()}
        if self.generator is not None:
            random["order"] = self.generator.get_state()
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random,
            "log": {"step": self.step, "loss": self.loss, "validation": self.validation},
            "best": self.best,
        }

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"]["default"])
        if self.generator is not None:
            self.generator.set_state(state["random"]["order"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        log = state["log"]
        self.step, self.loss, self.validation = log["step"], log["loss"], log["validation"]
        self.best = state["best"]


def settings_of(run: Run, batches, validation) -> dict[str, str]:
    """What must not differ between the two halves of a run, in words."""
    weights = run.model.state_dict().items()
    settings = {
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(run.model)),
        "weights": "\n".join(f"{k}: {_kind(x)}" for k, x in weights if isinstance(x, Tensor)),
        "optimizer": repr(run.optimizer),
        "device": run.device.type,
        "validation": "none" if validation is None else "given",
        "data": f"{type(batches).__name__}, {operator.length_hint(batches)} batches",
        "seed": "none" if run.generator is None else str(run.generator.initial_seed()),
    }
    if isinstance(batches, Shuffled):
        settings["data"] = "\n".join(f"{_kind(x)}, CRC {_crc(x):08x}" for x in batches.tensors)
        settings["batch_size"] = str(batches.size)
    return settings


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def _crc(x: Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(x.cpu().numpy()).data.cast("B"))


def as_path(checkpoint) -> Path:
    path = Path(checkpoint)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"checkpoint = {str(checkpoint)!r}, expected the name of a file in a folder that "
            "exists: make the folder, or add a file name such as run.pt"
        )
    return path


def write(path: Path, state: dict) -> None:
    """Write beside ``path``, then rename: at ``path`` there is always one whole checkpoint."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def resume(run: Run, path: Path, settings: dict[str, str], epochs: int) -> None:
    """Set ``run`` to the state in a checkpoint, or say why it cannot be."""
    advice = "pass another file, or delete this one to train from the start"
    content = path.read_bytes()
    try:
        damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()  # torch.load checks no sums
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        saved, log = state["settings"], state["log"]
    except Exception as err:  # bytes in memory: whatever fails here, they are not what fit wrote
        raise ValueError(
            f"{path} is truncated, altered or no checkpoint of fit ({type(err).__name__}): {advice}"
        ) from err
    if damaged is not None:
        raise ValueError(f"{path} is altered, {damaged} in it does not match its sum: {advice}")
    for name in settings | saved:
        old, new = (s.get(name, "").splitlines() for s in (saved, settings))
        for a, b in zip_longest(old, new, fillvalue="nothing"):
            if a != b:
                raise ValueError(
                    f"{path} is a checkpoint of another run, which differs in {name}: it has "
                    f"{a.strip()!r}, this run has {b.strip()!r}: {advice}"
                )
    if len(log["loss"]) > epochs:
        raise ValueError(
            f"{path} has {len(log['loss'])} epochs, more than epochs = {epochs}: ask for at least "
            f"as many; {advice}"
        )
    run.load(state)
