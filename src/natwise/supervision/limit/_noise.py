"""Label noise: how labels go wrong, how to plant it, and how to estimate it from a classifier's probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import entr, softmax
from scipy.stats import truncnorm

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option, check_real, check_same_length

CIFAR10_PAIRS = {9: 1, 2: 0, 4: 7, 3: 5}


@dataclass(frozen=True)
class UniformNoise:
    """Symmetric noise: a label is kept with probability 1 - p and otherwise becomes any other class.

    Parameters
    ----------
    p : float
        Probability of a wrong label, in [0, 1]. With p = (C - 1) / C the labels say nothing about the class.

    Examples
    --------
    >>> UniformNoise(0.3).transition_matrix(4)[0].round(3).tolist()
    [0.7, 0.1, 0.1, 0.1]
    """

    p: float

    def __post_init__(self) -> None:
        check_real("p", self.p, minimum=0.0, maximum=1.0)

    def transition_matrix(self, n_classes: int) -> np.ndarray:
        """Return T of shape (n_classes, n_classes), T[i, j] = P(given label j | true label i)."""
        check_integer("n_classes", n_classes, minimum=2)
        matrix = np.full((n_classes, n_classes), self.p / (n_classes - 1))
        np.fill_diagonal(matrix, 1 - self.p)
        return matrix


@dataclass(frozen=True)
class PairNoise:
    """Asymmetric noise: a class is mistaken for one other class with probability p.

    Parameters
    ----------
    p : float
        Probability that a label of a mapped class is wrong, in [0, 1].
    mapping : mapping of int to int, optional
        Wrong class for each class that goes wrong; the others stay clean. Default: each class i is mistaken
        for the next one, the last for the first. ``PairNoise.CIFAR10`` is the map of the paper for CIFAR-10:
        truck to automobile, bird to airplane, deer to horse, cat to dog.

    Examples
    --------
    >>> PairNoise(0.4, {0: 2}).transition_matrix(3).tolist()
    [[0.6, 0.0, 0.4], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    p: float
    mapping: Mapping[int, int] | None = field(default=None)

    CIFAR10 = CIFAR10_PAIRS

    def __post_init__(self) -> None:
        check_real("p", self.p, minimum=0.0, maximum=1.0)
        if self.mapping is not None and not isinstance(self.mapping, Mapping):
            raise TypeError(f"mapping must be a dict of class to wrong class, got {type(self.mapping).__name__}")

    def transition_matrix(self, n_classes: int) -> np.ndarray:
        """Return T of shape (n_classes, n_classes), T[i, j] = P(given label j | true label i)."""
        check_integer("n_classes", n_classes, minimum=2)
        mapping = {i: (i + 1) % n_classes for i in range(n_classes)} if self.mapping is None else self.mapping
        matrix = np.eye(n_classes)
        for source, target in mapping.items():
            for value in (source, target):
                check_integer("mapping", value, minimum=0, maximum=n_classes - 1)
            matrix[source, source] -= self.p
            matrix[source, target] += self.p
        return matrix


@dataclass(frozen=True)
class InstanceNoise:
    """Instance-dependent noise: how often and how a label goes wrong depends on the sample.

    Each sample draws its own rate from a normal distribution around p (cut to [0, 1]); a random linear map of
    its features, one per true class, decides which wrong classes are likely (Xia et al. 2020).

    Parameters
    ----------
    p : float
        Mean probability of a wrong label, in [0, 1].
    spread : float
        Standard deviation of the rate between samples.
    """

    p: float
    spread: float = 0.1

    def __post_init__(self) -> None:
        check_real("p", self.p, minimum=0.0, maximum=1.0)
        check_real("spread", self.spread, minimum=0.0, exclusive=True)

    def label_probabilities(self, X: Any, y: Any, n_classes: int, random_state: RandomState = None) -> np.ndarray:
        """Return P(given label | features, true label) of every sample, shape (n, n_classes).

        Parameters
        ----------
        X : array-like of shape (n, ...)
            Features; standardised inside.
        y : array-like of shape (n,)
            True labels, integers in [0, n_classes).
        n_classes : int
            Number of classes.
        random_state : int, Generator, RandomState, Streams or None
            Draws the rates and the maps.
        """
        X = check_array("X", X, dtype=np.float64)
        y = _check_labels("y", y, n_classes)
        n = check_same_length(X=X, y=y)
        X = X.reshape(n, -1)
        X = (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1.0)
        streams = Streams.of(random_state)
        maps = streams.numpy("maps").standard_normal((n_classes, X.shape[1], n_classes)) / np.sqrt(X.shape[1])
        low, high = (0 - self.p) / self.spread, (1 - self.p) / self.spread
        rates = truncnorm.rvs(low, high, self.p, self.spread, size=n, random_state=streams.numpy("rates"))
        scores = np.empty((n, n_classes))
        for label in range(n_classes):
            scores[y == label] = X[y == label] @ maps[label]
        scores[np.arange(n), y] = -np.inf
        probabilities = rates[:, None] * softmax(scores, axis=1)
        probabilities[np.arange(n), y] = 1 - rates
        return probabilities

    def corrupt(
        self, X: Any, y: Any, n_classes: int, random_state: RandomState = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return noisy labels (n,) and flags (n,), True where the label changed; see `label_probabilities`."""
        streams = Streams.of(random_state)
        probabilities = self.label_probabilities(X, y, n_classes, streams)
        y = _check_labels("y", y, n_classes)
        draws = streams.numpy("labels").random((len(y), 1))
        labels = (draws >= _cumulative(probabilities)).sum(axis=1).astype(y.dtype)
        return labels, labels != y


def corrupt_labels(y: Any, transition: Any, random_state: RandomState = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw a noisy label for every true label.

    Parameters
    ----------
    y : array-like of shape (n,)
        True labels, integers in [0, n_classes).
    transition : array-like of shape (n_classes, n_classes)
        ``transition[i, j]`` = P(given label j | true label i); rows sum to 1. From
        ``UniformNoise(p).transition_matrix(n_classes)`` for example.
    random_state : int, Generator, RandomState, Streams or None
        The same int gives the same noise.

    Returns
    -------
    labels : ndarray of shape (n,), int64
        Noisy labels.
    flags : ndarray of shape (n,), bool
        True where the label changed; its mean is the realised noise rate.

    Raises
    ------
    ValueError
        If the matrix is not square or its rows are no distributions, or a label is outside it.

    Examples
    --------
    >>> labels, flags = corrupt_labels([0, 1, 2, 0], PairNoise(1.0).transition_matrix(3), random_state=0)
    >>> labels.tolist(), flags.tolist()
    ([1, 2, 0, 1], [True, True, True, True])
    """
    transition = check_transition("transition", transition)
    y = _check_labels("y", y, len(transition))
    cumulative = _cumulative(transition)
    draws = Streams.of(random_state).numpy("labels").random(len(y))
    labels = np.empty_like(y)
    for label in np.unique(y):  # inverse distribution function, class by class
        chosen = y == label
        labels[chosen] = np.searchsorted(cumulative[label], draws[chosen], side="right")
    return labels, labels != y


def transition_entropy(transition: Any, class_prior: Any = None) -> float:
    """Return the entropy of the given label when the true one is known, in nats.

    Where the features determine the true class this is H(y | x), the `label_entropy` that
    `memorized_label_information` asks for.

    Parameters
    ----------
    transition : array-like of shape (n_classes, n_classes)
        ``transition[i, j]`` = P(given label j | true label i).
    class_prior : array-like of shape (n_classes,), optional
        Probabilities of the true classes. Default: all equal.

    Examples
    --------
    >>> round(transition_entropy(UniformNoise(0.8).transition_matrix(10)), 4)
    2.2582
    """
    transition = check_transition("transition", transition)
    k = len(transition)
    prior = np.full(k, 1 / k) if class_prior is None else check_array("class_prior", class_prior, shape=(k,))
    if prior.min() < 0 or abs(prior.sum() - 1) > 1e-6:
        raise ValueError(f"class_prior must hold probabilities that sum to 1, got sum {prior.sum():.6g}")
    return float(prior @ entr(transition).sum(axis=1))


def estimate_transition_matrix(
    probabilities: Any, y: Any = None, *, method: str = "anchor", quantile: float | None = 0.97
) -> np.ndarray:
    """Estimate the transition matrix of label noise from the probabilities of a model trained on noisy labels.

    Parameters
    ----------
    probabilities : array-like of shape (n, n_classes)
        Predicted probabilities; rows sum to 1. For ``"confident"`` they should be out of sample.
    y : array-like of shape (n,), optional
        Given labels, integers; needed by ``"confident"`` only.
    method : {"anchor", "confident"}
        ``"anchor"``: row i is the prediction for the sample that looks most like class i (Patrini et al. 2017).
        ``"confident"``: the counts of `confident_joint`, normalised per true class.
    quantile : float or None
        Anchors at or above this quantile of p_i are outliers and not taken. None takes the largest p_i.

    Returns
    -------
    ndarray of shape (n_classes, n_classes)
        T[i, j] = P(given label j | true label i); rows sum to 1.

    Notes
    -----
    The original code zeroed the outliers of class i inside the predictions themselves, so that later rows were
    read from damaged vectors; here the predictions stay as they are.
    """
    probabilities = _check_probabilities("probabilities", probabilities)
    check_option("method", method, ("anchor", "confident"))
    if method == "confident":
        if y is None:
            raise ValueError("y must be given for method='confident', got None")
        counts = confident_joint(y, probabilities).T.astype(float)
        empty = counts.sum(axis=1) == 0
        counts[empty] = np.eye(len(counts))[empty]  # nothing is known about a class nobody is confident in
        return counts / counts.sum(axis=1, keepdims=True)
    if quantile is not None:
        check_real("quantile", quantile, minimum=0.0, maximum=1.0, exclusive=True)
    likeness = probabilities.copy()
    if quantile is not None:
        cut = np.quantile(probabilities, quantile, axis=0, method="higher")
        likeness[probabilities >= cut] = 0.0
    anchors = probabilities[likeness.argmax(axis=0)]
    return anchors / anchors.sum(axis=1, keepdims=True)


def confident_joint(y: Any, probabilities: Any) -> np.ndarray:
    """Count samples by given label and by the label a model is confident of (confident learning).

    A model is confident that a sample is of class j when p_j is at least the mean p_j over the samples labelled
    j; among several such classes the likeliest counts. Off-diagonal counts are suspected label errors.

    Parameters
    ----------
    y : array-like of shape (n,)
        Given labels, integers in [0, n_classes).
    probabilities : array-like of shape (n, n_classes)
        Out-of-sample predicted probabilities.

    Returns
    -------
    ndarray of shape (n_classes, n_classes), int64
        Entry [i, j]: samples labelled i that are confidently of class j. Samples of no confident class are not
        counted.
    """
    probabilities = _check_probabilities("probabilities", probabilities)
    n_classes = probabilities.shape[1]
    y = _check_labels("y", y, n_classes)
    check_same_length(y=y, probabilities=probabilities)
    labelled = np.bincount(y, minlength=n_classes)
    sums = np.array([probabilities[y == label, label].sum() for label in range(n_classes)])
    thresholds = np.where(labelled > 0, sums / np.maximum(labelled, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    counted = np.isfinite(confident).any(axis=1)
    cells = y[counted] * n_classes + confident[counted].argmax(axis=1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def check_transition(name: str, value: Any) -> np.ndarray:
    """Return a transition matrix as float64 after checking that it is square and its rows are distributions."""
    matrix = check_array(name, value, shape=("n_classes", "n_classes"), dtype=np.float64)
    if matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"{name} must be a square matrix of at least two classes, got shape {matrix.shape}")
    _check_distributions(name, matrix)
    return matrix


def _check_distributions(name: str, rows: np.ndarray) -> None:
    """Refuse rows (n, n_classes) that are no probabilities."""
    if rows.min() < 0:
        raise ValueError(f"{name} must hold probabilities >= 0, got {rows.min():.6g}")
    worst = int(np.abs(rows.sum(axis=1) - 1).argmax())
    if abs(rows[worst].sum() - 1) > 1e-5:
        raise ValueError(f"{name} must have rows that sum to 1, row {worst} sums to {rows[worst].sum():.6g}")


def _check_probabilities(name: str, value: Any) -> np.ndarray:
    probabilities = check_array(name, value, shape=("n", "n_classes"), dtype=np.float64)
    if probabilities.shape[0] == 0 or probabilities.shape[1] < 2:
        raise ValueError(f"{name} must have shape (n >= 1, n_classes >= 2), got {probabilities.shape}")
    _check_distributions(name, probabilities)
    return probabilities


def _check_labels(name: str, y: Any, n_classes: int) -> np.ndarray:
    """Return class numbers (n,) within [0, n_classes) as int64."""
    check_integer("n_classes", n_classes, minimum=2)
    y = check_array(name, y, shape=("n",), dtype=np.int64)
    if len(y) == 0:
        raise ValueError(f"{name} must hold at least one label, got none")
    if y.min() < 0 or y.max() >= n_classes:
        wrong = y.min() if y.min() < 0 else y.max()
        raise ValueError(f"{name} must lie within 0 and {n_classes - 1}, got {wrong}")
    return y


def _cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Return distribution functions that end with exactly 1, so that a draw never lands behind the last class."""
    sums = probabilities.cumsum(axis=1)
    return sums / sums[:, -1:]
