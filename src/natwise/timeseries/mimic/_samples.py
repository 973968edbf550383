"""The samples of a built task as matrices with targets, for the networks; and as features, for logistic regression."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from natwise.core.validation import check_option
from natwise.datasets import mimic3

from ._benchmark import TASKS
from ._discretizer import Discretizer
from ._features import WindowFeatures
from ._normalizer import Normalizer
from ._series import Series, read_table

PARTS = ("train", "val", "test")
HOURLY = ("decompensation", "length_of_stay")
_KEYS = ["SUBJECT_ID", "EPISODE"]


@dataclass(frozen=True)
class TaskData:
    """The stays of one part of a task.

    Attributes
    ----------
    names : list of str
        "<subject>_episode<k>" of each stay.
    x : list of ndarray (steps, n_columns), float32
        The discretised stays; row t - 1 is the last that the sample of hour t may see.
    targets : list of dict of ndarray
        "y" (25 phenotypes, or one label), or per step "hourly_y" and "hourly_mask"; of the multitask data these of
        every task, as "<task>/y", and "in_hospital_mortality/mask".
    """

    names: list[str]
    x: list[np.ndarray]
    targets: list[dict[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, stay: int) -> dict[str, np.ndarray]:
        return {"x": self.x[stay], **self.targets[stay]}


class PrefixData:
    """Every hourly sample of a task by itself: the rows of its stay before hour t, and one label."""

    def __init__(self, data: TaskData):
        self.data = data
        steps = [np.flatnonzero(target["hourly_mask"]).tolist() for target in data.targets]
        self.samples = [(stay, step) for stay, mine in enumerate(steps) for step in mine]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, sample: int) -> dict[str, np.ndarray]:
        stay, step = self.samples[sample]
        return {"x": self.data.x[stay][: step + 1], "y": self.data.targets[stay]["hourly_y"][step]}


def load_task(folder: str | os.PathLike[str], task: str, discretizer: Discretizer) -> dict[str, TaskData]:
    """Return the training, validation and test stays of a built task, discretised but not normalised.

    Raises
    ------
    FileNotFoundError
        If the folder holds no such task.
    ValueError
        If the timestep of the discretizer is not an hour: the samples are hourly.
    """
    samples = read_samples(folder, task)
    if discretizer.timestep != 1.0:
        raise ValueError(f"discretizer must have timestep 1.0, as the samples are hourly, got {discretizer.timestep:g}")
    collected: dict[str, TaskData] = {part: TaskData([], [], []) for part in PARTS}
    for series, stays in _parts(Path(folder), task, samples):
        matrices = discretizer.discretize(series, stays["END"].to_numpy())
        steps = [len(matrix) for matrix in matrices]
        targets = _targets(task, stays, samples, steps)
        for row, target, matrix in zip(stays.iter_rows(named=True), targets, matrices, strict=True):
            data = collected[row["PART"]]
            data.names.append(f"{row['SUBJECT_ID']}_episode{row['EPISODE']}")
            data.x.append(matrix.astype(np.float32))
            data.targets.append(target)
    return collected


def normalize(data: dict[str, TaskData], discretizer: Discretizer) -> Normalizer:
    """Scale the matrices in place by the moments of the training stays, which are returned."""
    normalizer = Normalizer(columns=discretizer.continuous_columns)
    for matrix in data["train"].x:
        normalizer.partial_fit(matrix)
    for part in data.values():
        part.x[:] = [normalizer.transform(matrix).astype(np.float32) for matrix in part.x]
    return normalizer


def load_features(
    folder: str | os.PathLike[str],
    task: str,
    features: WindowFeatures,
    *,
    max_samples: int,
    rng: np.random.Generator,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features (n, 714) and labels of each part, of at most `max_samples` samples chosen at random."""
    samples = read_samples(folder, task)
    chosen = []
    for part in PARTS:
        rows = samples.filter(pl.col("PART") == part)
        keep = np.sort(rng.permutation(len(rows))[:max_samples])
        chosen.append(rows[keep])
    samples = pl.concat(chosen)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {part: [] for part in PARTS}
    for series, stays in _parts(Path(folder), task, samples):
        rows = stays.with_row_index("STAY").select("STAY", *_KEYS).join(samples, on=_KEYS, maintain_order="left")
        for piece in rows.iter_slices(2000):  # bounds the memory: each sample repeats its stay's events
            described = features.describe(_repeated(series, piece["STAY"].to_numpy()), piece["HOURS"].to_numpy())
            labels = piece.select(_label_columns(task)).to_numpy()
            parts = piece["PART"].to_numpy()
            for part in PARTS:
                found[part].append((described[parts == part], labels[parts == part]))
    return {
        part: (np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs]))
        for part, pairs in found.items()
    }


