"""f-CMI's costs side by side: information of all examples against the original's loop, networks in batches or alone.

CPU seconds, so that a busy machine tells the same; ratios are of one run, in turns.
"""

import functools
import sys
import time
import tracemalloc

import numpy as np
import torch
from naive_fcmi import per_example_information, train_one_by_one

from natwise.generalization import (
    BatchedTrainer,
    SupersampleRuns,
    fast_rate_bound,
    kl_inverse,
    linear_bound,
    sample_supersample,
)
from natwise.generalization.fcmi.study import mnist_network, perceptron

REPEATS = 3
N_TRAIN, N_RUNS = 75, 30


def cpu_seconds(work, repeats=REPEATS):
    def once():
        start = time.process_time()
        work()
        return time.process_time() - start

    return min(once() for _ in range(repeats))


def tables(n, n_splits, n_classes, loop):
    rng = np.random.default_rng(0)
    S = sample_supersample(n, n_splits, 0)
    predictions, y = rng.integers(n_classes, size=(n_splits, n, 2)), rng.integers(n_classes, size=(n, 2))

    def ours():
        return SupersampleRuns(S, predictions, y).information()

    seconds = cpu_seconds(ours)
    everything = cpu_seconds(lambda: SupersampleRuns(S, predictions, y).bounds(), 1)
    tracemalloc.start()
    SupersampleRuns(S, predictions, y).bounds()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    text = (
        f"n={n:,} runs={n_splits} classes={n_classes}: {seconds:.3f} s; all bounds {everything:.2f} s, {peak:.0f} MiB"
    )
    if loop:
        naive = cpu_seconds(lambda: per_example_information(S, predictions, n_classes), 1)
        worst = np.abs(per_example_information(S[:, :20], predictions[:, :20], n_classes) - ours()[:20]).max()
        text += f"; loop {naive:.2f} s: {naive / seconds:.0f}x (difference {worst:.0e})"
    print(text, flush=True)


def networks(name, factory, shape, max_epochs, device="cpu"):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2 * N_TRAIN, *shape)).astype(np.float32)
    y = rng.integers(2, size=2 * N_TRAIN)
    rows = 2 * np.arange(N_TRAIN) + sample_supersample(N_TRAIN, N_RUNS, 0)
    trainer = BatchedTrainer(factory, max_epochs=max_epochs, runs_at_once=N_RUNS, device=device)
    trainer.fit_predict(X, y, rows, [0] * N_RUNS)
    rounds = [
        (
            cpu_seconds(lambda: trainer.fit_predict(X, y, rows, [0] * N_RUNS), 1),
            cpu_seconds(lambda: train_one_by_one(factory, X, y, rows, max_epochs, 1e-3), 1),
        )
        for _ in range(REPEATS)
    ]
    batched, alone = np.min(rounds, axis=0)
    print(f"{name}, {N_RUNS} trainings of {max_epochs} steps, n={N_TRAIN}: {batched:.2f} s against {alone:.2f} s: "
          f"{alone / batched:.1f}x", flush=True)  # fmt: skip


def main():
    torch.set_num_threads(1)
    tables(4000, 30, 2, loop=True)
    tables(20_000, 40, 10, loop=False)
    for name, bound in {"kl_inverse": kl_inverse, "fast rate": fast_rate_bound, "linear": linear_bound}.items():
        print(f"{name}: {1e3 * cpu_seconds(lambda: [bound(0.1, 0.05) for _ in range(200)]) / 200:.3f} ms")  # noqa: B023
    networks("perceptron 64-32-2", functools.partial(perceptron, 64), (64,), 100)
    networks("perceptron 784-32-2", functools.partial(perceptron, 784), (784,), 30)
    if "--slow" in sys.argv:
        networks("convolutional network 28 x 28", mnist_network, (1, 28, 28), 3)


if __name__ == "__main__":
    main()
