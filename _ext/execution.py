"""Runs the notebooks two at a time before Sphinx reads them, and forgets stale results.

MyST-NB executes one notebook after another and caches by the notebook's own code. That is slow
on two cores and blind to the library: a change in ``dsclib`` would leave yesterday's figures in
the book. So before Sphinx reads anything, this extension

1. empties the cache if the library, the lock file or the data at hand have changed;
2. executes the notebooks that the cache lacks, two kernels side by side, and stores each as it
   ends, so that an interrupted build goes on where it stopped.

A notebook that fails is left to MyST-NB, which runs it again and reports it with its traceback.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from sphinx.util import logging

logger = logging.getLogger(__name__)
KERNELS = 2
BUILD_VARIABLE = "DSCLIB_BOOK_BUILD"  # tells dsclib.explore that no kernel will be live


def setup(app):
    os.environ[BUILD_VARIABLE] = "1"
    app.connect("env-get-outdated", forget_stale_results)
    app.connect("env-before-read-docs", execute_notebooks)
    return {"parallel_read_safe": True}


def cache_folder(app) -> Path:
    """The folder that MyST-NB keeps executed notebooks in."""
    return Path(app.srcdir, app.config.nb_execution_cache_path or ".jupyter_cache").resolve()


def fingerprint(root: Path) -> str:
    """A hash of all that a notebook's output depends on besides its own code."""
    from dsclib.datasets import fashion_mnist_on_disk

    digest = hashlib.sha256()
    sources = [*root.glob("dsclib/**/*.py"), *root.glob("chapters/*/*.json")]
    for path in sorted([*sources, root / "constraints.txt", Path(__file__)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(str(fashion_mnist_on_disk()).encode())
    return digest.hexdigest()


def is_notebook(app, docname: str) -> bool:
    return Path(app.env.doc2path(docname)).suffix == ".ipynb"


def forget_stale_results(app, env, added, changed, removed):
    """Empty the cache, and have every notebook read again, when its surroundings changed."""
    folder, key = cache_folder(app), fingerprint(Path(app.srcdir))
    stamp = folder / "fingerprint"
    if stamp.is_file() and stamp.read_text() == key:
        return []
    if folder.is_dir():
        logger.info("the library or the data changed: every notebook runs again")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    stamp.write_text(key)
    return [name for name in env.found_docs if is_notebook(app, name)]


def execute(path: Path, timeout: int):
    """Execute one notebook; returns it with the seconds and megabytes that it took."""
    notebook = nbformat.read(path, as_version=4)
    used = {}

    def measure(**_):
        # After every cell: once the notebook is complete, its kernel is gone. Linux only.
        status = Path(f"/proc/{client.km.provisioner.pid}/status")
        if status.exists():
            peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
            used["peak_mb"] = int(peak.split()[1]) // 1024

    client = NotebookClient(
        notebook,
        timeout=timeout,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=measure,
        record_timing=True,
        extra_arguments=["--log-level=ERROR"],  # its advice on encryption is not for readers
    )
    client.execute()
    return notebook, used


def seconds(notebook) -> float:
    """Wall time from the first cell's start to the last cell's end, from the kernel's stamps."""
    stamps = [
        datetime.fromisoformat(when.replace("Z", "+00:00"))
        for cell in notebook.cells
        for when in cell.metadata.pop("execution", {}).values()
    ]
    return (max(stamps) - min(stamps)).total_seconds() if stamps else 0.0


def compile_once() -> None:
    """Fill numba's cache here, or each of the two kernels would compile for itself."""
    import torch

    from dsclib.pursuit import lasso

    lasso(torch.ones(1, 2), torch.eye(2), lam=0.1)


def execute_notebooks(app, env, docnames):
    """Run what the cache lacks, ``KERNELS`` notebooks side by side."""
    cache = get_cache(str(cache_folder(app)))
    waiting = []
    for path in (Path(env.doc2path(name)) for name in docnames if is_notebook(app, name)):
        try:
            cache.match_cache_notebook(nbformat.read(path, as_version=4))
        except KeyError:
            waiting.append(path)
    if not waiting:
        return
    compile_once()
    # One thread a kernel: two kernels with two threads each would fight over two cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    pool = ThreadPoolExecutor(KERNELS)
    jobs = {pool.submit(execute, path, app.config.nb_execution_timeout): path for path in waiting}
    try:
        for done, job in enumerate(as_completed(jobs), start=1):
            name = jobs[job].relative_to(app.srcdir)
            if job.exception() is not None:
                logger.info(f"[{done}/{len(jobs)}] {name} failed; MyST-NB will run and report it")
                continue
            notebook, used = job.result()
            data = {"execution_seconds": seconds(notebook), **used}
            bundle = CacheBundleIn(notebook, str(jobs[job]), data=data)
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            memory = f", {used['peak_mb']} MB" if used else ""
            logger.info(f"[{done}/{len(jobs)}] {name}: {data['execution_seconds']:.1f} s{memory}")
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted build starts no further notebook
