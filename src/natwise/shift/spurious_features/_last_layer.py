"""`LastLayerRetrainer`: refit the linear head so that no group is forgotten, with annotated groups or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_option, check_real
from natwise.shift._inputs import check_matrix, check_strength, to_candidates
from natwise.shift.spurious_features._heads import (
    Head,
    fit_head,
    fit_head_near,
    fit_sparse_head,
    fit_worst_group_head,
    probabilities,
)
from natwise.shift.spurious_features._inputs import (
    Labels,
    balanced_weights,
    check_classes,
    check_rows,
    check_site,
    group_codes,
    random_share_of_each,
)
from natwise.shift.spurious_features._scores import standardised

METHODS = ("erm", "reweight", "groupdro", "dfr", "afr", "jtt")
WITHOUT_ATTRIBUTE = ("erm", "afr", "jtt")
DEFAULT_C = 0.1
DFR_GRID = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
N_FOLDS = 5
AFR_FIRST_SHARE = 0.8  # of the rows: the plain head; the others refit it


class LastLayerRetrainer(ClassifierMixin, BaseEstimator):
    """A linear head on a frozen embedding that serves all groups of class and attribute.

    Parameters
    ----------
    method : {"erm", "reweight", "groupdro", "dfr", "afr", "jtt"}, default "reweight"
        ``erm``: all rows the same; the baseline. ``reweight``: every group the same weight. ``groupdro``: the largest
        mean loss of a group is minimised (Sagawa et al. 2020), to its optimum. ``dfr``: the average of L1-penalised
        heads on random subsets with the same number of rows from each group (Kirichenko et al. 2023). Without
        annotated groups: ``afr`` refits a plain head on rows held out from it, weighted by exp(-gamma p_y) within
        classes and pulled toward it (Qiu et al. 2023); ``jtt`` is `reweight` with `infer_attribute` as the attribute
        (after Liu et al. 2021).
    C : float, sequence of float or None, default None
        Inverse strength of the penalty on standardised columns, for weights of mean 1; infinite is none. A sequence:
        the one with the best worst-group accuracy on a random half of the rows, after fitting the other half. None is
        0.1, and for ``dfr`` the sequence 1, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01.
    n_refits : int, default 10
        Subsets that ``dfr`` averages.
    gamma : float, default 4.0
        How much ``afr`` prefers rows that the plain head finds unlikely.
    random_state : int, Generator or None
        Draws subsets, halves and folds; ``erm``, ``reweight`` and ``groupdro`` with one C draw nothing.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) for two classes, else (n_classes, n_features)
        Weights for rows as given.
    intercept_ : ndarray of shape (1,) or (n_classes,)
        Intercepts.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    C_ : float
        The penalty used.
    group_weights_ : ndarray of shape (n_groups,)
        Share of every group g = y * n_attributes + attribute in the loss, 0 for groups without rows; only of
        ``reweight``, ``groupdro`` and ``jtt``.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Groups without rows are warned of and left out. ``dfr`` draws the subsets from the rows it is given: hand it
    validation data for DFR-Val, training data for DFR-Tr; it averages refits on subsets of all of them.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(2, size=400)
    >>> site = np.where(rng.random(400) < 0.95, y, 1 - y)
    >>> X = np.stack([y + rng.standard_normal(400), 3 * site + 0.1 * rng.standard_normal(400)], axis=1)
    >>> plain, fair = (LastLayerRetrainer(how).fit(X, y, attribute=site) for how in ("erm", "reweight"))
    >>> group_accuracy = [[(m.predict(X) == y)[y != site].mean() for m in (plain, fair)]]
    >>> group_accuracy[0][0] < 0.3 < 0.6 < group_accuracy[0][1]
    True
    """

    def __init__(
        self,
        method: str = "reweight",
        *,
        C: float | Sequence[float] | None = None,
        n_refits: int = 10,
        gamma: float = 4.0,
        random_state: RandomState = None,
    ):
        self.method = method
        self.C = C
        self.n_refits = n_refits
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, attribute: Any) -> LastLayerRetrainer:
        """Fit the head.

        Parameters
        ----------
        X, y
            As in `LinearDisentangler.fit`.
        attribute : array-like of shape (n_samples,) or None
            The spurious attribute; None only for ``erm``, ``afr`` and ``jtt`` with one C, which do not use it.

        Returns
        -------
        LastLayerRetrainer
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described, or class and attribute determine one another.

        Warns
        -----
        UserWarning
            If a group has no rows.
        ConvergenceWarning
            If a solver did not reach its optimum.
        """
        candidates = self._check_parameters()
        X = check_rows(self, X, reset=True)
        classes = check_classes(y, len(X))
        task = _Task(*standardised(X), classes, self._sites(attribute, classes, len(candidates)))
        streams = Streams.of(self.random_state)
        self.C_ = candidates[0] if len(candidates) == 1 else self._tuned(task, candidates, streams.child("tuning"))
        head, shares = self._fit_head(task, self.C_, streams)
        head = head.in_units_of(task.mean, task.scale)
        self.classes_, self.coef_, self.intercept_ = classes.values, head.weights, head.intercepts
        if shares is not None:
            self.group_weights_ = shares
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores: (n_samples,) of the second of two classes, else (n_samples, n_classes)."""
        check_is_fitted(self)
        scores = check_rows(self, X, reset=False) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities (n_samples, n_classes), columns as in `classes_`."""
        check_is_fitted(self)
        return probabilities(Head(self.coef_, self.intercept_).scores(check_rows(self, X, reset=False)))

    def predict(self, X: Any) -> np.ndarray:
        """Return the likeliest class of every row, shape (n_samples,)."""
        check_is_fitted(self)
        return self.classes_[Head(self.coef_, self.intercept_).predict(check_rows(self, X, reset=False))]

    def _check_parameters(self) -> tuple[float, ...]:
        """Return the values of C to choose from."""
        check_option("method", self.method, METHODS)
        check_integer("n_refits", self.n_refits, minimum=1)
        check_real("gamma", self.gamma, minimum=0)
        given = self.C
        if given is None:
            given = DFR_GRID if self.method == "dfr" else DEFAULT_C
        return tuple(check_strength("C", value) for value in to_candidates("C", given))

    def _sites(self, attribute: Any, classes: Labels, n_candidates: int) -> Labels | None:
        if self.method in WITHOUT_ATTRIBUTE and n_candidates == 1:
            return None
        if attribute is None:
            needed = f"method={self.method!r}" if n_candidates == 1 else "a choice of C by the worst group"
            raise ValueError(f"attribute must be given for {needed}, got None")
        return check_site(attribute, classes)

    def _tuned(self, task: _Task, candidates: tuple[float, ...], streams: Streams) -> float:
        """Return the C whose head, fitted on one half of every group, is best for the worst group of the other."""
        groups = task.groups
        first = random_share_of_each(groups, 0.5, streams.numpy("half"))
        half, present = task.only(first), np.unique(groups[~first])

        def worst(C: float) -> float:
            head, _ = self._fit_head(half, C, streams.child("fit"))
            right = head.predict(task.Z[~first]) == task.classes.codes[~first]
            return min(right[groups[~first] == group].mean() for group in present)

        return max(candidates, key=worst)

    def _fit_head(self, task: _Task, C: float, streams: Streams) -> tuple[Head, np.ndarray | None]:
        """Return the head for standardised rows, and the share of every group in the loss."""
        Z, codes = task.Z, task.classes.codes
        if self.method == "erm":
            return fit_head(Z, codes, np.ones(len(Z)), C), None
        if self.method == "afr":
            return self._afr(task, C, streams), None
        if self.method == "dfr":
            return self._dfr(task, C, streams), None
        if self.method == "groupdro":
            present, groups = np.unique(task.groups, return_inverse=True)
            head, q = fit_worst_group_head(Z, codes, groups, C)
            shares = np.zeros(task.n_groups)
            shares[present] = q
            return head, shares
        if self.method == "jtt":
            wrong = _wrong_out_of_fold(Z, codes, C, streams)
            task = task.with_site(Labels(np.arange(2), wrong.astype(int)))
        assert task.site is not None
        weights = balanced_weights(task.classes, task.site)
        sums = np.bincount(task.groups, weights=weights, minlength=task.n_groups)
        return fit_head(Z, codes, weights, C), sums / sums.sum()

    def _afr(self, task: _Task, C: float, streams: Streams) -> Head:
        Z, codes = task.Z, task.classes.codes
        first = random_share_of_each(codes, AFR_FIRST_SHARE, streams.numpy("first"))
        plain = fit_head(Z[first], codes[first], np.ones(first.sum()), C)
        if first.all():
            return plain
        rest, labels = Z[~first], codes[~first]
        likely = np.exp(plain.log_probabilities(rest)[np.arange(len(rest)), labels])
        weights = np.exp(-self.gamma * likely) / np.bincount(labels)[labels]
        return fit_head_near(plain, rest, labels, weights / weights.mean(), C)

    def _dfr(self, task: _Task, C: float, streams: Streams) -> Head:
        heads = []
        for number in range(self.n_refits):
            rng = streams.numpy(f"subset-{number}")
            rows = _same_number_of_each(task.groups, rng)
            heads.append(fit_sparse_head(task.Z[rows], task.classes.codes[rows], C, streams.seed(f"fit-{number}")))
        return Head(np.mean([h.weights for h in heads], axis=0), np.mean([h.intercepts for h in heads], axis=0))


def infer_attribute(X: Any, y: Any, *, C: float = DEFAULT_C, random_state: RandomState = None) -> np.ndarray:
    """Guess a spurious attribute that nobody annotated: 1 where a plain linear head is wrong, else 0.

    A head that takes a shortcut is wrong where the shortcut misleads. Every row is judged by a head of five-fold
    cross-validation that never saw it; the original (Liu et al. 2021) takes the errors of an early-stopped model on
    its own training rows, which need a length of training to be tuned.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Embedding; columns are standardised.
    y : array-like of shape (n_samples,)
        Class labels.
    C : float, default 0.1
        Inverse strength of the head's L2 penalty.
    random_state : int, Generator or None
        Draws the folds.

    Returns
    -------
    ndarray of int, shape (n_samples,)
        The inferred attribute. Wrong labels count as misled rows too, so clean labels matter.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described, or no row is misled: then there is nothing to infer.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(2, size=400)
    >>> site = np.where(rng.random(400) < 0.95, y, 1 - y)
    >>> X = np.stack([y + rng.standard_normal(400), 3 * site + 0.1 * rng.standard_normal(400)], axis=1)
    >>> inferred = infer_attribute(X, y, random_state=0)
    >>> bool(inferred[site != y].mean() > 0.7 > 0.1 > inferred[site == y].mean())
    True
    """
    X = check_matrix("X", X, ("n_samples", "n_features"))
    classes = check_classes(y, len(X))
    wrong = _wrong_out_of_fold(standardised(X)[0], classes.codes, check_strength("C", C), Streams.of(random_state))
    if not wrong.any():
        raise ValueError("y is predicted without error by a linear head of X: there is no attribute to infer")
    return wrong.astype(int)


@dataclass(frozen=True, eq=False)
class _Task:
    """Standardised rows, what they were standardised by, their classes, and the attribute where it is used."""

    Z: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    classes: Labels
    site: Labels | None

    @property
    def groups(self) -> np.ndarray:
        """Group g = y * n_attributes + attribute of every row (n,)."""
        assert self.site is not None
        return group_codes(self.classes, self.site)

    @property
    def n_groups(self) -> int:
        """Number of groups, those without rows included."""
        assert self.site is not None
        return len(self.classes) * len(self.site)

    def only(self, rows: np.ndarray) -> _Task:
        """Return the task with only the chosen rows (a mask (n,))."""
        return replace(self, Z=self.Z[rows], classes=self.classes.only(rows), site=self.site and self.site.only(rows))

    def with_site(self, site: Labels) -> _Task:
        """Return the task with another attribute."""
        return replace(self, site=site)


def _wrong_out_of_fold(Z: np.ndarray, codes: np.ndarray, C: float, streams: Streams) -> np.ndarray:
    """Return whether a plain head fitted on the other folds is wrong, shape (n,)."""
    order = streams.numpy("folds").permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    fold = np.empty(len(codes), dtype=int)
    fold[order] = np.arange(len(codes)) % N_FOLDS
    wrong = np.ones(len(codes), dtype=bool)
    for held in range(min(N_FOLDS, len(codes))):
        train, test = fold != held, fold == held
        present, known = np.unique(codes[train], return_inverse=True)
        if len(present) > 1:
            wrong[test] = present[fit_head(Z[train], known, np.ones(len(known)), C).predict(Z[test])] != codes[test]
        else:
            wrong[test] = codes[test] != present[0]
    return wrong


def _same_number_of_each(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rows (sorted) with as many of every code (n,), drawn at random, as the rarest has."""
    present, counts = np.unique(codes, return_counts=True)
    rows = [rng.choice(np.flatnonzero(codes == code), counts.min(), replace=False) for code in present]
    return np.sort(np.concatenate(rows))
