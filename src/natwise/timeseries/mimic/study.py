"""Re-measure the claims of the card: equality with the published data, speed, and the baselines on synthetic tables."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from natwise.core.random import Streams
from natwise.core.validation import check_option
from natwise.datasets import local
from natwise.datasets.clinical import write_mimic3_tables
from natwise.result import Result, provenance

from ._benchmark import TASKS, MimicBenchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measured = tuple[dict[str, float], dict[str, np.ndarray], dict[str, Any]]
REFERENCE = Path(__file__).with_name("reference.json")  # digests of published files, and of the published code's output
DEMO = (
    *("PATIENTS", "ADMISSIONS", "ICUSTAYS", "DIAGNOSES_ICD", "D_ICD_DIAGNOSES"),
    *("CHARTEVENTS", "LABEVENTS", "OUTPUTEVENTS"),
)
PUBLISHED_AUROC = {"train": 0.897, "val": 0.922, "test": 0.738}
ORIGINAL_CPU_SECONDS = 21.7  # of the published code, on all 100 patients of the demo
_BUILD = """
import pathlib, re, sys, time
from natwise.timeseries import MimicBenchmark
MimicBenchmark(sys.argv[1]).build(sys.argv[2], export=False)
status = pathlib.Path("/proc/self/status")
peak = int(re.search("VmHWM[^0-9]*([0-9]+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")
print(time.process_time(), peak)
"""
N_PATIENTS = {"ci": 60, "small": 250}
N_EPOCHS = 25  # of one pass per stay: about the time of one epoch of a pass per sample


def run(claim: str, *, scale: str, seed: int, data_dir: str | os.PathLike[str] | None = None) -> Result:
    """Measure one claim of the card.

    Parameters
    ----------
    claim : str
        The claim's id.
    scale : {"ci", "small"}
        How many synthetic patients the networks see.
    seed : int
        Seeds the networks; synthetic tables that are compared with recorded numbers keep their own.
    data_dir : path, optional
        Folder of the local data; default `$NATWISE_DATA`.

    Raises
    ------
    DataNotFoundError
        If the tables of the open demo are needed and are not here.
    """
    check_option("claim", claim, tuple(STUDIES))
    with provenance(seed=seed) as record, tempfile.TemporaryDirectory() as folder:
        scalars, arrays, params = STUDIES[claim](Path(folder), scale, seed, data_dir)
    params = {"scale": scale, **params}
    return Result(f"timeseries.mimic/{claim}", arrays=arrays, scalars=scalars, params=params, provenance=record)


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of one claim."""
    from ._study_figures import draw

    check_option("claim", claim, tuple(STUDIES))
    return draw(claim, result)


def fixture_digest(path: Path) -> str:
    """Return the benchmark's digest of a stay's file: the MD5 of its cells, rounded to one decimal, sorted, as a table.

    Rows are sorted as text by the first column whose values all differ; "None" is a value.
    """
    frame = pd.read_csv(path, index_col=False, keep_default_na=False, na_values=[""])
    frame = pd.DataFrame({name: pd.Series([_cell(v) for v in frame[name]], dtype=object) for name in frame.columns})
    key = next((name for name in frame.columns if frame[name].nunique(dropna=False) == len(frame)), None)
    if key is not None:
        frame = frame.sort_values(by=key).reset_index(drop=True)
    return hashlib.md5(frame.to_string().encode(), usedforsecurity=False).hexdigest()


def list_digest(path: Path) -> str:
    """Return the SHA-256 of a list of samples, whatever the order of its rows."""
    header, *rows = path.read_text("utf-8").splitlines()
    return hashlib.sha256("\n".join([header, *sorted(rows)]).encode()).hexdigest()


def _cell(value: Any) -> Any:
    try:
        return f"{float(value):.1f}"
    except (TypeError, ValueError):
        return value


def _published_fixtures(folder: Path, scale: str, seed: int, data_dir: Any) -> Measured:
    """Count the stays of the demo whose files differ from the published digests, in any of the five tasks."""
    tables = _demo(data_dir)
    MimicBenchmark.from_csv(tables).build(folder)
    expected = json.loads(REFERENCE.read_text("utf-8"))["demo"]
    wrong, compared = dict.fromkeys(TASKS, 0), dict.fromkeys(TASKS, 0)
    digests: dict[bytes, str] = {}  # most stays have the same content in four tasks
    for name, (hourly, mortality) in expected.items():
        for task in TASKS:
            digest = mortality if task == "in_hospital_mortality" else hourly
            if digest is not None:
                path = folder / task / name
                content = path.read_bytes()
                if content not in digests:
                    digests[content] = fixture_digest(path)
                compared[task] += 1
                wrong[task] += digests[content] != digest
    scalars = {"mismatches": float(sum(wrong.values())), "compared": float(sum(compared.values()))}
    arrays = {"compared_by_task": np.array(list(compared.values())), "wrong_by_task": np.array(list(wrong.values()))}
    return scalars, arrays, {"tasks": list(TASKS)}


def _original_pipeline(folder: Path, scale: str, seed: int, data_dir: Any) -> Measured:
    """Count what differs from the published code's output on 60 synthetic patients: series, lists, counters."""
    write_mimic3_tables(folder / "tables", 60, seed=1)
    counters = MimicBenchmark.from_csv(folder / "tables").build(folder / "out").params["counters"]
    expected = json.loads(REFERENCE.read_text("utf-8"))["synthetic"]
    lists = {name: list_digest(folder / f"out/{name}/listfile.csv") for name in expected["lists"]}
    wrong = [name for name, digest in expected["lists"].items() if lists[name] != digest]
    series = hashlib.sha256(series_text(folder / "out").encode()).hexdigest()
    wrong += ["timeseries"] * (series != expected["timeseries"])
    wrong += [name for name, value in expected["counters"].items() if not same_counter(counters[name], value)]
    compared = len(expected["lists"]) + 1 + len(expected["counters"])
    scalars = {"mismatches": float(len(wrong)), "compared": float(compared)}
    return scalars, {"wrong_by_kind": np.array([len(wrong)])}, {"wrong": wrong}


def series_text(out: Path) -> str:
    """Return all series of a build as one CSV text."""
    import polars as pl

    parts = sorted((out / "timeseries").glob("part-*.parquet"))
    text: str = pl.read_parquet(parts).drop("ICUSTAY_ID").write_csv()
    return text


def same_counter(ours: Any, theirs: Any) -> bool:
    """Say whether our counter holds what the published code counted; ours has more rules, theirs numbers as text."""
    if isinstance(theirs, dict):
        return all(ours[name] == value for name, value in theirs.items())
    if isinstance(theirs, list):
        return [[step, *map(str, counts)] for step, *counts in ours] == theirs
    return bool(ours == theirs)


def _build_speed(folder: Path, scale: str, seed: int, data_dir: Any) -> Measured:
    """Measure CPU seconds and memory of a fresh process that builds the series and the samples of the demo."""
    tables = _demo(data_dir)
    runs = [build_cost(tables, folder / str(attempt)) for attempt in range(3)]
    scalars = {
        "cpu_seconds": min(seconds for seconds, _ in runs),
        "peak_megabytes": max(megabytes for _, megabytes in runs),
        "original_cpu_seconds": ORIGINAL_CPU_SECONDS,
    }
    return scalars, {"cpu_seconds": np.array([seconds for seconds, _ in runs])}, {"attempts": len(runs)}


def build_cost(tables: Path, out: Path) -> tuple[float, float]:
    """Return CPU seconds and peak megabytes (Linux) of a build in a fresh process, interpreter and imports included."""
    answer = subprocess.run([sys.executable, "-c", _BUILD, tables, out], check=True, capture_output=True, text=True)
    seconds, megabytes = answer.stdout.split()
    return float(seconds), float(megabytes)


def _logistic_regression(folder: Path, scale: str, seed: int, data_dir: Any) -> Measured:
    """Compare the AUROCs of the mortality regression with those of the published code on the same synthetic tables."""
    from ._features import WindowFeatures
    from ._logistic import fit_logistic_regression, predict_logistic_regression
    from ._metrics import binary_metrics
    from ._samples import load_features

    task = "in_hospital_mortality"
    write_mimic3_tables(folder / "tables", 500, seed=2, unmapped=0.7)
    MimicBenchmark.from_csv(folder / "tables").build(folder / "out", [task], export=False)
    data = load_features(folder / "out", task, WindowFeatures(), max_samples=10**6, rng=Streams(seed).numpy("samples"))
    models = fit_logistic_regression(*data["train"], task)
    scalars: dict[str, float] = {}
    for part, published in PUBLISHED_AUROC.items():
        X, y = data[part]
        metrics = binary_metrics(y[:, 0], predict_logistic_regression(models, X, task))
        scalars |= {part: metrics["auroc"], f"{part}_published_code": published, f"{part}_auprc": metrics["auprc"]}
    difference = max(abs(scalars[part] - published) for part, published in PUBLISHED_AUROC.items())
    n_stays = {part: len(X) for part, (X, _) in data.items()}
    return {"largest_difference": difference, **scalars}, {}, {"n_stays": n_stays}


def _deep_supervision(folder: Path, scale: str, seed: int, data_dir: Any) -> Measured:
    """Compare the CPU time of an epoch with one pass per stay and with one pass per hourly sample, same network."""
    from ._training import build_network, fit_network, measure, predict

    data, settings, task = _hourly_data(folder, scale)
    data = {**data, "val": type(data["val"])([], [], [])}
    seconds, auroc = {}, {}
    for name, one_pass, epochs in (("one_pass", True, N_EPOCHS), ("per_sample", False, 1)):
        mine = replace(settings, deep_supervision=one_pass, max_epochs=epochs)
        network = build_network(task, "lstm", mine, Streams(seed))
        begin = time.process_time()
        fit_network(network, task, data, mine, Streams(seed))
        seconds[name] = (time.process_time() - begin) / epochs
        auroc[name] = measure(predict(network, task, data["test"]))["auroc"]
    scalars = {
        "time_ratio": seconds["per_sample"] / seconds["one_pass"],
        **{f"seconds_{name}": value for name, value in seconds.items()},
        **{f"auroc_{name}": value for name, value in auroc.items()},
    }
    params = {
        "n_patients": N_PATIENTS[scale],
        "hidden": settings.hidden,
        "epochs": {"one_pass": N_EPOCHS, "per_sample": 1},
    }
    return scalars, {"seconds": np.array([seconds["per_sample"], seconds["one_pass"]])}, params


def _deep_supervision_auroc(folder: Path, scale: str, seed: int, data_dir: Any) -> Measured:
    """Ask one trained network for every hourly sample twice: in one pass per stay, and each sample by itself."""
    from ._metrics import binary_metrics
    from ._samples import PrefixData
    from ._training import build_network, fit_network, predict

    data, settings, task = _hourly_data(folder, scale)
    network = build_network(task, "lstm", settings, Streams(seed))
    fit_network(network, task, data, settings, Streams(seed))
    y_true, one_pass = predict(network, task, data["test"])[task]
    _, each = predict(network, task, PrefixData(data["test"]))[task]
    scores = {"one_pass": one_pass, "per_sample": each}
    auroc = {name: binary_metrics(y_true, score)["auroc"] for name, score in scores.items()}
    scalars = {
        "auroc_difference": abs(auroc["one_pass"] - auroc["per_sample"]),
        "largest_score_difference": float(np.abs(one_pass - each).max()),
        **{f"auroc_{name}": value for name, value in auroc.items()},
    }
    return scalars, {"scores_one_pass": one_pass, "scores_per_sample": each}, {"n_patients": N_PATIENTS[scale]}


def _hourly_data(folder: Path, scale: str) -> tuple[dict[str, Any], Any, str]:
    """Return decompensation data of synthetic patients, normalised, and small settings with deep supervision."""
    from ._discretizer import Discretizer
    from ._samples import load_task, normalize
    from ._training import BaselineSettings

    task, discretizer = "decompensation", Discretizer()
    write_mimic3_tables(folder / "tables", N_PATIENTS[scale], seed=1)
    MimicBenchmark.from_csv(folder / "tables").build(folder / "out", [task], export=False)
    data = load_task(folder / "out", task, discretizer)
    normalize(data, discretizer)
    return dict(data), BaselineSettings(hidden=16, deep_supervision=True, max_epochs=5, dropout=0.0), task


def _demo(data_dir: Any) -> Path:
    """Return the folder of the open demo, after looking for every table of it."""
    paths = [local.find(f"clinical/mimic3_demo/{name}.csv.gz", data_dir) for name in DEMO]
    return paths[0].parent


STUDIES: dict[str, Callable[[Path, str, int, Any], Measured]] = {
    "published-fixtures": _published_fixtures,
    "original-pipeline": _original_pipeline,
    "build-speed": _build_speed,
    "logistic-regression": _logistic_regression,
    "deep-supervision": _deep_supervision,
    "deep-supervision-auroc": _deep_supervision_auroc,
}
