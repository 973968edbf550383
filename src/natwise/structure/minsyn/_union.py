"""Union information of a table: the least I_q(X;Y) over all q with the same pairs (x, y_j).

An interior-point method. With the pairs fixed, H_q(X) is fixed, and it remains to minimise the convex
f(q) = sum q(x,y) log q(x|y). The barrier -sum log q, weighted 1/t, keeps q positive; the minimiser of the sum is within
n_cells/t nats of the optimum, so the result carries a certificate. Newton's matrix is a diagonal plus rank one
for each y, hence inverted in closed form; only the system over the constraints, sum_j |X||Y_j| wide, is dense.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix, diags_array
from scipy.special import xlogy
from sklearn.exceptions import ConvergenceWarning

MAX_CELLS = 200_000
GAP = 1e-7
NEGLIGIBLE = 1e-8  # smaller probabilities change the result less than GAP but ruin the condition number
_TIGHTEN = 10.0
_MAX_NEWTON_STEPS = 100
_RIDGE = 1e-14
_REFINEMENTS = 3
_DECREMENT = 0.1  # squared; it adds less than sqrt(n_cells)/t nats to the gap


def least_information(pairs: list[np.ndarray]) -> float:
    """Return min I_q(X;Y) over the tables q with the given p(x, y_j), in nats, at most `GAP` too much.

    Parameters
    ----------
    pairs : list of m ndarrays of shape (n_x, n_yj)
        Probabilities with the same margin p(x), every p(x) positive.
    """
    target = pairs[0].sum(1)
    problem = _Problem(pairs)
    q, sharpness = problem.start, float(len(problem.start))
    while len(q) / sharpness > GAP:
        centred = problem.centre(problem.restore_pairs(q), sharpness * _TIGHTEN)
        if centred is None:
            gap = len(q) / sharpness
            if gap > 1e-5:
                message = f"the union information is certain to {gap:.1g} nats only"
                warnings.warn(message, ConvergenceWarning, stacklevel=4)
            break
        q, sharpness = centred, sharpness * _TIGHTEN
    return problem.negative_conditional_entropy(q) - float(xlogy(target, target).sum())


class _Problem:
    """The cells that may be positive, the constraints on them, and Newton's step."""

    def __init__(self, pairs: list[np.ndarray]):
        table = _independent_given_target(pairs)
        cells = np.nonzero(table)
        self.start = table[cells]
        flat = np.ravel_multi_index(cells[1:], table.shape[1:])
        self.column = np.unique(flat, return_inverse=True)[1]
        self.members = csr_matrix((np.ones(len(self.start)), (np.arange(len(self.start)), self.column)))
        self.constraints, self.values = _constraints(pairs, cells)
        self.pairs = [
            (np.ravel_multi_index((cells[0], cells[1 + j]), pair.shape), pair.ravel()) for j, pair in enumerate(pairs)
        ]

    def column_sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over x of each cell's column y, once per cell, (n_cells,)."""
        return np.bincount(self.column, values)[self.column]

    def negative_conditional_entropy(self, q: np.ndarray) -> float:
        """Return -H_q(X|Y)."""
        return float(np.sum(q * np.log(q / self.column_sums(q))))

    def centre(self, q: np.ndarray, t: float) -> np.ndarray | None:
        """Return the minimiser of t f(q) - sum log q from `q` on, or None when rounding stops Newton's method."""
        for _ in range(_MAX_NEWTON_STEPS):
            try:
                step, decrement = self._newton(q, t)
            except np.linalg.LinAlgError:
                return None
            if decrement <= _DECREMENT:
                return q
            if (length := self._step_length(q, t, step, decrement)) == 0:
                return None
            q = q + length * step
        return None

    def restore_pairs(self, q: np.ndarray) -> np.ndarray:
        """Undo rounding errors in the constraints by proportional fitting, which keeps q (n_cells,) positive."""
        for index, wanted in self.pairs * 5:
            q = q * (wanted[index] / np.bincount(index, q, len(wanted))[index])
        return q

    def _newton(self, q: np.ndarray, t: float) -> tuple[np.ndarray, float]:
        """Return Newton's step (n_cells,) under the constraints and the squared decrement."""
        diagonal = q**2 / (t * q + 1)
        rank_one = t / np.bincount(self.column, q / (t * q + 1))

        def inverse_hessian(v: np.ndarray) -> np.ndarray:
            return diagonal * (v + (rank_one * np.bincount(self.column, diagonal * v))[self.column])

        A = self.constraints
        gradient = t * np.log(q / self.column_sums(q)) - 1 / q
        weighted = A @ diags_array(diagonal)
        by_column = weighted @ self.members
        schur = (weighted @ A.T + by_column @ diags_array(rank_one) @ by_column.T).toarray()
        scale = 1 / np.sqrt(np.diag(schur))
        factor = cho_factor(schur * np.outer(scale, scale) + _RIDGE * np.eye(len(scale)))
        multipliers = np.zeros(len(scale))
        for _ in range(_REFINEMENTS):  # the system is ill-conditioned near the boundary
            step = -inverse_hessian(gradient + A.T @ multipliers)
            missed = A @ (q + step) - self.values
            multipliers = multipliers + scale * cho_solve(factor, scale * missed)
        step = -inverse_hessian(gradient + A.T @ multipliers)
        return step, float(-(gradient + A.T @ multipliers) @ step)

    def _step_length(self, q: np.ndarray, t: float, step: np.ndarray, decrement: float) -> float:
        """Return 1 near the minimiser, where rounding hides the decrease; else backtrack until it is enough."""
        if decrement < 0.5:
            return 1.0
        shrink = float(np.max(-step / q))
        length = 1.0 if shrink < 1 else 0.95 / shrink
        before = self._barrier(q, t)
        while self._barrier(q + length * step, t) > before - 0.1 * length * decrement:
            length /= 2
            if length < 1e-4:
                return 0.0
        return length

    def _barrier(self, q: np.ndarray, t: float) -> float:
        """Return t f(q) - sum log q of cells (n_cells,)."""
        return t * self.negative_conditional_entropy(q) - float(np.sum(np.log(q)))


def _independent_given_target(pairs: list[np.ndarray]) -> np.ndarray:
    """Return p(x) prod_j p(y_j|x): it keeps every pair, and is positive wherever any such q can be."""
    table = pairs[0]
    for pair in pairs[1:]:
        given_x = pair / pair.sum(1, keepdims=True)
        table = table[..., None] * given_x.reshape(len(pair), *[1] * (table.ndim - 1), -1)
    return table


def _constraints(pairs: list[np.ndarray], cells: tuple[np.ndarray, ...]) -> tuple[csr_matrix, np.ndarray]:
    """Return A and b of A q = b: every positive p(x, y_j), without the rows that follow from the others."""
    rows, columns, values = [], [], []
    n_rows = 0
    for j, pair in enumerate(pairs):
        keep = pair > 0
        if j:  # p(x) is already kept by the first source
            keep[np.arange(len(pair)), keep.argmax(1)] = False
        number = np.where(keep, n_rows + np.cumsum(keep).reshape(keep.shape) - 1, -1)
        n_rows += int(keep.sum())
        row = number[cells[0], cells[1 + j]]
        rows.append(row[row >= 0])
        columns.append(np.nonzero(row >= 0)[0])
        values.append(pair[keep])
    row, column = np.concatenate(rows), np.concatenate(columns)
    A = csr_matrix((np.ones(len(row)), (row, column)), shape=(n_rows, len(cells[0])))
    return A, np.concatenate(values)
