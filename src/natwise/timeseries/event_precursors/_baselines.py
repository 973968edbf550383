"""Forecasts that any model should beat, on the same rows: persistence, rolling mean, logistic regression on counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils.validation import check_is_fitted

from natwise.core.validation import check_array, check_integer, check_real
from natwise.timeseries.event_precursors._counts import day_sums, window_sums
from natwise.timeseries.event_precursors._dataset import EventDataset, check_dataset, check_trainable
from natwise.timeseries.event_precursors._encoders import words_of


class _LabelBaseline(BaseEstimator):
    """What two baselines share that know past labels only."""

    def fit(self, dataset: EventDataset) -> Any:
        """Remember the share of events, the forecast where the window has no known label."""
        self.base_rate_ = float(check_dataset("dataset", dataset).y.mean())
        return self

    def predict_proba(self, dataset: EventDataset) -> np.ndarray:
        """Return the probabilities of no event and of an event, (n, 2)."""
        check_is_fitted(self)
        event = self._event(check_dataset("dataset", dataset).past_labels)
        event = np.where(np.isnan(event), self.base_rate_, event)
        return np.stack([1 - event, event], axis=1)


class Persistence(_LabelBaseline):
    """Forecasts what happened on the last day of the window that has a label.

    Attributes
    ----------
    base_rate_ : float
        Share of events in training.
    """

    @staticmethod
    def _event(past: np.ndarray) -> np.ndarray:
        last = past.shape[1] - 1 - np.argmax(~np.isnan(past[:, ::-1]), axis=1)
        return past[np.arange(len(past)), last]


class RollingMean(_LabelBaseline):
    """Forecasts the share of events among the labelled days of the window.

    Attributes
    ----------
    base_rate_ : float
        Share of events in training.
    """

    @staticmethod
    def _event(past: np.ndarray) -> np.ndarray:
        known = (~np.isnan(past)).sum(axis=1)
        return np.where(known > 0, np.nansum(past, axis=1) / np.maximum(known, 1), np.nan)


class CountRegression(BaseEstimator):
    """Logistic regression on log counts of words over the whole window, and on its last day.

    Documents given as vectors count by their sum, signed logarithm of each entry.

    Parameters
    ----------
    Cs : tuple of float
        Inverse strengths of the L2 penalty to choose from, by the log loss of a later part of the training period;
        the chosen one is fitted to all of it.
    min_documents : int
        Words of fewer training documents are left out.
    validation_fraction : float
        Share of the days in that later part.

    Attributes
    ----------
    C_ : float
        The strength chosen.
    base_rate_ : float
        Share of events in training, the forecast where no day has a document.
    """

    def __init__(
        self,
        Cs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        *,
        min_documents: int = 2,
        validation_fraction: float = 0.2,
    ):
        self.Cs = Cs
        self.min_documents = min_documents
        self.validation_fraction = validation_fraction

    def fit(self, dataset: EventDataset) -> CountRegression:
        """Count, choose the penalty, fit.

        Raises
        ------
        TypeError, ValueError
            For wrong settings, or labels that are all equal in the training period or its earlier part.
        """
        train = check_trainable("dataset", dataset)
        check_integer("min_documents", self.min_documents, minimum=1)
        strengths = check_array("Cs", self.Cs, shape=("n_strengths",))
        check_real("Cs", float(strengths.min(initial=np.inf)), minimum=0.0, exclusive=True)
        earlier, later = later_part(train, self.validation_fraction)
        later = later[later.has_documents]
        losses = [self._fit(check_trainable("dataset", earlier), C)._loss(later) for C in strengths if len(later)] or [
            0
        ]
        self.C_ = float(strengths[int(np.argmin(losses))])
        self.base_rate_ = float(dataset.y.mean())
        return self._fit(train, self.C_)

    def predict_proba(self, dataset: EventDataset) -> np.ndarray:
        """Return the probabilities of no event and of an event, (n, 2)."""
        check_is_fitted(self)
        check_dataset("dataset", dataset)
        filled = dataset.has_documents
        event = np.full(len(dataset), self.base_rate_)
        if filled.any():
            event[filled] = self.model_.predict_proba(self._features(dataset[filled]))[:, 1]
        return np.stack([1 - event, event], axis=1)

    def _fit(self, dataset: EventDataset, C: float) -> CountRegression:
        self._vectorizer = None
        if dataset.kind in ("text", "words"):
            self._vectorizer = CountVectorizer(analyzer=words_of, min_df=self.min_documents)
            try:
                self._vectorizer.fit([dataset.documents[j] for j in dataset.used_documents()])
            except ValueError as error:
                raise ValueError(
                    f"min_documents must leave a word, got {self.min_documents}, which leaves none ({error})"
                ) from None
        self.model_ = LogisticRegression(C=C, max_iter=2000).fit(self._features(dataset), dataset.y)
        return self

    def _loss(self, dataset: EventDataset) -> float:
        return log_loss(dataset.y, self.model_.predict_proba(self._features(dataset))[:, 1], labels=[0, 1])

    def _features(self, dataset: EventDataset) -> Any:
        documents = [dataset.documents[j] for j in dataset.used_documents()]
        if self._vectorizer is not None:
            counts = self._vectorizer.transform(documents)
        else:
            counts = sp.csr_array(np.array([np.append(np.atleast_2d(d).sum(axis=0), 1.0) for d in documents]))
        of_day = day_sums(dataset, counts)
        both = sp.hstack([window_sums(dataset, of_day), of_day[dataset.window_days[:, -1]]]).tocsr()
        both.data = np.sign(both.data) * np.log1p(abs(both.data))
        return both


def later_part(dataset: EventDataset, fraction: float) -> tuple[EventDataset, EventDataset]:
    """Split off the last `fraction` of the target days, to choose settings on."""
    check_real("validation_fraction", fraction, minimum=0.0, maximum=0.9)
    days = dataset.target_dates.unique().sort_values()
    cutoff = min(len(days) - 1, round(len(days) * (1 - fraction)))
    if days[cutoff] - pd.DateOffset(days=dataset.lead) < days[0]:
        raise ValueError(f"dataset must have more days to split off validation_fraction={fraction}, got {len(days)}")
    return dataset.split(days[cutoff])
