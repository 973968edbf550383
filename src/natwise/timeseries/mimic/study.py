"""Re-measure the claims of the card: equality with the published data, speed, and the baselines on synthetic tables.

The scale says how many synthetic patients the networks see. The seed is that of the networks; synthetic tables that
are compared with recorded numbers keep their own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from natwise.datasets import local
from natwise.datasets.clinical import write_mimic3_tables
from natwise.study import Found, Setting, Study

from ._benchmark import TASKS, MimicBenchmark
from ._study_figures import figure as figure

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


def _published_fixtures(setting: Setting, folder: Path) -> Found:
    """Count the stays of the demo whose files differ from the published digests, in any of the five tasks."""
    tables = _demo(setting.data_dir)
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
    return Found(arrays, scalars, {"tasks": list(TASKS)})


def _original_pipeline(setting: Setting, folder: Path) -> Found:
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
    return Found({"wrong_by_kind": np.array([len(wrong)])}, scalars, {"wrong": wrong})


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


def _build_speed(setting: Setting, folder: Path) -> Found:
    """Measure CPU seconds and memory of a fresh process that builds the series and the samples of the demo."""
    tables = _demo(setting.data_dir)
    runs = [build_cost(tables, folder / str(attempt)) for attempt in range(3)]
    scalars = {
        "cpu_seconds": min(seconds for seconds, _ in runs),
        "peak_megabytes": max(megabytes for _, megabytes in runs),
        "original_cpu_seconds": ORIGINAL_CPU_SECONDS,
    }
    return Found({"cpu_seconds": np.array([seconds for seconds, _ in runs])}, scalars, {"attempts": len(runs)})


def build_cost(tables: Path, out: Path) -> tuple[float, float]:
    """Return CPU seconds and peak megabytes (Linux) of a build in a fresh process, interpreter and imports included."""
    answer = subprocess.run([sys.executable, "-c", _BUILD, tables, out], check=True, capture_output=True, text=True)
    seconds, megabytes = answer.stdout.split()
    return float(seconds), float(megabytes)


def _logistic_regression(setting: Setting, folder: Path) -> Found:
    """Compare the AUROCs of the mortality regression with those of the published code on the same synthetic tables."""
    from ._features import WindowFeatures
    from ._logistic import fit_logistic_regression, predict_logistic_regression
    from ._metrics import binary_metrics
    from ._samples import load_features

    task = "in_hospital_mortality"
    write_mimic3_tables(folder / "tables", 500, seed=2, unmapped=0.7)
    MimicBenchmark.from_csv(folder / "tables").build(folder / "out", [task], export=False)
    data = load_features(
        folder / "out", task, WindowFeatures(), max_samples=10**6, rng=setting.streams.numpy("samples")
    )
    models = fit_logistic_regression(*data["train"], task)
    scalars: dict[str, float] = {}
    for part, published in PUBLISHED_AUROC.items():
        X, y = data[part]
        metrics = binary_metrics(y[:, 0], predict_logistic_regression(models, X, task))
        scalars |= {part: metrics["auroc"], f"{part}_published_code": published, f"{part}_auprc": metrics["auprc"]}
    difference = max(abs(scalars[part] - published) for part, published in PUBLISHED_AUROC.items())
    n_stays = {part: len(X) for part, (X, _) in data.items()}
    return Found({}, {"largest_difference": difference, **scalars}, {"n_stays": n_stays})


def _deep_supervision(setting: Setting, folder: Path) -> Found:
    """Compare the CPU time of an epoch with one pass per stay and with one pass per hourly sample, same network."""
    from ._training import build_network, fit_network, measure, predict

    data, settings, task = _hourly_data(setting, folder)
    data = {**data, "val": type(data["val"])([], [], [])}
    seconds, auroc = {}, {}
    for name, one_pass, epochs in (("one_pass", True, N_EPOCHS), ("per_sample", False, 1)):
        mine = replace(settings, deep_supervision=one_pass, max_epochs=epochs)
        network = build_network(task, "lstm", mine, setting.streams)
        begin = time.process_time()
        fit_network(network, task, data, mine, setting.streams)
        seconds[name] = (time.process_time() - begin) / epochs
        auroc[name] = measure(predict(network, task, data["test"]))["auroc"]
    scalars = {
        "time_ratio": seconds["per_sample"] / seconds["one_pass"],
        **{f"seconds_{name}": value for name, value in seconds.items()},
        **{f"auroc_{name}": value for name, value in auroc.items()},
    }
    params = {
        "n_patients": N_PATIENTS[setting.scale],
        "hidden": settings.hidden,
        "epochs": {"one_pass": N_EPOCHS, "per_sample": 1},
    }
    return Found({"seconds": np.array([seconds["per_sample"], seconds["one_pass"]])}, scalars, params)


def _deep_supervision_auroc(setting: Setting, folder: Path) -> Found:
    """Ask one trained network for every hourly sample twice: in one pass per stay, and each sample by itself."""
    from ._metrics import binary_metrics
    from ._samples import PrefixData
    from ._training import build_network, fit_network, predict

    data, settings, task = _hourly_data(setting, folder)
    network = build_network(task, "lstm", settings, setting.streams)
    fit_network(network, task, data, settings, setting.streams)
    y_true, one_pass = predict(network, task, data["test"])[task]
    _, each = predict(network, task, PrefixData(data["test"]))[task]
    scores = {"one_pass": one_pass, "per_sample": each}
    auroc = {name: binary_metrics(y_true, score)["auroc"] for name, score in scores.items()}
    scalars = {
        "auroc_difference": abs(auroc["one_pass"] - auroc["per_sample"]),
        "largest_score_difference": float(np.abs(one_pass - each).max()),
        **{f"auroc_{name}": value for name, value in auroc.items()},
    }
    arrays = {"scores_one_pass": one_pass, "scores_per_sample": each}
    return Found(arrays, scalars, {"n_patients": N_PATIENTS[setting.scale]})


def _hourly_data(setting: Setting, folder: Path) -> tuple[dict[str, Any], Any, str]:
    """Return decompensation data of synthetic patients, normalised, and small settings with deep supervision."""
    from ._discretizer import Discretizer
    from ._samples import load_task, normalize
    from ._training import BaselineSettings

    task, discretizer = "decompensation", Discretizer()
    write_mimic3_tables(folder / "tables", N_PATIENTS[setting.scale], seed=1)
    MimicBenchmark.from_csv(folder / "tables").build(folder / "out", [task], export=False)
    data = load_task(folder / "out", task, discretizer)
    normalize(data, discretizer)
    return dict(data), BaselineSettings(hidden=16, deep_supervision=True, max_epochs=5, dropout=0.0), task


def _demo(data_dir: str | None) -> Path:
    """Return the folder of the open demo, after looking for every table of it."""
    paths = [local.find(f"clinical/mimic3_demo/{name}.csv.gz", data_dir) for name in DEMO]
    return paths[0].parent


def _in_new_folder(measure: Callable[[Setting, Path], Found], setting: Setting) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        return measure(setting, Path(folder))


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "published-fixtures": functools.partial(_in_new_folder, _published_fixtures),
    "original-pipeline": functools.partial(_in_new_folder, _original_pipeline),
    "build-speed": functools.partial(_in_new_folder, _build_speed),
    "logistic-regression": functools.partial(_in_new_folder, _logistic_regression),
    "deep-supervision": functools.partial(_in_new_folder, _deep_supervision),
    "deep-supervision-auroc": functools.partial(_in_new_folder, _deep_supervision_auroc),
}
STUDY = Study("timeseries.mimic", MEASUREMENTS)
run = STUDY.run
