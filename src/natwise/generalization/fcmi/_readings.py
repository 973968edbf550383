"""Every bound that one set of runs allows, per supersample, and the information of outputs taken together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from natwise.core.information import contingency_tables, mutual_information_from_counts

from ._bounds import (
    binary_kl_bound,
    fast_rate_bound,
    fcmi_bound,
    interpolation_bound,
    linear_bound,
    variance_bound,
)
from ._divergences import f_information, f_information_bounds

if TYPE_CHECKING:
    from ._runs import SupersampleRuns

READ = ("prediction", "loss_pair", "loss_difference", "loss", "other_loss")
ERRORS = ("train_error", "test_error", "gap")
ON_TEST_ERROR = ("kl", "kl_ecmi", "linear", "linear_ecmi", "interpolation", "interpolation_single")
NEED_INTERPOLATION = ("interpolation", "interpolation_single")
TAKE_THE_GAP = ("oracle_mi", "hellinger", "jsd", "chi2")  # B_i, the measured gap of a pair, is one of their inputs
IN_THE_MEAN = ("single_loss", "single_loss_other", "ld_cmi_pooled")  # hold over supersamples, not for a given one


def read(runs: SupersampleRuns, estimator: str) -> dict[str, np.ndarray]:
    """Return errors and bounds by name, each of shape (n_supersamples,); see `SupersampleRuns.bounds`."""
    losses = runs._losses
    trained = np.take_along_axis(losses, runs.S[..., None], axis=-1)[..., 0]
    tested = losses.sum(axis=-1) - trained
    tables = {name: runs._codes(name) for name in READ}
    counts = {name: runs._tables(codes) for name, codes in tables.items()}
    shape = (runs.n_supersamples, runs.n)
    information = {
        name: mutual_information_from_counts(count, estimator).reshape(shape) for name, count in counts.items()
    }
    rows = [
        _of_one(trained[j], tested[j], runs.S[j], {name: value[j] for name, value in information.items()})
        for j in range(runs.n_supersamples)
    ]
    if estimator == "plugin":
        differences = losses[..., 1] - losses[..., 0]
        divergences = {name: v.reshape(shape) for name, v in f_information(counts["loss_difference"]).items()}
        for j, row in enumerate(rows):
            squared, gap = (differences[j] ** 2).mean(axis=0), (tested[j] - trained[j]).mean(axis=0)
            row |= f_information_bounds({name: v[j] for name, v in divergences.items()}, squared, gap)
            if is_complete(runs.S[j]):
                row |= _of_all_splits(runs.S[j], tables["prediction"][j])
    read = {name: np.array([row[name] for row in rows]) for name in rows[0] if all(name in row for row in rows)}
    if runs.n_supersamples > 1:
        pooled = contingency_tables(runs.S.reshape(-1, runs.n), tables["loss_difference"].reshape(-1, runs.n))
        read["ld_cmi_pooled"] = np.full(shape[0], _root(mutual_information_from_counts(pooled, estimator)))
    return read


def tightest(scalars: Mapping[str, float]) -> tuple[float, str]:
    """Return the least bound on the gap and its name, among those that the runs support.

    What holds without training errors counts only then; what holds over supersamples alone or takes the gap as an input
    does not count.
    """
    least = {
        name: scalars[name] - (scalars["train_error"] if what == "test error" else 0.0)
        for name, what in bounds_on(scalars).items()
        if name not in IN_THE_MEAN + TAKE_THE_GAP and (name not in NEED_INTERPOLATION or scalars["train_error"] == 0.0)
    }
    name = min(least, key=lambda bound: least[bound])
    return least[name], name


def bounds_on(scalars: Mapping[str, float]) -> dict[str, str]:
    """Say of every bound whether it is on the gap or on the test error."""
    return {
        name: "test error" if name in ON_TEST_ERROR else "gap"
        for name in scalars
        if name not in (*ERRORS, "tightest") and not name.endswith("_std")
    }


def is_complete(S: np.ndarray) -> bool:
    """Say whether the runs (n_splits, n) are all 2^n splits, equally often."""
    n_splits, n = S.shape
    if n > 20 or n_splits % 2**n:
        return False
    counts = np.unique(S, axis=0, return_counts=True)[1]
    return len(counts) == 2**n and counts.min() == counts.max()


def joint_information(S: np.ndarray, codes: np.ndarray) -> float:
    """Return the plug-in information of all codes (n_splits, n) and all splits."""
    table = contingency_tables(_as_one(S), _as_one(codes))
    return float(mutual_information_from_counts(table))


def conditional_information(S: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the plug-in information of each pair's code and split given all other splits, shape (n,)."""
    values = np.empty(S.shape[1])
    for i in range(S.shape[1]):
        context = _as_one(np.delete(S, i, axis=1)) if S.shape[1] > 1 else np.zeros(len(S), dtype=np.int64)
        both = contingency_tables(context, S[:, i])
        if both.shape[1] < 2 or (both == 0).any():
            raise ValueError(
                f"S must hold, for every split, the one that differs in pair {i} alone: the information given all "
                "other splits cannot be read from these runs"
            )
        outer = mutual_information_from_counts(contingency_tables(context, codes[:, i]))
        joint = mutual_information_from_counts(contingency_tables(2 * context + S[:, i], codes[:, i]))
        values[i] = max(float(joint - outer), 0.0)
    return values


