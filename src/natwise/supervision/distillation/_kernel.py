"""A kernel that is checked and factorised once, and its quadratic form with the inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, eigh
from scipy.linalg.lapack import dpocon

from natwise.core.validation import check_array, check_real


class FactoredKernel:
    """A kernel matrix factorised once, for the complexity of any number of targets.

    A kernel of full rank is solved by Cholesky. One that is singular to working precision goes through its
    eigenvalues: targets inside its range get the norm of their least interpolant, all others infinity. Jitter never
    turns infinity into a number.

    Parameters
    ----------
    kernel : array (n * k, n * k)
        Symmetric and positive semi-definite; sample-major for k outputs: row ``i * k + o`` is output o of sample i.
        The rounding of its dtype decides which eigenvalues count as zero: pass float64 kernels.
    jitter : float
        Added to the diagonal, as a fraction of the mean eigenvalue Tr(K) / (n k).

    Attributes
    ----------
    size : int
        n * k.
    trace : float
        Tr(K), without jitter.
    jitter : float
        What was added to the diagonal.
    rank : int
        Number of eigenvalues above rounding, ``size * eps * largest``.

    Raises
    ------
    TypeError, ValueError
        If the kernel is not numeric, finite, square, symmetric, positive semi-definite and non-zero, or the jitter is
        negative.
    """

    def __init__(self, kernel: Any, jitter: float = 0.0):
        jitter = check_real("jitter", jitter, minimum=0.0)
        kernel = check_kernel("kernel", kernel)
        self.epsilon = float(np.finfo(kernel.dtype).eps)
        matrix = kernel.astype(np.float64)
        self.size, self.trace = len(matrix), float(np.trace(matrix))
        self.largest_diagonal = float(matrix.diagonal().max())
        if self.trace <= 0:
            raise ValueError(f"kernel must be positive semi-definite and non-zero, got a trace of {self.trace:.3g}")
        self.jitter = jitter * self.trace / self.size
        self.rank = self.size
        self._factor = self._cholesky(matrix)
        if self._factor is None:
            self._spectrum(matrix)
        elif self.jitter:
            self._factor = cholesky(matrix + self.jitter * np.eye(self.size), lower=True)

    def quadratic(self, values: np.ndarray) -> np.ndarray:
        """Return ``v^T (K + jitter)^-1 v`` for every row v of `values` (m, size): (m,), with infinities."""
        if self._factor is not None:
            return np.einsum("ms,sm->m", values, cho_solve((self._factor, True), values.T))
        coordinates = values @ self._vectors
        outside = np.linalg.norm(values - coordinates @ self._vectors.T, axis=1)
        finite = (coordinates**2 / (self._values + self.jitter)).sum(axis=1)
        return np.where(outside > np.sqrt(self.epsilon) * np.linalg.norm(values, axis=1), np.inf, finite)

    def _cholesky(self, matrix: np.ndarray) -> np.ndarray | None:
        """Return the Cholesky factor, or None when rounding decides about the rank."""
        try:
            factor = cholesky(matrix, lower=True)
        except LinAlgError:
            return None
        reciprocal_condition, _ = dpocon(factor, np.abs(matrix).sum(axis=0).max(), uplo="L")
        return factor if reciprocal_condition > self.size * self.epsilon else None

    def _spectrum(self, matrix: np.ndarray) -> None:
        values, vectors = eigh(matrix)
        zero = self.size * self.epsilon * values[-1]
        if values[0] < -zero:
            raise ValueError(f"kernel must be positive semi-definite, got an eigenvalue of {values[0]:.3g}")
        kept = values > zero
        self.rank = int(kept.sum())
        self._values, self._vectors = values[kept], vectors[:, kept]


def check_kernel(name: str, value: Any) -> np.ndarray:
    """Return `value` as a float array when it is a finite, symmetric, non-empty matrix."""
    kernel = check_array(name, value)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not kernel.size:
        raise ValueError(f"{name} must be a square matrix, got shape {kernel.shape}")
    asymmetry = float(np.abs(kernel - kernel.T).max())
    if asymmetry > 100 * np.finfo(kernel.dtype).eps * len(kernel) * float(np.abs(kernel).max()):
        raise ValueError(f"{name} must be symmetric, got entries that differ by {asymmetry:.3g} from their mirror")
    return kernel
