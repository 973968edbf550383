"""A wide network on the rows of the table, linearised once: any labels of its rows can be scored without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.audit.context import Deadline, one_thread
from natwise.audit.models import timed
from natwise.core.random import Streams
from natwise.datasets.tables import Table

MAX_ROWS = 2000
MIN_ROWS = 50
PROBE_ROWS = 300
N_VALIDATION = 200
MIN_SECONDS = 2.0
LARGEST = 5.0  # values beyond are cut: one outlying cell must not rule the kernel
WIDTH = 512
SCORINGS = 9  # by label_issues and sample_information
SHARE_OF_TIME = 0.4


@dataclass(frozen=True, eq=False)
class Network:
    """Rows of the table (ascending), and the fitted `natwise.samples.SampleInformation` of their given labels.

    `n_classes` is 0 for numbers, which the network sees in units of `scale` from `centre`.
    """

    rows: np.ndarray
    information: Any
    n_classes: int
    centre: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, X: np.ndarray, labels: np.ndarray, n_classes: int, rows: np.ndarray, streams: Streams) -> Network:
        """Linearise a fresh network on some rows of `X` (n, d), where missing values count as 0, and score them."""
        from natwise.samples import SampleInformation

        rows = np.sort(rows)
        validation = streams.numpy("validation").permutation(len(X))[:N_VALIDATION]
        inputs, inputs_val = (np.clip(np.nan_to_num(X[chosen]), -LARGEST, LARGEST) for chosen in (rows, validation))
        module = _wide_network(X.shape[1], max(n_classes, 1), streams)
        information = SampleInformation(module, outputs="independent")
        network = cls(rows, information, n_classes)
        if not n_classes:
            low, centre, high = np.percentile(labels, [25, 50, 75])
            network = cls(rows, information, 0, float(centre), float((high - low) / 1.349 or labels.std()))
        with one_thread():  # PyTorch is loaded by now; on a busy machine its threads take fifty times as long
            information.fit(inputs, network.targets(labels[rows]), inputs_val)
        return network

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Return what the network is trained to give for labels (..., n): one-hot rows, or numbers in its units."""
        if self.n_classes:
            return np.eye(self.n_classes)[labels]
        return np.clip((labels[..., None] - self.centre) / self.scale, -LARGEST, LARGEST)

    def functional_information(self, labels: np.ndarray) -> np.ndarray:
        """Return the functional information (nats) of the network's rows when they carry other `labels`."""
        from natwise.samples import leave_one_out

        fitted = self.information
        n_val = len(fitted.ntk_val_)
        result = leave_one_out(
            fitted.ntk_,
            fitted.ntk_val_,
            fitted.init_predictions_,
            np.zeros((n_val, max(self.n_classes, 1))),
            self.targets(labels),
            t=fitted.t,
            lr=fitted.lr_,
        )
        return result.arrays["functional_information"]


def linearise(table: Table, X: np.ndarray, streams: Streams, deadline: Deadline) -> Network | None:
    """Return a network on as many rows of X (n, d), chosen at random, as the time allows; None when too few.

    A few rows calibrate the cost of a scoring, which at these sizes grows about with the square of their number, and
    with the number of classes.
    """
    order = streams.numpy("rows").permutation(len(table))
    k, labels = (len(table.classes), table.labels) if table.target is None else (0, table.target)
    if deadline.left() < MIN_SECONDS:
        return None
    Network.of(X, labels, k, order[:MIN_ROWS], streams)  # imports and starts what the timing must not count
    _, seconds = timed(lambda: Network.of(X, labels, k, order[:MIN_ROWS], streams))
    if seconds > SHARE_OF_TIME * deadline.left() / SCORINGS:
        return None
    network, seconds = timed(lambda: Network.of(X, labels, k, order[:PROBE_ROWS], streams))
    allowed = SHARE_OF_TIME * deadline.left() / SCORINGS
    affordable = int(len(network.rows) * (allowed / max(seconds, 1e-3)) ** 0.5)
    if affordable <= PROBE_ROWS or len(table) <= PROBE_ROWS:
        return network
    return Network.of(X, labels, k, order[: min(affordable, MAX_ROWS)], streams)


def _wide_network(n_features: int, n_classes: int, streams: Streams) -> Any:
    from torch import nn

    with streams.torch_global("module"):
        layers = nn.Linear(n_features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, n_classes)
    return nn.Sequential(*layers).eval()
