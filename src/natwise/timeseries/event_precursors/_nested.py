"""Nested multi-instance learning: the baseline that spreads an event's label over days and their documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer, check_option, check_real, check_same_length, shorten
from natwise.timeseries.event_precursors._corpus import Encode
from natwise.timeseries.event_precursors._counts import day_sums
from natwise.timeseries.event_precursors._dataset import EventDataset, check_dataset, check_trainable
from natwise.timeseries.event_precursors._encoders import TextEncoder, Vectors, check_encoder, new_vectors
from natwise.timeseries.event_precursors._precursors import precursor_frame

VARIANTS = ("nmil", "delta", "omega")


def nmil_objective(
    w: Any,
    X: Sequence[Any],
    y: Any,
    cross_cosine: Sequence[Any],
    *,
    beta: float = 3.0,
    gamma: float = 0.5,
    margin: float = 0.5,
    threshold: float = 0.5,
    hinge_weight: float | None = None,
) -> tuple[float, np.ndarray]:
    """Return the objective of nested multi-instance learning and its exact gradient, without the penalty on w.

    With p_jk = sigmoid(w . x_jk), P_j its mean over the documents of day j and P the mean of P_j over t days, the mean
    over instances of

        beta NLL(y, P) + gamma/t sum_{j>=1} c_j (P_j - P_{j-1})^2
        + gamma/t sum_j mean_k max(0, m0 - sgn(p_jk - p0) w . x_jk)

    Parameters
    ----------
    w : array-like of shape (d,) or (n_days, d)
        Weights, of all days or of each.
    X : list of lists of arrays (n_documents, d)
        Instances of days of document vectors. Days without documents are left out: a day's neighbour is then the last
        that has some.
    y : array-like of shape (n,)
        Labels, 0 or 1.
    cross_cosine : list of arrays (n_days,)
        c_j, how alike day j and the day before are; the first is not used.
    beta, gamma : float
        Weights of the likelihood and of the other two terms.
    margin, threshold : float
        m0 and p0 of the hinge.
    hinge_weight : float, optional
        Weight of the hinge. Default: `gamma`; the variants take 1.

    Returns
    -------
    value : float
    gradient : ndarray of the shape of w, float64
        The derivative of the sign function is taken as zero.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, labels other than 0 and 1, and instances without documents.

    Notes
    -----
    The original code's gradient was not that of this objective: it lacked 1/t in the likelihood, divided the cross
    term once more by the numbers of documents and the hinge twice by n.
    """
    w = check_array("w", w, dtype=np.float64)
    bags = _Bags.of(X, cross_cosine, w)
    y = check_array("y", y, shape=(len(X),), dtype=np.float64)
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"y must be 0 or 1, got {y[~np.isin(y, (0, 1))][0]}")
    terms = {"beta": beta, "gamma": gamma, "hinge_weight": gamma if hinge_weight is None else hinge_weight}
    terms = {name: check_real(name, value, minimum=0.0) for name, value in terms.items()}
    check_real("margin", margin)
    check_real("threshold", threshold, minimum=0.0, maximum=1.0)
    return bags.objective(w, y, margin=margin, threshold=threshold, **terms)


@dataclass(frozen=True)
class _Bags:
    """Instances with their documents one below the other; days with documents are numbered through.

    Attributes
    ----------
    vectors : ndarray of shape (n_rows, d)
    day : ndarray of shape (n_rows,)
        Day of each row.
    instance, position : ndarray of shape (n_days,)
        Instance of each day, and its place in the window.
    cosine : ndarray of shape (n_days,)
        Weight of the difference to the day before; 0 for the first day of an instance.
    n : int
        Number of instances.
    """

    vectors: np.ndarray
    day: np.ndarray
    instance: np.ndarray
    position: np.ndarray
    cosine: np.ndarray
    n: int

    @classmethod
    def of(cls, X: Sequence[Any], cross_cosine: Sequence[Any], w: np.ndarray) -> _Bags:
        """Return the bags of instances of days of documents (n_documents, d), for weights (d,) or (n_days, d)."""
        if not isinstance(X, (Sequence, np.ndarray)) or not len(X):
            raise ValueError(f"X must be a list of at least one instance, got {shorten(X)}")
        if w.ndim not in (1, 2):
            raise ValueError(f"w must have shape (d,) or (n_days, d), got {w.shape}")
        check_same_length(X=X, cross_cosine=cross_cosine)
        days, instance, position, cosine = [], [], [], []
        for i, (bag, weights) in enumerate(zip(X, cross_cosine, strict=True)):
            weights = check_array("cross_cosine", weights, shape=(len(bag),))
            if w.ndim == 2 and len(bag) != len(w):
                raise ValueError(f"w must have a row for each of the {len(bag)} days of an instance, got {len(w)}")
            filled = [j for j, day in enumerate(bag) if len(day)]
            if not filled:
                raise ValueError(f"X must hold a document in every instance, got none in instance {i}")
            days += [check_array("X", bag[j], shape=("n_documents", w.shape[-1]), dtype=np.float64) for j in filled]
            instance += [i] * len(filled)
            position += filled
            cosine += [0.0, *(float(weights[j]) for j in filled[1:])]
        numbers = np.repeat(np.arange(len(days)), [len(day) for day in days])
        return cls(np.concatenate(days), numbers, np.array(instance), np.array(position), np.array(cosine), len(X))

    def scores(self, w: np.ndarray) -> np.ndarray:
        """Return w . x of every document, (n_rows,)."""
        if w.ndim == 1:
            return self.vectors @ w
        return np.einsum("nd,nd->n", self.vectors, w[self.position[self.day]])

    def means(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of values (n_rows,) over days, (n_days,), and of those over instances, (n,)."""
        per_day = np.bincount(self.day, values) / np.bincount(self.day)
        return per_day, np.bincount(self.instance, per_day, self.n) / np.bincount(self.instance, minlength=self.n)

    def objective(
        self,
        w: np.ndarray,
        y: np.ndarray,
        *,
        beta: float,
        gamma: float,
        hinge_weight: float,
        margin: float,
        threshold: float,
    ) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient at w, (d,) or (n_days, d), for labels y (n,)."""
        scores = self.scores(w)
        p = expit(scores)
        day_p, event = self.means(p)
        no_event = self.means(expit(-scores))[1]  # 1 - event without cancellation
        event, no_event = (np.maximum(value, np.finfo(float).tiny) for value in (event, no_event))
        n_days = np.bincount(self.instance, minlength=self.n)[self.instance]
        share = 1 / n_days
        step = np.diff(day_p, prepend=0.0) * (self.cosine != 0)
        sign = np.sign(p - threshold)
        hinge = np.maximum(0, margin - sign * scores)
        value = -beta * (y * np.log(event) + (1 - y) * np.log(no_event)).sum()
        value += (share * (gamma * self.cosine * step**2 + hinge_weight * self.means(hinge)[0])).sum()
        slope = beta * ((1 - y) / no_event - y / event)[self.instance]
        pull = 2 * gamma * self.cosine * step
        slope = share * (slope + pull - np.append(pull[1:], 0.0))  # the next day of another instance has cosine 0
        per_document = 1 / np.bincount(self.day)[self.day]
        at_scores = slope[self.day] * p * (1 - p) - hinge_weight * share[self.day] * sign * (hinge > 0)
        at_scores *= per_document / self.n
        if w.ndim == 1:
            return float(value / self.n), at_scores @ self.vectors
        gradient = np.zeros_like(w)
        np.add.at(gradient, self.position[self.day], at_scores[:, None] * self.vectors)
        return float(value / self.n), gradient


class NestedMIL(BaseEstimator):
    """Nested multi-instance learning (Ning et al., KDD 2016): a linear baseline that scores each document.

    The probability of an event is the mean over days of the mean over their documents of p_jk = sigmoid(w . x_jk),
    which is also the document's precursor score. Trained by Pegasos-like steps on a few instances each: at step k,
    w <- (1 - eta lambda) w - eta gradient with eta = 1/(lambda (k + 1)), then onto the ball of radius lambda^(-1/2).

    Parameters
    ----------
    variant : {"nmil", "delta", "omega"}
        ``"delta"``: the hinge is not multiplied by gamma. ``"omega"``: as delta, with weights for each day of the
        window and 1 in the place of the cosine of successive days.
    beta, gamma, margin, threshold : float
        See `nmil_objective`.
    weight_decay : float
        lambda.
    n_iterations, bags_per_step : int
        Steps, and instances drawn for each.
    encoder : {"bag_of_words"} or callable
        Texts -> vectors, when documents are texts; the bag of words has 300 words at most.
    random_state : int, Generator, RandomState, Streams or None
        Draws w in [0, 1] and the instances.
    verbose : int
        Show a progress bar when standard error is a terminal.

    Attributes
    ----------
    coef_ : ndarray of shape (d,) or (history, d)
        w.
    objective_ : float
        The objective on all training instances at the end, without the penalty.
    base_rate_ : float
        Share of events in training, the forecast where no day has a document.

    Notes
    -----
    The original code does not run. Constants and step are those it states; the gradient is that of the objective.
    """

    def __init__(
        self,
        variant: str = "nmil",
        *,
        beta: float = 3.0,
        gamma: float = 0.5,
        margin: float = 0.5,
        threshold: float = 0.5,
        weight_decay: float = 0.05,
        n_iterations: int = 2000,
        bags_per_step: int = 10,
        encoder: str | TextEncoder = "bag_of_words",
        random_state: RandomState = None,
        verbose: int = 0,
    ):
        self.variant = variant
        self.beta = beta
        self.gamma = gamma
        self.margin = margin
        self.threshold = threshold
        self.weight_decay = weight_decay
        self.n_iterations = n_iterations
        self.bags_per_step = bags_per_step
        self.encoder = encoder
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, dataset: EventDataset) -> NestedMIL:
        """Train on all instances that have a document.

        Raises
        ------
        TypeError, ValueError
            For wrong settings, excerpts in the place of documents, or labels that are all equal.
        """
        decay, streams = self._check(), Streams.of(self.random_state)
        train = check_trainable("dataset", dataset)
        self.encode_ = _nested_vectors(train, self.encoder)
        bags = _Instances(train, self.encode_.learn, ones=self.variant == "omega")
        self.base_rate_ = float(dataset.y.mean())
        width = self.encode_.vectors_width
        shape = (train.history, width) if self.variant == "omega" else (width,)
        w = streams.numpy("init").uniform(size=shape)
        rng = streams.numpy("steps")
        size = min(self.bags_per_step, len(train))
        with progress(self.n_iterations, wanted=bool(self.verbose)) as report:
            for step in range(1, self.n_iterations + 1):
                rate = 1 / (decay * (step + 1))
                rows = rng.choice(len(train), size=size, replace=False)
                w = (1 - rate * decay) * w - rate * self._objective(bags.take(rows), w, train.y[rows])[1]
                w *= np.minimum(1, decay**-0.5 / np.maximum(np.linalg.norm(w, axis=-1, keepdims=True), 1e-300))
                report(step, f"step {step}/{self.n_iterations}")
        self.coef_, self.kind_, self.history_days_ = w, train.kind, train.history
        self.objective_ = self._objective(bags.take(np.arange(len(train))), w, train.y)[0]
        return self

    def predict_proba(self, dataset: EventDataset) -> np.ndarray:
        """Return the probabilities of no event and of an event, (n, 2)."""
        rows, bags = self._bags(dataset)
        event = np.full(len(dataset), self.base_rate_)
        if len(rows):
            event[rows] = bags.means(expit(bags.scores(self.coef_)))[1]
        return np.stack([1 - event, event], axis=1)

    def predict(self, dataset: EventDataset) -> np.ndarray:
        """Return 1 where the probability of an event exceeds one half, (n,)."""
        return (self.predict_proba(dataset)[:, 1] > 0.5).astype(np.int64)

    def precursors(self, dataset: EventDataset, top_k: int | None = 5) -> pd.DataFrame:
        """Return the `top_k` documents of every instance with the highest p_jk; see `EventForecaster`."""
        rows, bags = self._bags(dataset)
        if not len(rows):
            return precursor_frame(dataset, np.empty(0, int), np.empty(0, int), np.empty(0), top_k)
        documents = np.concatenate([_documents_of(dataset, row) for row in rows])
        instance = rows[bags.instance[bags.day]]
        return precursor_frame(dataset, instance, documents, expit(bags.scores(self.coef_)), top_k)

    def _bags(self, dataset: EventDataset) -> tuple[np.ndarray, Any]:
        check_is_fitted(self)
        check_dataset("dataset", dataset)
        if dataset.kind != self.kind_ or dataset.history != self.history_days_:
            raise ValueError(
                f"dataset must have {self.kind_} and history {self.history_days_} as in fit, "
                f"got {dataset.kind} and {dataset.history}"
            )
        rows = np.flatnonzero(dataset.has_documents)
        return rows, _Instances(dataset, self.encode_, ones=True).take(rows) if len(rows) else None

    def _check(self) -> float:
        check_option("variant", self.variant, VARIANTS)
        check_encoder(self.encoder, ("bag_of_words",))
        for name in ("beta", "gamma"):
            check_real(name, getattr(self, name), minimum=0.0)
        check_real("margin", self.margin)
        check_real("threshold", self.threshold, minimum=0.0, maximum=1.0)
        for name in ("n_iterations", "bags_per_step"):
            check_integer(name, getattr(self, name), minimum=1)
        return check_real("weight_decay", self.weight_decay, minimum=0.0, exclusive=True)

    def _objective(self, bags: _Bags, w: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
        hinge = self.gamma if self.variant == "nmil" else 1.0
        return bags.objective(
            w,
            y,
            beta=self.beta,
            gamma=self.gamma,
            hinge_weight=hinge,
            margin=self.margin,
            threshold=self.threshold,
        )


def _nested_vectors(dataset: EventDataset, encoder: str | TextEncoder) -> Vectors:
    if dataset.kind == "excerpts":
        raise ValueError("dataset must hold one vector per document, texts or words, got excerpts")
    return new_vectors(dataset.kind, encoder, max_words=300)


def _documents_of(dataset: EventDataset, row: int) -> np.ndarray:
    return np.concatenate([dataset.day_documents[day] for day in dataset.window_days[row]])


class _Instances:
    """The instances of a dataset, from which `_Bags` are taken; vectors of documents are held once."""

    def __init__(self, dataset: EventDataset, encode: Encode, *, ones: bool):
        self.dataset, self.ones = dataset, ones
        self.used = dataset.used_documents()
        self.vectors = np.array(encode([dataset.documents[j] for j in self.used]))
        self.sizes = np.array([len(day) for day in dataset.day_documents])
        sums = day_sums(dataset, self.vectors).toarray()
        self.means = sums / np.maximum(self.sizes, 1)[:, None]

    def take(self, rows: np.ndarray) -> _Bags:
        """Return some instances, all of which have a document."""
        days = self.dataset.window_days[rows]
        instance, position = np.nonzero(self.sizes[days] > 0)
        days = days[instance, position]
        cosine = np.ones(len(days)) if self.ones else np.append(0.0, _cosines(self.means[days]))
        cosine[np.append(True, instance[1:] != instance[:-1])] = 0.0
        parts = [np.searchsorted(self.used, self.dataset.day_documents[day]) for day in days]
        numbers = np.repeat(np.arange(len(days)), self.sizes[days])
        return _Bags(self.vectors[np.concatenate(parts)], numbers, instance, position, cosine, len(rows))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Return the cosines of successive vectors, (n - 1,)."""
    length = np.linalg.norm(vectors, axis=1)
    product = np.maximum(length[1:] * length[:-1], np.finfo(float).tiny)
    return (vectors[1:] * vectors[:-1]).sum(axis=1) / product
