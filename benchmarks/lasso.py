"""dsclib's Lasso beside scikit-learn and SPAMS, at the same duality gap, in one run.

    python benchmarks/lasso.py [number of patches, 10000 unless given]

Every solver codes the same 8x8 patches of two photographs in the same two dictionaries of 256
atoms. Whoever stops by a tolerance is run with ever smaller ones until its worst relative
duality gap, always computed by ``dsclib.pursuit.duality_gap``, is at most 1e-6; the time of that
last run counts. Read the ratios, not the seconds.
"""

import sys
import time
import warnings

import numpy as np
import torch
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
LAM = 0.1  # of the mean length of a patch


def patches(count: int) -> torch.Tensor:
    """Patches without their mean, scaled to length one on average."""
    half = [
        image_patches(image.double(), 8, n_patches=count // 2, seed=0)
        for image in sample_images().values()
    ]
    Y = torch.cat(half)
    Y = Y - Y.mean(dim=1, keepdim=True)
    return Y / Y.norm(dim=1).mean()


def with_dsclib(Y, D, tol):
    return lasso(Y, D, LAM, tol=tol).codes


def with_coordinate_descent(Y, D, tol):
    """What ``sparse_encode(algorithm="lasso_cd")`` runs, with a tolerance one can set."""
    model = Lasso(LAM / len(D), fit_intercept=False, precompute=True, tol=tol, max_iter=100_000)
    return torch.from_numpy(model.fit(D.numpy(), Y.numpy().T).coef_)


def with_lars(Y, D, tol):
    """Follows the path of solutions to its end: no tolerance."""
    codes = sparse_encode(
        Y.numpy(), D.numpy().T, algorithm="lasso_lars", alpha=LAM, max_iter=10_000
    )
    return torch.from_numpy(codes)


def with_spams(Y, D, tol):
    """LARS in C++: no tolerance."""
    codes = spams.lasso(
        np.asfortranarray(Y.numpy().T),
        np.asfortranarray(D.numpy()),
        lambda1=LAM,
        mode=2,
        numThreads=torch.get_num_threads(),
    )
    return torch.from_numpy(codes.toarray().T)


SOLVERS = {
    "dsclib lasso": (with_dsclib, True),
    "scikit-learn lasso_cd": (with_coordinate_descent, True),
    "scikit-learn lasso_lars": (with_lars, False),
    "SPAMS lasso": (with_spams, False),
}


def timed(solve, Y, D, tol):
    start = time.perf_counter()
    codes = solve(Y, D, tol)
    return time.perf_counter() - start, duality_gap(Y, D, codes, LAM)


def race(name: str, Y, D) -> None:
    """Print one table."""
    print(f"\n{name}: {len(Y)} patches, {D.shape[1]} atoms, {torch.get_num_threads()} threads")
    print(f"{'solver':24} {'seconds':>8} {'ratio':>7} {'worst gap':>10} {'median gap':>10}")
    ours = None
    for solver, (solve, has_tolerance) in SOLVERS.items():
        if solve is with_spams and spams is None:
            print("SPAMS is not installed (pip install -r benchmarks/requirements.txt)")
            continue
        tol = GAP
        seconds, gap = timed(solve, Y, D, tol)
        while has_tolerance and gap.max() > GAP and tol > 1e-12:
            tol /= 10
            seconds, gap = timed(solve, Y, D, tol)
        ours = ours or seconds
        note = "" if gap.max() <= GAP else "   above 1e-6"
        print(
            f"{solver:24} {seconds:8.2f} {seconds / ours:7.2f} {gap.max():10.1e} "
            f"{gap.median():10.1e}{note}",
            flush=True,
        )


def main(count: int = 10_000) -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)  # the gap column tells
    start = time.perf_counter()
    lasso(torch.ones(1, 2).double(), torch.eye(2).double(), LAM)
    print(f"first call of dsclib's lasso: {time.perf_counter() - start:.1f} s (compiles once)")
    Y = patches(count)
    race("Gaussian dictionary", Y, gaussian(64, 256, seed=0, dtype=torch.float64))
    race("overcomplete DCT", Y, overcomplete_dct(8, 16, dtype=torch.float64))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
