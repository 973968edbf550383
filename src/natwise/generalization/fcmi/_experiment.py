"""Draw supersamples of a data set, train a recipe on many splits of each, and read the bounds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib.parallel import get_active_backend
from sklearn.utils import _safe_indexing
from sklearn.utils.parallel import Parallel, delayed

from natwise.core.io import atomic_path, load_npz, write_text
from natwise.core.progress import progress
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_flag, check_integer, check_path, shorten, to_array, to_numpy
from natwise.result import Result, fingerprint, provenance

from ._recipes import Recipe, as_recipe, describe
from ._runs import SupersampleRuns, sample_supersample

NOTE = "experiment.json"
N_PERMUTATIONS = 50


def run_supersample_experiment(
    estimator: Any,
    X: Any,
    y: Any,
    n: int,
    n_splits: int = 30,
    random_state: RandomState = 0,
    *,
    n_supersamples: int = 1,
    design: str = "iid",
    deterministic: bool = True,
    n_jobs: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> Result:
    """Measure a training recipe's gap and bound it, from repeated training on halves of supersamples.

    Parameters
    ----------
    estimator : scikit-learn classifier, BatchedTrainer, torch factory, or callable
        The recipe. A callable without arguments is a factory of torch modules, for `BatchedTrainer` with its defaults;
        one with four is ``train(X_train, y_train, X_query, seed)`` and returns classes.
    X : array-like, DataFrame or sparse matrix of shape (n_samples, ...)
        The pool to draw from, without replacement.
    y : array-like of shape (n_samples,)
        Classes, of any type.
    n : int
        Size of the training set; a supersample takes 2n samples of the pool.
    n_splits : int
        Runs per supersample.
    random_state : int, Generator, RandomState, Streams or None
        Chooses samples and splits and seeds the training.
    n_supersamples : int
        Supersamples, over which bounds are averaged.
    design : {"iid", "antithetic"}
        See `sample_supersample`.
    deterministic : bool
        Start every run from one seed, so that predictions are a function of the training set, else each from its own.
        A ``random_state`` that the estimator already holds stays.
    n_jobs : int, optional
        Runs side by side, through joblib: inside ``joblib.parallel_config("dask")`` or ``"ray"`` they go there.
    checkpoint_dir : path, optional
        Keep every finished run (or batch of networks) here, and take up those that are there after a kill.
    verbose : int
        Show a progress bar over runs when standard error is a terminal.

    Returns
    -------
    Result
        Scalars as of `SupersampleRuns.bounds`, and for each bound its reading at zero information ``<name>_null``,
        ``<name>_null_95`` and ``<name>_p_value``; ``null`` is that of ``fcmi``. Arrays ``S``, ``predictions``, ``y``
        (``SupersampleRuns`` takes them again), ``indices`` (the rows of the supersample) and ``information_<target>``.
        A training half of one class is not given to the estimator: the prediction is that class.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, too small a pool, predictions that are no classes of y, a folder of another experiment.
    """
    n, n_supersamples = check_integer("n", n, minimum=1), check_integer("n_supersamples", n_supersamples, minimum=1)
    _check_options(deterministic, verbose, checkpoint_dir, random_state)
    X, classes, codes = _check_pool(X, y, n)
    recipe, streams = as_recipe(estimator, classes), Streams.of(random_state)
    with provenance(seed=random_state if isinstance(random_state, int) else None, data={"y": codes}) as record:
        drawn = [_draw(streams.child(j), codes, n, n_splits, design, deterministic) for j in range(n_supersamples)]
        folder = None if checkpoint_dir is None else _open(Path(checkpoint_dir), describe(estimator), X, drawn)
        predictions = _run(recipe, X, drawn, folder, n_jobs, verbose)
    params = {"design": design, "deterministic": deterministic, "classes": classes[:100].astype(str).tolist()}
    return _result(_arrays(drawn, predictions), params, streams.child("null"), record)


@dataclass(frozen=True, eq=False)
class _Supersample:
    """Rows of the pool in pairs and their class codes (n, 2), the splits (n_splits, n) and a seed per run."""

    indices: np.ndarray
    codes: np.ndarray
    S: np.ndarray
    seeds: tuple[int, ...]


def _draw(streams: Streams, codes: np.ndarray, n: int, n_splits: int, design: str, deterministic: bool) -> _Supersample:
    """Draw a supersample of the pool, whose class codes are (n_samples,), and its splits."""
    indices = streams.numpy("rows").permutation(len(codes))[: 2 * n].reshape(n, 2)
    S = sample_supersample(n, n_splits, streams, design)
    seeds = tuple(streams.seed("training" if deterministic else f"training-{k}") for k in range(n_splits))
    return _Supersample(indices, codes[indices], S, seeds)


def _check_options(deterministic: bool, verbose: int, folder: Any, random_state: RandomState) -> None:
    check_flag("deterministic", deterministic)
    if not isinstance(verbose, bool):
        check_integer("verbose", verbose, minimum=0)
    if folder is not None:
        check_path("checkpoint_dir", folder)
    if folder is not None and random_state is None:
        raise ValueError("random_state must be given with checkpoint_dir, got None")


def _check_pool(X: Any, y: Any, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return X as something rows can be taken from, the classes (k,), and each sample's position among them (n,)."""
    X, y = to_numpy("X", X), to_array("y", y)
    X = X if hasattr(X, "shape") else to_array("X", X)
    if len(X.shape) < 1:
        raise ValueError(f"X must hold a sample per row, got {shorten(X)}")
    if y.ndim != 1 or len(y) != X.shape[0]:
        raise ValueError(f"y must hold a class per row of X, which has shape {X.shape}, got shape {y.shape}")
    if y.dtype.kind == "f" and not (np.isfinite(y) & (y == np.floor(y))).all():
        raise ValueError("y must hold classes, got numbers that are not whole")
    if len(y) < 2 * n:
        raise ValueError(f"n must be at most half of the {len(y)} samples, got {n}")
    try:
        classes, codes = np.unique(y, return_inverse=True)
    except TypeError:
        raise TypeError(f"y must hold classes of one type, got {shorten(y[:8].tolist())}") from None
    if len(classes) < 2:
        raise ValueError(f"y must hold at least 2 classes, got {shorten(classes.tolist())}")
    return X, classes, codes


