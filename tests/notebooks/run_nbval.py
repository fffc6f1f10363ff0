"""Executes every notebook of the table of contents with nbval, as a reader with a kernel would.

Two notebooks at a time, each in one worker: nbval keeps one kernel a file.
"""

import os
import subprocess
import sys

from book import ROOT, notebooks

sys.exit(
    subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "-n", "2", "--dist", "loadfile"]
        + ["-p", "no:cacheprovider", "-o", "addopts=", "-q", "--nbval-cell-timeout=120"]
        + [str(path.relative_to(ROOT)) for path in notebooks()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    ).returncode
)