def read_samples(folder: str | os.PathLike[str], task: str) -> pl.DataFrame:
    """Return the samples of a built task, a row each."""
    check_option("task", task, TASKS)
    path = Path(folder) / f"tasks/{task}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no built {task}: run natwise mimic build IN {folder} --tasks {task}")
    return pl.read_parquet(path)


def _parts(folder: Path, task: str, samples: pl.DataFrame) -> Iterator[tuple[Series, pl.DataFrame]]:
    """Yield the series of each file of the build with their stays (_KEYS, PART, END), in the same order."""
    stays = samples.group_by(*_KEYS, "PART", maintain_order=True).agg(END=pl.col("HOURS").max())
    if task in HOURLY:
        episodes = pl.read_parquet(folder / "episodes.parquet", columns=[*_KEYS, "LOS"])
        stays = stays.drop("END").join(episodes, on=_KEYS, maintain_order="left").with_columns(END=24.0 * pl.col("LOS"))
    for path in sorted((folder / "timeseries").glob("part-*.parquet")):
        table = pl.read_parquet(path).join(stays, on=_KEYS, maintain_order="left")
        table = table.filter((pl.col("Hours") > -1e-6) & (pl.col("Hours") < pl.col("END") + 1e-6))
        if len(table):
            series = read_table(table)
            yield series, table[series.starts[:-1]].select(*_KEYS, "PART", "END")


def _targets(
    task: str, stays: pl.DataFrame, samples: pl.DataFrame, steps: Sequence[int]
) -> Iterator[dict[str, np.ndarray]]:
    rows = stays.select(_KEYS).join(samples, on=_KEYS, maintain_order="left")
    if task == "multitask":
        yield from (_multitask_targets(row, n) for row, n in zip(rows.iter_rows(named=True), steps, strict=True))
    elif task in HOURLY:
        grouped = rows.group_by(_KEYS, maintain_order=True).agg("HOURS", "LABEL")
        for (_, _, hours, labels), n in zip(grouped.iter_rows(), steps, strict=True):
            yield _hourly_targets(np.array(hours), np.array(labels), n)
    else:
        labels = rows.select(_label_columns(task)).to_numpy().astype(np.float32)
        yield from ({"y": label} for label in labels)


def _hourly_targets(hours: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Return label and mask per step; hour t stands at step t - 1, the last that ends by then."""
    y, mask = np.zeros(steps, dtype=np.float32), np.zeros(steps, dtype=np.float32)
    positions = hours.astype(int) - 1
    y[positions], mask[positions] = labels, 1.0
    return {"hourly_y": y, "hourly_mask": mask}


def _multitask_targets(row: dict[str, Any], steps: int) -> dict[str, np.ndarray]:
    targets = {
        "in_hospital_mortality/y": np.array([row["IHM_LABEL"] * row["IHM_MASK"]], dtype=np.float32),
        "in_hospital_mortality/mask": np.array([row["IHM_MASK"]], dtype=np.float32),
        "phenotyping/y": np.array([row[name] for name in mimic3.phenotypes().names], dtype=np.float32),
    }
    for task, name in (("decompensation", "DECOMPENSATION"), ("length_of_stay", "LOS")):
        hours = np.flatnonzero(row[f"{name}_MASK"])
        hourly = _hourly_targets(hours, np.array(row[f"{name}_LABEL"])[hours], steps)
        targets |= {f"{task}/{key}": value for key, value in hourly.items()}
    return targets


def _label_columns(task: str) -> list[str]:
    return list(mimic3.phenotypes().names) if task == "phenotyping" else ["LABEL"]


def _repeated(series: Series, stays: np.ndarray) -> Series:
    """Return a series that holds these stays, each as often as it is named."""
    lengths = series.lengths[stays]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(series.starts[stays] - starts[:-1], lengths) + np.arange(starts[-1])
    return Series(series.hours[rows], series.values[rows], starts)
