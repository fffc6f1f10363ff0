"""The files of a data set: found on this machine or downloaded, and verified in both cases."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import math
import os
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch

TIMEOUT = (10, 30)  # seconds to connect, seconds of silence


class DataUnavailable(RuntimeError):
    """The files of a data set are neither on this machine nor to be downloaded."""


class Source(NamedTuple):
    """A data set: where its files may lie and what their SHA-256 is.

    idx files (``*-ubyte.gz``) are hashed unpacked: Debian compressed them anew, so its files
    differ from the publisher's while their content does not.
    """

    title: str
    classes: tuple[str, ...]
    url: str
    sha256: dict[str, str]
    folders: tuple[str, ...]  # where the files may lie inside DSCLIB_DATA
    system: Path | None = None  # where a system package installs them
    advice: str = ""


IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
FASHION_MNIST = Source(
    "Fashion-MNIST",
    (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    dict(zip(IDX_FILES, (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ))),
    ("fashion-mnist", "."),
    Path("/usr/share/datasets/fashion-mnist"),
    "install Debian's package dataset-fashion-mnist, or ",
)  # fmt: skip
MNIST = Source(
    "MNIST",
    tuple("0123456789"),
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    dict(zip(IDX_FILES, (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ))),
    ("mnist",),
)  # fmt: skip
CIFAR10 = Source(
    "CIFAR-10",
    (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    ),
    "https://www.cs.toronto.edu/~kriz/",
    {
        "cifar-10-binary.tar.gz":
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
    ("cifar-10", "."),
)  # fmt: skip


def fetch(source: Source, name: str) -> bytes:
    """Return the verified content of the file ``name``: unpacked if idx, else as it lies."""
    folders = _folders(source)
    path = _find(folders, name) or _download(source, name, folders)
    remedy = "delete it, or reinstall the package that brought it, and load it again"
    return _verified(path, source, name, str(path), remedy)


def on_disk(source: Source) -> bool:
    """Whether every file of the data set lies on this machine, verified or not."""
    folders = _folders(source)
    return all(_find(folders, name) is not None for name in source.sha256)


def _find(folders: list[Path], name: str) -> Path | None:
    return next((f / name for f in folders if (f / name).is_file()), None)


def _folders(source: Source) -> list[Path]:
    """Where to look, in order; the last is the cache that downloads go to."""
    folders = []
    if named := os.environ.get("DSCLIB_DATA"):
        top = Path(named).expanduser()
        if not top.is_dir():
            raise ValueError(
                f"the environment variable DSCLIB_DATA is {named!r}, expected an existing folder "
                "that holds data files: correct it or unset it"
            )
        folders += [top / f for f in source.folders]
    if source.system is not None:
        folders.append(source.system)
    return [*folders, Path(pooch.os_cache("dsclib")) / source.folders[0]]


def _verified(path: Path, source: Source, name: str, label: str, remedy: str) -> bytes:
    content, kind, note = path.read_bytes(), "", ""
    if name.endswith("-ubyte.gz"):
        kind = " (unpacked)"
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as err:
            note = f" for the packed file, which does not unpack ({err})"
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256[name]:
        raise ValueError(
            f"{label} is truncated or altered, not the {name} of {source.title}: expected "
            f"SHA-256{kind} {source.sha256[name]}, found {found}{note}; {remedy}"
        )
    return content


def _download(source: Source, name: str, folders: list[Path]) -> Path:
    """Download into the cache; pooch moves the file there once ``checked`` has returned."""

    def checked(url, output_file, caller):
        pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=2**16)(url, output_file, caller)
        remedy = "nothing was kept: load it again, if need be from another network"
        _verified(Path(output_file), source, name, f"the download {url}", remedy)

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # its progress goes to stderr, which fails a book build
    try:
        return Path(pooch.retrieve(source.url + name, None, name, folders[-1], downloader=checked))
    except OSError as err:  # no network, no such page, an interrupted transfer, no disk
        raise DataUnavailable(
            f"{source.title} needs {name}, which is not in {', '.join(map(str, folders))} and "
            f"could not be downloaded from {source.url} ({type(err).__name__}): "
            f"{source.advice}put {', '.join(source.sha256)} into a sub-folder "
            f"{source.folders[0]} of the folder that the environment variable DSCLIB_DATA names"
        ) from err
    finally:
        logger.setLevel(level)


def read_idx(source: Source, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W) and labels (N,) as bytes, from two idx files."""
    images, labels = IDX_FILES[:2] if train else IDX_FILES[2:]
    return (
        parse_idx(fetch(source, images), images, 3),
        parse_idx(fetch(source, labels), labels, 1),
    )


def parse_idx(content: bytes, name: str, ndim: int) -> np.ndarray:
    """Parse unsigned bytes in idx form: magic number, ``ndim`` big-endian sizes, data."""
    magic = bytes([0, 0, 0x08, ndim])
    if content[:4] != magic:
        raise ValueError(
            f"{name} starts with the bytes {content[:4].hex()}, expected {magic.hex()} for "
            f"unsigned bytes with {ndim} axes: it is another file or damaged, replace it"
        )
    start = 4 + 4 * ndim
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{name} holds {len(content)} bytes, expected {start + math.prod(shape)} for the "
            f"shape {shape} in its header: it is truncated or damaged, replace it"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(source: Source, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) as bytes, from CIFAR-10's binary archive.

    A record is a label byte, then the red, green and blue planes.
    """
    batches = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    content, files = fetch(source, "cifar-10-binary.tar.gz"), {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|gz") as archive:  # one pass
        for member in archive:
            if Path(member.name).stem in batches:
                files[Path(member.name).stem] = archive.extractfile(member).read()
    records = np.frombuffer(b"".join(files[b] for b in batches), np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
