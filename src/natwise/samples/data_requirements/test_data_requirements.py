"""Curves: reference numbers, a slow obvious reference, properties, bad input.

`golden.npz` holds reference numbers: four exact piecewise curves with the size that a target needs and the power
law through their few-shot points, and a noisy weighted fit with its covariance. They were computed by an
independent float64 implementation of the published form (theta, N -> curve -> inverse; normal equations).
"""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from natwise.core.io import load_npz
from natwise.samples import (
    ClassicalCurve,
    CurveBank,
    MetaPiecewisePowerLaw,
    PiecewisePowerLaw,
    PowerLaw,
)
from natwise.samples.data_requirements import ExtrapolationWarning
from natwise.samples.data_requirements._classical import FORMS

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
FEW_SHOT = (8, 6, 6, 5)
N = np.array([10, 15, 23, 35, 52, 79, 120, 182, 275, 416, 630, 953.0])
CURVES = [PowerLaw(), PiecewisePowerLaw(), MetaPiecewisePowerLaw(), *(ClassicalCurve(form) for form in FORMS)]


def golden(case):
    return {key.split("/")[1]: value for key, value in GOLDEN.items() if key.startswith(case + "/")}


def piecewise(n, theta, switch):
    """The form as published: th1 + th2 x + th3 x^2 up to ln N, its tangent beyond."""
    x, X = np.log(n), math.log(switch)
    left = theta[0] + theta[1] * x + theta[2] * x**2
    right = theta[0] - theta[2] * X**2 + (theta[1] + 2 * theta[2] * X) * x
    return np.exp(np.where(x <= X, left, right))


curves = st.builds(
    lambda switch, tail, curvature, level: (
        (level, -tail - 2 * curvature * math.log(switch), curvature),
        switch,
    ),
    st.floats(30, 300),
    st.floats(0.2, 1.0),
    st.floats(-0.06, 0.06),
    st.just(0.0),
)


def errors_of(curve, n=N):
    values = piecewise(n, *curve)
    return values * 0.6 / values.max()


@pytest.mark.parametrize("i", range(4))
def test_exact_reference_curves(i):
    g = golden(f"exact{i}")
    curve = PiecewisePowerLaw().fit(g["n"], g["v"])
    assert_allclose(curve.predict(g["n"]), g["v"], rtol=1e-6)
    assert_allclose(curve.theta_, g["theta"], rtol=1e-6)
    assert_allclose(curve.switch_size_, g["N"], rtol=1e-6)
    assert abs(curve.required_samples(float(g["target"])) - g["n_required"]) <= 1
    few = slice(FEW_SHOT[i])
    power = PowerLaw().fit(g["n"][few], g["v"][few])
    assert_allclose(power.theta_, [g["power_log_a"], g["power_slope"], 0], rtol=1e-9)
    assert abs(power.required_samples(float(g["target"])) - g["power_n_required"]) <= 1


def test_noisy_reference_fit_and_band():
    g = golden("noisy")
    curve = PiecewisePowerLaw(switch_size=float(g["N"])).fit(g["n"], g["v"])
    errors, std = curve.predict(g["pred_n"], return_std=True)
    assert_allclose(curve.theta_, g["theta"], rtol=1e-9)
    assert_allclose(errors, g["pred"], rtol=1e-9)
    assert_allclose(std, g["log_sd"], rtol=1e-8)


