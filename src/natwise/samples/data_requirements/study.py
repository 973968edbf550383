"""Re-measure the claims of the card. Baselines stand in the same result, also where they win."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import clone

from natwise.datasets import local
from natwise.study import Found, Setting, Study

from . import _study_allocation
from ._classical import FORMS, ClassicalCurve
from ._curve import LearningCurve
from ._meta import SHIPPED_BANK, CurveBank, MetaPiecewisePowerLaw
from ._planner import DataRequirementPlanner
from ._power import PiecewisePowerLaw, PowerLaw
from ._study_figures import figure as figure

MEASURED_FAMILIES = ("breast_cancer", "diabetes", "digits", "iris", "mnist", "wine")
SIZES = np.geomspace(10, 5000, 16).round()
NOISE = 0.03


def _quietly(measure: Callable[[Setting], Found], setting: Setting) -> Found:
    """Measure without the warnings by which curves say that they fall back or withhold an answer."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return measure(setting)


def _random_curve(rng: np.random.Generator) -> PiecewisePowerLaw:
    """Return an exact piecewise curve that falls faster beyond its switching size, as in few-shot fine-tuning."""
    switch, tail, curvature = rng.uniform(60, 300), rng.uniform(0.35, 0.6), -rng.uniform(0.02, 0.07)
    u = np.log(SIZES / switch)
    log_error = -tail * u + curvature * np.minimum(u, 0) ** 2
    log_error += math.log(rng.uniform(0.2, 0.6)) - log_error.max()
    return PiecewisePowerLaw(switch_size=switch).fit(SIZES, np.exp(log_error))


def _exact_recovery(setting: Setting) -> Found:
    n_curves = 20 if setting.scale == "ci" else 200
    rng = setting.streams.numpy("curves")
    miss, off, over = [], [], []
    for _ in range(n_curves):
        truth = _random_curve(rng)
        errors = truth.predict(SIZES)
        needed = rng.uniform(8000, 15000)
        target = float(truth.predict(needed))
        fitted = PiecewisePowerLaw().fit(SIZES, errors)
        few = truth.switch_size_ >= SIZES
        miss.append(np.abs(fitted.predict(SIZES) / errors - 1).max())
        off.append(abs(fitted.required_samples(target) - math.ceil(needed)))
        over.append(PowerLaw().fit(SIZES[few], errors[few]).required_samples(target) / needed)
    example = {"n": SIZES, "errors": errors, "piecewise": fitted.predict(SIZES)}
    example["power_law"] = PowerLaw().fit(SIZES[few], errors[few]).predict(SIZES)
    scalars = {
        "max_relative_error": max(miss),
        "max_required_off": max(off),
        "power_law_few_shot_overestimate": float(np.median(over)),
    }
    return Found(example, scalars, {"n_curves": n_curves})


def _band_coverage(setting: Setting) -> Found:
    repeats = 300 if setting.scale == "ci" else 2000
    rng = setting.streams.numpy("noise")
    n, tests = np.repeat(SIZES[:11], 3), np.geomspace(10, 20 * SIZES[10], 12)
    hits: dict[str, list[np.ndarray]] = {"coverage": [], "normal_quantile": [], "power_law": []}
    for _ in range(repeats):
        truth = _random_curve(rng)
        noisy = np.minimum(truth.predict(n) * np.exp(NOISE * rng.standard_normal(len(n))), 1.0)
        fitted, power, exact = PiecewisePowerLaw().fit(n, noisy), PowerLaw().fit(n, noisy), truth.predict(tests)
        mean, std = fitted.predict(tests, return_std=True)
        hits["coverage"].append(_inside(exact, fitted.predict_interval(tests)))
        hits["normal_quantile"].append(np.abs(np.log(mean / exact)) <= 1.96 * std)
        hits["power_law"].append(_inside(exact, power.predict_interval(tests)))
    low, high = fitted.predict_interval(tests)
    arrays = {"n": n, "errors": noisy, "test_n": tests, "truth": exact, "mean": mean, "low": low, "high": high}
    arrays["coverage_by_n"] = np.mean(hits["coverage"], axis=0)
    return Found(
        arrays, {name: float(np.mean(hit)) for name, hit in hits.items()}, {"repeats": repeats, "noise": NOISE}
    )


