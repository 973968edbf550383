"""A wide network on the rows of the table, linearised once: any labels of its rows can be scored without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.audit.context import Deadline
from natwise.core.random import Streams

MAX_ROWS = 2000
MIN_ROWS = 50
PROBE_ROWS = 300
N_VALIDATION = 300


@dataclass(frozen=True, eq=False)
class Network:
    """Rows of the table (ascending), and the fitted `natwise.samples.SampleInformation` of their given labels."""

    rows: np.ndarray
    information: Any
    n_classes: int

    @classmethod
    def linearise(
        cls, X: np.ndarray, labels: np.ndarray, n_classes: int, streams: Streams, deadline: Deadline, *, runs: int
    ) -> Network:
        """Score the given labels on as many rows, chosen at random, as `runs` scorings before the deadline allow.

        Parameters
        ----------
        X : ndarray, shape (n, d)
            Features, NaN where missing: it counts as 0, the middle of a column.
        labels : ndarray of int, shape (n,)
        n_classes : int
        streams : Streams
            Chooses rows and draws the network.
        deadline : Deadline
        runs : int
            Scorings that will follow; each costs about as many operations as the cube of the number of rows.
        """
        from natwise.audit.models import timed

        order = streams.numpy("rows").permutation(len(X))
        _, seconds = timed(lambda: cls._fit(X, labels, n_classes, order[:PROBE_ROWS], streams))
        allowed = deadline.left() / max(runs, 1)
        probed = min(PROBE_ROWS, len(X))
        affordable = probed * (allowed / max(seconds, 1e-3)) ** (1 / 3)
        return cls._fit(X, labels, n_classes, order[: int(np.clip(affordable, MIN_ROWS, MAX_ROWS))], streams)

    @classmethod
    def _fit(cls, X: np.ndarray, labels: np.ndarray, n_classes: int, rows: np.ndarray, streams: Streams) -> Network:
        from natwise.samples import SampleInformation

        rows = np.sort(rows)
        validation = streams.numpy("validation").permutation(len(X))[:N_VALIDATION]
        inputs = np.nan_to_num(X[rows]).astype(np.float64)
        information = SampleInformation(outputs="independent", random_state=streams.seed("network"))
        information.fit(inputs, np.eye(n_classes)[labels[rows]], np.nan_to_num(X[validation]).astype(np.float64))
        return cls(rows, information, n_classes)

    def functional_information(self, labels: np.ndarray) -> np.ndarray:
        """Return the functional information (nats) of the network's rows when they carry other `labels`."""
        from natwise.samples import leave_one_out

        fitted = self.information
        n_val = len(fitted.ntk_val_)
        result = leave_one_out(
            fitted.ntk_,
            fitted.ntk_val_,
            fitted.init_predictions_,
            np.zeros((n_val, self.n_classes)),
            np.eye(self.n_classes)[labels],
            t=fitted.t,
            lr=fitted.lr_,
        )
        return result.arrays["functional_information"]
