"""What the bounds read at zero information, and how they scatter with other runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from natwise.core.random import Streams
from natwise.core.validation import check_real
from natwise.result import Result

from ._readings import ERRORS

if TYPE_CHECKING:
    from ._runs import SupersampleRuns


def permutation_null(runs: SupersampleRuns, n_permutations: int, streams: Streams, estimator: str) -> Result:
    """See `SupersampleRuns.permutation_null`."""
    rng = streams.numpy("permutations")
    measured = _means(runs, estimator)
    draws = []
    for _ in range(n_permutations):
        shuffled = rng.permuted(runs.S, axis=1)
        draws.append(_means(runs._with(shuffled, runs.predictions, runs.losses), estimator))
    readings = {name: np.array([draw[name] for draw in draws if name in draw]) for name in measured}
    scalars: dict[str, float] = {}
    for name, reading in readings.items():
        if name in ERRORS or len(reading) < n_permutations:  # shuffling undoes a complete set of splits
            continue
        scalars[name] = float(reading.mean())
        scalars[f"{name}_95"] = float(np.quantile(reading, 0.95))
        scalars[f"{name}_p_value"] = float((1 + (reading >= measured[name]).sum()) / (1 + n_permutations))
        scalars[f"{name}_excess"] = measured[name] - scalars[name]
    return Result(
        "generalization.fcmi/permutation_null",
        arrays={name: readings[name] for name in scalars if name in readings},
        scalars=scalars,
        params={"n_permutations": n_permutations, "estimator": estimator},
    )


def bootstrap(runs: SupersampleRuns, n_resamples: int, streams: Streams, estimator: str, confidence: float) -> Result:
    """See `SupersampleRuns.bootstrap`."""
    confidence = check_real("confidence", confidence, minimum=0.0, maximum=1.0, exclusive=True)
    rng = streams.numpy("bootstrap")
    measured = _means(runs, estimator)
    draws = []
    for _ in range(n_resamples):
        rows = rng.integers(runs.n_splits, size=runs.n_splits)
        losses = None if runs.losses is None else runs.losses[:, rows]
        draws.append(_means(runs._with(runs.S[:, rows], runs.predictions[:, rows], losses), estimator))
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, float] = {}
    for name, value in measured.items():
        if any(name not in draw for draw in draws):
            continue
        arrays[name] = np.array([draw[name] for draw in draws])
        moved = value + arrays[name] - arrays[name].mean()
        low, high = np.quantile(moved, [(1 - confidence) / 2, (1 + confidence) / 2])
        scalars |= {name: value, f"{name}_se": float(arrays[name].std(ddof=1))}
        scalars |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return Result(
        "generalization.fcmi/bootstrap",
        arrays=arrays,
        scalars=scalars,
        params={"n_resamples": n_resamples, "estimator": estimator, "confidence": confidence},
    )


def _means(runs: SupersampleRuns, estimator: str) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in runs._read(estimator).items()}
