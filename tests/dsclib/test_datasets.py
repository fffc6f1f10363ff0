"""Patches against their definition; files found, refused and downloaded; the real images."""

import gzip
import hashlib
import http.server
import io
import logging
import math
import os
import socket
import tarfile
import threading
import time
import warnings

import numpy as np
import pooch
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dsclib import _files, datasets
from dsclib.datasets import (
    DataUnavailable,
    average_patches,
    cifar10,
    digits,
    fashion_mnist,
    fashion_mnist_or_digits,
    image_patches,
    mnist,
    sample_images,
)

RNG = np.random.default_rng(0)
ALL_NAMES = _files.IDX_FILES
IMAGES, LABELS = ALL_NAMES[:2]


# ---------------------------------------------------------------- patches


def pictures(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("size, stride", [(1, 1), (3, 1), (4, 3), (5, 2), (7, 1)])
def test_patches_are_those_of_unfold(size, stride):
    images = pictures(3, 7, 11)
    expected = F.unfold(images[:, None], size, stride=stride).mT.reshape(-1, size * size)
    torch.testing.assert_close(image_patches(images, size, stride=stride), expected, rtol=0, atol=0)


def test_one_image_needs_no_batch_axis_and_numpy_will_do():
    image = pictures(6, 5)
    ours = image_patches(image, 3)
    torch.testing.assert_close(ours, image_patches(image[None], 3))
    torch.testing.assert_close(ours, image_patches(image.numpy(), 3))
    torch.testing.assert_close(ours[1].view(3, 3), image[:3, 1:4])
    assert image_patches(image.float(), 3).dtype == torch.float32


def test_random_patches_are_drawn_from_the_grid_without_replacement():
    images = torch.arange(2 * 6 * 7, dtype=torch.float64).view(2, 6, 7)
    every = image_patches(images, 3, stride=2)
    drawn = image_patches(images, 3, stride=2, n_patches=len(every), seed=3)
    assert not torch.equal(drawn, every)
    torch.testing.assert_close(drawn[drawn[:, 0].argsort()], every)
    some = image_patches(images, 3, stride=2, n_patches=5, seed=3)
    torch.testing.assert_close(some, drawn[:5])
    torch.manual_seed(1)
    first = image_patches(images, 3, n_patches=5)
    assert not torch.equal(first, image_patches(images, 3, n_patches=5))
    torch.manual_seed(1)
    torch.testing.assert_close(first, image_patches(images, 3, n_patches=5))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.integers(0, 4))
def test_average_inverts_patches(size, stride, rows, columns):
    stride = min(stride, size)
    image = pictures(size + rows * stride, size + columns * stride)
    patches = image_patches(image, size, stride=stride)
    back = average_patches(patches, image.shape, stride=stride)
    torch.testing.assert_close(back, image, rtol=1e-14, atol=0)


def test_average_of_patches_that_disagree():
    patches, total, count = pictures(12, 4), torch.zeros(4, 5).double(), torch.zeros(4, 5)
    for p, (i, j) in zip(patches, ((i, j) for i in range(3) for j in range(4))):
        total[i : i + 2, j : j + 2] += p.view(2, 2)
        count[i : i + 2, j : j + 2] += 1
    torch.testing.assert_close(average_patches(patches, (4, 5)), total / count)
    assert torch.autograd.gradcheck(lambda p: average_patches(p, (4, 5)), patches.requires_grad_())


def test_average_inverts_patches_of_a_photograph():
    china = sample_images()["china"]
    back = average_patches(image_patches(china, 8), china.shape)
    torch.testing.assert_close(back, china, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- images that need no file


def test_sample_images():
    images = sample_images()
    assert list(images) == ["china", "flower"]
    for image in images.values():
        assert image.shape == (427, 640) and image.dtype == torch.float32
        assert 0 <= image.min() < 0.1 and 0.8 < image.max() <= 1


def test_digits():
    train, test = digits(), digits("test")
    assert train.images.shape == (1437, 8, 8) and test.images.shape == (360, 8, 8)
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert train.images.min() == 0 and train.images.max() == 1
    assert len(train.classes) == 10
    for part in (train, test):
        counts = part.labels.bincount(minlength=10)
        assert counts.min() > 0.9 * counts.float().mean()


# ---------------------------------------------------------------- the real Fashion-MNIST


@pytest.fixture(scope="module")
def garments():
    try:
        return fashion_mnist("train"), fashion_mnist("test")
    except DataUnavailable as err:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(err))


