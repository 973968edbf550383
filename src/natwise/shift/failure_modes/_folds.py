"""Folds that depend on what rows hold, not on where they stand, and predictions for rows that a probe never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.base import clone

from natwise.shift.failure_modes._probe import fit_logistic, predict_logistic

Probe: TypeAlias = "LogisticProbe | Any"
DIGITS = 9  # of the leverages that are compared: rounding noise in them must not order rows


@dataclass(frozen=True)
class LogisticProbe:
    """Multinomial logistic regression by `fit_logistic`: the inverse penalty `C`, and where it is fitted."""

    C: float
    device: torch.device


@dataclass(frozen=True, eq=False)
class Predictions:
    """What probes say.

    Attributes
    ----------
    codes : ndarray of int, shape (B, n)
        Predicted class of every row by every fit.
    coefficients : tensor, optional
        Of logistic probes, to start others from.
    """

    codes: np.ndarray
    coefficients: torch.Tensor | None = None


def canonical_order(Z: np.ndarray) -> np.ndarray:
    """Return an order of the rows that any permutation, and nearly any invertible affine map, leaves as it is.

    Rows are ordered by leverage, and by their values where leverages agree.
    """
    centred = Z - Z.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(Z))
    kept = values > 1e-12 * max(values[-1], 1e-300)
    scores = centred @ (vectors[:, kept] / np.sqrt(values[kept]))
    leverage = np.round((scores**2).sum(axis=1), DIGITS)
    order = np.argsort(leverage, kind="stable")
    if (np.diff(leverage[order]) > 0).all():
        return order
    return np.lexsort((*Z.T[::-1], leverage))


def stratified_folds(strata: np.ndarray, rank: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each row; folds share every stratum evenly.

    `rank` is each row's place in the canonical order.
    """
    fold = np.empty(len(strata), dtype=np.int64)
    first = 0
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        rows = rows[np.argsort(rank[rows])]
        fold[rng.permutation(rows)] = (first + np.arange(len(rows))) % n_folds
        first += len(rows)  # the next stratum goes on where this one ended, so that folds stay of equal size
    return fold


def fit_predict(
    probe: Probe,
    Z: np.ndarray,
    codes: np.ndarray,
    weight: np.ndarray,
    n_classes: int,
    start: torch.Tensor | None = None,
) -> Predictions:
    """Fit the probe B times and predict all rows with each fit.

    Parameters
    ----------
    probe : LogisticProbe or scikit-learn classifier
        A classifier is cloned, and fitted on the rows of positive weight; it must take `sample_weight` unless all
        these weights are equal.
    Z : ndarray of float64, shape (n, d)
        Rows.
    codes : ndarray of int64, shape (B, n)
        Classes of each fit.
    weight : ndarray of float64, shape (B, n)
        Weights of each fit; 0 for rows it must not see.
    n_classes : int
        Number of classes.
    start : tensor, optional
        Coefficients to start from.
    """
    if isinstance(probe, LogisticProbe):
        X, targets, weights = (torch.tensor(array, device=probe.device) for array in (Z, codes, weight))
        found = fit_logistic(X, targets, weights, n_classes, C=probe.C, start=start)
        return Predictions(predict_logistic(X, found).cpu().numpy(), found)
    predicted = np.empty(codes.shape, dtype=np.int64)
    for b, (target, weights) in enumerate(zip(codes, weight, strict=True)):
        rows = weights > 0
        extra = {} if np.ptp(weights[rows]) == 0 else {"sample_weight": weights[rows]}
        predicted[b] = clone(probe).fit(Z[rows], target[rows], **extra).predict(Z)
    return Predictions(predicted)


def unseen(fold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return each row's prediction by the fit that held out its fold; -1 for rows that were never held out."""
    held = fold >= 0
    return np.where(held, predicted[np.where(held, fold, 0), np.arange(len(fold))], -1)
