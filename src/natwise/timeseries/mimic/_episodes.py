"""Stage 3: one irregular time series per stay, and the static table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from natwise.datasets import mimic3

from ._cleaning import RAW, TEXTS, clean_values
from ._rules import CleaningRules, VariableMap
from ._tasks import event_windows

VARIABLES = tuple(variable.name for variable in mimic3.variables())
GENDERS = {"F": 1, "M": 2, "OTHER": 3, "": 0}
ETHNICITIES = {
    "ASIAN": 1,
    "BLACK": 2,
    "CARIBBEAN ISLAND": 2,
    "HISPANIC": 3,
    "SOUTH AMERICAN": 3,
    "WHITE": 4,
    "MIDDLE EASTERN": 4,
    "PORTUGUESE": 4,
}


def read_part(files: list[Path], subjects: list[int], variables: VariableMap) -> pl.DataFrame:
    """Return the events of some subjects with VARIABLE, and UNIT and LABEL in lower case."""
    items = pl.LazyFrame(
        {
            "ITEMID": list(variables.items),
            "VARIABLE": list(variables.items.values()),
            "LABEL": [variables.labels.get(item, "").lower() for item in variables.items],
        },
        schema_overrides={"VARIABLE": pl.Enum(VARIABLES)},
    )
    chosen = pl.Series(subjects, dtype=pl.Int64)
    events = pl.scan_parquet(files).filter(
        pl.col("SUBJECT_ID").is_between(subjects[0], subjects[-1]), pl.col("SUBJECT_ID").is_in(chosen.implode())
    )
    events = events.join(items, on="ITEMID").drop("ITEMID")
    events = events.with_columns(UNIT=pl.col("VALUEUOM").fill_null("").str.to_lowercase()).drop("VALUEUOM")
    return events.collect(engine="streaming")


def build_series(
    events: pl.DataFrame, stays: pl.DataFrame, rules: CleaningRules
) -> tuple[pl.DataFrame, dict[str, int], dict[str, int]]:
    """Return the series of all stays of these events.

    Returns
    -------
    series : DataFrame
        SUBJECT_ID, EPISODE, ICUSTAY_ID, Hours since ICU admission and the 17 variables, sorted by these. A variable
        is float64, or text where the published data hold what was typed in.
    unusable : dict of str to int
        Values that could not be read, by variable.
    counts : dict of str to int
        ``same_time``: readings that a larger one of the same minute replaced; ``outside_stays``: rows in no stay.
    """
    cleaned = clean_values(events, rules)
    usable = cleaned.filter(pl.col("NUMBER").is_not_null() | pl.col("TEXT").is_not_null())
    lost = events["VARIABLE"].value_counts().join(usable["VARIABLE"].value_counts(), on="VARIABLE", how="left")
    lost = lost.with_columns(lost=pl.col("count") - pl.col("count_right").fill_null(0)).filter(pl.col("lost") > 0)
    wide, n_readings = _largest(usable, TEXTS if rules.numeric_maximum else RAW)
    rows = _rows_of_stays(usable, stays)
    series = rows.join(wide, on=["SUBJECT_ID", "TIME"], how="left", maintain_order="left").drop("TIME")
    outside = usable.select("SUBJECT_ID", "TIME", "STAY").n_unique() - series.select("ROW").n_unique()
    counts = {"same_time": len(usable) - n_readings, "outside_stays": outside}
    unusable = dict(lost.sort("VARIABLE").select("VARIABLE", "lost").iter_rows())
    return series.drop("ROW"), unusable, counts


def _largest(usable: pl.DataFrame, texts: tuple[str, ...]) -> tuple[pl.DataFrame, int]:
    """Return one row per subject and time with the largest value of each variable, texts in alphabetical order."""
    keys = ["SUBJECT_ID", "TIME"]
    wide = usable.select(keys).unique()
    n_readings = 0
    for name in VARIABLES:
        value = "TEXT" if name in texts else "NUMBER"
        largest = usable.filter(pl.col("VARIABLE") == name).group_by(keys).agg(pl.col(value).max().alias(name))
        n_readings += len(largest)
        wide = wide.join(largest, on=keys, how="left")
    return wide, n_readings


def _rows_of_stays(usable: pl.DataFrame, stays: pl.DataFrame) -> pl.DataFrame:
    """Return a row for every (time, stay of the event) within a stay, sorted by stay and time.

    A row belongs to the stay that its events name, and to every stay of the subject during which it was charted.
    """
    named = usable.select("SUBJECT_ID", "TIME", "STAY").unique().with_row_index("ROW")
    columns = ["SUBJECT_ID", "EPISODE", "ICUSTAY_ID", "INTIME", "OUTTIME"]
    rows = named.join(stays.select(columns), on="SUBJECT_ID").filter(
        (pl.col("STAY") == pl.col("ICUSTAY_ID")) | pl.col("TIME").is_between(pl.col("INTIME"), pl.col("OUTTIME"))
    )
    rows = rows.sort("SUBJECT_ID", "EPISODE", "TIME", "STAY")
    seconds = (rows["TIME"] - rows["INTIME"]).dt.total_microseconds().to_numpy() / 1e6
    hours = pl.Series("Hours", seconds / 60.0 / 60)
    return rows.select("ROW", "SUBJECT_ID", "EPISODE", "ICUSTAY_ID", hours, "TIME")


class SeriesTotals:
    """What is kept of the parts of the series once they are written: firsts and counts."""

    def __init__(self) -> None:
        self.firsts: list[pl.DataFrame] = []
        self.n_rows = 0
        self.unusable: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def add(self, series: pl.DataFrame, stays: pl.DataFrame, unusable: dict[str, int], counts: dict[str, int]) -> None:
        """Take note of one part."""
        measured = series.group_by("ICUSTAY_ID").agg(
            ROWS=pl.len(),
            HEIGHT=pl.col("Height").drop_nulls().first(),
            WEIGHT=pl.col("Weight").drop_nulls().first(),
        )
        self.firsts.append(measured.join(event_windows(series, stays), on="ICUSTAY_ID", how="left"))
        self.n_rows += len(series)
        self.unusable.update(unusable)
        self.counts.update(counts)

    def first(self) -> pl.DataFrame:
        """Return ICUSTAY_ID, ROWS of its series, first HEIGHT and WEIGHT, and what `event_windows` gives."""
        return pl.concat(self.firsts)

    def counters(self, episodes: pl.DataFrame) -> dict[str, Any]:
        """Return the counters of this stage, under the names of the original pipeline where it has one."""
        with_series = episodes.filter(pl.col("ROWS") > 0)
        n_test = int((with_series["PART"] == "test").sum())
        return {
            "episodes_train_test": {"train": len(with_series) - n_test, "test": n_test},
            "timeseries_rows": self.n_rows,
            "unusable_values": {name: self.unusable[name] for name in VARIABLES if self.unusable[name]},
            "dropped_readings": dict(self.counts),
        }


def static_table(stays: pl.DataFrame, firsts: pl.DataFrame) -> pl.DataFrame:
    """Return what is known of every stay: the codes of gender and ethnicity, first height and weight, outcome.

    LIVED is the time from INTIME to DEATHTIME in hours; FIRST and EARLY are those of `event_windows`.
    """
    ethnicity = pl.col("ETHNICITY").str.replace_all(" OR ", "/", literal=True)
    ethnicity = ethnicity.str.split(" - ").list.first().str.split("/").list.first()
    table = stays.join(firsts, on="ICUSTAY_ID", how="left", maintain_order="left")
    lived = (table["DEATHTIME"] - table["INTIME"]).dt.total_microseconds().cast(pl.Float64).to_numpy() / 1e6 / 3600.0
    return table.select(
        *("SUBJECT_ID", "EPISODE", "ICUSTAY_ID", "PART"),
        ETHNICITY=ethnicity.replace_strict(ETHNICITIES, default=0, return_dtype=pl.Int64).fill_null(0),
        GENDER=pl.col("GENDER").fill_null("").replace_strict(GENDERS, default=3, return_dtype=pl.Int64),
        **{name: pl.col(name) for name in ("AGE", "HEIGHT", "WEIGHT", "LOS", "MORTALITY")},
        LIVED=pl.Series(lived).fill_nan(None),
        FIRST="FIRST",
        EARLY=pl.col("EARLY").fill_null(0),
        ROWS=pl.col("ROWS").fill_null(0),
    )


def phenotype_table(stays: pl.DataFrame, diagnoses: pl.DataFrame, groups: Mapping[str, str] | None) -> pl.DataFrame:
    """Return for every stay how many diagnoses it has, and the 25 phenotypes, 0 or 1, by `groups` or those of CCS."""
    known = mimic3.phenotypes()
    if groups is None:
        groups = dict(zip(known.codes.tolist(), known.groups.tolist(), strict=True))
    grouped = diagnoses.with_columns(NAME=pl.col("ICD9_CODE").replace_strict(groups, default=None))
    counts = diagnoses.group_by("ICUSTAY_ID").len("DIAGNOSES")
    counts = stays.select("ICUSTAY_ID").join(counts, on="ICUSTAY_ID", how="left", maintain_order="left")
    return counts.select(pl.col("DIAGNOSES").fill_null(0)).hstack(_indicators(stays, grouped, known.names))


def diagnosis_table(stays: pl.DataFrame, diagnoses: pl.DataFrame, rules: CleaningRules) -> pl.DataFrame:
    """Return for every stay the 128 single diagnoses of the published static table, 0 or 1."""
    owned = diagnoses.join(stays.select("ICUSTAY_ID", "SUBJECT_ID"), on="ICUSTAY_ID")
    if not rules.all_diagnoses:
        digits = pl.col("ICD9_CODE").str.contains(r"^\d+$").all().over("SUBJECT_ID")
        owned = owned.filter(~digits)
    codes = mimic3.diagnosis_codes()
    marked = _indicators(stays, owned.select("ICUSTAY_ID", NAME="ICD9_CODE"), codes)
    return marked.rename({code: f"Diagnosis {code}" for code in codes})


def _indicators(stays: pl.DataFrame, found: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Return a column of 0 and 1 per name: which stays have a row of that NAME in `found`."""
    rows = stays.select("ICUSTAY_ID").with_row_index("ROW")
    columns = pl.DataFrame({"NAME": names}).with_row_index("COLUMN")
    hits = found.join(rows, on="ICUSTAY_ID").join(columns, on="NAME").select("ROW", "COLUMN").to_numpy()
    marked = np.zeros((len(stays), len(names)), dtype=np.int8)
    marked[hits[:, 0], hits[:, 1]] = 1
    return pl.DataFrame(marked, schema=list(names))