def _of_one(
    trained: np.ndarray, tested: np.ndarray, S: np.ndarray, information: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return errors and bounds of one supersample from losses (n_splits, n) and information (n,)."""
    train_error = float(trained.mean())
    columns = np.concatenate([information["loss"], information["other_loss"]])
    second_moment = float((trained.mean(axis=1) ** 2).mean())
    times = np.stack([S == 0, S == 1]).sum(axis=1)
    each = np.stack([np.where(column == S, trained, 0.0).sum(axis=0) for column in (0, 1)]) / np.maximum(times, 1)
    sharp = min(float((each**2)[times > 0].mean()), train_error)
    return {
        "train_error": train_error,
        "test_error": float(tested.mean()),
        "gap": float(tested.mean()) - train_error,
        "fcmi": _root(information["prediction"]),
        "ecmi": _root(information["loss_pair"]),
        "ld_cmi": _root(information["loss_difference"]),
        "single_loss": 2 * _root(information["loss"]),
        "single_loss_other": 2 * _root(information["other_loss"]),
        "fast_rate": fast_rate_bound(train_error, columns),
        "fast_rate_closed": fast_rate_bound(train_error, columns, closed_form=True),
        "variance": variance_bound(train_error, second_moment, columns),
        "sharpness": variance_bound(train_error, sharp, columns),
        "kl": binary_kl_bound(train_error, information["prediction"]),
        "kl_ecmi": binary_kl_bound(train_error, information["loss_pair"]),
        "linear": linear_bound(train_error, information["prediction"]),
        "linear_ecmi": linear_bound(train_error, information["loss_pair"]),
        "interpolation": interpolation_bound(information["loss_difference"]),
        "interpolation_single": 2 * interpolation_bound(columns),
    }


def _root(information: np.ndarray) -> float:
    """Return the mean of sqrt(2 I); of corrected estimates the root of the mean when that is less.

    Clipping every estimate at 0 before the root would read a bound where there is no information; both are bounds.
    """
    if (information >= 0).all():
        return fcmi_bound(information)
    return min(fcmi_bound(information), fcmi_bound(max(float(information.mean()), 0.0)))


def _of_all_splits(S: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Return the bounds that need all 2^n splits, from splits and codes (2^n times k, n)."""
    return {
        "fcmi_full": fcmi_bound(joint_information(S, codes), m=S.shape[1]),
        "fcmi_conditional": fcmi_bound(conditional_information(S, codes)),
    }


def _as_one(values: np.ndarray) -> np.ndarray:
    """Return a number per row of (n_rows, n) integers, equal for equal rows."""
    return np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)
