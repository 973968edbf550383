"""Stage 1: which ICU stays enter the benchmark, and what is known of them without the events."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl

from natwise.core.validation import shorten
from natwise.datasets import mimic3

from ._rules import CleaningRules, CohortRules
from ._tables import COLUMNS, Tables, reading, with_times

AGE_OF_OLD = 90.0  # stands for everybody whom the database shields by a shifted date of birth
_TIMES = {"ICUSTAYS": ("INTIME", "OUTTIME"), "ADMISSIONS": ("ADMITTIME", "DISCHTIME", "DEATHTIME")}
_TIMES["PATIENTS"] = ("DOB", "DOD")


@dataclass(frozen=True)
class Cohort:
    """The stays of the benchmark.

    Attributes
    ----------
    stays : DataFrame
        One row per stay, sorted by (SUBJECT_ID, INTIME, OUTTIME); EPISODE counts a subject's stays from 1.
    diagnoses : DataFrame
        ICUSTAY_ID, ICD9_CODE of the diagnoses that have a title.
    counters : list of [step, stays, admissions, subjects]
        What is left after each rule.
    """

    stays: pl.DataFrame
    diagnoses: pl.DataFrame
    counters: list[list[str | int]]


def build_cohort(tables: Tables, rules: CohortRules, cleaning: CleaningRules) -> Cohort:
    """Return the stays that are left by `rules`."""
    stays = _read(tables, "ICUSTAYS")
    _check_stays(stays)
    counters = [_count("START", stays)]
    if rules.exclude_transfers:
        units = [name for name in ("WARDID", "CAREUNIT") if stays[f"FIRST_{name}"].count()]  # MIMIC-IV has no wards
        stays = stays.filter(pl.col(f"FIRST_{name}") == pl.col(f"LAST_{name}") for name in units)
    counters.append(_count("REMOVE ICU TRANSFERS", stays))
    stays = _join(stays, _read(tables, "ADMISSIONS"), "ADMISSIONS", ["SUBJECT_ID", "HADM_ID"])
    stays = _join(stays, _patients(tables), "PATIENTS", ["SUBJECT_ID"])
    if rules.one_stay_per_admission:
        stays = stays.filter(pl.len().over("HADM_ID") == 1)
    counters.append(_count("REMOVE MULTIPLE STAYS PER ADMIT", stays))
    stays = _with_age(stays, cleaning).filter(pl.col("AGE") >= rules.minimum_age)
    counters.append(_count(f"REMOVE PATIENTS AGE < {rules.minimum_age:g}", stays))
    if stays.is_empty():
        left = "; ".join(f"{step}: {n_stays} stays" for step, n_stays, *_ in counters)
        raise ValueError(f"the cohort must hold at least one stay, got none ({left})")
    stays = _with_mortality(stays).sort("SUBJECT_ID", "INTIME", "OUTTIME", "ICUSTAY_ID")
    stays = stays.with_columns(
        EPISODE=pl.int_range(1, pl.len() + 1).over("SUBJECT_ID"), PART=_parts(stays["SUBJECT_ID"], rules.split)
    )
    return Cohort(stays, _diagnoses(tables, stays), counters)


def _read(tables: Tables, table: str) -> pl.DataFrame:
    with reading(f"table {table}"):
        frame = tables.scan(table).collect(engine="streaming")
    return with_times(table, frame, _TIMES.get(table, ()))


def _patients(tables: Tables) -> pl.DataFrame:
    """Return the patients; MIMIC-IV says how old they were in some year instead of when they were born."""
    patients = _read(tables, "PATIENTS")
    born = pl.datetime(pl.col("ANCHOR_YEAR") - pl.col("ANCHOR_AGE"), 1, 1)
    return patients.with_columns(DOB=pl.coalesce("DOB", born)).drop("ANCHOR_YEAR", "ANCHOR_AGE")


def _check_stays(stays: pl.DataFrame) -> None:
    for name in ("SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "INTIME"):
        if stays[name].null_count():
            raise ValueError(f"ICUSTAYS.{name} must have no gaps, got {stays[name].null_count()} missing values")
    twice = stays.filter(pl.col("ICUSTAY_ID").is_duplicated())["ICUSTAY_ID"]
    if len(twice):
        raise ValueError(f"ICUSTAYS.ICUSTAY_ID must be unique, got {twice[0]} twice")
    reversed_stays = stays.filter(pl.col("OUTTIME") < pl.col("INTIME"))["ICUSTAY_ID"]
    if len(reversed_stays):
        raise ValueError(f"ICUSTAYS.OUTTIME must not be before INTIME, got ICUSTAY_ID {reversed_stays[0]}")
    lengths = stays["LOS"].cast(pl.Float64, strict=False)
    wrong = stays.filter(stays["LOS"].is_not_null() & (lengths.is_null() | ~lengths.is_finite() | (lengths < 0)))["LOS"]
    if len(wrong):
        raise ValueError(f"ICUSTAYS.LOS must hold numbers of days, not below 0, got {shorten(wrong[0])}")


def _join(stays: pl.DataFrame, other: pl.DataFrame, table: str, on: list[str]) -> pl.DataFrame:
    twice = other.filter(pl.struct(on).is_duplicated())
    if len(twice):
        raise ValueError(f"{table} must hold each {' and '.join(on)} once, got {twice.select(on).row(0)} twice")
    return stays.join(other, on=on, how="inner")


def _count(step: str, stays: pl.DataFrame) -> list[str | int]:
    return [step, len(stays), stays["HADM_ID"].n_unique(), stays["SUBJECT_ID"].n_unique()]


def _with_age(stays: pl.DataFrame, cleaning: CleaningRules) -> pl.DataFrame:
    """Return the stays with AGE in years of 365 days; the published rule takes a negative age as 90."""
    seconds = (stays["INTIME"] - stays["DOB"]).dt.total_microseconds().to_numpy() / 1e6
    age = seconds / 3600.0 / 24.0 / 365.0
    old = (age < 0) | (age > 150) if cleaning.limit_age else age < 0
    ages = pl.Series("AGE", np.where(old, AGE_OF_OLD, age)).fill_nan(None)
    return stays.with_columns(ages, pl.col("LOS").cast(pl.Float64))


def _with_mortality(stays: pl.DataFrame) -> pl.DataFrame:
    """Return the stays with death in hospital and in the unit. DOD is a date: it counts as midnight."""

    def died(begin: str, end: str) -> pl.Expr:
        times = (pl.col(name).is_between(pl.col(begin), pl.col(end)).fill_null(False) for name in ("DOD", "DEATHTIME"))
        return pl.any_horizontal(*times).cast(pl.Int8)

    return stays.with_columns(MORTALITY=died("ADMITTIME", "DISCHTIME"), MORTALITY_INUNIT=died("INTIME", "OUTTIME"))


def _parts(subjects: pl.Series, split: str) -> pl.Series:
    """Return "train", "val" or "test" for every subject, by the published lists or by a hash of the id."""
    if split == "hash":
        draws = np.array([_uniform(subject) for subject in subjects])
        return pl.Series("PART", np.select([draws < 0.15, draws < 0.3], ["test", "val"], "train"))
    listed = [pl.Series(mimic3.subjects(part)).cast(pl.Int64) for part in ("test", "val")]
    return pl.Series("PART", np.select([subjects.is_in(ids.implode()) for ids in listed], ["test", "val"], "train"))


def _uniform(subject: int) -> float:
    """Return a number in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(str(subject).encode()).digest()[:8], "big") / 2**64


def _diagnoses(tables: Tables, stays: pl.DataFrame) -> pl.DataFrame:
    """Return the diagnoses of the stays; codes are text, and a code without a title is lost, as published."""
    titled = _read(tables, "D_ICD_DIAGNOSES").select("ICD9_CODE").drop_nulls().unique()
    codes = _read(tables, "DIAGNOSES_ICD").select(COLUMNS["DIAGNOSES_ICD"]).drop_nulls("ICD9_CODE")
    codes = codes.join(titled, on="ICD9_CODE", how="semi")
    keys = ["SUBJECT_ID", "HADM_ID"]
    return codes.join(stays.select(*keys, "ICUSTAY_ID"), on=keys).select("ICUSTAY_ID", "ICD9_CODE").unique().sort("*")
