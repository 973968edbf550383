"""T-CorEx against a plain torch implementation of the original loop, side by side in one run.

Prints the time of one iteration (p = 1024, m = 64, T = 10, n = 16), the time to the same held-out likelihood
(p = 128, m = 8), and what doubling the number of variables costs. ``--quick`` takes a tenth of the iterations.

``--scale 2000 4000 8000`` instead measures time and memory at these numbers of variables (T = 20, m = 32), each in a
process of its own, and continues the straight lines through them to p = 100,000.
"""

import argparse
import multiprocessing
import resource
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from natwise.structure import TCorEx
from natwise.structure.tcorex._estimator import _rows
from natwise.structure.tcorex._lbfgs import LBFGS
from natwise.structure.tcorex._objective import TemporalObjective, TemporalPenalty
from natwise.structure.tcorex._synthetic import sample_periods, sudden_change

sys.path.insert(0, str(Path(__file__).parent))
import naive_tcorex as naive

N_PERIODS, N_TRAIN, L1, GAMMA = 10, 16, 0.3, 0.4
SCALE_PERIODS, SCALE_COMPONENTS, SCALE_TO, SCALE_FULL = 20, 32, 100_000, 256


def seconds_per_iteration(n_features, n_components, repeats):
    """Return the shortest time of one iteration of both, measured in turns: gradient and update of all weights."""
    models = sudden_change(N_PERIODS, n_features, n_components, random_state=0)
    samples = np.split(sample_periods(models, N_TRAIN, random_state=0)[0], N_PERIODS)
    samples, _ = naive.standardize(samples, GAMMA)
    window = naive.window_weights([N_TRAIN] * N_PERIODS, GAMMA)
    window = torch.tensor(window / window.sum(axis=1, keepdims=True), dtype=torch.float32)
    start = torch.randn(N_PERIODS, n_components, n_features) / n_features**0.5
    rng = np.random.default_rng(0)
    naive_weights = [w.clone().requires_grad_() for w in start]
    adam = torch.optim.Adam(naive_weights, lr=1e-3)
    rows = _rows(np.concatenate(samples), np.full(N_PERIODS, N_TRAIN), window.numpy(), False)
    objective = TemporalObjective(*(part.to("cpu", torch.float32) for part in rows), TemporalPenalty(L1))
    lbfgs = LBFGS(objective, start.clone())

    def naive_iteration():
        adam.zero_grad()
        naive.loss(naive_weights, samples, window, 0.0, L1, rng).backward()
        adam.step()

    times = [(_seconds(naive_iteration), _seconds(lbfgs.step)) for _ in range(repeats)]
    return np.min(times, axis=0)


def seconds_to_same_likelihood(n_features, n_components, max_iter):
    """Return times and held-out negative log-likelihoods: of the naive fit when it is as good as ours, and of ours."""
    models = sudden_change(N_PERIODS, n_features, n_components, random_state=1)
    X, times = sample_periods(models, N_TRAIN, random_state=1)
    test, _ = sample_periods(models, 200, random_state=2)
    test = np.split(test, N_PERIODS)
    begin = time.perf_counter()
    model = TCorEx(n_components, l1=L1, gamma=GAMMA, random_state=0).fit(X, times)
    ours = time.perf_counter() - begin
    target = negative_log_likelihood(model.covariances_, test)
    reached = []
    begin = time.perf_counter()

    def evaluate(covariances):
        reached.append((negative_log_likelihood(covariances, test), time.perf_counter() - begin))

    naive.fit(np.split(X, N_PERIODS), n_components, l1=L1, gamma=GAMMA, max_iter=max_iter, evaluate=evaluate, every=100)
    best, when = next((pair for pair in reached if pair[0] <= target), min(reached))
    return ours, target, when, best


class _TimedTCorEx(TCorEx):
    """Remembers when it reaches the descent, and when the description of what was found."""

    def _common_weights(self, Z):
        weights = super()._common_weights(Z)
        self.marks = [time.perf_counter()]
        return weights

    def _describe(self, *found):
        self.marks.append(time.perf_counter())
        super()._describe(*found)


def fit_at_scale(n_features, max_iter):
    """Return iterations, seconds of start, descent and description, and the peak memory in GB of a fresh process."""
    models = sudden_change(SCALE_PERIODS, n_features, SCALE_COMPONENTS, random_state=0)
    rng = np.random.default_rng(0)
    X = np.concatenate([_sample(model, rng) for model in models])
    times = np.repeat(np.arange(SCALE_PERIODS), N_TRAIN)
    model = _TimedTCorEx(SCALE_COMPONENTS, l1=L1, gamma=GAMMA, max_iter=max_iter, random_state=0)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, times)
    seconds = np.diff([begin, *model.marks, time.perf_counter()])
    return model.n_iter_, *seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux


def _sample(model, rng):
    """Return samples of one period, without a matrix of p x p."""
    factors = rng.standard_normal((N_TRAIN, SCALE_COMPONENTS))[:, model.parent]
    noise = rng.standard_normal(factors.shape)
    return model.std * (model.rho * factors + np.sqrt(1 - model.rho**2) * noise)


def scale(sizes):
    """Print what each size takes, and the straight lines through them at `SCALE_TO` variables."""
    rows = []
    for n_features in (SCALE_FULL, *sizes):
        max_iter = 1000 if n_features == SCALE_FULL else 3
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            n_iter, start, descent, end, peak = fresh.submit(fit_at_scale, n_features, max_iter).result()
        rows.append((start, descent / n_iter, end, peak))
        if n_features == SCALE_FULL:
            n_full = n_iter
        print(
            f"p={n_features}: start {start:.1f} s, {n_iter} iterations of {descent / n_iter:.3f} s, end {end:.1f} s, "
            f"peak {peak:.2f} GB",
            flush=True,
        )
    slope, offset = np.polyfit(sizes, np.array(rows[1:]), 1)
    start, each, end, peak = SCALE_TO * slope + offset
    minutes = (start + n_full * each + end) / 60
    print(
        f"p={SCALE_TO}, extrapolated: start {start:.0f} s, iteration {each:.2f} s, end {end:.0f} s, "
        f"peak {peak:.1f} GB; {minutes:.0f} minutes with the {n_full} iterations of p={SCALE_FULL}"
    )


def negative_log_likelihood(covariances, test):
    """Return the mean over periods and samples under Gaussians of mean zero."""
    total = 0.0
    for covariance, x in zip(covariances, test, strict=True):
        distance = np.einsum("ij,ij->i", x, np.linalg.solve(covariance, x.T).T).mean()
        total += 0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return total / len(test)


def _seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main():
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale", type=int, nargs="+", metavar="P")
    arguments = parser.parse_args()
    if arguments.scale:
        return scale(arguments.scale)
    quick = arguments.quick
    repeats, max_iter = (3, 50) if quick else (15, 500)
    slow, fast = seconds_per_iteration(1024, 64, repeats)
    print(f"one iteration, p=1024 m=64: naive {1e3 * slow:.1f} ms, natwise {1e3 * fast:.1f} ms, {slow / fast:.2f}x")
    _, double = seconds_per_iteration(2048, 64, repeats)
    print(f"doubling p from 1024 to 2048: {double / fast:.2f}x the time")
    ours, target, when, best = seconds_to_same_likelihood(128, 8, max_iter)
    kind = "reaches" if best <= target else "ends at"
    print(f"p=128 m=8: natwise {target:.2f} nats in {ours:.2f} s; naive {kind} {best:.2f} after {when:.1f} s")
    print(f"end to end: {when / ours:.1f}x")


if __name__ == "__main__":
    main()
