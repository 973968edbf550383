"""The diagnosis of a domain with converged logistic probes, and with the original's SGD probe, in one run.

The original fits scikit-learn's MLPClassifier without a hidden layer by SGD with early stopping. Both make the same
cross-fitted diagnosis through the same estimator, so that the number of fits and the rows of each are the same.
"""

import argparse
import time
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from natwise.shift import FailureModes

N_CLASSES, N_DOMAINS = 3, 3
PROBES = {
    "natwise": "logistic",
    "scikit-learn L-BFGS": LogisticRegression(max_iter=1000),
    "original's SGD probe": MLPClassifier(
        [], activation="identity", solver="sgd", max_iter=1000, early_stopping=True, random_state=0
    ),
}


def draw(n, d, rng):
    """Return representations, classes and domains (0 to 2 in training, 3 new), the classes along a few directions."""
    y, domain = rng.integers(N_CLASSES, size=n), np.arange(n) % (N_DOMAINS + 1)
    directions = rng.normal(size=(N_CLASSES + N_DOMAINS + 1, d)) / np.sqrt(d)
    Z = rng.normal(size=(n, d)) + 3 * directions[y] + 2 * directions[N_CLASSES + domain]
    return Z.astype(np.float32), y, domain


def compare(n, d, repeats):
    rng = np.random.default_rng(0)
    Z, y, domain = draw(n, d, rng)
    new, guess = domain == N_DOMAINS, rng.integers(N_CLASSES, size=n)
    given = (Z[~new], y[~new], domain[~new], Z[new], y[new], guess[~new], y[~new], guess[new])
    found = {}
    for _ in range(repeats):
        for name, probe in PROBES.items():
            cpu, wall = time.process_time(), time.perf_counter()
            modes = FailureModes(probe=probe).fit(*given)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            found[name] = min(found.get(name, (spent, modes)), (spent, modes), key=lambda entry: entry[0])
    n_fits = 5 * (3 + 1 + N_DOMAINS + N_DOMAINS * N_CLASSES)
    print(f"{n:,} rows, {d} features, {N_DOMAINS} training domains, {N_CLASSES} classes: {n_fits} fits each")
    own = found["natwise"][0][0]
    for name, ((cpu, wall), modes) in found.items():
        errors = ", ".join(f"e'_{i} {modes.cumulative_[i]:.3f}" for i in (1, 2))
        fitted = f"on fitted rows {modes.diagnostics_['fitted_test']:.3f}, {modes.diagnostics_['fitted_joint']:.3f}"
        print(
            f"  {name:20} {cpu:7.2f} s CPU {wall:7.2f} s wall, natwise is {cpu / own:5.1f}x faster; {errors}; {fitted}"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true", help="also 30,000 rows of 512 features (minutes)")
    warnings.simplefilter("ignore")
    compare(1600, 12, repeats=3)
    if parser.parse_args().large:
        compare(30_000, 512, repeats=1)


if __name__ == "__main__":
    main()
