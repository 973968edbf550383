"""The stages of a build, and the record of those that are finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from natwise.core.io import atomic_path, write_text
from natwise.core.progress import progress

from ._cohort import build_cohort
from ._episodes import SeriesTotals, build_series, diagnosis_table, phenotype_table, read_part, static_table
from ._events import count_by_rule, divide_subjects, filter_events
from ._export import export_task
from ._rules import CleaningRules
from ._tables import EVENT_TABLES, reading
from ._tasks import SAMPLES, eligible

if TYPE_CHECKING:
    from ._benchmark import MimicBenchmark

Value = TypeVar("Value")


class Build:
    """One call of `MimicBenchmark.build`: which stages are finished stands in ``build.json``."""

    def __init__(
        self, benchmark: MimicBenchmark, folder: Path, rules: CleaningRules, identity: dict[str, Any], *, resume: bool
    ):
        self.benchmark, self.folder, self.rules, self.identity = benchmark, folder, rules, identity
        self.manifest = folder / "build.json"
        self.finished: dict[str, Any] = {}
        for leftover in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:  # of a build that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if resume and self.manifest.exists():
            self.finished = self._earlier()
        else:
            self.manifest.unlink(missing_ok=True)

    def run(self, tasks: tuple[str, ...], events_per_part: int, *, export: bool, verbose: int) -> dict[str, Any]:
        """Run the stages that are not finished and return the counters."""
        steps = 2 + len(EVENT_TABLES) + len(tasks) * (1 + export)
        with progress(steps, wanted=bool(verbose)) as self.report:
            extracted = self.stage("cohort", self._cohort)
            stays = pl.read_parquet(self.folder / "stays.parquet")
            for table in EVENT_TABLES:
                self.stage(f"events/{table}", partial(self._events, table, stays))
            counts = pl.read_parquet([self.folder / f"events/{table}.counts.parquet" for table in EVENT_TABLES])
            parts = divide_subjects(counts, stays, events_per_part)
            series = self.stage("timeseries", partial(self._series, stays, parts))
            counters = {"validate_events": count_by_rule(counts, stays), "extract_subjects": extracted, **series}
            for task in tasks:
                counters |= self.stage(f"tasks/{task}", partial(self._samples, task))
                if export:
                    self.stage(f"export/{task}", partial(self._export, task))
        return counters

    def stage(self, name: str, work: Callable[[], Value]) -> Value:
        """Return what the stage gave when it was finished, now or in an earlier call."""
        self.report(len(self.finished), name)
        if name not in self.finished:
            self.finished[name] = work()
            write_text(self.manifest, json.dumps({"identity": self.identity, "finished": self.finished}, indent=1))
        return self.finished[name]

    def _earlier(self) -> dict[str, Any]:
        try:
            content = json.loads(self.manifest.read_text("utf-8"))
            identity, finished = content["identity"], content["finished"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.manifest} is no record of a build: {error}") from error
        changed = [name for name in self.identity if identity.get(name) != self.identity[name]]
        if changed:
            raise ValueError(
                f"resume must continue a build of the same tables and rules; {', '.join(changed)} changed since "
                f"{self.manifest} was written. Build anew without resume"
            )
        return dict(finished)

    def _cohort(self) -> list[list[str | int]]:
        benchmark = self.benchmark
        cohort = build_cohort(benchmark.tables, benchmark.cohort, self.rules)
        self._write(cohort.stays, "stays.parquet")
        self._write(cohort.diagnoses, "diagnoses.parquet")
        return cohort.counters

    def _events(self, table: str, stays: pl.DataFrame) -> int:
        benchmark = self.benchmark
        with atomic_path(self.folder / f"events/{table}.parquet") as path:
            counts = filter_events(benchmark.tables, table, stays, benchmark.variables, path)
        self._write(counts, f"events/{table}.counts.parquet")
        return int(counts["usable"].sum())

    def _series(self, stays: pl.DataFrame, parts: list[list[int]]) -> dict[str, Any]:
        shutil.rmtree(self.folder / "timeseries", ignore_errors=True)
        totals = SeriesTotals()
        files = [self.folder / f"events/{table}.parquet" for table in EVENT_TABLES]
        for number, subjects in enumerate(parts):
            events = read_part(files, subjects, self.benchmark.variables)
            chosen = stays.filter(pl.col("SUBJECT_ID").is_between(subjects[0], subjects[-1]))
            series, unusable, counts = build_series(events, chosen, self.rules)
            totals.add(series, chosen, unusable, counts)
            self._write(series, f"timeseries/part-{number:04d}.parquet")
        diagnoses = pl.read_parquet(self.folder / "diagnoses.parquet")
        tables = (
            static_table(stays, totals.first()),
            phenotype_table(stays, diagnoses, self.benchmark.phenotypes),
            diagnosis_table(stays, diagnoses, self.rules),
        )
        episodes = pl.concat(tables, how="horizontal")
        self._write(episodes, "episodes.parquet")
        return totals.counters(episodes)

    def _samples(self, task: str) -> dict[str, Any]:
        stays, skipped = eligible(pl.read_parquet(self.folder / "episodes.parquet"))
        samples = SAMPLES[task](stays)
        self._write(samples, f"tasks/{task}.parquet")
        n = dict(samples["PART"].value_counts().iter_rows())
        counts = {"train": n.get("train", 0) + n.get("val", 0), "test": n.get("test", 0), "val": n.get("val", 0)}
        return {**{f"n_{task}_{part}": count for part, count in counts.items()}, "skipped_stays": skipped}

    def _export(self, task: str) -> int:
        samples, episodes = (pl.read_parquet(self.folder / f"{name}.parquet") for name in (f"tasks/{task}", "episodes"))
        parts = sorted((self.folder / "timeseries").glob("part-*.parquet"))
        return export_task(task, samples, episodes, parts, self.folder / task)

    def _write(self, frame: pl.DataFrame, name: str) -> None:
        with atomic_path(self.folder / name) as path, reading(str(self.folder / name)):
            frame.write_parquet(path)