def _open(folder: Path, recipe: str, X: Any, drawn: Sequence[_Supersample]) -> Path:
    """Return the folder of finished runs; refuse one that belongs to another experiment."""
    digest = hashlib.sha256()
    for part in drawn:
        rows = _safe_indexing(X, part.indices.ravel())
        rows = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
        data = {"X": rows, "y": part.codes, "S": part.S, "seeds": np.array(part.seeds)}
        digest.update(fingerprint(data).encode())
    note = json.dumps({"recipe": recipe, "data": digest.hexdigest()}, indent=1)
    kept = folder / NOTE
    if not kept.exists():
        write_text(kept, note)
    elif kept.read_text("utf-8") != note:
        raise ValueError(f"checkpoint_dir must be empty or hold runs of this experiment, got {folder} with others")
    return folder


def _run(
    recipe: Recipe, X: Any, drawn: Sequence[_Supersample], folder: Path | None, n_jobs: int | None, verbose: int
) -> np.ndarray:
    """Return the predicted codes of all runs of all supersamples, (n_runs, 2n)."""
    n_splits = len(drawn[0].S)
    size = recipe.chunk_size(n_splits)
    jobs = [(j, slice(k, min(k + size, n_splits))) for j in range(len(drawn)) for k in range(0, n_splits, size)]

    def name(j: int, runs: slice) -> Path | None:
        return folder and folder / f"supersample-{j}-runs-{runs.start}-{runs.stop - 1}.npz"

    rows = [_safe_indexing(X, part.indices.ravel()) for part in drawn]
    work = (delayed(_train)(recipe, rows[j], drawn[j], runs, name(j, runs)) for j, runs in jobs)
    predictions = []
    with progress(len(jobs), wanted=bool(verbose)) as report:
        for done in Parallel(n_jobs=n_jobs, return_as=_return_as())(work):
            predictions.append(done)
            report(len(predictions), "training runs")
    return np.concatenate(predictions)


def _return_as() -> str:
    """Return how joblib hands over results: one by one, unless the user's backend (Ray's, for one) cannot."""
    backend, _ = get_active_backend()
    return "generator" if backend.supports_return_generator else "list"


def _train(recipe: Recipe, X: Any, part: _Supersample, runs: slice, path: Path | None) -> np.ndarray:
    """Return the predicted codes of some runs for the 2n examples; take them from the file when it is there."""
    if path is not None and path.exists():
        return load_npz(path)["predictions"]
    rows = 2 * np.arange(len(part.indices)) + part.S[runs]
    predictions = recipe.fit_predict(X, part.codes.ravel(), rows, part.seeds[runs])
    if path is not None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, predictions=predictions)
    return predictions


def _arrays(drawn: Sequence[_Supersample], predictions: np.ndarray) -> dict[str, np.ndarray]:
    """Return what was drawn and predicted (n_runs, 2n), with an axis of supersamples when there are several."""
    arrays = {name: np.stack([getattr(part, name) for part in drawn]) for name in ("S", "codes", "indices")}
    arrays["predictions"] = predictions.reshape(*arrays["S"].shape, 2)
    arrays["y"] = arrays.pop("codes")
    return {name: array[0] for name, array in arrays.items()} if len(drawn) == 1 else arrays


def _result(arrays: dict[str, np.ndarray], params: dict[str, Any], streams: Streams, record: Any) -> Result:
    """Return the experiment's result: arrays as of `_arrays`, bounds, and what they read for shuffled splits."""
    runs = SupersampleRuns(arrays["S"], arrays["predictions"], arrays["y"])
    bounds = runs.bounds()
    null = runs.permutation_null(N_PERMUTATIONS, streams).scalars
    readings = {"null": null["fcmi"]}
    for name in (name for name in bounds.params["bounds_on"] if name in null):
        readings |= {f"{name}_null": null[name], f"{name}_null_95": null[f"{name}_95"]}
        readings[f"{name}_p_value"] = null[f"{name}_p_value"]
    notes = list(bounds.warnings)
    if bounds.scalars["tightest"] > 1:
        notes.append("No bound is below 1: all are vacuous.")
    if bounds.scalars["fcmi"] <= null["fcmi_95"]:
        notes.append("The f-CMI bound is no higher than with shuffled splits: it reads the noise of too few runs.")
    return Result(
        "generalization.fcmi/experiment",
        arrays={**arrays, **bounds.arrays},
        scalars={**bounds.scalars, **readings},
        params={**bounds.params, **params, "n_permutations": N_PERMUTATIONS},
        provenance=record,
        warnings=notes,
    )
