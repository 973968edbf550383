"""`SpuriousFeatureReport`: which coordinates and directions of an embedding carry the attribute, and its cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_option
from natwise.result import Result
from natwise.shift.spurious_features._heads import fit_head
from natwise.shift.spurious_features._inputs import (
    Labels,
    balanced_weights,
    check_classes,
    check_counterfactual,
    check_rows,
    check_site,
    group_codes,
    random_share_of_each,
)
from natwise.shift.spurious_features._metrics import group_metrics
from natwise.shift.spurious_features._projections import INLP, counterfactual_directions
from natwise.shift.spurious_features._scores import (
    auc,
    auc_given,
    counterfactual_effect,
    information_given,
    standardised,
)

DIRECTIONS = (None, "counterfactual", "probe", "pca")
HEAD_C = 0.1


class SpuriousFeatureReport(BaseEstimator):
    """Which coordinates and directions of an embedding tell the attribute, the class, or both.

    Parameters
    ----------
    n_directions : int, default 5
        Directions to look at, at most; fewer when there are fewer.
    directions : {None, "counterfactual", "probe", "pca"}, default None
        Where they come from: differences to counterfactual rows, probes for the attribute one after another (`INLP`
        with balanced groups), or the principal components. None takes counterfactuals when they are given, else probes.
    random_state : int, Generator or None
        Draws the half of the rows that directions and heads are found on; the other half scores them.

    Attributes
    ----------
    coordinates_ : Result
        A row per column. Arrays of shape (n_features,): `attribute_auc` and `class_auc` (area under the ROC curve of
        the column alone, 0.5 to 1), `attribute_auc_given_class` and `class_auc_given_attribute` (the same within
        classes, or within values of the attribute, averaged: free of what class and attribute share),
        `attribute_information` (nats about the attribute, given the class) and, with counterfactuals,
        `counterfactual_effect` (mean change with the attribute, in standard deviations).
    direction_scores_ : Result
        The same for the directions, on rows that they were not found on.
    directions_ : ndarray of shape (n_directions, n_features)
        Unit vectors for columns of mean 0 and standard deviation 1.
    scalars_ : dict
        `association` of class and attribute (Cramér's V, 0 to 1); `attribute_probe` and `class_probe`: mean accuracy
        over groups of balanced linear heads for either; `plain_worst_group` and `reweighted_worst_group`: accuracy
        of a plain and a group-reweighted head for the class in the worst group. All on the half not fitted on.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Information is estimated with eight quantile bins and Miller and Madow's correction; it sees no more than one
    column at a time.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(2, size=600)
    >>> site = np.where(rng.random(600) < 0.8, y, 1 - y)
    >>> X = rng.standard_normal((600, 3))
    >>> X[:, 0] += y
    >>> X[:, 1] += 3 * site
    >>> report = SpuriousFeatureReport(1, random_state=0).fit(X, y, attribute=site)
    >>> report.coordinates_.arrays["attribute_auc_given_class"].argmax(), abs(report.directions_[0]).argmax()
    (1, 1)
    """

    def __init__(self, n_directions: int = 5, *, directions: str | None = None, random_state: RandomState = None):
        self.n_directions = n_directions
        self.directions = directions
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, attribute: Any, counterfactual: Any = None) -> SpuriousFeatureReport:
        """Score coordinates and directions.

        Parameters
        ----------
        X, y, attribute
            As in `LinearDisentangler.fit`; the attribute is the one suspected to be spurious.
        counterfactual : array-like of shape (n_samples, n_features), optional
            Row i is row i of `X` with another value of the attribute.

        Returns
        -------
        SpuriousFeatureReport
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described, or class and attribute determine one another.

        Warns
        -----
        UserWarning
            If a group of class and attribute has no rows.
        """
        check_option("directions", self.directions, DIRECTIONS)
        check_integer("n_directions", self.n_directions, minimum=1)
        X = check_rows(self, X, reset=True)
        classes = check_classes(y, len(X))
        site = check_site(attribute, classes)
        Z, mean, scale = standardised(X)
        other = None
        if counterfactual is not None or self.directions == "counterfactual":
            other = (check_counterfactual(counterfactual, X) - mean) / scale
        groups = group_codes(classes, site)
        half = random_share_of_each(groups, 0.5, Streams.of(self.random_state).numpy("half"))
        if not np.isin(groups, groups[~half]).all():
            raise ValueError("X must have two rows in every group of y and attribute that has rows")
        self.directions_ = self._find(
            Z[half], classes.only(half), site.only(half), None if other is None else other[half]
        )
        columns = list(getattr(self, "feature_names_in_", [f"x{i}" for i in range(X.shape[1])]))
        self.coordinates_ = _scored("coordinates", Z, other, classes, site, columns)
        names = [f"direction {i + 1}" for i in range(len(self.directions_))]
        projected = None if other is None else other[~half] @ self.directions_.T
        held = classes.only(~half), site.only(~half)
        self.direction_scores_ = _scored("directions", Z[~half] @ self.directions_.T, projected, *held, names)
        self.scalars_ = _costs(Z, half, classes, site)
        return self

    def summary(self) -> tuple[str, ...]:
        """Return plain sentences: how entangled, which coordinates, how many directions, and what it costs."""
        check_is_fitted(self)
        s, told = self.scalars_, self.direction_scores_.arrays["attribute_auc_given_class"]
        scores = self.coordinates_.arrays["attribute_auc_given_class"]
        strongest = [str(self.coordinates_.rows[i]) for i in np.argsort(-scores, kind="stable")[:3]]
        return (
            f"Class and attribute go together with Cramér's V {s['association']:.2f} (0 not at all, 1 fully).",
            f"A linear probe reads the attribute with {s['attribute_probe']:.0%} accuracy, the class with "
            f"{s['class_probe']:.0%} (mean over groups).",
            f"The columns that tell most about the attribute are {', '.join(strongest)}; "
            f"{int((scores > 0.6).sum())} of {len(scores)} columns tell it better than 0.6 (area under the ROC curve).",
            f"The first direction tells it with {told[0]:.2f}, the last of {len(told)} with {told[-1]:.2f}.",
            f"Accuracy in the worst group is {s['plain_worst_group']:.0%} with a plain head and "
            f"{s['reweighted_worst_group']:.0%} when groups count the same.",
        )

    def _find(self, Z: np.ndarray, classes: Labels, site: Labels, other: np.ndarray | None) -> np.ndarray:
        """Return unit vectors (k, d), the strongest first, from rows Z (n, d) and their counterfactuals (n, d)."""
        kind = self.directions or ("probe" if other is None else "counterfactual")
        weights = balanced_weights(classes, site)
        if kind == "pca":
            _, sizes, found = np.linalg.svd(Z, full_matrices=False)
            found = found[sizes > 1e-10 * max(sizes[0], 1e-300)]
        elif kind == "counterfactual":
            assert other is not None
            found, _ = counterfactual_directions(Z, other, weights)
        else:
            with_groups = {"attribute": site.codes, "y": classes.codes}
            found = INLP(self.n_directions, balance="group").fit(Z, **with_groups).components_
        if not len(found):
            source = "differences to counterfactual" if kind == "counterfactual" else "columns"
            raise ValueError(f"X must have {source} that are not constant, got none in the half that is fitted on")
        return found[: self.n_directions]


def _scored(
    what: str, Z: np.ndarray, other: np.ndarray | None, classes: Labels, site: Labels, names: list[str]
) -> Result:
    """Return the scores of the columns of Z (n, k), whose counterfactual rows are `other` (n, k)."""
    weights = np.ones(len(Z))
    arrays = {
        "attribute_auc": auc(Z, site, weights),
        "class_auc": auc(Z, classes, weights),
        "attribute_auc_given_class": auc_given(Z, site, classes, weights),
        "class_auc_given_attribute": auc_given(Z, classes, site, weights),
        "attribute_information": information_given(Z, site, classes),
    }
    if other is not None:
        arrays["counterfactual_effect"] = counterfactual_effect(Z, other, site, balanced_weights(classes, site))
    return Result(f"shift.spurious_features/{what}", arrays=arrays, rows=[str(name) for name in names])


def _costs(Z: np.ndarray, half: np.ndarray, classes: Labels, site: Labels) -> dict[str, float]:
    """Return the numbers of `scalars_`: heads are fitted on rows Z (n, d) in `half` (n,), and judged on the others."""
    balanced = balanced_weights(classes.only(half), site.only(half))
    held = classes.codes[~half], site.codes[~half]

    def measured(target: Labels, weights: np.ndarray) -> dict[str, float]:
        predicted = fit_head(Z[half], target.codes[half], weights, HEAD_C).predict(Z[~half])
        right = predicted == target.codes[~half]
        return dict(group_metrics(np.ones(len(right)), right, group_codes(classes, site)[~half]).scalars)

    plain, fair = measured(classes, np.ones(half.sum())), measured(classes, balanced)
    return {
        "association": _cramers_v(*held),
        "attribute_probe": measured(site, balanced)["mean_group_accuracy"],
        "class_probe": fair["mean_group_accuracy"],
        "plain_worst_group": plain["worst_group_accuracy"],
        "reweighted_worst_group": fair["worst_group_accuracy"],
    }


def _cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    """Return Cramér's V of two vectors of codes (n,), between 0 and 1."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    freedom = min(table.shape) - 1
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / (table.sum() * max(freedom, 1))))
