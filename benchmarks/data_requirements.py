"""Time the piecewise power law against a plain loop over candidate switching sizes, and against scipy's curve_fit.

    python benchmarks/data_requirements.py

Prints the seconds per fit of 12 points, the ratio, and how far the curves lie apart.
"""

import time
import warnings

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from natwise.samples import PiecewisePowerLaw, allocate_budget

N = np.geomspace(10, 2000, 12)
N_CURVES = 50


def form(x, th1, th2, th3, switch):
    """Return ln error by the published formula."""
    return np.where(
        x <= switch,
        th1 + th2 * x + th3 * x**2,
        th1 - th3 * switch**2 + (th2 + 2 * th3 * switch) * x,
    )


def naive_profile(n, errors):
    """Solve one least-squares problem per candidate size, as fine as our refined one: 20,000 candidates."""
    x, y, best = np.log(n), np.log(errors), None
    for switch in np.linspace(x[1], x[-2], 20_000):
        design = np.stack([np.ones_like(x), x, np.where(x <= switch, x**2, 2 * switch * x - switch**2)], axis=1)
        theta, *_ = np.linalg.lstsq(design, y, rcond=None)
        rss = ((y - design @ theta) ** 2).sum()
        if best is None or rss < best[0]:
            best = (rss, theta, switch)
    return np.exp(form(x, *best[1], best[2]))


def nonlinear(n, errors):
    """Fit all four parameters at once by Levenberg-Marquardt."""
    x, y = np.log(n), np.log(errors)
    parameters, _ = curve_fit(form, x, y, p0=(0.0, -0.5, 0.0, x.mean()), maxfev=20_000)
    return np.exp(form(x, *parameters))


def greedy(curves, weights, budget):
    """Give one sample after the other to the group that gains most."""
    given = np.zeros(len(curves), dtype=int)
    for _ in range(budget):
        start = [curve.largest_size_ + extra for curve, extra in zip(curves, given, strict=True)]
        gain = [w * (c.predict(s) - c.predict(s + 1)) for c, w, s in zip(curves, weights, start, strict=True)]
        given[int(np.argmax(gain))] += 1
    return given


def seconds(call):
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def main():
    warnings.simplefilter("ignore", OptimizeWarning)
    rng = np.random.default_rng(0)
    curves = [
        0.4 * np.exp(form(np.log(N), 0.0, -0.2, -0.05, np.log(rng.uniform(50, 500))) + 0.02 * rng.standard_normal(12))
        for _ in range(N_CURVES)
    ]
    ours, fitted = seconds(lambda: [PiecewisePowerLaw().fit(N, errors) for errors in curves])
    one, reference = seconds(lambda: naive_profile(N, curves[0]))
    lm, local = seconds(lambda: [nonlinear(N, errors) for errors in curves])
    rss = [((np.log(c.predict(N) / e)) ** 2).sum() for c, e in zip(fitted, curves, strict=True)]
    lm_rss = [((np.log(c / e)) ** 2).sum() for c, e in zip(local, curves, strict=True)]
    worse = np.mean(np.array(lm_rss) > np.array(rss) * 1.001)
    apart = np.abs(fitted[0].predict(N) / reference - 1).max()
    print(f"natwise              {1e3 * ours / N_CURVES:9.2f} ms per fit")
    print(f"loop over sizes      {1e3 * one:9.2f} ms, {one / (ours / N_CURVES):.0f} times slower; apart {apart:.1e}")
    print(f"scipy curve_fit      {1e3 * lm / N_CURVES:9.2f} ms; misses the best switching size in {worse:.0%}")
    ours, split = seconds(lambda: allocate_budget(fitted[:4], [1, 1, 1, 1], 3000))
    slow, by_hand = seconds(lambda: greedy(fitted[:4], [1, 1, 1, 1], 3000))
    print(f"allocate_budget      {1e3 * ours:9.2f} ms, one by one {slow / ours:.0f} times slower", end="; ")
    print(f"largest difference {np.abs(split - by_hand).max()} of 3000 samples")


if __name__ == "__main__":
    main()
