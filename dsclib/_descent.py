r"""Compiled kernel behind :func:`dsclib.pursuit.lasso` and :func:`dsclib.pursuit.group_lasso`.

One signal at a time, in the Gram domain: with ``G = D'D`` and ``b = D'y`` everything the solver
asks for follows from the code ``x`` and its correlations with the residual, ``q = b - G x``.
Most atoms never matter, so the work happens on a small working set of groups that only grows:

1. certify: the duality gap costs one pass over ``q``; stop when it is small enough;
2. add the groups whose correlation ||q_g|| exceeds ``lam`` the most;
3. on the working set, sweep block coordinate descent until the support keeps still, then take
   one Newton step on the support found. For ``d = 1`` the objective is quadratic there, so the
   step is exact and a few of them end the search, however coherent the atoms are.

Groups are ``d`` neighbours; ``d = 1`` is the Lasso. A coordinate of the working set keeps its
number, so the leading rows of a Cholesky factor stay valid from one Newton step to the next.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Sums may be reordered, which is what lets them vectorise; NaN and infinity keep their meaning.
_FAST = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
_STILL = 2  # sweeps without a change of support before a Newton step
_SWEEPS = 20  # at most this many sweeps before it
_ROUNDS = 20  # at most this many descents to a minimum on a support before the next certificate
# Both keep the Newton system solvable: the first when atoms repeat, relative to an atom's energy;
# the second where the length of a group bends little, relative to its curvature lam / ||x_g||.
_RIDGE, _GROUP_RIDGE = 1e-10, 1e-3


@njit(**_FAST)
def norm(v, g, d):
    """Length of the group of ``v`` that starts at ``g``."""
    if d == 1:
        return abs(v[g])
    s = 0.0
    for j in range(g, g + d):
        s += v[j] * v[j]
    return math.sqrt(s)


@njit(**_FAST)
def certificate(x, b, q, energy, lam, d, k):
    """Relative duality gap from the first ``k`` entries of ``x``, ``b`` and ``q``."""
    xb, xq, penalty, largest = 0.0, 0.0, 0.0, 0.0
    for j in range(k):
        xb += x[j] * b[j]
        xq += x[j] * q[j]
    for g in range(0, k, d):
        penalty += norm(x, g, d)
        largest = max(largest, norm(q, g, d))
    rr = max(energy - xb - xq, 0.0)  # <r, r> for the residual r = y - D x
    yr = energy - xb  # <y, r>
    primal = 0.5 * rr + lam * penalty
    # The dual point is the residual, scaled as well as the constraint ||q_g|| <= lam allows.
    scale = max(yr, 0.0) / rr if rr > 0 else 1.0
    if scale * largest > lam:
        scale = lam / largest
    gap = primal - scale * yr + 0.5 * scale * scale * rr
    return max(gap, 0.0) / primal if primal > 0 else 0.0


@njit(**_FAST)
def grow(q, chosen, index, k, lam, d):
    """Append to ``index`` the groups in the upper half of the excess of ||q_g|| over lam."""
    largest = lam
    for g in range(0, q.size, d):
        largest = max(largest, norm(q, g, d))
    for g in range(0, q.size, d):
        length = norm(q, g, d)
        if not chosen[g] and length > lam and length >= 0.5 * (largest + lam):
            chosen[g] = True
            for j in range(g, g + d):
                index[k] = j
                k += 1
    return k


@njit(**_FAST)
def sweep(H, k, x, q, lam):
    """One pass of coordinate descent; returns how many signs changed."""
    changes = 0
    for a in range(k):
        old = x[a]
        z = q[a] + H[a, a] * old
        new = math.copysign(max(abs(z) - lam, 0.0) / H[a, a], z)
        step = new - old
        if step != 0:
            changes += (old > 0) != (new > 0) or (old < 0) != (new < 0)
            x[a] = new
            for c in range(k):
                q[c] -= step * H[a, c]
    return changes


@njit(**_FAST)
def group_sweep(H, k, x, q, lam, d, lipschitz):
    """One pass of block coordinate descent; returns how many groups came or went."""
    changes = 0
    z = np.empty(d)
    for g in range(0, k, d):
        L = lipschitz[g // d]
        was = norm(x, g, d) > 0
        for j in range(d):
            z[j] = q[g + j] + L * x[g + j]
        length = norm(z, 0, d)
        shrink = (1 - lam / length) / L if length > lam else 0.0
        changes += was != (shrink > 0)
        for j in range(g, g + d):
            step = shrink * z[j - g] - x[j]
            if step != 0:
                x[j] += step
                for c in range(k):
                    q[c] -= step * H[j, c]
    return changes


@njit(**_FAST)
def refresh(x, k, d, order, count, listed):
    """Update ``order``, the coordinates of active groups; returns (count, unchanged prefix)."""
    kept, prefix = 0, count
    for i in range(count):
        a = order[i]
        if norm(x, a - a % d, d) > 0:
            order[kept] = a
            kept += 1
        else:
            listed[a] = False
            prefix = min(prefix, i)
    for g in range(0, k, d):
        if not listed[g] and norm(x, g, d) > 0:
            for a in range(g, g + d):
                order[kept], listed[a] = a, True
                kept += 1
    return kept, prefix


@njit(**_FAST)
def newton_direction(H, x, q, length, lam, d, order, first, count, R):
    """Direction to the minimum of the local model. Rows before ``first`` of R are still good."""
    step = np.empty(count)
    for i in range(first, count):  # Cholesky; R holds one over its diagonal
        a = order[i]
        for e in range(i + 1):
            c = order[e]
            s = H[a, c]
            if d > 1 and a // d == c // d:  # lam ||x_g|| bends across x_g, not along it
                s += lam / length[a] * ((a == c) - x[a] * x[c] / length[a] ** 2)
            for f in range(e):
                s -= R[i, f] * R[e, f]
            if e < i:
                R[i, e] = s * R[e, e]
            else:
                ridge = _RIDGE * H[a, a] + (_GROUP_RIDGE * lam / length[a] if d > 1 else 0.0)
                R[i, i] = 1 / math.sqrt(max(s, 0.0) + ridge)
    for i in range(count):
        s = q[order[i]] - lam * x[order[i]] / length[order[i]]
        for e in range(i):
            s -= R[i, e] * step[e]
        step[i] = s * R[i, i]
    for i in range(count - 1, -1, -1):
        step[i] *= R[i, i]
        for e in range(i):
            step[e] -= R[i, e] * step[i]
    return step


@njit(**_FAST)
def newton(H, k, x, q, lam, d, order, first, count, R):
    """Step to the minimum on the active groups; True if an atom left on the way (d = 1)."""
    length, trial = np.empty(k), np.empty(k)
    for i in range(count):
        length[order[i]] = norm(x, order[i] - order[i] % d, d)
    step = newton_direction(H, x, q, length, lam, d, order, first, count, R)
    reach, leaving = 1.0, -1
    if d == 1:  # the model holds up to the first change of sign
        for i in range(count):
            if length[order[i]] ** 2 + reach * x[order[i]] * step[i] < 0:
                reach, leaving = -x[order[i]] / step[i], i
    for _ in range(1 if d == 1 else 30):
        for i in range(count):
            step[i] = -x[order[i]] if i == leaving else reach * step[i]
        trial[:] = q[:k]
        for i in range(count):
            for c in range(k):
                trial[c] -= step[i] * H[order[i], c]
        change = 0.0  # of the objective; for d = 1 the first try always lowers it
        for i in range(0, count, d):
            squares = 0.0
            for j in range(i, i + d):
                squares += (x[order[j]] + step[j]) ** 2
                change -= 0.5 * step[j] * (q[order[j]] + trial[order[j]])
            change += lam * (math.sqrt(squares) - length[order[i]])
        if change <= 0:
            for i in range(count):
                x[order[i]] = 0.0 if i == leaving else x[order[i]] + step[i]
            q[:k] = trial
            return leaving >= 0
        reach, leaving = 0.5, -1
    return False


@njit(**_FAST)
def solve(G, lipschitz, b, energy, lam, d, tol, max_iterations, x, H, R, trace):
    """Minimise for one signal, in place in ``x``; ``trace`` keeps the largest gap at each check."""
    n = b.size
    q = b.copy()
    chosen, listed = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    index, order = np.empty(n, np.int64), np.empty(n, np.int64)
    xw, qw, bw, old = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    L = np.empty(n // d)
    k, known, count, gap = 0, 0, 0, 0.0
    for g in range(0, n, d):
        if norm(x, g, d) > 0:
            chosen[g] = True
            for j in range(g, g + d):
                index[k] = j
                k += 1
                for c in range(n):
                    q[c] -= x[j] * G[j, c]
    for iteration in range(max_iterations + 1):
        gap = certificate(x, b, q, energy, lam, d, n)
        trace[iteration] = max(trace[iteration], gap)
        if gap <= tol or iteration == max_iterations:
            break
        k = grow(q, chosen, index, k, lam, d)
        for a in range(known, k):
            for c in range(a + 1):
                H[a, c] = H[c, a] = G[index[a], index[c]]
            L[a // d] = lipschitz[index[a] // d]
            bw[a] = b[index[a]]
        known = k
        for a in range(k):
            xw[a] = old[a] = x[index[a]]
            qw[a] = q[index[a]]
        for _ in range(_ROUNDS):
            still = 0
            for _ in range(_SWEEPS):
                if d == 1:
                    changes = sweep(H, k, xw, qw, lam)
                else:
                    changes = group_sweep(H, k, xw, qw, lam, d, L)
                still = 0 if changes else still + 1
                if still == _STILL:
                    break
            left = True
            while left:  # to the minimum on a support, however many groups that drops
                count, prefix = refresh(xw, k, d, order, count, listed)
                first = prefix if d == 1 else 0  # for groups the Hessian moves with x
                left = newton(H, k, xw, qw, lam, d, order, first, count, R)
            if certificate(xw, bw, qw, energy, lam, d, k) <= max(tol, 0.01 * gap):
                break
        for a in range(k):
            x[index[a]] = xw[a]
            if xw[a] != old[a]:
                for c in range(n):
                    q[c] -= (xw[a] - old[a]) * G[index[a], c]


@njit(**_FAST)
def solve_every(first, stride, G, lipschitz, B, energy, lam, d, tol, max_iterations, X):
    """Solve signals ``first``, ``first + stride``, ...; returns the largest gap at each check."""
    n = G.shape[0]
    H, R = np.empty((n, n)), np.empty((n, n))
    trace = np.full(max_iterations + 1, -1.0)
    for i in range(first, B.shape[0], stride):
        solve(G, lipschitz, B[i], energy[i], lam, d, tol, max_iterations, X[i], H, R, trace)
    return trace
