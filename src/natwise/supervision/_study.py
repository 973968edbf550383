"""What the studies of this room share."""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student_t

MNIST, CIFAR = "images/mnist.npz", "images/cifar10_train5000.npz"


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of one value per seed and the half width of its 95 % t interval."""
    spread = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(student_t.ppf(0.975, len(values) - 1) * spread)
