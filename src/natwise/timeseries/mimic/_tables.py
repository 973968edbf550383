"""The source tables: found by name, read lazily, only the columns that are needed, headers in any case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from natwise.core.validation import shorten, suggest

# What pandas 1.x took for missing; "None" is not among them: it is a level of the eye-opening score.
NULLS = ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"]
NULLS += ["NA", "NULL", "NaN", "n/a", "nan", "null"]
SUFFIXES = (".csv", ".csv.gz", ".parquet")

_EVENT = ("SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "CHARTTIME", "ITEMID", "VALUE", "VALUEUOM")
COLUMNS: dict[str, tuple[str, ...]] = {
    "PATIENTS": ("SUBJECT_ID", "GENDER", "DOB", "DOD", "ANCHOR_AGE", "ANCHOR_YEAR"),
    "ADMISSIONS": ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "DEATHTIME", "ETHNICITY", "DIAGNOSIS"),
    "ICUSTAYS": (
        *("SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "DBSOURCE", "FIRST_CAREUNIT", "LAST_CAREUNIT"),
        *("FIRST_WARDID", "LAST_WARDID", "INTIME", "OUTTIME", "LOS"),
    ),
    "DIAGNOSES_ICD": ("SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE"),
    "D_ICD_DIAGNOSES": ("ICD9_CODE",),
    "CHARTEVENTS": _EVENT,
    "LABEVENTS": tuple(name for name in _EVENT if name != "ICUSTAY_ID"),
    "OUTPUTEVENTS": _EVENT,
}
EVENT_TABLES = ("CHARTEVENTS", "LABEVENTS", "OUTPUTEVENTS")
_OPTIONAL = {"DBSOURCE", "FIRST_WARDID", "LAST_WARDID", "DIAGNOSIS", "SEQ_NUM", "ANCHOR_AGE", "ANCHOR_YEAR"}
_MIMIC4 = {"ICUSTAY_ID": "STAY_ID", "ETHNICITY": "RACE", "ICD9_CODE": "ICD_CODE"}
_INTEGERS = ("SUBJECT_ID", "HADM_ID", "ICUSTAY_ID", "ITEMID", "ANCHOR_AGE", "ANCHOR_YEAR")


@dataclass(frozen=True)
class Tables:
    """The tables of one folder.

    Parameters
    ----------
    folder : Path
        Holds ``PATIENTS.csv`` and so on: upper or lower case, ``.csv``, ``.csv.gz`` or ``.parquet``, in the folder or
        one below (MIMIC-IV's ``hosp`` and ``icu``). A table may be split: ``CHARTEVENTS_1.csv``, ``CHARTEVENTS_2.csv``.
    columns : mapping of str to str
        The benchmark's name of a column -> its name in these tables, where they differ.
    """

    folder: Path
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder must hold the MIMIC tables, got {self.folder}, which is no folder")
        known = sorted({name for names in COLUMNS.values() for name in names})
        for name in self.columns:
            if name not in known:
                raise ValueError(f"columns must be keyed by the benchmark's names, got {name!r}.{suggest(name, known)}")

    def files(self, table: str) -> list[Path]:
        """Return the files of a table, sorted; `FileNotFoundError` names the table when there are none."""
        found = sorted(path for path in self._candidates() if _is_part(path.name, table))
        stems = [_stem(path).lower() for path in found]
        twice = {stem for stem in stems if stems.count(stem) > 1}
        if twice:
            names = [str(path.relative_to(self.folder)) for path in found if _stem(path).lower() in twice]
            raise ValueError(f"folder must hold {table} once, got {', '.join(names)}")
        if not found:
            near = suggest(table, [_stem(path).upper() for path in self._candidates()])
            raise FileNotFoundError(f"table {table} is missing: no {table}{'|'.join(SUFFIXES)} in {self.folder}.{near}")
        return found

    def scan(self, table: str) -> pl.LazyFrame:
        """Return the table lazily with the columns of `COLUMNS`, ids as Int64 and everything else as text."""
        return pl.concat([self._scan_file(table, path) for path in self.files(table)])

    def _candidates(self) -> list[Path]:
        return [path for pattern in ("*", "*/*") for path in self.folder.glob(pattern) if path.is_file()]

    def _scan_file(self, table: str, path: Path) -> pl.LazyFrame:
        header = _header(path)
        found = {name.strip().strip("\ufeff").upper(): name for name in header}
        sources = {name: self._source(name, found) for name in COLUMNS[table]}
        optional = _OPTIONAL | ({"DOB"} if sources.get("ANCHOR_AGE") and sources.get("ANCHOR_YEAR") else set())
        missing = [self.columns.get(name, name) for name in sources if not sources[name] and name not in optional]
        if missing:
            listed = shorten(list(header), 300)
            raise ValueError(f"table {table} must have the column {' and '.join(missing)}, {path.name} has {listed}")
        return _scan(path).select(_typed(name, source, header.get(source or "")) for name, source in sources.items())

    def _source(self, name: str, found: Mapping[str, str]) -> str | None:
        """Return what the file calls a column: as the user says, as MIMIC-III or as MIMIC-IV."""
        if name in self.columns:
            return found.get(self.columns[name].upper())
        return found.get(name) or found.get(_MIMIC4.get(name, name))


def _is_part(name: str, table: str) -> bool:
    """Say whether a file is `table` or one of its parts: the table's name, then nothing or a separator and digits."""
    lowered = name.lower()
    suffix = next((suffix for suffix in reversed(SUFFIXES) if lowered.endswith(suffix)), None)
    if suffix is None or not lowered.startswith(table.lower()):
        return False
    rest = lowered[len(table) : -len(suffix)]
    return rest == "" or (rest[0] in "_-." and rest.strip("_-.").removeprefix("part").strip("_-.").isdigit())


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _header(path: Path) -> pl.Schema:
    with reading(str(path)):
        return _scan(path).collect_schema()


def _scan(path: Path) -> pl.LazyFrame:
    if path.suffix.lower() == ".parquet":
        return pl.scan_parquet(path)
    return pl.scan_csv(path, infer_schema=False, null_values=NULLS, encoding="utf8-lossy")


def _typed(name: str, source: str | None, dtype: pl.DataType | None) -> pl.Expr:
    """Return a column as Int64 or text. Ids that a table with gaps holds as 142345.0 are whole numbers all the same."""
    if source is None or dtype is None:
        return pl.lit(None, dtype=pl.Int64 if name in _INTEGERS else pl.String).alias(name)
    column = pl.col(source)
    if name not in _INTEGERS:
        return column.cast(pl.String).alias(name)
    if dtype == pl.String:
        whole = column.cast(pl.Int64, strict=False)
        other = pl.when(whole.is_null()).then(column.str.strip_chars().str.strip_suffix(".0"))
        return pl.coalesce(whole, other.cast(pl.Int64)).alias(name)
    if dtype is not None and dtype.is_float():
        column = column.fill_nan(None)
    return column.cast(pl.Int64).alias(name)


def parse_time(name: str) -> pl.Expr:
    """Return a column of text as datetimes with microseconds; null where it is none."""
    text = pl.col(name)
    usual = text.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    other = pl.when(usual.is_null()).then(text.str.strip_chars())  # trying the other forms everywhere takes long
    forms = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M")
    parsed = [other.str.to_datetime(form, time_unit="us", strict=False) for form in forms]
    day = other.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return pl.coalesce(usual, *parsed, day).alias(name)


def with_times(table: str, frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return `frame` with these columns parsed; a text that is no time raises `ValueError` naming it."""
    parsed = frame.with_columns(parse_time(name) for name in names)
    for name in names:
        wrong = frame.filter(pl.col(name).is_not_null() & parsed[name].is_null())[name]
        if len(wrong):
            raise_unparsable(table, name, wrong[0])
    return parsed


def raise_unparsable(table: str, name: str, value: object) -> None:
    """Refuse a text that is no time."""
    raise ValueError(f"{table}.{name} must hold times like 2130-02-04 04:00:00, got {value!r}")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn what polars raises into one line: `OSError` where a file could not be written, else `ValueError`."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        text = " ".join(str(error).split("\n\n")[0].split())
        written = any(sign in text for sign in ("os error", "No space left", "transport error"))
        kind = OSError if written else ValueError
        raise kind(f"{what}: {'could not be written, is the disk full? ' * written}{shorten(text, 300)}") from error
