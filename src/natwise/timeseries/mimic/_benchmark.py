"""`MimicBenchmark`: from the tables of a hospital to the samples of the five tasks, stage by stage."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from natwise.core.io import check_folder, write_text
from natwise.core.validation import check_integer, check_option, shorten
from natwise.result import Result, provenance

from ._rules import CleaningRules, CohortRules, VariableMap

TASKS = ("in_hospital_mortality", "decompensation", "length_of_stay", "phenotyping", "multitask")
FORMAT = 1
Value = TypeVar("Value")


class MimicBenchmark:
    """The clinical time-series benchmark of Harutyunyan et al. (2019), built from MIMIC tables on your machine.

    With ``compat="2019"`` the series, samples and labels are those of the published benchmark to the last bit.

    Parameters
    ----------
    folder : path
        The tables: PATIENTS, ADMISSIONS, ICUSTAYS, DIAGNOSES_ICD, D_ICD_DIAGNOSES, CHARTEVENTS, LABEVENTS and
        OUTPUTEVENTS as ``.csv``, ``.csv.gz`` or ``.parquet``, names and headers in upper or lower case, in the folder
        or one below; a table may be split into numbered files. MIMIC-IV's names are understood.
    columns : mapping of str to str, optional
        MIMIC-III's name of a column -> its name in your tables, where they differ.
    variables : VariableMap, optional
        Which items are which variables. Default: the published map.
    cohort : CohortRules, optional
        Which stays enter. Default: the published rules.
    phenotypes : mapping of str to str, optional
        Diagnosis code -> the name of one of the 25 phenotypes, for codes that are not ICD-9. Default: CCS of ICD-9.

    Raises
    ------
    FileNotFoundError
        If the folder is not there.

    Examples
    --------
    >>> benchmark = MimicBenchmark.from_csv("mimic3")  # doctest: +SKIP
    >>> benchmark.build("out", tasks=["in_hospital_mortality"])  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        columns: Mapping[str, str] | None = None,
        variables: VariableMap | None = None,
        cohort: CohortRules | None = None,
        phenotypes: Mapping[str, str] | None = None,
    ):
        _need_polars()
        from ._tables import Tables

        self.tables = Tables(Path(folder), dict(columns or {}))
        self.variables = _instance("variables", variables, VariableMap) or VariableMap.published()
        self.cohort = _instance("cohort", cohort, CohortRules) or CohortRules()
        self.phenotypes = _check_phenotypes(phenotypes)

    @classmethod
    def from_csv(cls, folder: str | os.PathLike[str], **options: Any) -> MimicBenchmark:
        """Return the benchmark of the tables in `folder`; `options` are those of the class."""
        return cls(folder, **options)

    def build(
        self,
        out: str | os.PathLike[str],
        tasks: Iterable[str] = TASKS,
        compat: str | CleaningRules = "2019",
        *,
        resume: bool = False,
        export: bool = True,
        events_per_part: int = 500_000,
        verbose: int = 0,
    ) -> Result:
        """Build the tasks into the folder `out`.

        The folder gets ``stays.parquet``, ``diagnoses.parquet``, ``events/``, ``timeseries/`` (a file per group of
        subjects), ``episodes.parquet``, ``tasks/<task>.parquet``, ``counters.json``, and for each task the original
        layout ``<task>/{train,test}/{listfile.csv, <subject>_episode<k>_timeseries.csv}``. A stage is written whole or
        not at all. Source tables are streamed; at most `events_per_part` usable events are in memory at a time.

        Parameters
        ----------
        out : path
            Where to build.
        tasks : iterable of str
            Of "in_hospital_mortality", "decompensation", "length_of_stay", "phenotyping" and "multitask".
        compat : {"2019", "clean"} or CleaningRules
            The published data to the last bit, its odd rules included; the corrected rules; or your own choice.
        resume : bool
            Keep the stages that an earlier call with the same tables and rules has finished.
        export : bool
            Write the original layout beside the Parquet files.
        events_per_part : int
            Bounds the memory: with the default a build stays below 1 GB, whatever the size of the tables.
        verbose : int
            Show a progress bar when standard error is a terminal.

        Returns
        -------
        Result
            Scalars hold every counter; `params["counters"]` is the content of ``counters.json``.

        Raises
        ------
        ValueError
            For a column that is missing, times that are none, duplicates, an empty cohort; for `resume` after the
            tables or the rules have changed.
        FileNotFoundError
            For a table that is missing.
        OSError
            When the disk is full; finished stages stay.
        """
        from ._build import Build

        chosen = _check_tasks(tasks)
        rules = CleaningRules.of(compat)
        events_per_part = check_integer("events_per_part", events_per_part, minimum=1)
        folder = Path(out)
        check_folder(folder)
        if folder.resolve() == self.tables.folder.resolve():
            raise ValueError(f"out must be another folder than that of the tables, got {folder}")
        identity = self._identity(rules, events_per_part)
        with provenance() as record:
            build = Build(self, folder, rules, identity, resume=resume)
            counters = build.run(chosen, events_per_part, export=export, verbose=verbose)
        write_text(folder / "counters.json", json.dumps(counters, indent=1) + "\n")
        params = {"tasks": list(chosen), "rules": dataclasses.asdict(rules), "counters": counters}
        return Result("timeseries.mimic/build", scalars=_flat(counters), params=params, provenance=record)

    def _identity(self, rules: CleaningRules, events_per_part: int) -> dict[str, Any]:
        """Return what a build must share with an earlier one for its stages to be kept."""
        from ._tables import COLUMNS

        files = [path for table in COLUMNS for path in self.tables.files(table)]
        identity = {
            "format": FORMAT,
            "files": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
            "columns": dict(self.tables.columns),
            "items": {str(item): name for item, name in self.variables.items.items()},
            "labels": {str(item): name for item, name in self.variables.labels.items()},
            "cohort": dataclasses.asdict(self.cohort),
            "cleaning": dataclasses.asdict(rules),
            "phenotypes": self.phenotypes,
            "events_per_part": events_per_part,
        }
        content: dict[str, Any] = json.loads(json.dumps(identity))  # as it will be read back
        return content


