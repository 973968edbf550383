"""How well a linear classifier tells domains apart: among training domains, with the test domain, within classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from natwise.shift.failure_modes._folds import Probe, Rows, fit_predict, stratified_folds, unseen


@dataclass(frozen=True, eq=False)
class Domains:
    """Rows of all domains, those of the test domain with the code K, the number of training domains."""

    rows: Rows
    y: np.ndarray
    domain: np.ndarray

    @property
    def n_training(self) -> int:
        """Number of training domains, K."""
        return int(self.domain.max())


def distinguishability(
    probe: Probe, domains: Domains, cv: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return d_0, d_1, d_2, their standard errors, and the three accuracies they come from.

    Every domain weighs the same, in the fits and in the accuracies (means of the domains' recalls), so that chance is
    1/K whatever the sizes; I_1 and I_2 are means over all K replacements of a training domain by the test domain.
    """
    fold = np.full(len(domains.y), -1)
    if cv is not None:
        fold = stratified_folds(domains.domain * (domains.y.max() + 1) + domains.y, domains.rows.rank, cv, rng)
    shares = np.zeros((3, len(domains.y)))  # of each row in I_0, I_1, I_2
    K = domains.n_training
    everything = np.arange(len(domains.y))
    shares[0] = _shares(probe, domains, everything, [K], fold, cv)
    shares[1] = _shares(probe, domains, everything, list(range(K)), fold, cv)
    classes = np.unique(domains.y)
    for number in classes:
        rows = np.flatnonzero(domains.y == number)
        shares[2, rows] = _shares(probe, domains, rows, list(range(K)), fold, cv) / len(classes)
    accuracies = shares.sum(axis=1)
    steps = np.array([shares[0], shares[1] - shares[0], shares[2] - shares[1]])
    return np.diff(accuracies, prepend=1 / K), _standard_errors(steps, domains), accuracies


def _shares(
    probe: Probe, domains: Domains, rows: np.ndarray, left_out: list[int], fold: np.ndarray, cv: int | None
) -> np.ndarray:
    """Return what each of `rows` (n,) adds to the mean balanced accuracy of K-way classifiers, each without a domain.

    `fold` holds the fold of every row of all domains, -1 where none is held out.
    """
    K, n_folds = domains.n_training, cv or 1
    domain, fold = domains.domain[rows], fold[rows]
    codes = np.stack([np.where(domain == K, missing % K, domain) for missing in left_out])
    balanced = np.stack([_balanced(domain != missing, domain) for missing in left_out])
    seen = np.arange(n_folds)[:, None] != fold
    weight = (balanced[:, None] * seen).reshape(-1, len(rows))
    predicted = fit_predict(probe, domains.rows[rows], codes.repeat(n_folds, axis=0), weight, K).codes
    predicted = predicted.reshape(len(left_out), n_folds, len(rows))
    hits = np.stack([(own[0] if cv is None else unseen(fold, own)) for own in predicted]) == codes
    totals = balanced.sum(axis=1, keepdims=True)
    return (hits * balanced / totals).mean(axis=0)


def _balanced(kept: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Return weights (n,) under which the kept domains weigh the same; their sum is the number of kept rows."""
    counts = np.bincount(domain[kept], minlength=domain.max() + 1)
    weight = kept.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(kept, weight[domain], 0.0)


def _standard_errors(shares: np.ndarray, domains: Domains) -> np.ndarray:
    """Return standard errors (s,) of sums over the rows of `shares` (s, n), drawn within each domain and class."""
    variance = np.zeros(len(shares))
    for domain in np.unique(domains.domain):
        for number in np.unique(domains.y):
            own = shares[:, (domains.domain == domain) & (domains.y == number)]
            if own.shape[1] > 1:
                variance += own.shape[1] * own.var(axis=1, ddof=1)
    return np.sqrt(variance)
