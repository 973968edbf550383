"""Data sets that come with scikit-learn, ready for the audit."""

from __future__ import annotations

import dataclasses

import numpy as np

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_real
from natwise.datasets.tables import Table, make_table


def demo(random_state: RandomState = 0, noise: float = 0.10) -> Table:
    """Return scikit-learn's digits with wrong labels planted at random.

    Parameters
    ----------
    random_state : int, Generator or None
        Chooses the rows and their wrong labels (stream ``"planted-labels"``).
    noise : float
        The share of rows that get a wrong label, each of the nine others being equally likely.

    Returns
    -------
    Table
        1797 images of 8 x 8 pixels, 10 classes; `planted` marks the wrong labels.
    """
    from sklearn.datasets import load_digits

    noise = check_real("noise", noise, minimum=0.0, maximum=1.0)
    digits = load_digits()
    rng = Streams.of(random_state).numpy("planted-labels")
    n = len(digits.target)
    planted = np.zeros(n, dtype=bool)
    planted[rng.choice(n, round(noise * n), replace=False)] = True
    labels = digits.target.copy()
    labels[planted] = (labels[planted] + rng.integers(1, 10, planted.sum())) % 10
    table = make_table(digits.images, labels, planted=planted, name="digits (demo)")
    return dataclasses.replace(table, arguments=("--demo",))