def _need_polars() -> None:
    try:
        import polars  # noqa: F401
    except ImportError as error:
        raise ImportError("building the benchmark needs polars: pip install 'natwise[clinical]'") from error


def _instance(name: str, value: Value | None, kind: type[Value]) -> Value | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {shorten(value)} ({type(value).__name__})")
    return value


def _check_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a list of names, got the text {tasks!r}; write [{tasks!r}]")
    chosen = tuple(dict.fromkeys(tasks))
    for task in chosen:
        check_option("tasks", task, TASKS)
    if not chosen:
        raise ValueError("tasks must name at least one task, got none")
    return chosen


def _check_phenotypes(phenotypes: Mapping[str, str] | None) -> dict[str, str] | None:
    from natwise.datasets import mimic3

    if phenotypes is None:
        return None
    for code, name in phenotypes.items():
        check_option(f"phenotypes[{code!r}]", name, mimic3.phenotypes().names)
    return dict(phenotypes)


def _flat(counters: Mapping[str, Any]) -> dict[str, float]:
    """Return the counters by name; those of the cohort are called by step and unit."""
    flat: dict[str, float] = {}
    for name, value in counters.items():
        if isinstance(value, Mapping):
            flat |= {key if name == "validate_events" else f"{name}/{key}": float(n) for key, n in value.items()}
        elif name == "extract_subjects":
            units = ("stays", "admissions", "subjects")
            flat |= {f"{step}/{unit}": float(n) for step, *ns in value for unit, n in zip(units, ns, strict=True)}
        else:
            flat[name] = float(value)
    return flat