def _inside(value: np.ndarray, interval: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (interval[0] <= value) & (value <= interval[1])


def _collected_data(setting: Setting) -> Found:
    n_curves, rng = (40 if setting.scale == "ci" else 200), setting.streams.numpy("curves")
    models = {"power_law": PowerLaw(), "piecewise": PiecewisePowerLaw(), "meta": MetaPiecewisePowerLaw()}
    ratios: dict[str, list[float]] = {f"{name}_{how}": [] for name in models for how in ("at_once", "planned")}
    reached = []
    for _ in range(n_curves):
        truth = _random_curve(rng)
        needed = math.exp(rng.uniform(math.log(3000), math.log(15000)))
        target = float(truth.predict(needed))

        def measure(n: Any, truth: LearningCurve = truth) -> np.ndarray:
            errors = truth.predict(np.full(5, n, dtype=float))
            return np.minimum(errors * np.exp(NOISE * rng.standard_normal(5)), 1.0)

        sizes = np.geomspace(10, max(truth.switch_size_, 80), 6).round()
        n, errors = np.repeat(sizes, 5), np.concatenate([measure(size) for size in sizes])
        for name, model in models.items():
            plan = DataRequirementPlanner(model, target).run(measure, n, errors)
            ratios[f"{name}_at_once"].append(clone(model).fit(n, errors).required_samples(target) / needed)
            ratios[f"{name}_planned"].append(plan.scalars["size"] / needed)
            reached.append(plan.scalars["reached"])
    arrays = {name: np.array(ratio) for name, ratio in ratios.items()}
    scalars = {name: float(np.median(ratio)) for name, ratio in ratios.items()}
    share = np.reshape(reached, (n_curves, len(models))).mean(axis=0)
    scalars |= {f"{name}_reached": float(value) for name, value in zip(models, share, strict=True)}
    return Found(arrays, scalars, {"n_curves": n_curves, "noise": NOISE, "max_rounds": 5})


def _unseen_families(setting: Setting) -> Found:
    """Forecast from the first sizes of every curve of a family, by a bank without that family."""
    curves = json.loads(SHIPPED_BANK.read_text(encoding="utf-8"))
    families = MEASURED_FAMILIES if setting.scale == "ci" else sorted({curve["family"] for curve in curves})
    cuts = (5, 8) if setting.scale == "ci" else (3, 4, 5, 6, 8, 10)
    tables = []
    for family in families:
        bank = CurveBank([c for c in curves if c["family"] != family], random_state=setting.streams.child(family))
        held_out = [curve for curve in curves if curve["family"] == family]
        tables += [(family, *scores) for scores in _forecasts(bank, held_out, cuts)]
    names = np.array([table[0] for table in tables])
    misses = {key: np.array([table[1][key] for table in tables]) for key in tables[0][1]}
    covered = {key: float(np.mean([table[2][key] for table in tables])) for key in tables[0][2]}
    over = {key: np.array([table[3][key] for table in tables]) for key in tables[0][3]}
    power = misses["power_law"].mean()
    ratios = np.array([misses["meta"][names == f].mean() / misses["power_law"][names == f].mean() for f in families])
    scalars = {
        "ratio": misses["meta"].mean() / power,
        "worst_family": ratios.max(),
        **{f"error_{key}": miss.mean() for key, miss in misses.items()},
        **{f"coverage_{key}": share for key, share in covered.items()},
        **{f"over_twice_{key}": float((factor > 2).mean()) for key, factor in over.items()},
        **{f"median_required_{key}": float(np.median(factor)) for key, factor in over.items()},
    }
    params = {"families": list(families), "cuts": list(cuts), "n_forecasts": len(tables)}
    return Found({"family_ratio": ratios, **{f"error_{key}": miss for key, miss in misses.items()}}, scalars, params)


def _forecasts(bank: CurveBank, curves: list[dict[str, Any]], cuts: Any) -> Iterator[tuple[dict, dict, dict]]:
    """Yield, for every cut of every curve, the mean absolute error, the coverage and the factor of required n."""
    for curve in curves:
        n, errors = np.array(curve["n"], dtype=float), np.array(curve["errors"])
        for cut in cuts:
            if cut <= len(n) - 2:
                models: dict[str, LearningCurve] = {
                    "power_law": PowerLaw(),
                    "piecewise": PiecewisePowerLaw(),
                    "meta": MetaPiecewisePowerLaw(bank),
                    **{form: ClassicalCurve(form) for form in FORMS},
                }
                for model in models.values():
                    model.fit(n[:cut], errors[:cut])
                yield _score(models, n[cut:], errors[cut:])


def _score(models: dict[str, LearningCurve], n: np.ndarray, errors: np.ndarray) -> tuple[dict, dict, dict]:
    miss = {key: np.abs(np.minimum(m.predict(n), 1) - errors).mean() for key, m in models.items()}
    logs = ("power_law", "piecewise", "meta")
    covered = {key: _inside(errors, models[key].predict_interval(n)).mean() for key in logs}
    factor = {key: models[key].required_samples(errors[-1]) / n[-1] for key in logs}
    return miss, covered, factor


def _fine_tuning(setting: Setting) -> Found:
    """Forecast 200 and 400 images per class from 25, 50 and 100, for networks trained on CIFAR-100."""
    arrays, misses = {}, {"meta": [], "power_law": [], **{form: [] for form in FORMS}}  # type: ignore[var-annotated]
    for kind in ("pretr_ft", "no_pretr_ft"):
        rows = json.loads(local.find(f"curves/lc_cifar100_{kind}.json", setting.data_dir).read_text())
        n = np.array([row["num_train_samples"] for row in rows], dtype=float)
        errors = np.array([np.mean(row["test_errors"]) / 100 for row in rows])
        arrays[f"{kind}_n"], arrays[f"{kind}_errors"] = n, errors
        for name in misses:
            model = {"meta": MetaPiecewisePowerLaw(), "power_law": PowerLaw()}.get(name) or ClassicalCurve(name)
            forecast = model.fit(n[:3], errors[:3]).predict(n)
            misses[name].append(np.abs(forecast - errors)[3:].mean())
            arrays[f"{kind}_{name}"] = forecast
    scalars = {f"error_{name}": float(np.mean(miss)) for name, miss in misses.items()}
    return Found(arrays, {"ratio": scalars["error_meta"] / scalars["error_power_law"], **scalars}, {"known_sizes": 3})


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "exact-recovery": functools.partial(_quietly, _exact_recovery),
    "band-coverage": functools.partial(_quietly, _band_coverage),
    "collected-data": functools.partial(_quietly, _collected_data),
    "unseen-families": functools.partial(_quietly, _unseen_families),
    "fine-tuning": functools.partial(_quietly, _fine_tuning),
    "allocation": functools.partial(_quietly, _study_allocation.measure),
}
STUDY = Study("samples.data_requirements", MEASUREMENTS)
run = STUDY.run
