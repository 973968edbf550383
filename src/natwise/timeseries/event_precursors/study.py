"""Re-measure the claims: planted words are found, encoding once pays, ICEWS violence beside its baselines.

The scalars hold the metric and the numbers of all baselines on the same rows, with intervals of a block bootstrap.
The scale is the length of the planted corpus, and how often an epoch is timed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from natwise.result import Result
from natwise.study import Found, Setting, Study
from natwise.timeseries.event_precursors._baselines import CountRegression, Persistence, RollingMean
from natwise.timeseries.event_precursors._corpus import Corpus
from natwise.timeseries.event_precursors._dataset import EventDataset
from natwise.timeseries.event_precursors._forecaster import LONGEST_BLOCK, EventForecaster
from natwise.timeseries.event_precursors._icews import icews_violence
from natwise.timeseries.event_precursors._metrics import compare_forecasts, event_metrics
from natwise.timeseries.event_precursors._model import HierarchicalAttentionLSTM
from natwise.timeseries.event_precursors._nested import NestedMIL
from natwise.timeseries.event_precursors._planted import planted_precursors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTORY = 10
TEST_DAYS = 94  # targets from day 271 of the year on
ICEWS_OPTIONS: dict[str, Any] = {
    "hidden_dim": 16,
    "n_members": 3,
    "max_epochs": 12,
    "patience": 4,
    "batch_size": 64,
    "learning_rate": 0.003,
    "dropout": 0.5,
    "weight_decay": 0.1,
    "min_documents": 20,
}


@functools.lru_cache(maxsize=1)  # two claims read the same run
def _planted(setting: Setting) -> Found:
    n_days = 600 if setting.scale == "ci" else 1000
    data, planted = planted_precursors(n_days, random_state=setting.seed)
    train, test = data.split(data.target_dates[int(0.7 * len(data))])
    options: dict[str, Any] = {"hidden_dim": 16, "max_epochs": 30, "learning_rate": 0.01}
    models: dict[str, Any] = {
        "forecaster": EventForecaster(**options, device=setting.device, random_state=setting.seed),
        "count_regression": CountRegression(),
        "nested_mil": NestedMIL(n_iterations=500, random_state=setting.seed),
        "rolling_mean": RollingMean(),
        "persistence": Persistence(),
    }
    arrays, scalars = _compare(models, train, test, setting.seed)
    events = test[test.y == 1]
    for by in ("attention", "occlusion"):
        first = models["forecaster"].precursors(events, 1, by=by)
        scalars[f"first_by_{by}"] = float(planted[first["document"]].mean())
    scalars["first_by_nested_mil"] = float(planted[models["nested_mil"].precursors(events, 1)["document"]].mean())
    scalars["first_by_chance"] = float(np.mean([planted[np.concatenate(w).astype(int)].mean() for w in events.windows]))
    return Found(arrays, scalars, {**options, "n_days": n_days, "n_test": len(test), "names": list(models)})


def _icews(setting: Setting) -> Found:
    data = icews_violence(setting.data_dir, history=7, lead=1)
    train, test = data.split(data.target_dates.max() - pd.Timedelta(days=TEST_DAYS - 1))
    models: dict[str, Any] = {
        "forecaster": EventForecaster(**ICEWS_OPTIONS, device=setting.device, random_state=setting.seed),
        "with_labels": EventForecaster(
            **ICEWS_OPTIONS, past_labels=True, device=setting.device, random_state=setting.seed
        ),
        "count_regression": CountRegression(),
        "rolling_mean": RollingMean(),
        "persistence": Persistence(),
    }
    arrays, scalars = _compare(models, train, test, setting.seed)
    params = {**ICEWS_OPTIONS, "history": 7, "lead": 1, "n_train": len(train), "n_test": len(test)}
    return Found(arrays, scalars, {**params, "names": [*models, "average"]})


def _compare(models: dict[str, Any], train: EventDataset, test: EventDataset, seed: int) -> tuple[dict, dict]:
    """Fit all models to the same rows and compare their forecasts of the same rows."""
    forecasts = {name: model.fit(train).predict_proba(test)[:, 1] for name, model in models.items()}
    best = "with_labels" if "with_labels" in models else "forecaster"
    forecasts["average"] = (forecasts[best] + forecasts["count_regression"]) / 2
    result = compare_forecasts(test.y, forecasts, test.target_dates, random_state=seed)
    scalars = dict(result.scalars)
    for name, probability in forecasts.items():
        metrics = event_metrics(test.y, probability, threshold=getattr(models.get(name), "threshold_", 0.5))
        scalars |= {f"{name}_{key}": metrics[key] for key in ("f1", "accuracy", "brier")}
    scalars |= _interval_of_average(test, forecasts, seed)
    scalars["base_rate"] = float(test.y.mean())
    return {"auc": result.arrays["auc"], **{f"probability_{name}": p for name, p in forecasts.items()}}, scalars


def _interval_of_average(test: EventDataset, forecasts: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """Compare the mean of forecaster and logistic regression with each baseline."""
    names = ("average", "count_regression", "rolling_mean")
    scalars = compare_forecasts(
        test.y, {name: forecasts[name] for name in names}, test.target_dates, random_state=seed
    ).scalars
    return {name: value for name, value in scalars.items() if name.startswith("average_minus")}


def _encoding(setting: Setting) -> Found:
    """Time an epoch of training with shared documents, and one in which each window brings its own."""
    data, _ = planted_precursors(
        200, history=HISTORY, documents_per_day=8, words_per_document=40, vocab_size=500, random_state=setting.seed
    )
    data = data[:128]
    forecaster = EventForecaster(32, max_epochs=1, validation_fraction=0.0, random_state=setting.seed).fit(data)
    corpus = Corpus(data, forecaster.encode_, torch.device("cpu"))
    model = forecaster.models_[0]
    n_blocks = -(-len(data) // LONGEST_BLOCK)
    shared = [corpus.windows(rows) for rows in np.array_split(np.arange(len(data)), n_blocks)]
    alone = [_unshared(windows) for windows in shared]
    repeats = 3 if setting.scale == "ci" else 7
    seconds: dict[str, list[float]] = {"shared": [], "alone": []}
    for _ in range(repeats):  # in turns, so that load hits both alike
        for name, batches in (("shared", shared), ("alone", alone)):
            start = time.process_time()
            _epoch(model, batches, data.y)
            seconds[name].append(time.process_time() - start)
    encoded = {name: sum(len(w.lengths) for w in batches) for name, batches in (("shared", shared), ("alone", alone))}
    best = {name: float(min(values)) for name, values in seconds.items()}
    scalars = {"epoch_ratio": best["alone"] / best["shared"], "documents_ratio": encoded["alone"] / encoded["shared"]}
    scalars |= {f"seconds_{name}": value for name, value in best.items()}
    return Found(seconds, scalars, {"history": HISTORY, "block": LONGEST_BLOCK, "n": len(data), "hidden_dim": 32})


def _unshared(windows: Any) -> Any:
    """Return the same windows with documents and days of their own."""
    table = windows.day_documents[windows.days.ravel()]
    owned = table[table >= 0]
    own = torch.full_like(table, -1)
    own[table >= 0] = torch.arange(len(owned))
    own = torch.cat([torch.full_like(own[:1], -1), own])
    days = torch.arange(1, len(own)).reshape(windows.days.shape)
    return windows._replace(units=windows.units[owned], lengths=windows.lengths[owned], day_documents=own, days=days)


def _epoch(model: HierarchicalAttentionLSTM, batches: list[Any], y: np.ndarray) -> None:
    model.train()
    for number, windows in enumerate(batches):
        model.zero_grad()
        labels = torch.as_tensor(y[number * LONGEST_BLOCK :][: len(windows.days)], dtype=torch.float32)
        torch.nn.functional.binary_cross_entropy_with_logits(model.read(windows).logit, labels).backward()


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "planted-forecast": _planted,
    "planted-first": _planted,
    "encoding-once": _encoding,
    "icews-violence": _icews,
}
STUDY = Study("timeseries.event_precursors", MEASUREMENTS, gpu=True)
run = STUDY.run
_NAMES = {
    "forecaster": "attention LSTM",
    "with_labels": "attention LSTM\nwith past labels",
    "count_regression": "logistic regression\non counts",
    "nested_mil": "nested MIL",
    "rolling_mean": "rolling mean",
    "persistence": "persistence",
    "average": "mean of LSTM\nand regression",
}


def figure(claim: str, result: Result) -> Figure:
    """Draw the AUC of all forecasts with their intervals, who finds the planted document, or the time of an epoch."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.5, 4.0), layout="constrained")
    axes, s = drawing.subplots(), result.scalars
    if claim == "encoding-once":
        axes.barh(["each window alone", "documents shared"], [s["seconds_alone"], s["seconds_shared"]], color="0.6")
        axes.set(xlabel=f"CPU seconds per epoch (ratio {s['epoch_ratio']:.1f})")
    elif claim == "planted-first":
        names = {"attention": "attention", "occlusion": "occlusion", "nested_mil": "nested MIL", "chance": "chance"}
        axes.barh(list(names.values()), [s[f"first_by_{name}"] for name in names], color="0.6")
        axes.set(xlabel="events whose first document is a planted one (share)", xlim=(0, 1.02))
    else:
        shown = [name for name in _NAMES if f"{name}_auc" in s]
        values = np.array([[s[f"{name}_auc{end}"] for end in ("", "_low", "_high")] for name in shown])
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        axes.errorbar(values[:, 0], [_NAMES[name] for name in shown], xerr=errors, fmt="o", color="0.2", capsize=3)
        axes.set(xlabel="AUC on later days (95 % interval, blocks of 14 days)")
        axes.axvline(0.5, color="0.8", linestyle=":")
    axes.invert_yaxis()
    return drawing
