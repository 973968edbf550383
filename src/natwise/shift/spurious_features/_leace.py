"""`LEACE`: the smallest linear change of an embedding after which no linear model can see the attribute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from natwise.core.validation import check_flag, check_option
from natwise.shift.spurious_features._inputs import check_attribute, check_rows, row_weights

METHODS = ("leace", "orthogonal")
TOLERANCE = 1e-8
_BLOCK = 8192  # rows whose moments are summed at once


class AffineEraser(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """What the erasers that keep the number of columns share: x -> location + P (x - location)."""

    location_: np.ndarray
    projection_: np.ndarray

    def transform(self, X: Any) -> np.ndarray:
        """Return the rows of `X` (n_samples, n_features) without what was erased, float64 of the same shape."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        return self.location_ + (X - self.location_) @ self.projection_.T


class LEACE(AffineEraser):
    """Least-squares concept erasure in closed form: equal class means of the attribute at the least change.

    After it, on the (weighted) rows of `fit`, all values of the attribute have the same mean, so that no linear
    classifier of the attribute beats a constant one.

    Parameters
    ----------
    balance : {None, "group"}, default None
        ``"group"`` gives every group of class and attribute the same weight, and needs `y`. Without it, an attribute
        that goes with the class in the training data takes the class with it: see the page.
    shrinkage : bool, default False
        The original code's default, for few rows: shrink the covariance linearly toward a multiple of the identity
        (Bodnar et al. 2014), and when the eraser would raise the total variance, mix it with the orthogonal projection
        until it does not. Needed when there are no more rows than columns.
    method : {"leace", "orthogonal"}, default "leace"
        ``"orthogonal"`` projects along the differences of means: a symmetric projection, but a larger change.

    Attributes
    ----------
    projection_ : ndarray of shape (n_features, n_features)
        P of ``x -> location_ + P (x - location_)``.
    location_ : ndarray of shape (n_features,)
        The (weighted) mean, which stays.
    rank_ : int
        Number of directions erased: at most one less than the values of the attribute.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    With W the pseudo-inverse square root of the covariance, and U the left singular vectors of W Cov(x, one-hot
    attribute) whose singular value is not zero, P = I - W^+ U U^T W (Belrose et al. 2023). The original code also
    leaves singular values up to 0.01 alone, and with them small differences of the means; here only rounding is left.

    References
    ----------
    Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff, Biderman. LEACE: Perfect linear concept erasure in closed
    form. NeurIPS 2023.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> site = rng.integers(2, size=100)
    >>> X = rng.standard_normal((100, 3)) + 2 * site[:, None]
    >>> erased = LEACE().fit_transform(X, attribute=site)
    >>> bool(np.allclose(erased[site == 0].mean(0), erased[site == 1].mean(0)))
    True
    """

    def __init__(self, *, balance: str | None = None, shrinkage: bool = False, method: str = "leace"):
        self.balance = balance
        self.shrinkage = shrinkage
        self.method = method

    def fit(self, X: Any, y: Any = None, *, attribute: Any) -> LEACE:
        """Find the projection.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Embedding.
        y : array-like of shape (n_samples,), optional
            Class labels; needed by ``balance="group"``.
        attribute : array-like of shape (n_samples,)
            What to erase: integers, booleans or text.

        Returns
        -------
        LEACE
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described, the attribute is constant, class and attribute determine one another,
            or there are no more rows than columns and no shrinkage.

        Warns
        -----
        UserWarning
            If a group to be balanced has no rows.
        """
        check_option("method", self.method, METHODS)
        check_flag("shrinkage", self.shrinkage)
        X = check_rows(self, X, reset=True)
        if len(X) <= X.shape[1] and not self.shrinkage:
            raise ValueError(f"X must have more rows than columns without shrinkage=True, got shape {X.shape}")
        concept = check_attribute(attribute, len(X))
        moments = Moments.of(X, concept.one_hot, row_weights(y, concept, self.balance))
        covariance = moments.shrunk() if self.shrinkage else moments.xx
        if self.method == "orthogonal":
            W, inverse, size = np.eye(X.shape[1]), np.eye(X.shape[1]), np.sqrt(np.trace(covariance))
        else:
            (W, inverse), size = _square_roots(covariance), 1.0
        left, singular, _ = np.linalg.svd(W @ moments.xz, full_matrices=False)
        U = left[:, singular > TOLERANCE * size]
        self.projection_ = np.eye(X.shape[1]) - (inverse @ U) @ (U.T @ W)
        if self.shrinkage and self.method == "leace":
            self.projection_ = _without_more_variance(self.projection_, U, covariance)
        self.location_ = moments.mean
        self.rank_ = U.shape[1]
        return self


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted moments of an embedding x and indicators z: mean, covariances (unbiased), effective number of rows."""

    mean: np.ndarray
    xx: np.ndarray
    xz: np.ndarray
    n_effective: float

    @classmethod
    def of(cls, X: np.ndarray, Z: np.ndarray, weights: np.ndarray) -> Moments:
        """Compute them in float64, in blocks of rows, for weights (n,) of any scale."""
        share = weights / weights.sum()
        mean, z_mean = share @ X, share @ Z
        root = np.sqrt(share)[:, None]
        xx, xz = np.zeros((X.shape[1],) * 2), np.zeros((X.shape[1], Z.shape[1]))
        for start in range(0, len(X), _BLOCK):
            rows = slice(start, start + _BLOCK)
            centred = root[rows] * (X[rows] - mean)
            xx += centred.T @ centred
            xz += centred.T @ (root[rows] * (Z[rows] - z_mean))
        n_effective = 1 / (share @ share)
        unbiased = 1 / (1 - 1 / n_effective)
        return cls(mean, unbiased * xx, unbiased * xz, n_effective)

    def shrunk(self) -> np.ndarray:
        """Return the covariance shrunk toward its mean variance times the identity, by the optimal linear rule."""
        p = len(self.xx)
        trace, squares = np.trace(self.xx), (self.xx**2).sum()
        spread = squares - trace**2 / p
        kept = 1 - trace**2 / (self.n_effective * spread) if spread > 0 else 0.0
        return kept * self.xx + (1 - kept) * trace / p * np.eye(p)


def _square_roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pseudo-inverse square root of a covariance (d, d), and the square root."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    vectors, root = vectors[:, kept], np.sqrt(values[kept])
    return (vectors / root) @ vectors.T, (vectors * root) @ vectors.T


def _without_more_variance(P: np.ndarray, U: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return P (d, d), or its mixture with the projection off U (d, rank) that keeps the trace of the covariance."""
    Q = np.eye(len(P)) - U @ U.T
    before, pp = np.trace(covariance), np.trace(P @ covariance @ P.T)
    if pp <= before:
        return P
    pq, qq = np.trace(P @ covariance @ Q.T), np.trace(Q @ covariance @ Q.T)
    a, b, c = pp - 2 * pq + qq, 2 * (pq - qq), qq - before  # trace of the mixture minus the trace before
    share = min(1.0, (-b + np.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a))
    return share * P + (1 - share) * Q
