"""The built tasks in the folder layout of the original code, for programs that read it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from natwise.datasets import mimic3

from ._episodes import VARIABLES
from ._tasks import EPS, eligible

_MULTITASK_HEADER = (
    "filename,length of stay,in-hospital mortality task (pos;mask;label),length of stay task (masks;labels),"
    "phenotyping task (labels),decompensation task (masks;labels)"
)


def export_task(task: str, samples: pl.DataFrame, episodes: pl.DataFrame, parts: Iterable[Path], folder: Path) -> int:
    """Write ``folder/{train,test}`` with a CSV per stay and the lists of samples; all of it, or nothing.

    Returns
    -------
    int
        How many series were written.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for part in ("train", "test"):
        (temporary / part).mkdir(parents=True)
    stays = _stays_with_limits(task, samples, episodes)
    n_written = sum(_write_series(pl.read_parquet(path), stays, temporary) for path in parts)
    _write_lists(task, samples, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()  # once for all: syncing every one of 40,000 files would take longer than writing them
    os.replace(temporary, folder)
    return n_written


def _stays_with_limits(task: str, samples: pl.DataFrame, episodes: pl.DataFrame) -> pl.DataFrame:
    """Return the stays that get a file, with the LIMIT of its hours: of hourly tasks also those too short to sample."""
    if task == "in_hospital_mortality":
        return samples.select("SUBJECT_ID", "EPISODE", "PART", LIMIT=pl.col("HOURS") + EPS)
    stays, _ = eligible(episodes)
    return stays.drop_nulls("FIRST").select("SUBJECT_ID", "EPISODE", "PART", LIMIT=pl.col("STAY_HOURS") + EPS)


def file_name(subject: int, episode: int) -> str:
    """Return the name of a stay's file."""
    return f"{subject}_episode{episode}_timeseries.csv"


def _write_series(series: pl.DataFrame, stays: pl.DataFrame, folder: Path) -> int:
    inside = series.join(stays, on=["SUBJECT_ID", "EPISODE"], maintain_order="left")
    inside = inside.filter((pl.col("Hours") > -EPS) & (pl.col("Hours") < pl.col("LIMIT")))
    groups = inside.group_by("SUBJECT_ID", "EPISODE", "PART", maintain_order=True)
    n_written = 0
    for (subject, episode, part), rows in groups:
        path = folder / _folder(str(part)) / file_name(int(str(subject)), int(str(episode)))
        rows.select("Hours", *VARIABLES).write_csv(path)
        n_written += 1
    return n_written


def _folder(part: str) -> str:
    """Return where a part lies: the patients for validation are within train, as published."""
    return "test" if part == "test" else "train"


def _write_lists(task: str, samples: pl.DataFrame, folder: Path) -> None:
    """Write listfile.csv beside the series, and the lists without and of the validation patients one level above."""
    lines = _multitask_lines(samples) if task == "multitask" else _lines(task, samples)
    train = pl.col("PART") != "test"
    lists = {
        "train/listfile.csv": train,
        "test/listfile.csv": ~train,
        **{f"{part}_listfile.csv": pl.col("PART") == part for part in ("train", "val", "test")},
    }
    for name, chosen in lists.items():
        listed = lines.filter(chosen).drop("PART")
        listed.write_csv(folder / name, float_precision=6, quote_style="never")


def _lines(task: str, samples: pl.DataFrame) -> pl.DataFrame:
    hours = [] if task == "in_hospital_mortality" else [pl.col("HOURS").alias("period_length")]
    labels = list(mimic3.phenotypes().names) if task == "phenotyping" else [pl.col("LABEL").alias("y_true")]
    return samples.select("PART", _stay_name().alias("stay"), *hours, *labels)


def _multitask_lines(samples: pl.DataFrame) -> pl.DataFrame:
    def joined(*names: str) -> pl.Expr:
        return pl.concat_str([pl.col(name).cast(pl.String) for name in names], separator=";")

    def lists(mask: str, label: str) -> pl.Expr:
        parts = [pl.col(name).list.eval(_text(name, pl.element())).list.join(";") for name in (mask, label)]
        return pl.concat_str(parts, separator=";")

    names = _MULTITASK_HEADER.split(",")
    columns = [
        _stay_name(),
        pl.col("HOURS"),
        joined("IHM_POSITION", "IHM_MASK", "IHM_LABEL"),
        lists("LOS_MASK", "LOS_LABEL"),
        joined(*mimic3.phenotypes().names),
        lists("DECOMPENSATION_MASK", "DECOMPENSATION_LABEL"),
    ]
    return samples.select("PART", *(column.alias(name) for column, name in zip(columns, names, strict=True)))


def _text(name: str, element: pl.Expr) -> pl.Expr:
    if name != "LOS_LABEL":
        return element.cast(pl.String)
    return element.map_elements("{:.6f}".format, return_dtype=pl.String)


def _stay_name() -> pl.Expr:
    return pl.format("{}_episode{}_timeseries.csv", "SUBJECT_ID", "EPISODE")
