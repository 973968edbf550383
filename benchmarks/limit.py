"""LIMIT's costs side by side: a step against plain cross-entropy, and planting noise against a loop over labels.

Two networks of equal size cannot cost less than twice one of them; the loss itself should add little.
"""

import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from natwise.supervision import LIMITLoss, UniformNoise, corrupt_labels
from natwise.supervision.limit._networks import default_network, fresh_copy

N_CLASSES, N_LABELS, REPEATS = 10, 50_000, 20


def cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(works):
    """Return the least CPU seconds of every piece of work, measured in turns so that load hits all alike."""
    for work in works.values():
        work()
    rounds = [[cpu_seconds(work) for work in works.values()] for _ in range(REPEATS)]
    return dict(zip(works, np.min(rounds, axis=0), strict=True))


def steps(shape, batch_size=256):
    """Return a plain and a LIMIT step of Adam on one batch."""
    rng = np.random.default_rng(0)
    X = rng.random((batch_size, *shape), dtype=np.float32)
    x, y = torch.from_numpy(X), torch.from_numpy(rng.integers(N_CLASSES, size=batch_size))
    single, classifier = default_network(X, N_CLASSES), default_network(X, N_CLASSES)
    q, loss = fresh_copy(classifier), LIMITLoss("laplace", grad_l2=10.0)
    both = [*classifier.parameters(), *q.parameters()]
    plain, joint = (torch.optim.Adam(parameters, lr=1e-3) for parameters in (single.parameters(), both))

    def step(optimizer, value):
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return {
        "cross-entropy": lambda: step(plain, cross_entropy(single(x), y)),
        "LIMIT": lambda: step(joint, loss(classifier(x), q(x), y).total),
    }


def naive_corrupt(y, transition):
    rng = np.random.default_rng(0)
    return np.array([rng.choice(len(transition), p=transition[label]) for label in y])


def main():
    for name, shape in {"convolutional network, 28 x 28": (28, 28), "perceptron, 784 features": (784,)}.items():
        seconds = interleaved(steps(shape))
        ratio = seconds["LIMIT"] / seconds["cross-entropy"]
        ours, theirs = (1e3 * seconds[key] for key in ("LIMIT", "cross-entropy"))
        print(f"{name}: step {ours:.1f} ms against {theirs:.1f} ms: {ratio:.2f}x")
    y, transition = np.arange(N_LABELS) % N_CLASSES, UniformNoise(0.8).transition_matrix(N_CLASSES)
    ours = interleaved({"ours": lambda: corrupt_labels(y, transition, 0)})["ours"]
    loop = cpu_seconds(lambda: naive_corrupt(y, transition))
    print(f"{N_LABELS:,} labels corrupted: {ours * 1e3:.2f} ms against {loop * 1e3:.0f} ms: {loop / ours:.0f}x faster")


if __name__ == "__main__":
    main()
