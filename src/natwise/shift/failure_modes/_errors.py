"""Error rates of several classifiers on the same rows, and their bootstrap replicates."""

from __future__ import annotations

import numpy as np


class PairedErrors:
    """Errors of s classifiers on the same m rows.

    Rows with the same class and the same errors are interchangeable, so that drawing rows again is drawing counts of
    such cells from a multinomial distribution: exactly the bootstrap, at a cost that does not depend on m.

    Parameters
    ----------
    y : ndarray of int, shape (m,)
        Class of each row.
    wrong : ndarray, shape (s, m)
        1 where a classifier errs, 0 where it is right, -1 where it was not asked.
    balanced : bool
        Average over classes; rows are then drawn within classes.
    """

    def __init__(self, y: np.ndarray, wrong: np.ndarray, balanced: bool):
        asked = (wrong >= 0).all(axis=0)
        cells, counts = np.unique(np.stack([y, asked, *wrong.astype(np.int64)]), axis=1, return_counts=True)
        self.wrong = cells[2:].astype(np.float64)
        self.counts = counts
        # rows that were asked about everything are drawn apart, so that no replicate lacks them
        self.strata = 2 * cells[0] + cells[1] if balanced else cells[1]
        self.groups = cells[0] if balanced else np.zeros_like(cells[0])

    def rates(self) -> np.ndarray:
        """Return the error rate of each classifier, (s,)."""
        return self._rates(self.counts[None])[0]

    def replicates(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the error rates in `n` bootstrap replicates, (n, s)."""
        drawn = np.empty((n, len(self.counts)))
        for stratum in np.unique(self.strata):
            cells = self.strata == stratum
            total = self.counts[cells].sum()
            drawn[:, cells] = rng.multinomial(total, self.counts[cells] / total, size=n)
        return self._rates(drawn)

    def _rates(self, counts: np.ndarray) -> np.ndarray:
        """Return the error rates (n, s) for counts of the cells (n, n_cells)."""
        group = (self.groups == np.unique(self.groups)[:, None]).astype(np.float64)
        asked = (self.wrong >= 0).astype(np.float64)
        errors = np.einsum("nc,gc,sc->nsg", counts, group, asked * self.wrong)
        totals = np.einsum("nc,gc,sc->nsg", counts, group, asked)
        known = totals > 0
        return (errors / np.where(known, totals, 1.0)).sum(axis=2) / known.sum(axis=2)
