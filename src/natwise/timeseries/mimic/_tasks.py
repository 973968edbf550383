"""Stage 4: the samples of the five tasks, from the episodes and the times of their events."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from natwise.datasets import mimic3

EPS = 1e-6  # hours
MORTALITY_HOURS = 48.0
DECOMPENSATION_HOURS = 24.0
SHORTEST_HOURS = 4.0  # no hourly sample before
KEYS = ["SUBJECT_ID", "EPISODE", "PART"]


def event_windows(series: pl.DataFrame, episodes: pl.DataFrame) -> pl.DataFrame:
    """Return ICUSTAY_ID, FIRST (hours of the first event of the stay) and EARLY (events within the first 48 h)."""
    los = episodes.select("ICUSTAY_ID", STAY_HOURS=24.0 * pl.col("LOS"))
    times = series.select("ICUSTAY_ID", "Hours").join(los, on="ICUSTAY_ID").filter(pl.col("Hours") > -EPS)
    inside = pl.col("Hours") < pl.col("STAY_HOURS") + EPS
    early = pl.col("Hours") < MORTALITY_HOURS + EPS
    return times.group_by("ICUSTAY_ID").agg(FIRST=pl.col("Hours").filter(inside).min(), EARLY=early.sum())


def eligible(episodes: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the episodes that can be sampled, with STAY_HOURS; and how many stays each rule skipped."""
    diagnosed = episodes.filter(pl.col("DIAGNOSES") > 0)
    known = diagnosed.filter(pl.col("LOS").is_not_null())
    skipped = {
        "no_diagnoses": len(episodes) - len(diagnosed),
        "no_length_of_stay": len(diagnosed) - len(known),
        "no_events_in_stay": known["FIRST"].null_count(),
    }
    return known.with_columns(STAY_HOURS=24.0 * pl.col("LOS")), skipped


def in_hospital_mortality(stays: pl.DataFrame) -> pl.DataFrame:
    """Return one sample per stay of at least 48 hours with an event in the first 48: LABEL is death in hospital."""
    stays = stays.filter((pl.col("STAY_HOURS") >= MORTALITY_HOURS - EPS) & (pl.col("EARLY") > 0))
    return stays.select(*KEYS, HOURS=pl.lit(MORTALITY_HOURS), LABEL="MORTALITY")


def decompensation(stays: pl.DataFrame) -> pl.DataFrame:
    """Return one sample per hour: LABEL says whether the patient dies within the next 24 hours."""
    samples = _hourly(stays, _alive_hours(stays))
    return samples.with_columns(LABEL=_dies_soon(pl.col("MORTALITY"), pl.col("LIVED"))).select(*KEYS, "HOURS", "LABEL")


def length_of_stay(stays: pl.DataFrame) -> pl.DataFrame:
    """Return one sample per hour: LABEL is what remains of the stay, in hours."""
    samples = _hourly(stays, stays["STAY_HOURS"].to_numpy())
    return samples.select(*KEYS, "HOURS", LABEL=pl.col("STAY_HOURS") - pl.col("HOURS"))


def phenotyping(stays: pl.DataFrame) -> pl.DataFrame:
    """Return one sample per stay with events: its whole length, and 25 labels."""
    stays = stays.drop_nulls("FIRST")
    return stays.select(*KEYS, HOURS="STAY_HOURS", **{name: name for name in mimic3.phenotypes().names})


def multitask(stays: pl.DataFrame) -> pl.DataFrame:
    """Return one row per stay with events: labels and masks of all tasks, hourly ones as lists over t = 0, 1, ..."""
    stays = stays.drop_nulls("FIRST")
    hours, first, lived = (stays[name].fill_null(np.inf).to_numpy() for name in ("STAY_HOURS", "FIRST", "LIVED"))
    mask = (hours >= MORTALITY_HOURS - EPS) & (first <= MORTALITY_HOURS + EPS)
    los_times = [np.arange(n) for n in _n_times(hours)]
    alive_times = [np.arange(n) for n in _n_times(np.minimum(hours, lived))]
    died = stays["MORTALITY"].to_numpy() > 0
    soon = [d & (end - t < DECOMPENSATION_HOURS) for d, end, t in zip(died, lived, alive_times, strict=True)]
    return stays.select(
        *KEYS,
        HOURS="STAY_HOURS",
        IHM_POSITION=pl.Series(np.where(mask, int(MORTALITY_HOURS) - 1, 0)),
        IHM_MASK=pl.Series(mask.astype(np.int8)),
        IHM_LABEL="MORTALITY",
        LOS_MASK=_lists(map(_is_late, los_times, first), pl.Int8),
        LOS_LABEL=_lists((end - t for end, t in zip(hours, los_times, strict=True)), pl.Float64),
        **{name: name for name in mimic3.phenotypes().names},
        DECOMPENSATION_MASK=_lists(map(_is_late, alive_times, first), pl.Int8),
        DECOMPENSATION_LABEL=_lists(soon, pl.Int8),
    )


def _hourly(stays: pl.DataFrame, end: np.ndarray) -> pl.DataFrame:
    """Return a row for every whole hour t <= end of every stay that is later than 4 h and than its first event."""
    stays = stays.with_columns(pl.Series("END", _n_times(end))).drop_nulls("FIRST")
    samples = stays.with_columns(HOURS=pl.int_ranges(0, "END")).explode("HOURS", keep_nulls=False, empty_as_null=False)
    samples = samples.with_columns(pl.col("HOURS").cast(pl.Float64))
    return samples.filter((pl.col("HOURS") > SHORTEST_HOURS) & (pl.col("HOURS") > pl.col("FIRST")))


def _n_times(end: np.ndarray) -> np.ndarray:
    """Return how many of t = 0, 1, 2, ... are below end + eps."""
    return np.maximum(np.ceil(end + EPS), 0).astype(np.int64)


def _alive_hours(stays: pl.DataFrame) -> np.ndarray:
    return np.fmin(stays["STAY_HOURS"].to_numpy(), stays["LIVED"].fill_null(np.inf).to_numpy())


def _dies_soon(died: pl.Expr, lived: pl.Expr) -> pl.Expr:
    return ((died == 1) & (lived - pl.col("HOURS") < DECOMPENSATION_HOURS)).fill_null(False).cast(pl.Int8)


def _is_late(times: np.ndarray, first: float) -> np.ndarray:
    return (times > SHORTEST_HOURS) & (times > first)


def _lists(values: Iterable[np.ndarray], dtype: type[pl.DataType]) -> pl.Series:
    """Return a column of lists."""
    kind = np.float64 if dtype == pl.Float64 else np.int8
    return pl.Series([value.astype(kind).tolist() for value in values], dtype=pl.List(dtype))


SAMPLES: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "in_hospital_mortality": in_hospital_mortality,
    "decompensation": decompensation,
    "length_of_stay": length_of_stay,
    "phenotyping": phenotyping,
    "multitask": multitask,
}
