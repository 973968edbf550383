"""How much the precision matrices of consecutive periods differ, in O(p m^2) and without cancellation."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular
from scipy.sparse.linalg import LinearOperator, eigsh

DENSE_UP_TO = 64


class PrecisionDifference:
    """The difference of the inverses of two correlation matrices A^T A + diag(1 - colsum A^2).

    Parameters
    ----------
    before, after : tuple of ndarray of shape (m, p) and ndarray of shape (p,)
        Loadings A and diagonal of the two matrices.

    Notes
    -----
    Each inverse is diag(e) - V^T V (Woodbury). With the QR factorisation of both V side by side the difference is
    diag(d) + Q C Q^T with orthonormal Q (p, 2m): its norms are sums of squares, so that equal matrices differ by
    exactly what rounding makes of 0, where the closed formula in traces would leave the root of it.
    """

    def __init__(self, before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]):
        (diagonal_before, V_before), (diagonal_after, V_after) = _inverse(*before), _inverse(*after)
        self._diagonal = diagonal_after - diagonal_before
        self._Q, R = np.linalg.qr(np.concatenate([V_before, V_after]).T)
        signs = np.repeat([1.0, -1.0], [len(V_before), len(V_after)])
        self._C = (R * signs) @ R.T

    def row_norms(self) -> np.ndarray:
        """Return the Euclidean norm of each row, (p,): which variables moved."""
        QC = self._Q @ self._C
        low_rank_diagonal = np.einsum("ij,ij->i", QC, self._Q)
        off_diagonal = np.maximum(np.einsum("ij,ij->i", QC, QC) - low_rank_diagonal**2, 0)
        return np.sqrt((self._diagonal + low_rank_diagonal) ** 2 + off_diagonal)

    def frobenius(self) -> float:
        """Return the root of the sum of squares."""
        return float(np.linalg.norm(self.row_norms()))

    def spectral(self) -> float:
        """Return the largest absolute eigenvalue, by Lanczos' method when the matrix is large."""
        n_features = len(self._diagonal)
        if n_features <= DENSE_UP_TO:
            return float(np.abs(np.linalg.eigvalsh(np.diag(self._diagonal) + self._Q @ self._C @ self._Q.T)).max())
        if not self.row_norms().any():
            return 0.0
        operator = LinearOperator((n_features, n_features), matvec=self._times, dtype=np.float64)
        start = np.ones(n_features)
        return float(abs(eigsh(operator, k=1, which="LM", v0=start, return_eigenvectors=False)[0]))

    def _times(self, x: np.ndarray) -> np.ndarray:
        """Return the difference times a vector (p,)."""
        x = x.ravel()
        return self._diagonal * x + self._Q @ (self._C @ (self._Q.T @ x))


def _inverse(loadings: np.ndarray, diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return e (p,) and V (m, p): the inverse is diag(e) - V^T V."""
    scaled = loadings / diagonal
    root = np.linalg.cholesky(np.eye(len(loadings)) + scaled @ loadings.T)
    return 1 / diagonal, solve_triangular(root, scaled, lower=True)