def test_slow_reference_finds_the_same_switch():
    """Try every N of a fine grid by plain normal equations on the published basis."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 2, len(N))
    errors = errors_of(((0, 0.2, -0.06), 120.0)) * np.exp(0.02 * rng.standard_normal(len(N)))
    curve = PiecewisePowerLaw().fit(N, errors, weight)
    x, y, best = np.log(N), np.log(errors), math.inf
    for X in np.linspace(x[1], x[-2], 4000):
        A = np.stack([np.ones_like(x), x, np.where(x <= X, x**2, 2 * X * x - X**2)], axis=1)
        theta = np.linalg.solve(A.T @ (weight[:, None] * A), A.T @ (weight * y))
        rss = weight @ (y - A @ theta) ** 2
        if rss < best:
            best, found, coefficients = rss, X, theta
    assert abs(math.log(curve.switch_size_) - found) <= x.max() / 1000
    assert_allclose(curve.theta_, coefficients, rtol=0.05)
    own = weight @ (y - np.log(curve.predict(N))) ** 2
    assert own <= best * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(curves)
def test_continuous_with_its_slope_at_the_switch(curve):
    switch = curve[1]
    fitted = PiecewisePowerLaw(switch_size=switch).fit(N, errors_of(curve))
    h = 1e-4
    below, at, above = np.log(fitted.predict(switch * np.exp([-h, 0, h])))
    assert abs((above - at) / h - (at - below) / h) <= 2 * abs(curve[0][2]) * h + 1e-8
    assert_allclose(fitted.predict(N), errors_of(curve), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(curves, st.integers(10, 5000))
def test_inverse_round_trips_on_both_branches(curve, n):
    fitted = PiecewisePowerLaw(switch_size=curve[1]).fit(N, errors_of(curve))
    slope = fitted.theta_[1] + 2 * fitted.theta_[2] * math.log(10)
    if slope < -1e-3:  # falling from the first size on, so that the inverse is unique
        assert fitted.required_samples(float(fitted.predict(n))) == n
    beyond = fitted.predict(np.geomspace(curve[1], 1e6, 50))
    assert (np.diff(beyond) < 0).all()


@settings(max_examples=20, deadline=None)
@given(curves, st.floats(0.05, 20), st.floats(0.2, 1.0))
def test_equivariance(curve, size_factor, error_factor):
    errors = errors_of(curve)
    base = PiecewisePowerLaw().fit(N, errors)
    scaled = PiecewisePowerLaw().fit(size_factor * N, error_factor * errors)
    n = np.array([12.0, 100, 5000])
    assert_allclose(scaled.predict(size_factor * n), error_factor * base.predict(n), rtol=1e-6)
    if abs(curve[0][2]) > 1e-3 and N[2] < curve[1] < N[-3]:
        assert_allclose(scaled.switch_size_, size_factor * curve[1], rtol=1e-3)


def test_no_curvature_is_the_power_law():
    errors = 0.9 * N**-0.4
    power, bent = PowerLaw().fit(N, errors), PiecewisePowerLaw().fit(N, errors)
    assert_allclose(bent.predict(10 * N), power.predict(10 * N), rtol=1e-9)
    assert abs(bent.theta_[2]) < 1e-9
    assert power.required_samples(0.01) == bent.required_samples(0.01) == math.ceil((0.9 / 0.01) ** 2.5)


@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_weights_repeats_order_and_dtype(curve):
    rng = np.random.default_rng(1)
    errors = errors_of(((0, -0.2, -0.04), 100.0)) * np.exp(0.03 * rng.standard_normal(len(N)))
    weight = rng.integers(1, 4, len(N))
    shuffled = rng.permutation(int(weight.sum()))
    repeated_n, repeated_errors = np.repeat(N, weight)[shuffled], np.repeat(errors, weight)[shuffled]
    before = repeated_n.copy()
    weighted = clone(curve).fit(N, errors, weight).predict(3 * N)
    repeated = clone(curve).fit(repeated_n.tolist(), repeated_errors).predict(3 * N)
    assert_allclose(weighted, repeated, rtol=1e-4 if isinstance(curve, ClassicalCurve) else 1e-8)
    assert (repeated_n == before).all()
    integers = clone(curve).fit(N.astype(np.int32), errors, weight.astype(np.float32))
    assert_allclose(integers.predict(3 * N), weighted, rtol=1e-6)


def test_band_vanishes_without_noise_and_is_infinite_without_freedom():
    errors = errors_of(((0, -0.1, -0.05), 100.0))
    _, std = PiecewisePowerLaw().fit(N, errors).predict([10, 1000, 1e5], return_std=True)
    assert (std < 1e-6).all()
    four = PiecewisePowerLaw().fit(N[::3], errors[::3])
    assert np.isinf(four.predict(N, return_std=True)[1]).all()
    low, high = four.predict_interval(N)
    assert (low == 0).all()
    assert (high == 1).all()
    assert four.horizon() == N[::3].max()


@pytest.mark.parametrize("model", [PowerLaw(), PiecewisePowerLaw()], ids=str)
def test_band_covers_at_the_stated_rate(model):
    rng = np.random.default_rng(2)
    theta = (-0.5, -0.4, 0.0 if isinstance(model, PowerLaw) else -0.03)
    n, tests = np.repeat(N[:10], 2), np.array([10, 60, 400, 2000, 20000])
    truth, hits = piecewise(tests, theta, 100.0), []
    for _ in range(250):
        errors = piecewise(n, theta, 100.0) * np.exp(0.04 * rng.standard_normal(len(n)))
        low, high = clone(model).fit(n, errors).predict_interval(tests, confidence=0.9)
        hits.append((low <= truth) & (truth <= high))
    assert abs(np.mean(hits) - 0.9) < 0.04


def test_required_interval_and_horizon():
    rng = np.random.default_rng(3)
    errors = 0.9 * N**-0.3 * np.exp(0.05 * rng.standard_normal(len(N)))
    curve = PowerLaw(max_extrapolation=1e4).fit(N, errors)
    low, high = curve.required_interval(0.06)
    assert low < curve.required_samples(0.06) < high
    assert_allclose(curve.predict_interval([low])[0], 0.06, rtol=1e-3)
    assert_allclose(curve.predict_interval([high])[1], 0.06, rtol=1e-3)
    horizons = [curve.horizon(rtol) for rtol in (0.001, 0.12, 0.2, 0.4)]
    assert horizons[0] == N.max()
    assert sorted(set(horizons)) == horizons
    centre, upper = curve.predict(horizons[2]), curve.predict_interval(horizons[2])[1]
    assert_allclose(upper / centre, 1.2, rtol=1e-2)
    assert curve.horizon(1e6) == 1e4 * N.max()


@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_reached_and_unreachable_targets(curve):
    flat = clone(curve).fit([10, 20, 40, 80], [0.3, 0.3, 0.3, 0.3])
    assert flat.required_samples(0.35) == 10
    assert flat.required_samples(0.1) == math.inf
    falling = clone(curve).fit(N, 0.5 * N**-0.3)
    assert falling.required_samples(0.9) == 10
    size = falling.required_samples(0.09)
    assert isinstance(size, int)
    assert falling.predict(size) <= 0.09 <= falling.predict(size - 1)
    with pytest.raises(NotFittedError):
        clone(curve).predict([10])


@pytest.mark.parametrize("form", FORMS)
def test_classical_forms_recover_their_own_curves(form):
    params = {
        "power": (-120.0, -0.5, 92.0),
        "arctan": (0.02, 0.8, -4.0),
        "logarithmic": (7.0, 12.0, 40.0),
        "algebraic_root": (1.2, 0.7, 2.0),
        "hoiem": (0.05, 1.4),
    }[form]
    score = FORMS[form].score(N, np.array(params))
    curve = ClassicalCurve(form).fit(N, 1 - score / 100)
    assert_allclose(curve.predict(N), 1 - score / 100, rtol=0.02)
    assert curve.required_samples(float(curve.predict(700))) == 700
    _, std = curve.predict([20, 2000], return_std=True)
    assert np.isfinite(std).all()


def test_cannot_say_instead_of_extrapolating():
    curve = PiecewisePowerLaw(max_extrapolation=10).fit(N, 0.9 * N**-0.5)
    assert curve.required_samples(0.01) == 8100
    with pytest.warns(ExtrapolationWarning, match="cannot say"):
        assert curve.required_samples(0.001) == math.inf
    assert curve.required_interval(0.001) == (math.inf, math.inf)


def test_fallback_says_why():
    with pytest.warns(UserWarning, match="fewer than 4"):
        few = PiecewisePowerLaw().fit([10, 20, 40], [0.4, 0.3, 0.25])
    assert few.form_ == "power law"
    assert_allclose(few.predict(80), PowerLaw().fit([10, 20, 40], [0.4, 0.3, 0.25]).predict(80))
    with pytest.warns(UserWarning, match="would rise"):
        PiecewisePowerLaw(switch_size=1000).fit(N, np.exp(-0.5 - 0.9 * np.log(N) + 0.09 * np.log(N) ** 2))


GOOD = ([10, 20, 40, 80], [0.4, 0.3, 0.2, 0.15])
BAD = {
    "zero error": ([10, 20, 40], [0.4, 0.2, 0.0], None, ValueError, "0.5 / n_test"),
    "percent": ([10, 20, 40], [40.0, 30.0, 20.0], None, ValueError, "divide percentages"),
    "negative error": ([10, 20, 40], [0.4, 0.3, -0.1], None, ValueError, "errors must be > 0"),
    "accuracy": ([10, 20, 40, 80], [0.6, 0.7, 0.8, 0.85], None, ValueError, "not accuracies"),
    "noisy accuracy": (N[:6], [0.5, 0.62, 0.6, 0.75, 0.74, 0.9], None, ValueError, "not accuracies"),
    "two sizes": ([10, 20, 20], [0.4, 0.3, 0.3], None, ValueError, "3 distinct sizes"),
    "empty": ([], [], None, ValueError, "3 distinct sizes"),
    "nan error": ([10, 20, 40], [0.4, np.nan, 0.2], None, ValueError, "errors must be finite"),
    "infinite size": ([10, 20, np.inf], [0.4, 0.3, 0.2], None, ValueError, "n must be finite"),
    "size 0": ([0, 20, 40], [0.4, 0.3, 0.2], None, ValueError, "n must be > 0"),
    "lengths": ([10, 20, 40], [0.4, 0.3], None, ValueError, "same length"),
    "2-D": ([[10], [20], [40]], [0.4, 0.3, 0.2], None, ValueError, "n must have shape"),
    "text": (["a", "b", "c"], [0.4, 0.3, 0.2], None, TypeError, "n must be numeric"),
    "negative weight": (*GOOD, [1, 1, 1, -1], ValueError, "sample_weight must be >= 0"),
    "weights hide sizes": (*GOOD, [1, 1, 0, 0], ValueError, "3 distinct sizes"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("curve", CURVES[:4], ids=str)
def test_bad_points(curve, case):
    n, errors, weight, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        clone(curve).fit(n, errors, weight)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda c: c.required_samples(0), ValueError, "target must be"),
        (lambda c: c.required_samples(95), ValueError, "target must be"),
        (lambda c: c.required_samples(math.nan), ValueError, "target must be finite"),
        (lambda c: c.required_samples("0.1"), TypeError, "target must be a number"),
        (lambda c: c.predict([0]), ValueError, "n must be > 0"),
        (lambda c: c.predict([1], return_std="no"), TypeError, "return_std must be True or False"),
        (lambda c: c.horizon(0), ValueError, "rtol must be > 0"),
        (lambda c: c.predict_interval([10], confidence=1.0), ValueError, "confidence must be"),
        (lambda c: PowerLaw(max_extrapolation=0.5).fit(*GOOD), ValueError, "max_extrapolation must be >= 1"),
        (lambda c: PiecewisePowerLaw(switch_size=0).fit(*GOOD), ValueError, "switch_size must be > 0"),
        (lambda c: ClassicalCurve("arctg").fit(*GOOD), ValueError, "Did you mean 'arctan'"),
        (lambda c: MetaPiecewisePowerLaw(bank=[]).fit(*GOOD), TypeError, "bank must be a CurveBank"),
        (lambda c: CurveBank([]), ValueError, "curves must hold one of at least five"),
        (lambda c: CurveBank({"n": GOOD[0], "errors": GOOD[1]}), TypeError, "curves must be a sequence of mappings"),
        (lambda c: CurveBank([{"n": GOOD[0]}]), TypeError, r"curves\[0\] must be a mapping with"),
    ],
)
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call(PowerLaw().fit(*GOOD))


@pytest.mark.parametrize("values", [[0.3, 0.31, 0.3, 0.305], [0.498, 0.499, 0.4995, 0.5], [1.0, 1.0, 1.0, 1.0]])
def test_chance_level_errors_are_not_mistaken_for_accuracies(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for curve in CURVES:
            assert clone(curve).fit([10, 20, 40, 80], values).required_samples(0.1) == math.inf
