"""The 714 features of the logistic regression, by reductions over segments of all stays at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from natwise.core.validation import check_option, check_real
from natwise.datasets import mimic3

from ._series import EPS, Series, check_ends, read_frames, read_table

PERIODS = ("all", "first4days", "first8days", "last12hours", "first25percent", "first50percent")
FUNCTIONS = ("min", "max", "mean", "std", "skew", "len")
WINDOWS = (("first", 100), ("first", 10), ("first", 25), ("first", 50), ("last", 10), ("last", 25), ("last", 50))


@dataclass(frozen=True)
class WindowFeatures:
    """Describe each variable of a stay by six numbers in seven windows of its own time of observation.

    The windows are all of the time from the variable's first to its last observation, its first 10, 25 and 50 %, and
    its last 10, 25 and 50 %; the numbers are minimum, maximum, mean, standard deviation (population), skewness (biased)
    and count: 17 x 7 x 6 = 714. A variable that was never observed has 42 times NaN, in the counts as well.

    Parameters
    ----------
    period : {"all", "first4days", "first8days", "last12hours", "first25percent", "first50percent"}
        The part of a variable's time of observation that is described.
    constant_skewness : float
        The skewness of values that do not vary: NaN with scipy of today, 0 with the scipy of the paper.

    Examples
    --------
    >>> len(WindowFeatures().feature_names)
    714
    """

    period: str = "all"
    constant_skewness: float = float("nan")

    def __post_init__(self):
        check_option("period", self.period, PERIODS)
        if self.constant_skewness == self.constant_skewness:
            check_real("constant_skewness", self.constant_skewness)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The name of each column, such as "Heart Rate|first 10 %|mean"."""
        return tuple(
            f"{variable.name}|{side} {percent} %|{function}"
            for variable in mimic3.variables()
            for side, percent in WINDOWS
            for function in FUNCTIONS
        )

    def transform(self, frames: Sequence[Any], ends: Sequence[float] | None = None) -> np.ndarray:
        """Return the features of many stays.

        Parameters
        ----------
        frames : sequence of DataFrame (pandas or polars) or mapping of columns
            "Hours" and the 17 variables of each stay, as for `Discretizer.transform`; or one polars table of stays, as
            the files in ``timeseries/`` of a build.
        ends : sequence of float, optional
            Leave out what comes later than this in each stay, in hours.

        Returns
        -------
        ndarray (n_stays, 714), float32

        Raises
        ------
        ValueError
            For a missing column, unsorted hours, or a text that is no value of its variable.
        """
        series = read_table(frames) if hasattr(frames, "columns") and "ICUSTAY_ID" in frames else read_frames(frames)
        return self.describe(series, ends)

    def describe(self, series: Series, ends: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """Return the features of series that were read before; rows before hour 0 count only without `ends`."""
        if ends is not None:
            late = series.hours > np.repeat(check_ends(series, ends), series.lengths) + EPS
            series = series.chosen((series.hours > -EPS) & ~late)
        hours, values, starts = _segments(series)
        features = np.full((len(starts) - 1, len(WINDOWS), len(FUNCTIONS)), np.nan, dtype=np.float32)
        filled = np.flatnonzero(np.diff(starts))
        begin, end = self._limits(hours[starts[filled]], hours[starts[filled + 1] - 1])
        segment = np.repeat(np.arange(len(filled)), np.diff(starts)[filled])
        for window, (side, percent) in enumerate(WINDOWS):
            length = (end - begin) * percent / 100.0
            low, high = (begin, begin + length) if side == "first" else (end - length, end)
            inside = (hours > (low - EPS)[segment]) & (hours < (high + EPS)[segment])
            found, moments = self._moments(values[inside], segment[inside])
            features[filled[found], window] = moments
        return features.reshape(series.n_stays, -1)

    def _limits(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return begin and end of the period, from the first and the last observation of each segment."""
        days = {"first4days": 4 * 24.0, "first8days": 8 * 24.0}
        share = {"first25percent": 25, "first50percent": 50}
        if self.period in days:
            return first, first + days[self.period]
        if self.period in share:
            return first, first + (last - first) * share[self.period] / 100.0
        return (last - 12.0, last) if self.period == "last12hours" else (first, last)

    def _moments(self, values: np.ndarray, segment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the segments that have values, and their six numbers; `segment` is ascending."""
        if len(values) == 0:
            return np.zeros(0, dtype=int), np.zeros((0, len(FUNCTIONS)))
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        counts = np.diff(starts, append=len(values))
        mean = np.add.reduceat(values, starts) / counts
        deviation = values - np.repeat(mean, counts)
        second = np.add.reduceat(deviation**2, starts) / counts
        third = np.add.reduceat(deviation**3, starts) / counts
        constant = second <= (np.finfo(np.float64).resolution * mean) ** 2  # scipy's criterion
        skewness = np.where(constant, self.constant_skewness, third / np.where(constant, 1.0, second) ** 1.5)
        lowest, highest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        return segment[starts], np.stack([lowest, highest, mean, np.sqrt(second), skewness, counts], axis=1)


def _segments(series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hours and values of what was observed, by stay, variable and time, and where each segment starts."""
    observed = ~np.isnan(series.values)
    stay = np.repeat(np.arange(series.n_stays), series.lengths)
    row, variable = np.nonzero(observed)
    n_variables = observed.shape[1]
    segment = stay[row] * n_variables + variable
    order = np.argsort(segment, kind="stable")
    row, variable = row[order], variable[order]
    values = _numbers(series.values[row, variable], variable)
    sizes = np.bincount(segment, minlength=series.n_stays * n_variables)
    return series.hours[row], values, np.concatenate([[0], np.cumsum(sizes)])


def _numbers(values: np.ndarray, variable: np.ndarray) -> np.ndarray:
    """Return the values with categories as the numbers that stand for them."""
    numbers = values.copy()
    for position, definition in enumerate(mimic3.variables()):
        if definition.categories:
            levels = np.array([definition.levels[text] for text in definition.categories], dtype=np.float64)
            mine = variable == position
            numbers[mine] = levels[values[mine].astype(int)]
    return numbers
