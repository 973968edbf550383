"""Stage 2: the events of the cohort, validated and counted, in one streaming pass over each table."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ._rules import VariableMap
from ._tables import Tables, parse_time, raise_unparsable, reading

_GROUP = ("SUBJECT_ID", "HADM_ID", "ICUSTAY_ID")


def filter_events(tables: Tables, table: str, stays: pl.DataFrame, variables: VariableMap, path: Path) -> pl.DataFrame:
    """Write the usable events of one table to the Parquet file `path` and return how many rows each group holds.

    An event is usable when its admission is that of a kept stay, its ICUSTAY_ID is that stay's or empty, its item is
    mapped and its VALUE and CHARTTIME are there. Neither the table nor what is left of it is ever held in memory.

    Returns
    -------
    DataFrame
        Per (SUBJECT_ID, HADM_ID, ICUSTAY_ID) of the cohort's subjects: n, mapped, valued, usable.
    """
    items = pl.Series(list(variables.items), dtype=pl.Int64)
    subjects = stays["SUBJECT_ID"].unique()
    scanned = tables.scan(table)
    if "ICUSTAY_ID" not in scanned.collect_schema():
        scanned = scanned.with_columns(pl.lit(None, dtype=pl.Int64).alias("ICUSTAY_ID"))
    scanned = scanned.filter(pl.col("SUBJECT_ID").is_in(subjects.implode())).with_columns(
        mapped=pl.col("ITEMID").is_in(items.implode()).fill_null(False)
    )
    counts = scanned.group_by(_GROUP).agg(
        n=pl.len(),
        mapped=pl.col("mapped").sum(),
        valued=(pl.col("mapped") & pl.col("VALUE").is_not_null()).sum(),
        usable=(pl.col("mapped") & pl.col("VALUE").is_not_null() & pl.col("CHARTTIME").is_not_null()).sum(),
    )
    usable = scanned.filter("mapped").drop("mapped").drop_nulls(["VALUE", "CHARTTIME"])
    usable = usable.with_columns(parse_time("CHARTTIME").alias("TIME"))
    wrong = usable.filter(pl.col("TIME").is_null()).select("CHARTTIME").head(1)
    keys = stays.lazy().select("SUBJECT_ID", "HADM_ID", STAY="ICUSTAY_ID")
    valid = usable.join(keys, on=["SUBJECT_ID", "HADM_ID"], how="inner")
    valid = valid.filter(pl.col("ICUSTAY_ID").is_null() | (pl.col("ICUSTAY_ID") == pl.col("STAY")))
    valid = valid.select("SUBJECT_ID", "STAY", "TIME", "ITEMID", "VALUE", "VALUEUOM")
    with reading(f"table {table}"):
        sink = valid.sink_parquet(path, compression="lz4", maintain_order=False, lazy=True)
        _, counted, unparsable = pl.collect_all([sink, counts, wrong], engine="streaming")
    if len(unparsable):
        raise_unparsable(table, "CHARTTIME", unparsable["CHARTTIME"][0])
    return counted


def count_by_rule(groups: pl.DataFrame, stays: pl.DataFrame) -> dict[str, int]:
    """Return how many events each rule dropped or mended, in the order in which the rules act.

    ``n_events`` is everything of the cohort's subjects; it is the sum of ``empty_hadm``, ``no_hadm_in_stay``,
    ``icustay_missing_in_stays``, ``could_not_recover``, ``item_not_mapped``, ``empty_value``, ``empty_charttime``
    and ``kept``. ``no_icustay`` (recovered by its admission) is no drop.
    """
    admissions = stays.group_by("SUBJECT_ID", "HADM_ID").agg(STAYS="ICUSTAY_ID")
    joined = groups.join(admissions, on=["SUBJECT_ID", "HADM_ID"], how="left")
    matched = joined.filter(pl.col("STAYS").is_not_null())
    kept = matched.filter(pl.col("ICUSTAY_ID").is_null() | pl.col("STAYS").list.contains(pl.col("ICUSTAY_ID")))
    n, mapped, valued, usable = (int(kept[name].sum()) for name in ("n", "mapped", "valued", "usable"))
    n_events, n_matched = int(joined["n"].sum()), int(matched["n"].sum())
    empty_hadm = int(joined.filter(pl.col("HADM_ID").is_null())["n"].sum())
    recovered = int(matched.filter(pl.col("ICUSTAY_ID").is_null())["n"].sum())
    return {
        "n_events": n_events,
        "empty_hadm": empty_hadm,
        "no_hadm_in_stay": n_events - empty_hadm - n_matched,
        "no_icustay": recovered,
        "recovered": recovered,
        "could_not_recover": 0,  # by construction: an admission of the cohort has a stay
        "icustay_missing_in_stays": n_matched - n,
        "item_not_mapped": n - mapped,
        "empty_value": mapped - valued,
        "empty_charttime": valued - usable,
        "kept": usable,
    }


def divide_subjects(groups: pl.DataFrame, stays: pl.DataFrame, events_per_part: int) -> list[list[int]]:
    """Return the subjects of every part, in order, so that no part but one of a single subject has more events."""
    usable = groups.group_by("SUBJECT_ID").agg(pl.col("usable").sum())
    sizes = stays.select("SUBJECT_ID").unique().join(usable, on="SUBJECT_ID", how="left").sort("SUBJECT_ID")
    parts: list[list[int]] = [[]]
    filled = 0
    for subject, size in sizes.with_columns(pl.col("usable").fill_null(0)).iter_rows():
        if parts[-1] and filled + size > events_per_part:
            parts.append([])
            filled = 0
        parts[-1].append(subject)
        filled += size
    return parts
