"""Time and memory of a linear CorEx fit, beside a naive NumPy version of the original's iteration in the same run.

    python benchmarks/linear_corex.py                          # p = 10000, m = 50, n = 100 and smaller
    python benchmarks/linear_corex.py --sizes 100000,50,100 --skip-naive
    python benchmarks/linear_corex.py --device cuda --sizes 100000,100,500 --skip-naive

Data are modular with signal-to-noise ratios drawn from U(0, 5). Memory is what
the fit adds to the process's resident peak.
"""

import argparse
import resource
import time

import naive_linear_corex
import numpy as np
import torch

from natwise.structure import LinearCorEx

SIZES = ["1000,20,100", "10000,50,100"]


def modular(n_features, n_components, n_samples, seed=0):
    rng = np.random.default_rng(seed)
    snr = rng.uniform(0, 5, n_features)
    rho = np.sqrt(snr / (1 + snr))
    parents = np.arange(n_features) * n_components // n_features
    factors = rng.standard_normal((n_samples, n_components))
    return factors[:, parents] * rho + np.sqrt(1 - rho**2) * rng.standard_normal((n_samples, n_features))


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work):
    """Return the result, seconds by the clock, and seconds of processor time of all threads."""
    start, used = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start, time.process_time() - used


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=SIZES, metavar="P,M,N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-naive", action="store_true")
    arguments = parser.parse_args()
    LinearCorEx(2, device=arguments.device, random_state=0).fit(modular(100, 2, 20))  # start-up costs are not timed
    print(f"{torch.get_num_threads()} threads, device {arguments.device}")
    for size in arguments.sizes:
        p, m, n = map(int, size.split(","))
        X = modular(p, m, n)
        before = peak_megabytes()
        model = LinearCorEx(m, device=arguments.device, random_state=0)
        _, seconds, used = timed(lambda model=model, X=X: model.fit(X))
        added = peak_megabytes() - before
        print(
            f"p={p} m={m} n={n}: natwise {seconds:.2f} s (processor {used:.2f} s), {model.n_iter_} iterations, "
            f"{1e3 * seconds / model.n_iter_:.1f} ms each, TC {model.tc_:.2f}, +{added:.0f} MB"
        )
        _, seconds_score, _ = timed(lambda model=model, X=X: model.score(X))
        print(f"  score: {seconds_score:.2f} s, +{peak_megabytes() - before:.0f} MB in all")
        if not arguments.skip_naive:
            (_, history), naive, naive_used = timed(lambda X=X, m=m: naive_linear_corex.fit(X, m))
            print(
                f"  naive {naive:.2f} s (processor {naive_used:.2f} s), {len(history)} iterations, "
                f"{1e3 * naive / len(history):.1f} ms each, "
                f"TC {history[-1]:.2f}; ratio {naive / seconds:.1f} (processor {naive_used / used:.1f})"
            )


if __name__ == "__main__":
    main()
