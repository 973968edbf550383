"""What training would have changed without some rows: for all groups of rows from one eigendecomposition.

The converged or finite-time solution without group I needs ``phi(A_{-I})``. A rational approximation of phi turns
it into resolvents, and the resolvent of a principal submatrix follows from that of the whole matrix by a block
identity, so that the *difference* of the two solutions is computed directly (subtracting two approximations would
lose a factor of about n in accuracy).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import eigsh
from sklearn.exceptions import ConvergenceWarning

from natwise.core.linearized._dynamics import Dynamics
from natwise.core.linearized._rational import RationalFunction, approximate

_LARGE = 2000
_SURE = 1e-9  # 1 - leverage below this: the group alone determines a direction


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a kernel, negative rounding errors set to zero.

    Parameters
    ----------
    values : ndarray (n_rows,)
        Ascending, >= 0.
    vectors : ndarray (n_rows, n_rows)
        One eigenvector per column.
    rcond : float
        Eigenvalues below ``rcond * values.max()`` count as zero where a pseudo-inverse is needed.
    """

    values: np.ndarray
    vectors: np.ndarray
    rcond: float

    @classmethod
    def of(cls, kernel: np.ndarray) -> Spectrum:
        """Decompose a symmetric positive semi-definite kernel in float64.

        Raises `ValueError` when it is not symmetric or clearly indefinite; the tolerance follows the dtype.
        """
        single = kernel.dtype == np.float32
        tolerance = 1e-4 if single else 1e-6
        exact = kernel.astype(np.float64)
        scale = float(np.abs(exact).max(initial=0.0))
        asymmetry = float(np.abs(exact - exact.T).max(initial=0.0))
        if asymmetry > tolerance * scale:
            raise ValueError(f"ntk must be symmetric, got |ntk - ntk.T| up to {asymmetry:.3g}")
        values, vectors = _eigh((exact + exact.T) / 2)
        if values[0] < -tolerance * max(values[-1], scale):
            raise ValueError(
                f"ntk must be positive semi-definite, got eigenvalues from {values[0]:.3g} to {values[-1]:.3g}"
            )
        rcond = 1e-6 if single else 10 * len(values) * float(np.finfo(np.float64).eps)
        return cls(np.maximum(values, 0.0), vectors, rcond)

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.values[-1])

    @property
    def rank(self) -> int:
        """Number of eigenvalues that are not numerically zero."""
        return int((self.values > self.rcond * self.largest).sum())

    def solution(self, dynamics: Dynamics, residual: np.ndarray) -> np.ndarray:
        """Return alpha_t = phi_t(A) r in the eigenbasis; the weights are w_0 - J^T (vectors @ alpha_t)."""
        return self._phi(dynamics)[:, None] * (self.vectors.T @ residual)

    def _phi(self, dynamics: Dynamics) -> np.ndarray:
        values = self.values
        if is_pseudo_inverse(dynamics):
            values = np.where(values > self.rcond * self.largest, values, 0.0)
        return dynamics.phi(values + dynamics.weight_decay)


def is_pseudo_inverse(dynamics: Dynamics) -> bool:
    """Say whether the solution is that of plain least squares: converged and without weight decay."""
    return dynamics.t is None and dynamics.weight_decay == 0.0


def largest_without(kernel: np.ndarray, rows: np.ndarray) -> float:
    """Return the largest eigenvalue of the kernel (n_rows, n_rows) without `rows`."""
    kept = np.setdiff1d(np.arange(len(kernel)), rows)
    remaining = kernel[np.ix_(kept, kept)]
    if len(kept) < 3:
        return float(np.linalg.eigvalsh(remaining)[-1])
    start = remaining.sum(axis=1)  # a fixed start vector keeps the global generators untouched
    return float(eigsh(remaining, k=1, v0=start, return_eigenvectors=False)[0])


