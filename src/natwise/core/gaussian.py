"""Gaussians whose covariance is low rank plus diagonal: everything in O(p m^2), nothing p x p unless asked for."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_array, check_integer


class LowRankDiagCovariance:
    """The covariance matrix ``loadings.T @ loadings + diag(diagonal)`` of p variables, held in O(p m) memory.

    Parameters
    ----------
    loadings : ndarray of shape (m, p)
        Low-rank part; m = 0 is allowed.
    diagonal : ndarray of shape (p,)
        Variance that the low-rank part leaves to each variable, > 0.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or a diagonal entry is not positive.

    Notes
    -----
    Computed in float64 by the Woodbury identity and the matrix determinant lemma, both on the m x m capacitance
    matrix ``I + A D^-1 A^T``.

    Examples
    --------
    >>> covariance = LowRankDiagCovariance([[0.6, 0.8]], [0.64, 0.36])
    >>> covariance.toarray()
    array([[1.  , 0.48],
           [0.48, 1.  ]])
    >>> round(covariance.logdet(), 6)
    -0.261884
    """

    def __init__(self, loadings: np.ndarray, diagonal: np.ndarray):
        self.loadings = check_array("loadings", loadings, shape=("m", "p"), dtype=np.float64)
        self.diagonal = check_array("diagonal", diagonal, shape=(self.loadings.shape[1],), dtype=np.float64)
        if not (self.diagonal > 0).all():
            worst = int(np.argmin(self.diagonal))
            raise ValueError(f"diagonal must be > 0, got {self.diagonal[worst]} at index {worst}")

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (p, p) of the matrix."""
        return (len(self.diagonal), len(self.diagonal))

    def __repr__(self) -> str:
        rank, n_features = self.loadings.shape
        return f"LowRankDiagCovariance(n_features={n_features}, rank={rank})"

    def logdet(self) -> float:
        """Return the natural logarithm of the determinant."""
        factor = np.diag(self._capacitance_factor[0])
        return float(np.log(self.diagonal).sum() + 2 * np.log(factor).sum())

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Return ``inverse(covariance) @ b`` for `b` of shape (p,) or (p, k)."""
        b = check_array("b", b, dtype=np.float64)
        if b.ndim not in (1, 2) or len(b) != len(self.diagonal):
            raise ValueError(f"b must have shape ({len(self.diagonal)},) or (same, k), got {b.shape}")
        scaled = b / self._diagonal_like(b)
        inner = cho_solve(self._capacitance_factor, self.loadings @ scaled)
        return scaled - (self.loadings.T @ inner) / self._diagonal_like(b)

    def log_likelihood(self, X: np.ndarray) -> np.ndarray:
        """Return the log-density of each row of `X` (n, p) under the Gaussian of mean **zero**, in nats, shape (n,).

        Subtract the mean first if there is one.
        """
        X = check_array("X", X, shape=("n", len(self.diagonal)), dtype=np.float64)
        scaled = X / self.diagonal
        factor, lower = self._capacitance_factor
        inner = solve_triangular(factor, self.loadings @ scaled.T, lower=lower)
        distance = np.einsum("ij,ij->i", X, scaled) - np.einsum("ji,ji->i", inner, inner)
        return -0.5 * (distance + self.logdet() + len(self.diagonal) * math.log(2 * math.pi))

    def sample(self, n: int, random_state: RandomState = None) -> np.ndarray:
        """Return `n` draws of the Gaussian of mean zero, shape (n, p)."""
        n = check_integer("n", n, minimum=1)
        generator = Streams.of(random_state).numpy("sample")
        common = generator.standard_normal((n, len(self.loadings))) @ self.loadings
        return common + generator.standard_normal((n, len(self.diagonal))) * np.sqrt(self.diagonal)

    def toarray(self) -> np.ndarray:
        """Return the dense covariance matrix, shape (p, p)."""
        dense = self.loadings.T @ self.loadings
        dense[np.diag_indices_from(dense)] += self.diagonal
        return dense

    def precision(self) -> np.ndarray:
        """Return the dense inverse of the covariance matrix, shape (p, p)."""
        scaled = self.loadings / self.diagonal
        factor, lower = self._capacitance_factor
        inner = solve_triangular(factor, scaled, lower=lower)
        dense = -(inner.T @ inner)
        dense[np.diag_indices_from(dense)] += 1 / self.diagonal
        return dense

    @functools.cached_property
    def _capacitance_factor(self) -> tuple[np.ndarray, bool]:
        capacitance = (self.loadings / self.diagonal) @ self.loadings.T
        capacitance[np.diag_indices_from(capacitance)] += 1
        return cho_factor(capacitance, lower=True)

    def _diagonal_like(self, b: np.ndarray) -> np.ndarray:
        return self.diagonal if b.ndim == 1 else self.diagonal[:, None]
