"""Folds that depend on what rows hold, not on where they stand, and predictions for rows that a probe never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from sklearn.base import clone

from natwise.shift.failure_modes._probe import Basis, fit_logistic, predict_logistic

Probe: TypeAlias = "LogisticProbe | Any"
DIGITS = 9  # of the leverages that are compared: rounding noise in them must not order rows


@dataclass(frozen=True)
class LogisticProbe:
    """Multinomial logistic regression by `fit_logistic`, with the inverse penalty `C`."""

    C: float


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


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that probes are fitted on, and what all probes share.

    Attributes
    ----------
    Z : ndarray of float64, shape (n, d)
        As given.
    basis : Basis
        The same in their principal axes.
    rank : ndarray of int, shape (n,)
        Each row's place in an order that permutations, and nearly all affine maps, leave as it is: by leverage, and by
        value where leverages agree.
    """

    Z: np.ndarray
    basis: Basis
    rank: np.ndarray

    @classmethod
    def of(cls, Z: np.ndarray, device: torch.device) -> Rows:
        """Return rows Z (n, d) with their principal axes and ranks."""
        basis = Basis.of(torch.tensor(Z, device=device))
        leverage = np.round(basis.leverages().cpu().numpy(), DIGITS)
        order = np.argsort(leverage, kind="stable")
        if not (np.diff(leverage[order]) > 0).all():
            order = np.lexsort((*Z.T[::-1], leverage))
        rank = np.empty(len(Z), dtype=np.int64)
        rank[order] = np.arange(len(Z))
        return cls(Z, basis, rank)

    def __getitem__(self, rows: slice | np.ndarray) -> Rows:
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.basis.X.device)
        return Rows(self.Z[rows], self.basis[index], self.rank[rows])


def stratified_folds(strata: np.ndarray, rank: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each row (n,); folds share every stratum evenly.

    `strata` (n,) are any integers, `rank` (n,) is each row's place in the canonical order.
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
    rows: Rows,
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
    rows : Rows
        The n rows.
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
        targets, weights = (torch.tensor(array, device=rows.basis.X.device) for array in (codes, weight))
        found = fit_logistic(rows.basis, targets, weights, n_classes, C=probe.C, start=start)
        return Predictions(predict_logistic(rows.basis, found).cpu().numpy(), found)
    predicted = np.empty(codes.shape, dtype=np.int64)
    for b, (target, weights) in enumerate(zip(codes, weight, strict=True)):
        seen = weights > 0
        extra = {} if np.ptp(weights[seen]) == 0 else {"sample_weight": weights[seen]}
        predicted[b] = clone(probe).fit(rows.Z[seen], target[seen], **extra).predict(rows.Z)
    return Predictions(predicted)


def unseen(fold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return each row's prediction (n,) by the fit that held out its fold, of all fits' predictions (n_folds, n).

    `fold` (n,) is -1 for rows that were never held out, and so is their prediction.
    """
    held = fold >= 0
    return np.where(held, predicted[np.where(held, fold, 0), np.arange(len(fold))], -1)
