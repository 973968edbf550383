"""How strongly a prediction contradicts a label, and mistakes to plant: for classes and for numbers."""

from __future__ import annotations

import numpy as np

from natwise.audit.models import FLOOR, N_FOLDS
from natwise.audit.planting import plant
from natwise.core.random import Streams

NEIGHBOURS = 0.05  # of the rows: those of similar prediction, whose errors are the yardstick of an error


def label_issue_score(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""Return how strongly out-of-fold probabilities (n, k) contradict each label (n,), between 0 and 1.

    :math:`s = \sqrt{a} / (\sqrt{a} + p)`, with p the probability of the given label and a that of the best other
    one (both + 0.001). Between self-confidence (1 - p), which is best for human mistakes among similar classes, and
    the odds a / p, which are best for mistakes at random. Rows of a class with fewer than 5 rows cannot be judged and
    get 0.5.
    """
    rows = np.arange(len(labels))
    given = probabilities[rows, labels] + FLOOR
    others = probabilities.copy()
    others[rows, labels] = 0.0
    alternative = np.sqrt(others.max(axis=1) + FLOOR)
    return np.where(of_rare_class(labels), 0.5, alternative / (alternative + given))


def of_rare_class(labels: np.ndarray) -> np.ndarray:
    """Return which labels (n,) are of a class with fewer than 5 rows, which no model can learn in every fold."""
    return np.bincount(labels)[labels] < N_FOLDS


def usual_error(predicted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return what error is usual (n,) for predictions (n,) of values (n,).

    It is 1.48 times the median error of the rows with the most similar predictions, one row in twenty.
    """
    from scipy.ndimage import median_filter

    errors = np.abs(values - predicted)
    order = np.argsort(predicted, kind="stable")
    window = int(np.clip(NEIGHBOURS * len(values), min(21, len(values)), 2001))
    usual = np.empty_like(errors)
    usual[order] = 1.4826 * median_filter(errors[order], size=window, mode="nearest")
    return np.maximum(usual, 1e-9 * (np.abs(values).max() or 1.0) + 1e-3 * np.median(errors))


def value_issue_score(predicted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return how far numbers (n,) lie from out-of-fold predictions (n,), as a share e / (1 + e) between 0 and 1.

    e is the error in units of the usual one, so that a large error counts less where all errors are large.
    """
    relative = np.abs(values - predicted) / usual_error(predicted, values)
    return relative / (1 + relative)


def score(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the score of each label: predictions are probabilities (n, k), or numbers (n, 1)."""
    if predictions.shape[1] == 1:
        return value_issue_score(predictions[:, 0], labels)
    return label_issue_score(predictions, labels)


def plant_mistakes(
    labels: np.ndarray, codes: np.ndarray, predictions: np.ndarray, streams: Streams
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) with some made wrong, and which (n,), given out-of-fold predictions (n, k).

    Half of the wrong classes are those that the model takes for the right one, half are drawn evenly. A wrong number is
    that of a row from another range of the target (`codes`), drawn evenly.
    """
    k = int(codes.max()) + 1
    if predictions.shape[1] > 1:
        confusion = np.ones((predictions.shape[1], predictions.shape[1]))
        for c in np.unique(codes):
            confusion[c] = predictions[codes == c].mean(axis=0)
        return plant(labels, confusion, streams)
    wrong, flags = plant(codes, np.full((k, k), 1.0), streams)
    rng = streams.numpy("donors")
    values = labels.copy()
    for row in np.flatnonzero(flags):
        values[row] = labels[rng.choice(np.flatnonzero(codes == wrong[row]))]
    return values, flags
