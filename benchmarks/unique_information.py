"""Unique information against its obvious references, side by side in one run, on one thread.

    python benchmarks/unique_information.py [--large] [--labels]

Scores: one eigendecomposition per left-out sample, extrapolated from a few samples. Kernel: one backward pass per
sample and a product of explicit Jacobians, extrapolated from a fifth of the samples. `--large` adds n = 5000, and
2000 samples of 10 classes. `--labels` compares detectors of human label errors on the same frozen features
(needs $NATWISE_DATA; cleanlab's score is added when cleanlab is installed).
"""

import argparse
import resource
import sys
import time

import numpy as np
import torch
from naive_unique_information import decompose_for_each, explicit_jacobian
from threadpoolctl import threadpool_limits

from natwise.samples import SampleInformation, empirical_ntk, leave_one_out

STEPS = 2000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also n = 5000, and 2000 samples of 10 classes")
    parser.add_argument("--labels", action="store_true", help="also detectors of human label errors")
    options = parser.parse_args()
    X, y, X_val, module = problem(n=1000, n_val=350)
    compare_kernels(module, X)
    compare_scores(module, X, y, X_val)
    if options.large:
        large()
    if options.labels:
        labels()


def problem(n, n_val, n_outputs=1):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n + n_val, 784, generator=generator)
    classes = (X[:, :10] + 0.5 * torch.randn(n + n_val, 10, generator=generator)).argmax(dim=1).numpy()
    targets = (classes % 2).astype(float) if n_outputs == 1 else np.eye(10)[classes]
    module = torch.nn.Sequential(torch.nn.Linear(784, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, n_outputs))
    return X[:n].numpy(), targets[:n], X[n:].numpy(), module


def compare_kernels(module, X, part=200):
    before = peak_megabytes()
    seconds, kernel = timed(lambda: empirical_ntk(module, X))
    extra = peak_megabytes() - before
    seconds_jacobian, jacobian = timed(lambda: explicit_jacobian(module, X[:part]))
    seconds_product, reference = timed(lambda: jacobian @ jacobian.T)
    naive = seconds_jacobian * (len(X) / part) + seconds_product * (len(X) / part) ** 2
    error = relative(kernel[:part, :part], reference)
    report(f"kernel of 784-1024-1, n={len(X)}", seconds, naive, error, f"{extra:.0f} MB extra at the peak")


def compare_scores(module, X, y, X_val, part=8):
    kernel = empirical_ntk(module, X, dtype="float64")
    kernel_val = empirical_ntk(module, X_val, X, dtype="float64")
    zeros, zeros_val = np.zeros(len(X)), np.zeros(len(X_val))
    lr = 0.9 * len(X) / np.linalg.eigvalsh(kernel)[-1]
    training = {"t": STEPS, "lr": lr}
    seconds, result = timed(lambda: leave_one_out(kernel, kernel_val, zeros, zeros_val, y, **training))
    naive, expected = timed(lambda: decompose_for_each(kernel, kernel_val, y, lr, STEPS, range(part)))
    found = np.stack([result.arrays[f"{kind}_information"][:part] for kind in ("functional", "weight")])
    error = (np.abs(found - expected).max(axis=1) / expected.max(axis=1)).max()
    report(f"both scores, n={len(X)}, k=1, m={len(X_val)}, t={STEPS}", seconds, naive * len(X) / part, error)


def large():
    for n, n_outputs in ((2000, 10), (5000, 1)):
        X, y, X_val, module = problem(n, 350, n_outputs)
        estimator = SampleInformation(module, t=STEPS)
        seconds, _ = timed(lambda: estimator.fit(X, y, X_val))  # noqa: B023
        peak = f"{peak_megabytes():.0f} MB peak of the process"
        report(f"kernel and scores, n={n}, k={n_outputs}, {estimator.outputs_} outputs", seconds, note=peak)


def labels(n=1500):
    """AUROC of detectors of human label errors on the same features and out-of-fold probabilities."""
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    from natwise.core.random import Streams
    from natwise.samples.unique_information.study import human_noise_data, out_of_fold_probabilities

    streams = Streams(0)
    features, given, wrong = human_noise_data(n, streams, None)
    probabilities = out_of_fold_probabilities(features, given, streams)
    confidence = probabilities[np.arange(n), given]
    information = SampleInformation(random_state=streams).fit(features, given).functional_information_
    suspicion = {
        "out-of-fold self-confidence": -confidence,
        "functional information": information,
        "rank average of both": rankdata(-confidence) + rankdata(information),
    }
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        print("cleanlab is not installed: its scores are left out", file=sys.stderr)
    else:
        for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
            suspicion[f"cleanlab {method}"] = -get_label_quality_scores(given, probabilities, method=method)
    for name, score in suspicion.items():
        print(f"{name:42s} AUROC {roc_auc_score(wrong, score):.4f}")


def timed(call):
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(name, seconds, naive=None, error=None, note=""):
    line = f"{name:48s} ours {seconds:8.2f} s"
    if naive is not None:
        line += f"   reference {naive:9.1f} s   ratio {naive / seconds:7.0f}x   error {error:.1e}"
    print(line, note, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
