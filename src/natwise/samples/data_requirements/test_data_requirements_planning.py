"""The learned curvature, planning in rounds, dividing a budget, measuring curves, and the study."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from joblib import parallel_config
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.exceptions import NotFittedError
from sklearn.naive_bayes import GaussianNB

from natwise.samples import (
    CurveBank,
    DataRequirementPlanner,
    MetaPiecewisePowerLaw,
    PiecewisePowerLaw,
    PowerLaw,
    allocate_budget,
    measure_learning_curve,
)
from natwise.samples.data_requirements import study
from natwise.samples.data_requirements._meta import SHIPPED_BANK

N = np.array([10, 20, 40, 80, 160, 320, 640.0])


def power_curve(a, b, n=N[:4]):
    return PowerLaw().fit(n, a * n**-b)


def bent(curvature, n):
    """A curve whose slope changes at 80: the bank below holds many with the same curvature."""
    u = np.log(n / 80)
    return 0.2 * np.exp(-0.4 * u + curvature * np.minimum(u, 0) ** 2)


def test_learned_curvature_is_transferred_to_a_new_curve():
    bank = CurveBank([{"n": N, "errors": level * bent(0.1, N)} for level in np.linspace(0.2, 1, 40)], random_state=0)
    curve = MetaPiecewisePowerLaw(bank).fit(N[:4], bent(0.1, N[:4]))
    power = PowerLaw().fit(N[:4], bent(0.1, N[:4]))
    beyond = np.abs(np.log(np.array([curve.predict(N[4:]), power.predict(N[4:])]) / bent(0.1, N[4:]))).max(axis=1)
    assert curve.form_ == "meta"
    assert 0.04 < curve.theta_[2] < 0.11
    assert beyond[0] < 0.6 * beyond[1]
    low, high = curve.predict_interval(N[4:])
    assert ((low < bent(0.1, N[4:])) & (bent(0.1, N[4:]) < high)).all()


def test_own_points_win_when_they_show_the_switch():
    n = np.geomspace(10, 5000, 14)
    curve = MetaPiecewisePowerLaw().fit(n, bent(-0.08, n))
    assert curve.form_ == "piecewise"
    assert_allclose(curve.predict(10 * n), PiecewisePowerLaw().fit(n, bent(-0.08, n)).predict(10 * n), rtol=1e-9)


def test_never_a_rising_tail_and_deterministic():
    rng = np.random.default_rng(0)
    for _ in range(20):
        errors = np.sort(0.4 * N[:5] ** -0.15 * np.exp(0.2 * rng.standard_normal(5)))[::-1]
        curve = MetaPiecewisePowerLaw().fit(N[:5], errors)
        slope = np.log(curve.predict(1e5) / curve.predict(1e4))
        assert slope < 0 or curve.form_ == "power law"
        again = clone(curve).fit(N[:5], errors)
        assert (again.predict(N) == curve.predict(N)).all()


def test_shipped_bank_is_small_and_of_own_measurements():
    curves = json.loads(SHIPPED_BANK.read_text())
    assert SHIPPED_BANK.stat().st_size <= 100_000
    assert len({curve["family"] for curve in curves}) >= 10
    assert all(len(curve["n"]) == len(curve["errors"]) >= 5 for curve in curves)


def test_planner_reaches_the_target_in_rounds():
    truth = PiecewisePowerLaw(switch_size=80).fit(N, bent(-0.08, N))
    target = float(truth.predict(3000))
    rng = np.random.default_rng(0)

    def measure(size):
        return truth.predict(np.full(5, float(size))) * np.exp(0.02 * rng.standard_normal(5))

    n = np.repeat(N[:5], 5)
    errors = np.concatenate([measure(size) for size in N[:5]])
    result = DataRequirementPlanner(PiecewisePowerLaw(), target, correction=0.02 * target).run(measure, n, errors)
    assert result.scalars["reached"] == 1
    assert result.scalars["size"] <= 1.3 * 3000
    assert (np.diff(result.arrays["size"]) > 0).all()
    assert len(result.rows) == result.scalars["rounds"] <= 5
    few = DataRequirementPlanner(PowerLaw(), target, max_rounds=1).run(measure, n[:15], errors[:15])
    assert few.scalars["reached"] == 0
    assert "not reached" in few.warnings[0]


@pytest.mark.parametrize(
    ("model", "target", "status", "required"),
    [
        (PowerLaw(), 0.3, "reached", 12),
        (PowerLaw(), 0.02, "forecast", 2500),
        (PowerLaw(max_extrapolation=10), 0.02, "cannot say", math.inf),
    ],
)
def test_planner_status(model, target, status, required):
    plan = DataRequirementPlanner(model, target).fit(N[:4], N[:4] ** -0.5)
    assert (plan.status_, plan.required_) == (status, required)
    assert plan.next_size_ <= max(plan.horizon_, 80)
    assert isinstance(plan.next_size_, int)


def test_planner_on_flat_curves_and_bad_arguments():
    plan = DataRequirementPlanner(PowerLaw(), 0.1).fit(N[:4], [0.3] * 4)
    assert (plan.status_, plan.required_, plan.interval_) == ("unreachable", math.inf, (math.inf, math.inf))
    for change, message in [
        ({"model": GaussianNB()}, "model must be a learning curve"),
        ({"target": 0.0}, "target"),
        ({"correction": 0.1}, "correction must be smaller"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"min_growth": 1.0}, "min_growth"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            clone(plan).set_params(**change).fit(N[:4], [0.3] * 4)
    for answer, message in [
        ([], "1-D"),
        ([[0.1]], "1-D"),
        (math.nan, "finite"),
        ("x", "numeric"),
        (0.0, "errors must"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            plan.run(lambda size, answer=answer: answer, N[:4], [0.3] * 4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.05, 1)), min_size=2, max_size=3), st.integers(0, 12))
def test_allocation_is_optimal_by_trying_everything(shapes, budget):
    curves = [power_curve(a, b) for a, b in shapes]
    weights = np.arange(1.0, len(curves) + 1)

    def total(split):
        return sum(
            w * float(c.predict(c.largest_size_ + extra)) for w, c, extra in zip(weights, curves, split, strict=True)
        )

    splits = [s for s in itertools.product(range(budget + 1), repeat=len(curves)) if sum(s) == budget]
    found = allocate_budget(curves, weights, budget)
    assert found.sum() == budget
    assert found.dtype == np.int64
    assert total(found) <= min(map(total, splits)) + 1e-12


def test_allocation_large_flat_and_late_gains():
    curves = [power_curve(1, 0.5), power_curve(1, 0.2), power_curve(0.5, 1.0)]
    for budget in (20_001, 10**6):
        split = allocate_budget(curves, [1, 1, 1], budget)
        assert split.sum() == budget
        slopes = [(c.predict(80.0 + s) - c.predict(81.0 + s)) for c, s in zip(curves, split, strict=True)]
        assert_allclose(slopes, slopes[0], rtol=0.02)
    flat = [PowerLaw().fit(N[:4], [0.3] * 4)] * 3
    assert allocate_budget(flat, [2, 1, 1], 10).tolist() == [5, 3, 2]
    assert allocate_budget([*flat[:1], power_curve(1, 0.5)], [1, 1], 100).tolist() == [0, 100]
    late = PiecewisePowerLaw(switch_size=1000).fit(N[:5], 0.5 * np.exp(-0.02 * np.log(N[:5]) ** 2))
    assert allocate_budget([late, power_curve(0.05, 0.1, N[:5])], [1, 1], 3000)[0] > 2000


@pytest.mark.parametrize(
    ("curves", "weights", "budget", "kind", "message"),
    [
        ([], [], 5, ValueError, "weights must be"),
        ([power_curve(1, 0.5)], [1, 2], 5, ValueError, "same length"),
        ([power_curve(1, 0.5)], [-1], 5, ValueError, "weights must be"),
        ([power_curve(1, 0.5)], [0], 5, ValueError, "weights must be"),
        ([power_curve(1, 0.5)], [1], -1, ValueError, "budget must be >= 0"),
        ([power_curve(1, 0.5)], [1], 2.5, TypeError, "budget must be an integer"),
        ([power_curve(1, 0.5)], [1], 10**30, ValueError, "budget must be .*<="),
        ([GaussianNB()], [1], 5, TypeError, r"curves\[0\] must be a learning curve"),
        (None, [1], 5, TypeError, r"curves\[0\] must be a learning curve"),
        ([PowerLaw()], [1], 5, NotFittedError, "not fitted"),
    ],
)
def test_allocation_bad_arguments(curves, weights, budget, kind, message):
    with pytest.raises(kind, match=message):
        allocate_budget(curves, weights, budget)


def test_measured_curve_matches_training_by_hand_and_feeds_the_fit():
    X, y = make_classification(400, n_informative=5, random_state=0)
    group = np.where(np.arange(400) % 4 == 0, "rare", "common")
    result = measure_learning_curve(GaussianNB(), X, y, groups=group, repeats=2, random_state=0)
    with parallel_config("threading", n_jobs=2):
        again = measure_learning_curve(GaussianNB(), X, y, groups=group, repeats=2, random_state=0)
    arrays = result.arrays
    assert (arrays["errors"] == again.arrays["errors"]).all()
    assert result.params["groups"] == ["common", "rare"]
    assert (arrays["group_n"].sum(axis=1) == arrays["n"]).all()
    shares = arrays["group_n"][:, 1] / arrays["n"]
    assert np.abs(shares - 0.25).max() < 0.1
    held_out = np.array([0.75, 0.25])
    assert_allclose(arrays["group_errors"] @ held_out, arrays["errors"], atol=0.01)
    fitted = PowerLaw().fit(arrays["n"], arrays["errors"], arrays["sample_weight"])
    assert fitted.largest_size_ == 300


def test_measured_curve_floors_zero_errors_and_keeps_its_time():
    X, y = np.repeat(np.eye(2), 50, axis=0), np.repeat([0, 1], 50)
    result = measure_learning_curve(GaussianNB(), X, y, sizes=[10, 20, 40], random_state=0)
    assert_allclose(result.arrays["errors"], 0.5 / 25)
    assert "floored" in result.warnings[0]
    short = measure_learning_curve(GaussianNB(), X, y, time_limit=1e-9, random_state=0)
    assert len(np.unique(short.arrays["n"])) == 3
    assert "no time left" in short.warnings[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(150)}, "at least two classes"),
        ({"y": np.arange(149)}, "y must have 150 entries"),
        ({"y": np.zeros((150, 1))}, "y must hold labels of shape"),
        ({"y": [None] * 150}, "y must hold no missing labels"),
        ({"groups": [np.nan] * 150}, "groups must hold labels, not continuous or missing"),
        ({"estimator": DummyRegressor()}, "estimator must be a classifier"),
        ({"estimator": DummyClassifier}, "estimator must be a classifier"),
        ({"n_jobs": "two"}, "n_jobs must be an integer"),
        ({"sizes": [10, 20]}, "sizes must hold at least 3"),
        ({"sizes": [10, 20, 140]}, "between 2 and the 112"),
        ({"groups": ["a"] * 148 + ["b"] * 2}, "at least 4 rows"),
        ({"repeats": 0}, "repeats must be >= 1"),
        ({"time_limit": 0}, "time_limit must be > 0"),
        ({"test_fraction": 1.0}, "test_fraction must be"),
        ({"X": np.full((150, 4), np.nan)}, "X must be finite"),
    ],
)
def test_measured_curve_bad_arguments(change, message):
    X, y = load_iris(return_X_y=True)
    with pytest.raises((TypeError, ValueError), match=message):
        measure_learning_curve(**({"estimator": DummyClassifier(), "X": X, "y": y} | change))


@pytest.mark.parametrize("claim", ["exact-recovery", "band-coverage", "fine-tuning"])
def test_study_runs_and_draws(claim, local_data):
    if claim == "fine-tuning":
        local_data("curves/lc_cifar100_pretr_ft.json")
    result = study.run(claim, scale="ci", seed=1)
    assert result.kind == f"samples.data_requirements/{claim}"
    assert study.figure(claim, result).axes[0].get_xlabel()


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["unseen-families", "collected-data", "allocation"])
def test_long_studies(claim):
    result = study.run(claim, scale="ci", seed=1)
    assert study.figure(claim, result).axes[0].get_xlabel()
    assert result.scalars.get("ratio", 1) <= 1.05
