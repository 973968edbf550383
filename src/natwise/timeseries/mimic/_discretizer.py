"""Series into matrices: equal steps of time, one-hot categories, imputation, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from natwise.core.validation import check_option, check_real
from natwise.datasets import mimic3

from ._series import EPS, Series, check_ends, read_frames, read_table

IMPUTATIONS = ("previous", "normal_value", "next", "zero")
MAX_STEPS = 1_000_000  # a century of hours


@dataclass(frozen=True)
class Discretizer:
    """Turn the irregular series of a stay into a matrix with a row per `timestep`.

    Row k describes the time (k, k + 1] * timestep; of several observations in it the last one counts. The columns are
    the 17 variables in the order of the benchmark, 5 of them one-hot (59 columns), then 17 masks: 1 where the variable
    was observed in that row.

    Parameters
    ----------
    timestep : float
        In hours.
    imputation : {"previous", "normal_value", "next", "zero"}
        What stands where nothing was observed: the last value before (the normal value before the first observation),
        the normal value, the next value (the normal one after the last observation), or 0.
    start_time : {"zero", "relative"}
        Whether time runs from the admission to the unit or from the first event.
    masks : bool
        Append the masks.

    Examples
    --------
    >>> Discretizer(timestep=0.8).n_columns
    76
    """

    timestep: float = 1.0
    imputation: str = "previous"
    start_time: str = "zero"
    masks: bool = True

    def __post_init__(self):
        check_real("timestep", self.timestep, minimum=0.0, exclusive=True)
        check_option("imputation", self.imputation, IMPUTATIONS)
        check_option("start_time", self.start_time, ("zero", "relative"))
        check_option("masks", self.masks, (True, False))

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The name of each column, such as "Heart Rate", "Capillary refill rate->0.0" or "mask->pH"."""
        names = []
        for variable in mimic3.variables():
            names += [f"{variable.name}->{text}" for text in variable.categories] or [variable.name]
        return (*names, *(f"mask->{variable.name}" for variable in mimic3.variables() if self.masks))

    @property
    def n_columns(self) -> int:
        """Columns of a matrix."""
        return len(self.feature_names)

    @cached_property
    def continuous_columns(self) -> np.ndarray:
        """The positions of the columns with numbers, which `Normalizer` scales."""
        return np.flatnonzero([name.startswith("mask->") is False and "->" not in name for name in self.feature_names])

    def transform(self, frame: Any, end: float | None = None) -> np.ndarray:
        """Return the matrix of one stay.

        Parameters
        ----------
        frame : DataFrame (pandas or polars) or mapping of columns
            "Hours" and the 17 variables, sorted by Hours. Values may be texts or numbers ("15", "15.0" and 15 are the
            same). Rows before hour 0 or after `end` are left out. Read CSV files with `read_series`: pandas
            takes the text "None", an eye-opening score, for a missing value.
        end : float, optional
            Length of the period in hours since admission. Default: the last row's time.

        Returns
        -------
        ndarray (int(end / timestep + 1 - 1e-6), n_columns), float64

        Raises
        ------
        ValueError
            For a missing column, unsorted hours, a negative end, or a text that is no value of its variable.
        """
        return self.transform_many([frame], None if end is None else [end])[0]

    def transform_many(self, frames: Sequence[Any], ends: Sequence[float] | None = None) -> list[np.ndarray]:
        """Return the matrices of many stays at once, several times faster than one after the other.

        Parameters
        ----------
        frames : sequence of frames
            As for `transform`; or one polars table of stays, as the files in ``timeseries/`` of a build.
        ends : sequence of float, optional
            The `end` of each stay.
        """
        series = read_table(frames) if hasattr(frames, "columns") and "ICUSTAY_ID" in frames else read_frames(frames)
        return self.discretize(series, ends)

    def discretize(self, series: Series, ends: Sequence[float] | np.ndarray | None = None) -> list[np.ndarray]:
        """Return the matrices (steps, columns) of series that were read before, one per stay."""
        begins = np.zeros(series.n_stays)
        if self.start_time == "relative":
            begins = series.hours[series.starts[:-1]]
        spans = self._ends(series, ends) - begins
        hours = series.hours - np.repeat(begins, series.lengths)
        if (spans / self.timestep > MAX_STEPS).any():
            raise ValueError(f"end must be within {MAX_STEPS:,} timesteps of the start, got {spans.max():g} hours")
        n_bins = np.maximum(spans / self.timestep + 1.0 - EPS, 0.0).astype(int)  # none for a stay that ends at once
        inside = (hours >= -EPS) & (hours <= np.repeat(spans, series.lengths) + EPS)
        series = series.chosen(inside & np.repeat(n_bins > 0, series.lengths))
        first_bin = np.concatenate([[0], np.cumsum(n_bins)])
        bins = ((series.hours - np.repeat(begins, series.lengths)) / self.timestep - EPS).astype(int)
        bins = np.minimum(bins, np.repeat(n_bins, series.lengths) - 1)
        rows = np.repeat(first_bin[:-1], series.lengths) + bins
        return np.split(self._matrix(series, rows, first_bin), first_bin[1:-1])

    def _ends(self, series: Series, ends: Any) -> np.ndarray:
        if ends is None:
            if (series.lengths == 0).any():
                raise ValueError("end must be given for a stay without rows, got None")
            return series.hours[series.starts[1:] - 1]
        return check_ends(series, ends, "end")

    def _matrix(self, series: Series, rows: np.ndarray, first_bin: np.ndarray) -> np.ndarray:
        """Put the observations of all stays into their rows, all variables at once, and fill the gaps."""
        layout, n_rows = _layout(), int(first_bin[-1])
        values = np.full((len(layout.first), n_rows), np.nan)  # a variable is one piece
        observations = series.values.T.ravel()
        observed = np.flatnonzero(~np.isnan(observations))
        variable, event = np.divmod(observed, max(1, len(rows)))
        values.ravel()[variable * n_rows + rows[event]] = observations[observed]  # the last of a row is written last
        columns = np.zeros((self.n_columns, n_rows))
        if self.masks:
            columns[-len(values) :] = ~np.isnan(values)
        edges = first_bin[:-1] if self.imputation == "previous" else first_bin[1:] - 1
        filled = self._filled(values, edges[np.diff(first_bin) > 0], layout.normal[:, None])
        columns[layout.first[layout.continuous]] = np.nan_to_num(filled[layout.continuous], nan=0.0)
        for category in np.flatnonzero(~layout.continuous):
            known = np.flatnonzero(~np.isnan(filled[category]))
            columns[layout.first[category] + filled[category, known].astype(int), known] = 1.0
        return columns.T

    def _filled(self, values: np.ndarray, edges: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Fill the gaps of the variables, never from another stay: `edges` are the rows where the filling begins."""
        if self.imputation == "zero":
            return values
        if self.imputation == "normal_value":
            return np.where(np.isnan(values), normal, values)
        values[:, edges] = np.where(np.isnan(values[:, edges]), normal, values[:, edges])
        flat = values.ravel()  # every variable begins, or ends, with an edge, which is no gap
        carried = _carried(flat[::-1])[::-1] if self.imputation == "next" else _carried(flat)
        return carried.reshape(values.shape)


@dataclass(frozen=True)
class _Layout:
    """Of each variable: its first column, whether it has but one, of numbers, and what stands for "normal"."""

    first: np.ndarray
    continuous: np.ndarray
    normal: np.ndarray


@cache
def _layout() -> _Layout:
    variables = mimic3.variables()
    widths = [variable.width for variable in variables]
    continuous = np.array([not variable.categories for variable in variables])
    return _Layout(np.cumsum([0, *widths[:-1]]), continuous, np.array([_normal(variable) for variable in variables]))


def read_series(path: Any) -> Any:
    """Return an exported CSV file of a stay as a pandas frame whose texts are as they were written.

    Parameters
    ----------
    path : path
        The file. "None" in it is an eye-opening score, which `pandas.read_csv` alone would take for a gap.

    Returns
    -------
    DataFrame
        "Hours" and the 17 variables.
    """
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def _normal(variable: mimic3.Variable) -> float:
    return float(variable.categories.index(variable.normal) if variable.categories else variable.normal)


def _carried(values: np.ndarray) -> np.ndarray:
    """Return the values (n,) with each gap filled by what stands before it; the first is no gap."""
    known = np.flatnonzero(~np.isnan(values))
    return np.repeat(values[known], np.diff(known, append=len(values)))