def test_fashion_mnist(garments):
    train, test = garments
    assert train.images.shape == (60_000, 28, 28) and test.images.shape == (10_000, 28, 28)
    assert train.images.dtype == torch.float32 and train.labels.dtype == torch.int64
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.images.min() == 0 and train.images.max() == 1
    # the mean and deviation that the literature normalises by
    assert train.images.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert train.images.std().item() == pytest.approx(0.3530, abs=5e-5)
    assert [train.classes[k] for k in train.labels[:3]] == ["Ankle boot", *["T-shirt/top"] * 2]


def test_fashion_mnist_loads_quickly_and_quietly(garments, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.process_time()
        fashion_mnist_or_digits()
        took = time.process_time() - start
    assert took < 3  # about 0.4 s
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- made files


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


CONTENT = {
    name: idx(RNG.integers(0, top, shape, dtype=np.uint8))
    for name, top, shape in zip(ALL_NAMES, (256, 10, 256, 10), ((5, 4, 4), 5, (3, 4, 4), 3))
}
PACKED = {name: gzip.compress(body) for name, body in CONTENT.items()}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Small made files stand for Fashion-MNIST, folders of this test for the places to look."""
    here = {name: tmp_path / name for name in ("named", "system", "cache")}
    (tmp_path / "named").mkdir()
    sha256 = {name: hashlib.sha256(body).hexdigest() for name, body in CONTENT.items()}
    refused = f"http://127.0.0.1:{free_port()}/"
    monkeypatch.setenv("DSCLIB_DATA", str(here["named"]))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: here["cache"] / project)
    replace(monkeypatch, "FASHION_MNIST", sha256=sha256, system=here["system"], url=refused)
    replace(monkeypatch, "MNIST", sha256=sha256, url=refused)
    replace(monkeypatch, "CIFAR10", url=refused)
    return here


def replace(monkeypatch, source, **fields):
    monkeypatch.setattr(datasets, source, getattr(datasets, source)._replace(**fields))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def put(folder, files=PACKED):
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def left_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def assert_made(data, split="train"):
    images, labels = ALL_NAMES[:2] if split == "train" else ALL_NAMES[2:]
    pixels = np.frombuffer(CONTENT[images], np.uint8, offset=16).reshape(-1, 4, 4)
    np.testing.assert_allclose(data.images.numpy(), pixels / 255, rtol=1e-6)
    assert data.labels.tolist() == list(CONTENT[labels][8:])


@pytest.mark.parametrize(
    "where", ["named", "named/fashion-mnist", "system", "cache/dsclib/fashion-mnist"]
)
def test_every_place_is_looked_in(places, where):
    put(places["named"].parent / where)
    assert_made(fashion_mnist())
    assert_made(fashion_mnist("test"), "test")


def test_mnist_is_not_confused_by_fashion_mnist(places):
    damaged = dict.fromkeys(PACKED, gzip.compress(b"another set"))
    put(places["named"], damaged)
    with pytest.raises(DataUnavailable):
        mnist()
    put(places["named"] / "mnist")
    assert_made(mnist("test"), "test")
    assert mnist().classes == tuple("0123456789")


def test_files_compressed_anew_are_accepted(places):
    put(places["system"], {n: gzip.compress(b, compresslevel=1) for n, b in CONTENT.items()})
    assert_made(fashion_mnist())


FLIPPED = CONTENT[IMAGES][:-1] + bytes([CONTENT[IMAGES][-1] ^ 1])
SCRATCHED = PACKED[IMAGES][:30] + b"\xff\xff" + PACKED[IMAGES][32:]
PAGE = b"<html>please log in</html>"
DAMAGED = {  # the file, and the bytes whose hash the message gives
    "truncated": (PACKED[IMAGES][:-10], PACKED[IMAGES][:-10]),
    "empty": (b"", b""),
    "a page": (PAGE, PAGE),
    "a pixel changed": (gzip.compress(FLIPPED), FLIPPED),
    "scratched": (SCRATCHED, SCRATCHED),
    "another file": (PACKED[ALL_NAMES[2]], CONTENT[ALL_NAMES[2]]),
}


@pytest.mark.parametrize("load", [fashion_mnist, fashion_mnist_or_digits])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named_and_nothing_else_is_used(places, load, damage, capsys):
    put(places["system"])  # sound, but later in the order
    packed, hashed = DAMAGED[damage]
    bad = put(places["named"], {IMAGES: packed}) / IMAGES
    with pytest.raises(ValueError, match="is truncated or altered") as caught:
        load()
    expected, found = (hashlib.sha256(x).hexdigest() for x in (CONTENT[IMAGES], hashed))
    for part in (str(bad), f"{expected}, found {found}", "delete it"):
        assert part in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_damaged_file_later_in_the_order_does_not_matter(places):
    put(places["system"])
    put(places["cache"] / "dsclib" / "fashion-mnist", {IMAGES: b"damaged"})
    assert_made(fashion_mnist())


def test_unavailable_says_what_where_and_how(places, capsys):
    with pytest.raises(DataUnavailable) as caught:
        fashion_mnist()
    message = str(caught.value)
    for part in (IMAGES, *map(str, places.values()), "dataset-fashion-mnist", "DSCLIB_DATA"):
        assert part in message
    assert "\n" not in message and left_in(places["cache"]) == []
    data = fashion_mnist_or_digits("test")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "Fashion-MNIST is neither" in out
    assert torch.equal(data.images, digits("test").images)


def test_a_folder_that_is_none_is_refused(places, monkeypatch):
    monkeypatch.setenv("DSCLIB_DATA", str(places["named"] / "no such folder"))
    with pytest.raises(ValueError, match="DSCLIB_DATA is '.*no such folder'"):
        fashion_mnist_or_digits()
    monkeypatch.setenv("DSCLIB_DATA", "")  # as good as unset
    put(places["system"])
    assert_made(fashion_mnist())


# ---------------------------------------------------------------- downloads


@pytest.fixture
def server(places, monkeypatch):
    """A server on this machine; ``answer["mode"]`` says how it behaves."""
    answer = {"mode": "good", "asked": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, mode = self.path.rpartition("/")[2], answer["mode"]
            answer["asked"].append(name)
            if mode == "missing":
                return self.send_error(404)
            if mode == "silent":
                return time.sleep(0.6)
            body = gzip.compress(b"altered") if mode == "altered" else PACKED[name]
            self.send_response(200)
            if mode != "cut, length unknown":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if mode.startswith("cut") else body)

        def log_message(self, *args):
            """Keep the test's output clean."""

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    replace(monkeypatch, "FASHION_MNIST", url=f"http://127.0.0.1:{httpd.server_port}/data/")
    yield answer
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_download_fills_the_cache_once_and_quietly(places, server, capfd, caplog, monkeypatch):
    logger = pooch.get_logger()  # its own handler keeps the stderr of the time of import
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    logger.setLevel(logging.INFO)
    assert_made(fashion_mnist())
    assert server["asked"] == [IMAGES, LABELS]
    assert left_in(places["cache"]) == sorted([IMAGES, LABELS])
    server["mode"] = "missing"
    assert_made(fashion_mnist())
    assert len(server["asked"]) == 2
    assert capfd.readouterr() == ("", "") and caplog.records == []
    assert logger.level == logging.INFO


@pytest.mark.parametrize("mode", ["missing", "silent", "cut, length known"])
def test_a_download_that_fails_leaves_nothing(places, server, monkeypatch, mode):
    server["mode"] = mode
    with monkeypatch.context() as patch:
        patch.setattr(_files, "TIMEOUT", (0.2, 0.2) if mode == "silent" else _files.TIMEOUT)
        with pytest.raises(DataUnavailable, match="could not be downloaded"):
            fashion_mnist()
    assert left_in(places["cache"]) == []
    server["mode"] = "good"
    assert_made(fashion_mnist())


@pytest.mark.parametrize("mode", ["altered", "cut, length unknown"])
def test_a_download_of_other_content_is_refused_and_leaves_nothing(places, server, mode):
    server["mode"] = mode
    with pytest.raises(ValueError, match="the download http.* nothing was kept"):
        fashion_mnist_or_digits()
    assert left_in(places["cache"]) == []


def test_a_download_interrupted_by_hand_leaves_nothing(places, server, monkeypatch):
    class Interrupted:
        def __init__(self, **settings):
            assert settings["timeout"] == _files.TIMEOUT

        def __call__(self, url, output_file, caller):
            with open(output_file, "wb") as half:
                half.write(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(pooch, "HTTPDownloader", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        fashion_mnist()
    assert left_in(places["cache"]) == []


def test_a_cache_that_cannot_be_written_is_no_data(places):
    places["cache"].write_bytes(b"a file where the folder should be")
    with pytest.raises(DataUnavailable):
        fashion_mnist()


# ---------------------------------------------------------------- CIFAR-10


def cifar_archive(records):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, body in [("readme.html", b"text"), *reversed(records.items())]:
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return out.getvalue()


def test_cifar10_reads_the_binary_archive(places, monkeypatch):
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    records = RNG.integers(0, 256, (6, 2, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    body = cifar_archive({name: r.tobytes() for name, r in zip(names, records)})
    archive = put(places["named"], {"cifar-10-binary.tar.gz": body}) / "cifar-10-binary.tar.gz"
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz is truncated or altered"):
        cifar10()
    replace(monkeypatch, "CIFAR10", sha256={archive.name: hashlib.sha256(body).hexdigest()})
    train, test = cifar10(), cifar10("test")
    assert train.images.shape == (10, 3, 32, 32) and train.images.is_contiguous()
    flat = records[:5].reshape(10, 3073)
    assert train.labels.tolist() == flat[:, 0].tolist()
    np.testing.assert_allclose(train.images.reshape(10, -1), flat[:, 1:] / 255, rtol=1e-6)
    np.testing.assert_allclose(test.images.flatten(1), records[5][:, 1:] / 255, rtol=1e-6)
    assert test.classes[3] == "cat"
    archive.write_bytes(body[:-100])
    with pytest.raises(ValueError, match="is truncated or altered"):
        cifar10()


def test_sources_are_complete():
    for source in (_files.FASHION_MNIST, _files.MNIST, _files.CIFAR10):
        assert len(source.classes) == len(set(source.classes)) == 10
        assert source.url.startswith("https://") and source.url.endswith("/")
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.sha256.values())


# ---------------------------------------------------------------- bad input

SOUND = idx(np.zeros((2, 3, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "content, ndim",
    [
        (b"", 3),
        (SOUND[:7], 3),
        (SOUND[:-1], 3),
        (SOUND + b"\0", 3),
        (SOUND, 1),
        (b"\0\0\x09" + SOUND[3:], 3),
        (b"\x08\x03\0\0" + SOUND[4:], 3),
    ],
    ids=["empty", "header cut", "data cut", "data added", "axes", "type", "byte order"],
)
def test_idx_parser_names_the_file(content, ndim):
    with pytest.raises(ValueError, match="some-idx .* expected"):
        _files.parse_idx(content, "some-idx", ndim)


IMAGE = torch.rand(6, 8)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: image_patches(IMAGE, 7), "size = 7, expected at least 1 and at most 6"),
        (lambda: image_patches(IMAGE, 0), "size = 0"),
        (lambda: image_patches(IMAGE, 2.0), "size = 2.0"),
        (lambda: image_patches(IMAGE, 2, stride=0), "stride = 0"),
        (lambda: image_patches(IMAGE, 2, n_patches=36), "n_patches = 36, .* at most 35"),
        (lambda: image_patches(IMAGE, 2, n_patches=0), "n_patches = 0"),
        (lambda: image_patches(IMAGE, 2, n_patches=3, seed=-1), "seed = -1"),
        (lambda: image_patches(IMAGE[0], 2), "images has shape"),
        (lambda: image_patches(torch.rand(2, 3, 6, 8), 2), "images has shape"),
        (lambda: image_patches(torch.rand(0, 6, 8), 2), "no empty axis"),
        (lambda: image_patches(IMAGE * math.nan, 2), "NaN"),
        (lambda: image_patches("china", 2), "images is a str"),
        (lambda: average_patches(torch.rand(4, 5), (3, 3)), "square number"),
        (lambda: average_patches(torch.rand(4), (3, 3)), r"patches\[None\]"),
        (lambda: average_patches(torch.rand(4, 4), 3), "expected a pair"),
        (lambda: average_patches(torch.rand(4, 4), (3, 3, 3)), "expected a pair"),
        (lambda: average_patches(torch.rand(4, 4), (3, 1)), r"shape\[1\] = 1"),
        (lambda: average_patches(torch.rand(4, 4), (3, 3.0)), r"shape\[1\] = 3.0"),
        (lambda: average_patches(torch.rand(4, 4), (3, 4)), "4 rows, expected 6"),
        (lambda: average_patches(torch.rand(2, 4), (3, 4), stride=2), "uncovered"),
        (lambda: average_patches(torch.rand(4, 4), (5, 5), stride=3), "uncovered"),
        (lambda: average_patches(torch.rand(4, 4), (3, 3), stride=0), "stride = 0"),
        (lambda: digits("valid"), "split = 'valid', expected one of 'train', 'test'"),
        (lambda: fashion_mnist("Train"), "split = 'Train'"),
        (lambda: mnist(None), "split = None"),
        (lambda: cifar10(0), "split = 0"),
        (lambda: fashion_mnist_or_digits("all"), "split = 'all'"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_on_disk_asks_for_every_file_and_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "FASHION_MNIST", datasets.FASHION_MNIST._replace(system=None))
    monkeypatch.setenv("DSCLIB_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("a download was tried"))
    assert not datasets.fashion_mnist_on_disk()
    for name in datasets.FASHION_MNIST.sha256:
        assert not datasets.fashion_mnist_on_disk()
        (tmp_path / name).touch()
    assert datasets.fashion_mnist_on_disk()
