"""Erasers that need a choice of how much to take: coordinates, counterfactual directions, directions of probes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from natwise.core.validation import check_integer, check_option, check_real, for_sklearn
from natwise.shift.spurious_features._inputs import check_attribute, check_counterfactual, check_rows, row_weights
from natwise.shift.spurious_features._leace import AffineEraser
from natwise.shift.spurious_features._scores import auc, counterfactual_effect, probe_weight

RANKINGS = (None, "counterfactual", "auc", "probe")
_RANK = 1e-10  # of the largest singular value


class DropDimensions(SelectorMixin, BaseEstimator):
    """Leave out the coordinates that tell most about the attribute.

    Axis-aligned removal seldom works (Darbinyan et al. 2023): a shortcut is spread over many coordinates. It is here
    to measure that.

    Parameters
    ----------
    n_dimensions : int, default 8
        How many coordinates to leave out; fewer than there are.
    rank_by : {None, "counterfactual", "auc", "probe"}, default None
        What a coordinate is ranked by: the size of its mean change under the counterfactual, signed by the attribute
        when it has two values; how well it tells the attribute alone (area under the ROC curve); the size of its weight
        in a linear probe on standardised columns. None takes counterfactuals when they are given, else the probe.
    balance : {None, "group"}, default None
        ``"group"`` gives every group of class and attribute the same weight, and needs `y`.

    Attributes
    ----------
    scores_ : ndarray of shape (n_features,)
        The score of every coordinate.
    dropped_ : ndarray of shape (n_dimensions,)
        Coordinates left out, the highest score first.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> site = rng.integers(2, size=200)
    >>> X = rng.standard_normal((200, 4))
    >>> X[:, 2] += 2 * site
    >>> DropDimensions(1).fit(X, attribute=site).dropped_.tolist()
    [2]
    """

    def __init__(self, n_dimensions: int = 8, *, rank_by: str | None = None, balance: str | None = None):
        self.n_dimensions = n_dimensions
        self.rank_by = rank_by
        self.balance = balance

    def fit(self, X: Any, y: Any = None, *, attribute: Any, counterfactual: Any = None) -> DropDimensions:
        """Rank the coordinates of `X` (n_samples, n_features).

        Parameters
        ----------
        X, y, attribute
            As in `LEACE.fit`.
        counterfactual : array-like of shape (n_samples, n_features), optional
            Row i is row i of `X` with another value of the attribute.

        Returns
        -------
        DropDimensions
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described.
        """
        check_option("rank_by", self.rank_by, RANKINGS)
        X = check_rows(self, X, reset=True)
        n_dimensions = check_integer("n_dimensions", self.n_dimensions, minimum=0)
        if n_dimensions >= X.shape[1]:
            raise ValueError(f"n_dimensions must be less than the {X.shape[1]} columns of X, got {n_dimensions}")
        site = check_attribute(attribute, len(X))
        weights = row_weights(y, site, self.balance)
        ranking = self.rank_by or ("probe" if counterfactual is None else "counterfactual")
        if ranking == "counterfactual":
            other = check_counterfactual(counterfactual, X)
            self.scores_ = np.abs(counterfactual_effect(X, other, site, weights))
        elif ranking == "auc":
            self.scores_ = auc(X, site, weights)
        else:
            self.scores_ = probe_weight(X, site, weights)
        self.dropped_ = np.argsort(-self.scores_, kind="stable")[:n_dimensions]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the columns of `X` (n_samples, n_features) that are kept, in its dtype."""
        return super().transform(for_sklearn("X", X))

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        kept = np.ones(self.n_features_in_, dtype=bool)
        kept[self.dropped_] = False
        return kept


class CounterfactualProjection(AffineEraser):
    """Project out the directions along which a changed attribute moves the same samples.

    Parameters
    ----------
    n_components : int, default 1
        Number of directions.
    balance : {None, "group"}, default None
        ``"group"`` gives every group of class and attribute the same weight, and needs `y`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        Orthonormal directions, the strongest first; signed so that the largest entry is positive.
    singular_values_ : ndarray of shape (n_components,)
        Root mean square of the differences along each direction.
    projection_ : ndarray of shape (n_features, n_features)
        I - V V^T, symmetric and idempotent.
    location_ : ndarray of shape (n_features,)
        Zeros: nothing is centred, as what all differences have in common is what is looked for.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The right singular vectors of the differences between rows and their counterfactuals. Their signs play no role,
    so that an attribute may have many values. Scale columns first when their units differ.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, site = rng.standard_normal((50, 3)), np.arange(50) % 2
    >>> moved = X + np.where(site, -1.0, 1.0)[:, None] * [1.0, 1.0, 0.0]
    >>> eraser = CounterfactualProjection(1).fit(X, counterfactual=moved, attribute=site)
    >>> eraser.components_.round(3).tolist()
    [[0.707, 0.707, 0.0]]
    """

    def __init__(self, n_components: int = 1, *, balance: str | None = None):
        self.n_components = n_components
        self.balance = balance

    def fit(self, X: Any, y: Any = None, *, counterfactual: Any, attribute: Any) -> CounterfactualProjection:
        """Find the directions.

        Parameters
        ----------
        X, y, attribute
            As in `LEACE.fit`.
        counterfactual : array-like of shape (n_samples, n_features)
            Row i is row i of `X` with another value of the attribute.

        Returns
        -------
        CounterfactualProjection
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described, or the differences span fewer directions than asked for.
        """
        n_components = check_integer("n_components", self.n_components, minimum=1)
        X = check_rows(self, X, reset=True)
        other = check_counterfactual(counterfactual, X)
        weights = row_weights(y, check_attribute(attribute, len(X)), self.balance)
        directions, sizes = counterfactual_directions(X, other, weights)
        if n_components > len(directions):
            raise ValueError(
                f"n_components must be at most {len(directions)}, what the differences to counterfactual span, "
                f"got {n_components}"
            )
        self.components_, self.singular_values_ = directions[:n_components], sizes[:n_components]
        self.projection_ = np.eye(X.shape[1]) - self.components_.T @ self.components_
        self.location_ = np.zeros(X.shape[1])
        return self


