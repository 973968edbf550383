"""The published logistic regressions on the 714 features."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from natwise.core.random import RandomState, Streams
from natwise.result import Result, provenance

from ._features import WindowFeatures
from ._metrics import BUCKET_MEANS, length_of_stay_bucket
from ._samples import load_features

MAX_SAMPLES = 100_000
# Penalty and C as published; scikit-learn takes the share of L1 as l1_ratio.
PENALTIES = {
    "in_hospital_mortality": (0.0, 1e-3),
    "decompensation": (0.0, 1e-3),
    "length_of_stay": (0.0, 1e-5),
    "phenotyping": (1.0, 0.1),
}


def train_logistic_regression(
    folder: str | os.PathLike[str],
    task: str,
    *,
    max_samples: int = MAX_SAMPLES,
    random_state: RandomState = 0,
) -> Result:
    """Fit and measure the published logistic regression of a task: features, mean imputation, standardisation, penalty.

    Length of stay: one regression per bucket against the rest; the answer is the mean length of the likeliest bucket.
    Of more than `max_samples` samples of a part so many are drawn (published: 100,000 for decompensation).
    """
    from ._training import measure

    if task not in PENALTIES:
        raise ValueError(f"task must be one of {', '.join(PENALTIES)} for logistic_regression, got {task!r}")
    with provenance() as record:
        rng = Streams.of(random_state).numpy("samples")
        data = load_features(folder, task, WindowFeatures(), max_samples=max_samples, rng=rng)
        model = fit_logistic_regression(*data["train"], task)
        scalars: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        for part in ("val", "test"):
            X, y = data[part]
            if len(X):
                score = predict_logistic_regression(model, X, task)
                y = y.astype(np.float64) if task == "phenotyping" else y[:, 0].astype(np.float64)
                scalars |= {f"{part}/{name}": value for name, value in measure({task: (y, score)}).items()}
                if part == "test":
                    arrays = {f"{task}/y_true": y, f"{task}/y_score": score}
    params = {"task": task, "model": "logistic_regression", "C": PENALTIES[task][1], "max_samples": max_samples}
    return Result("timeseries.mimic/train", arrays=arrays, scalars=scalars, params=params, provenance=record)


def fit_logistic_regression(X: np.ndarray, y: np.ndarray, task: str) -> list[Pipeline]:
    """Return one fitted pipeline per label (one for the buckets of the length of stay)."""
    labels = length_of_stay_bucket(y) if task == "length_of_stay" else y
    return [_pipeline(task, labels[:, column]).fit(X, labels[:, column]) for column in range(labels.shape[1])]


def predict_logistic_regression(models: list[Pipeline], X: np.ndarray, task: str) -> np.ndarray:
    """Return probabilities (n,), (n, 25) for phenotypes, or hours (n,) for the length of stay."""
    if task == "length_of_stay":
        return BUCKET_MEANS[models[0].predict(X)]
    scores = np.stack([_positive(model, X) for model in models], axis=1)
    return scores if task == "phenotyping" else scores[:, 0]


def _positive(model: Pipeline, X: np.ndarray) -> np.ndarray:
    """Return the probability of label 1; 0 when the training samples had none."""
    classes = list(model.classes_)
    return model.predict_proba(X)[:, classes.index(1)] if 1 in classes else np.zeros(len(X))


def _pipeline(task: str, labels: np.ndarray) -> Pipeline:
    steps = (SimpleImputer(strategy="mean", keep_empty_features=True), StandardScaler())
    if len(np.unique(labels)) == 1:
        return make_pipeline(*steps, DummyClassifier(strategy="prior"))
    l1_ratio, strength = PENALTIES[task]
    solver = "liblinear" if l1_ratio else "lbfgs"
    model: Any = LogisticRegression(C=strength, l1_ratio=l1_ratio, solver=solver, max_iter=1000, random_state=0)
    return make_pipeline(*steps, OneVsRestClassifier(model) if task == "length_of_stay" else model)
