"""dsclib's Lasso beside scikit-learn and SPAMS, at the same duality gap, in one run.

    python benchmarks/lasso.py [number of patches, 10000 unless given]

Every solver codes the same 8x8 patches of two photographs in the same two dictionaries of 256
atoms, with as many threads or processes as torch uses. The relative duality gap of all codes is
computed by ``dsclib.pursuit.duality_gap`` and has to be at most 1e-6 for every patch: whoever
stops by a tolerance gets the largest power of ten that achieves it. Compiling and starting
worker processes is not timed. Read the ratios, not the seconds.
"""

from __future__ import annotations

import sys
import time
import warnings

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from dsclib.datasets import image_patches, sample_images
from dsclib.dictionaries import gaussian, overcomplete_dct
from dsclib.pursuit import duality_gap, lasso

try:
    import spams
except ImportError:
    spams = None

GAP = 1e-6
LAM = 0.1  # where a patch is one long on average
THREADS = torch.get_num_threads()


def patches(count: int) -> torch.Tensor:
    """Patches without their mean, one long on average."""
    halves = [
        image_patches(image.double(), 8, n_patches=count // 2, seed=0)
        for image in sample_images().values()
    ]
    Y = torch.cat(halves)
    Y = Y - Y.mean(dim=1, keepdim=True)
    return Y / Y.norm(dim=1).mean()


def with_dsclib(Y, D, tol):
    return lasso(Y, D, LAM, tol).codes


def with_coordinate_descent(Y, D, tol):
    """What ``sparse_encode(algorithm="lasso_cd")`` runs, with a tolerance that can be set."""
    D = D.numpy()
    model = Lasso(LAM / len(D), fit_intercept=False, precompute=D.T @ D, tol=tol, max_iter=100_000)

    def fit(part):
        return np.atleast_2d(clone(model).fit(D, part.numpy().T).coef_)

    parts = Parallel(THREADS, prefer="threads")(delayed(fit)(part) for part in Y.chunk(THREADS))
    return torch.from_numpy(np.concatenate(parts))


def with_lars(Y, D, tol):
    """Follows the path of solutions to its end and needs no tolerance."""
    codes = sparse_encode(
        Y.numpy(),
        D.numpy().T,
        algorithm="lasso_lars",
        alpha=LAM,
        max_iter=10_000,
        n_jobs=THREADS,
    )
    return torch.from_numpy(codes)


def with_spams(Y, D, tol):
    """The same path in C++."""
    Y, D = np.asfortranarray(Y.numpy().T), np.asfortranarray(D.numpy())
    codes = spams.lasso(Y, D, lambda1=LAM, mode=2, numThreads=THREADS)
    return torch.from_numpy(codes.toarray().T)


SOLVERS = {
    "dsclib lasso": with_dsclib,
    "scikit-learn lasso_cd": with_coordinate_descent,
    "scikit-learn lasso_lars": with_lars,
    "SPAMS lasso": with_spams,
}


def tolerance(solve, Y, D) -> float:
    """The largest power of ten with which every gap is small enough."""
    tol = GAP
    while duality_gap(Y, D, solve(Y, D, tol), LAM).max() > GAP and tol > 1e-12:
        tol /= 10
    return tol


def race(name: str, Y, D) -> None:
    """Print one table and who won it."""
    print(f"\n{name}: {len(Y)} patches, {D.shape[1]} atoms, lam = {LAM}, {THREADS} threads")
    print(f"{'solver':24} {'seconds':>8} {'ratio':>7} {'worst gap':>10} {'median gap':>10}")
    seconds = {}
    for solver, solve in SOLVERS.items():
        if solve is with_spams and spams is None:
            print("SPAMS is not installed: pip install -r benchmarks/requirements.txt")
            continue
        # Long patches have dense codes and are the hardest: tune on some, also as warm-up.
        hardest = Y[Y.norm(dim=1).topk(min(300, len(Y))).indices]
        tol = tolerance(solve, hardest, D) if solve is with_coordinate_descent else GAP
        solve(hardest, D, tol)
        times = []
        while not times or (len(times) < 5 and sum(times) < 5):
            start = time.perf_counter()
            codes = solve(Y, D, tol)
            times.append(time.perf_counter() - start)
        gap = duality_gap(Y, D, codes, LAM)
        seconds[solver] = min(times)
        ratio = seconds[solver] / seconds["dsclib lasso"]
        missed = "" if gap.max() <= GAP else f"  above {GAP:g}"
        print(
            f"{solver:24} {seconds[solver]:8.2f} {ratio:7.2f} {gap.max():10.1e} "
            f"{gap.median():10.1e}{missed}",
            flush=True,
        )
    ours = seconds.pop("dsclib lasso")
    for solver, theirs in seconds.items():
        factor = max(theirs / ours, ours / theirs)
        verdict = f"{solver if theirs < ours else 'dsclib'} wins by a factor of {factor:.1f}"
        print(f"{solver}: {verdict if factor > 1.1 else 'a draw'}")


def main(count: int = 10_000) -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)  # the gap column tells
    start = time.perf_counter()
    lasso(torch.ones(1, 2).double(), torch.eye(2).double(), LAM)
    spent = time.perf_counter() - start
    print(f"dsclib's first call took {spent:.1f} s (a new installation compiles, once)")
    Y = patches(count)
    race("Gaussian dictionary", Y, gaussian(64, 256, seed=0, dtype=torch.float64))
    race("Overcomplete DCT", Y, overcomplete_dct(8, 16, dtype=torch.float64))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