class INLP(AffineEraser):
    """Iterative null-space projection: probe for the attribute, project the probe's direction out, repeat.

    Parameters
    ----------
    n_iterations : int, default 5
        Number of probes; each takes out one direction less than the attribute has values. It ends early, and the
        output is zero, when no direction is left.
    balance : {None, "group"}, default None
        ``"group"`` gives every group of class and attribute the same weight in the probes, and needs `y`.
    C : float, default 1.0
        Inverse strength of the probes' L2 penalty, as in `sklearn.linear_model.LogisticRegression`.

    Attributes
    ----------
    components_ : ndarray of shape (n_directions, n_features)
        Orthonormal basis of what was taken out, in the order in which it was found.
    accuracies_ : ndarray of shape (n_iter,)
        (Weighted) accuracy of every probe on the rows it was fitted on, before its direction was taken.
    projection_ : ndarray of shape (n_features, n_features)
        Projection on the joint null space of all probes, symmetric and idempotent.
    location_ : ndarray of shape (n_features,)
        Zeros.
    n_iter_ : int
        Number of probes fitted.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The projection is on the intersection of all null spaces found so far, from one orthonormal basis, so that rounding
    does not add up. Standardise columns first: probes are penalised.

    References
    ----------
    Ravfogel, Elazar, Gonen, Twiton, Goldberg. Null it out. ACL 2020.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> site = np.arange(100) % 2
    >>> X = rng.standard_normal((100, 3)) + 2.0 * site[:, None]
    >>> INLP(1).fit(X, attribute=site).transform(X).shape
    (100, 3)
    """

    def __init__(self, n_iterations: int = 5, *, balance: str | None = None, C: float = 1.0):
        self.n_iterations = n_iterations
        self.balance = balance
        self.C = C

    def fit(self, X: Any, y: Any = None, *, attribute: Any) -> INLP:
        """Find the directions.

        Parameters
        ----------
        X, y, attribute
            As in `LEACE.fit`.

        Returns
        -------
        INLP
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described.
        """
        n_iterations = check_integer("n_iterations", self.n_iterations, minimum=1)
        check_real("C", self.C, minimum=0, exclusive=True)
        X = check_rows(self, X, reset=True)
        concept = check_attribute(attribute, len(X))
        weights = row_weights(y, concept, self.balance)
        components, accuracies = np.empty((0, X.shape[1])), []
        for _ in range(n_iterations):
            if len(components) == X.shape[1]:
                break
            remaining = X - (X @ components.T) @ components
            probe = LogisticRegression(C=self.C, max_iter=2000).fit(remaining, concept.codes, sample_weight=weights)
            accuracies.append(probe.score(remaining, concept.codes, sample_weight=weights))
            components = _orthonormal(components, probe.coef_)
        self.components_ = components
        self.accuracies_ = np.array(accuracies)
        self.n_iter_ = len(accuracies)
        self.projection_ = np.eye(X.shape[1]) - components.T @ components
        self.location_ = np.zeros(X.shape[1])
        return self


def counterfactual_directions(X: np.ndarray, other: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal directions (k, d) of the differences and their root mean squares (k,), largest first."""
    differences = np.sqrt(weights / weights.sum())[:, None] * (X - other)
    values, vectors = np.linalg.eigh(differences.T @ differences)
    sizes = np.sqrt(np.maximum(values[::-1], 0.0))
    kept = sizes > _RANK**0.5 * max(sizes[0], 1e-300)
    directions = vectors.T[::-1][kept]
    largest = np.abs(directions).argmax(axis=1)
    return directions * np.sign(directions[np.arange(len(directions)), largest])[:, None], sizes[kept]


def _orthonormal(basis: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (k, d) whose first rows are `basis`, and which spans `rows` too."""
    rows = rows - (rows @ basis.T) @ basis
    rows = rows - (rows @ basis.T) @ basis  # once more, against rounding
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    kept = sizes > _RANK * max(sizes[0], 1e-300)
    return np.vstack([basis, right[kept][: rows.shape[1] - len(basis)]])
