"""The directions in which a sample varies: encoders are fitted there, min(n_samples, n_features) wide at most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Span:
    """Centred samples as X = coordinates @ loadings, with coordinates that are white: T'T/n = I."""

    coordinates: np.ndarray
    singular_values: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> Span:
        """Return the span of centred samples X (n_samples, n_features)."""
        U, s, V = np.linalg.svd(X / np.sqrt(len(X)), full_matrices=False)
        keep = s > _RANK_TOLERANCE * max(s[0], np.finfo(float).tiny)
        return cls(U[:, keep] * np.sqrt(len(X)), s[keep], V[keep])

    @property
    def rank(self) -> int:
        """The number of directions."""
        return len(self.singular_values)

    @property
    def loadings(self) -> np.ndarray:
        """Covariance of each white coordinate with each variable, shape (rank, n_features)."""
        return self.singular_values[:, None] * self.directions

    def to_variables(self, weights: np.ndarray) -> np.ndarray:
        """Return weights on white coordinates (m, rank) as weights on variables (m, n_features)."""
        return (weights / self.singular_values) @ self.directions

    def project(self, weights: np.ndarray) -> np.ndarray:
        """Return the part of weights on variables (m, n_features) that the samples can see."""
        return (weights @ self.directions.T) @ self.directions