class LeaveOut:
    """Change of the dual solution when a group of rows is left out, for groups of one size.

    Parameters
    ----------
    spectrum : Spectrum
        Of the kernel of all rows.
    residual : ndarray (n_rows, n_channels)
        f_0 - Y; several columns are several outputs that share the kernel.
    before, after : Dynamics
        Of the training on all rows, and of the training without a group.
    largest : float, optional
        Bound of the kernel's eigenvalues after the removal; default: those of the whole kernel (interlacing).
    """

    def __init__(
        self,
        spectrum: Spectrum,
        residual: np.ndarray,
        before: Dynamics,
        after: Dynamics,
        largest: float | None = None,
    ):
        self._spectrum = spectrum
        self._residual = residual
        self._least_squares = is_pseudo_inverse(after)
        if self._least_squares:
            return
        curvature = spectrum.values + after.weight_decay
        high = (spectrum.largest if largest is None else largest) + after.weight_decay
        rational = _rational(after, curvature[0], high)
        self._constant = rational.constant
        self._resolvents = 1.0 / (curvature[:, None] - rational.poles)  # (n_rows, n_poles), in the eigenbasis
        self._weighted = self._resolvents * rational.weights
        rotated = spectrum.vectors.T @ residual
        images = self._resolvents.T[:, :, None] * rotated  # (n_poles, n_rows, n_channels)
        self._solved = np.array([_times(spectrum.vectors, image) for image in images]).reshape(images.shape)
        inside = np.where(curvature <= high, after.phi(np.minimum(curvature, high)), rational(curvature))
        shift = before.phi(spectrum.values + before.weight_decay) - inside
        self._shift = np.zeros_like(rotated) if before == after else shift[:, None] * rotated

    def changes(self, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Return alpha - alpha^(-I) for each group I, in the eigenbasis: (n_channels, n_rows, n_groups).

        The weights change by ``w_{-I} - w = J^T (vectors @ changes)``; rows of I count as zero in alpha^(-I).
        """
        n_rows, n_channels = self._residual.shape
        one = self._least_squares_change if self._least_squares else self._resolvent_change
        changes = np.empty((n_channels, n_rows, len(groups)))
        for position, rows in enumerate(groups):
            changes[:, :, position] = one(rows).T
        return changes

    def _resolvent_change(self, rows: np.ndarray) -> np.ndarray:
        """Sum over the poles of G[:, I] G[I, I]^-1 (G r)_I, kept in the eigenbasis: (n_rows, n_channels)."""
        vectors = self._spectrum.vectors[rows]
        if len(rows) == 1:
            blocks = ((vectors[0] ** 2) @ self._resolvents)[:, None, None]
            coefficients = self._solved[:, rows, :] / blocks
        else:
            blocks = (self._resolvents.T[:, None, :] * vectors) @ vectors.T
            coefficients = np.linalg.solve(blocks, self._solved[:, rows, :])
        change = self._shift.copy()
        for member, vector in enumerate(vectors):
            spread = _real_product(self._weighted, coefficients[:, member, :])
            change += vector[:, None] * (spread + self._constant * self._residual[rows[member]])
        return change

    def _least_squares_change(self, rows: np.ndarray) -> np.ndarray:
        """Minimum-norm least squares without the group, by leverages; exact for kernels of any rank.

        Directions that only the group determines (leverage 1) fall back to zero, as the pseudo-inverse says.
        """
        spectrum = self._spectrum
        kept = slice(len(spectrum.values) - spectrum.rank, None)
        root = np.sqrt(spectrum.values[kept])[:, None]
        basis = spectrum.vectors[:, kept]
        weights = -(basis.T @ self._residual) / root
        outer = basis[rows].T / root  # S^-1/2 U_I^T
        leverage, directions = np.linalg.eigh(basis[rows] @ basis[rows].T)
        alone = leverage > 1.0 - _SURE
        unexplained = directions.T @ (self._residual[rows] + basis[rows] @ (root * weights))
        shared = (directions / np.where(alone, np.inf, 1.0 - leverage)) @ unexplained
        change = outer @ shared
        if alone.any():
            lost = np.linalg.qr(outer @ directions[:, alone])[0]
            change -= lost @ (lost.T @ (weights + change))
        full = np.zeros_like(self._residual)
        full[kept] = change / root
        return full


def _eigh(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decompose a symmetric matrix in float64; a large one on the GPU, if there is one."""
    if len(kernel) >= _LARGE and torch.cuda.is_available():
        values, vectors = torch.linalg.eigh(torch.from_numpy(kernel).cuda())
        return values.cpu().numpy(), vectors.cpu().numpy()
    return scipy.linalg.eigh(kernel, driver="evd", overwrite_a=True, check_finite=False)


def _rational(dynamics: Dynamics, low: float, high: float) -> RationalFunction:
    if dynamics.t is None:
        return RationalFunction(0.0, np.zeros(1, complex), np.ones(1, complex))
    if dynamics.t == 0 or dynamics.step_size == 0 or high <= 0:
        return RationalFunction(float(dynamics.phi(np.zeros(1))[0]), np.zeros(0, complex), np.zeros(0, complex))
    rational, error = approximate(dynamics.phi, min(low, 0.999 * high), high)
    if error > 1e-8:
        warnings.warn(
            f"the training dynamics are approximated to a relative error of {error:.1e} only",
            ConvergenceWarning,
            stacklevel=5,
        )
    return rational


def _times(matrix: np.ndarray, complex_columns: np.ndarray) -> np.ndarray:
    """Multiply a real matrix with complex columns without making a complex copy of the matrix."""
    return matrix @ complex_columns.real + 1j * (matrix @ complex_columns.imag)


def _real_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.real @ right.real - left.imag @ right.imag
