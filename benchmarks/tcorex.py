"""T-CorEx against a plain torch implementation of the original loop, side by side in one run.

Prints the time of one iteration (p = 1024, m = 64, T = 10, n = 16), the time to the same held-out likelihood
(p = 128, m = 8), and what doubling the number of variables costs. ``--quick`` takes a tenth of the iterations.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from natwise.structure import TCorEx
from natwise.structure.tcorex._lbfgs import LBFGS
from natwise.structure.tcorex._objective import Rows, TemporalObjective, TemporalPenalty
from natwise.structure.tcorex._synthetic import sample_periods, sudden_change

sys.path.insert(0, str(Path(__file__).parent))
import naive_tcorex as naive

N_PERIODS, N_TRAIN, L1, GAMMA = 10, 16, 0.3, 0.4


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
    X = torch.tensor(np.stack(samples), dtype=torch.float32)
    rows = Rows(X.reshape(-1, n_features), window), Rows(X, torch.full((N_PERIODS, N_TRAIN), 1 / N_TRAIN))
    objective = TemporalObjective(*rows, TemporalPenalty(L1))
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
    quick = parser.parse_args().quick
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
