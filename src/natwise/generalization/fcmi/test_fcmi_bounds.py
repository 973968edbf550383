"""Each bound as a function: the defining inequality by brute force, limits, orders, and bad input."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from natwise import generalization as g
from natwise.core.io import load_npz
from natwise.testing import check_bad_input

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
errors = st.floats(0, 1)
nats = st.floats(0, 3)


def divergence(q, p):
    parts = ((a, b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0)
    return sum(a * math.log(a / b) if b > 0 else math.inf for a, b in parts)


@given(errors, nats)
def test_kl_inverse_is_the_inverse(q, c):
    p = g.kl_inverse(q, c)
    assert q <= p <= 1
    assert divergence(q, max(p - 1e-9, q)) <= c + 1e-12
    if p < 1 - 1e-9:
        assert divergence(q, p + 1e-7) >= c - 1e-9
    assert g.pac_bayes_kl_bound(q, 100 * c, 100) >= p - 1e-12


def test_kl_inverse_of_arrays():
    q = np.array([[0.0], [0.2], [1.0]])
    p = g.kl_inverse(q, [0.0, 0.1, 50.0, 2000.0])
    assert p.shape == (3, 4)
    np.testing.assert_allclose(p[:, 0], q[:, 0])
    np.testing.assert_allclose(p[0, 1], 1 - math.exp(-0.1))
    assert p[1, 1] == g.kl_inverse(0.2, 0.1)
    assert (p[:, 3] == 1).all()


def by_grid(train_error, information):
    """Return the linear and the fast-rate bound by trying many constants that satisfy the constraints."""
    rate = np.linspace(1e-4, 0.37, 4000)[:, None]
    gamma = np.linspace(1, 12, 3000)
    ok = rate * (1 - gamma) + (np.exp(rate) - 1 - rate) * (1 + gamma**2) <= 0
    linear = np.where(ok, gamma * train_error + information / rate, np.inf).min()
    c2 = np.linspace(1e-4, math.log(2) / 2, 4000)[:-1, None]
    c1 = np.geomspace(1e-4, 100, 3000)
    ok = np.exp(2 * c2) + np.exp(-2 * c2 * (c1 + 1)) <= 2
    return linear, np.where(ok, c1 * train_error + information / c2, np.inf).min()


@pytest.mark.parametrize(
    ("train_error", "information"), [(0.0, 0.2), (0.05, 0.02), (0.3, 0.1), (0.5, 1e-3), (1.0, 0.5)]
)
def test_optimised_bounds_are_the_least_of_a_grid(train_error, information):
    linear, fast = by_grid(train_error, information)
    found = g.linear_bound(train_error, information), g.fast_rate_bound(train_error, information)
    assert found[0] == pytest.approx(linear, rel=2e-3)
    assert found[1] == pytest.approx(fast, rel=2e-3)
    assert found[0] <= linear + 1e-12
    assert found[1] <= fast + 1e-12


@settings(max_examples=50)
@given(errors, nats, nats)
def test_orders_and_limits(train_error, first, second):
    less, more = sorted((first, second))
    for bound in (g.linear_bound, g.fast_rate_bound, g.binary_kl_bound):
        assert bound(train_error, less) <= bound(train_error, more) + 1e-9
        assert np.isfinite(bound(train_error, more))
    assert g.linear_bound(train_error, 0.0) == g.binary_kl_bound(train_error, 0.0) == train_error
    assert g.fast_rate_bound(train_error, 0.0) == 0.0
    assert g.fast_rate_bound(train_error, more) <= g.fast_rate_bound(train_error, more, closed_form=True) + 1e-9
    assert g.fast_rate_bound(0.0, more) == pytest.approx(2 * more / math.log(2))
    assert g.binary_kl_bound(train_error, more) <= 1
    looser = [g.variance_bound(train_error, train_error**2, more, gamma) for gamma in (0.3, 0.7, None)]
    assert looser[0] >= looser[1] - 1e-9 >= looser[2] - 2e-9
    assert looser[2] == g.fast_rate_bound(train_error, more)


def test_square_root_bounds():
    information = np.array([0.0, 0.02, 0.5, -0.1])
    expected = np.sqrt(2 * np.array([0, 0.02, 0.5, 0])).mean()
    assert g.fcmi_bound(information) == pytest.approx(expected)
    assert g.single_loss_bound(information) == pytest.approx(2 * expected)
    assert g.fcmi_bound(3.0, m=6) == pytest.approx(1.0)
    assert g.interpolation_bound([0.1, 0.3]) == pytest.approx(0.2 / math.log(2))
    members = np.array([[0.1, 0.0], [0.2, 0.5], [0.1, 0.6]])
    assert g.ensemble_bound(members) == pytest.approx(g.fcmi_bound([0.4, math.log(2)]))
    assert g.pair_squared_bound([0.0, 0.0], 10) == pytest.approx(0.1)
    assert g.pair_squared_bound([0.5], 10) == pytest.approx(0.1 + 0.9)


def test_the_original_sgld_bound():
    s = {name.removeprefix("sgld/"): value for name, value in GOLDEN.items() if name.startswith("sgld/")}
    bound = g.sgld_bound(int(s["n"]), int(s["batch_size"]), s["lr"], s["beta"], s["grad_variance"])
    assert bound == pytest.approx(float(s["bound"]), rel=1e-12)
    flat = g.sgld_bound(100, 10, 0.1, 50.0, np.ones(5))
    assert flat == pytest.approx(math.sqrt(100 / (40 * 99**2) * 4 * 0.1 * 50 / 4))
    assert g.sgld_bound(100, 10, [0.1], [50.0], [1.0]) == 0.0


def test_capacity_stability_and_pac_bayes():
    assert g.vc_information(1000, 3) == pytest.approx(3 * math.log(2 * math.e * 1000 / 3))
    assert g.vc_information(1, 10) == pytest.approx(11 * math.log(2))
    assert g.vc_bound(1000, 3) == pytest.approx(math.sqrt(2 / 1000 * g.vc_information(1000, 3)))
    assert g.vc_bound(10**6, 3) < g.vc_bound(1000, 3) < g.vc_bound(1000, 30)
    assert g.stability_bound(0.01, 16, 4.0) == pytest.approx(2**1.5 * 2 * 0.2)
    paper = g.stability_squared_bound(100, 0.1, 0.01, 0.02, dimension=4, lipschitz=0.5)
    change = math.sqrt(2 * 0.1**2 + 100 * 0.01**2 + 100 * 0.02**2)
    assert paper == pytest.approx(0.32 + 12**1.5 * 2 * 0.5 * change)
    sharp = g.stability_squared_bound(100, 0.1, 0.01, 0.02, dimension=4, lipschitz=0.5, constant="sharp")
    assert 0.32 < sharp < paper
    kl, root = g.pac_bayes_kl_bound(0.05, 20.0, 1000), g.mcallester_bound(0.05, 20.0, 1000)
    assert divergence(0.05, kl) == pytest.approx((20 + math.log(2 * math.sqrt(1000) / 0.05)) / 1000)
    assert kl < root


def test_divergences_count_empty_cells():
    table = np.array([[10, 0], [0, 10]])
    found = g.f_information(table)
    expected = {"mi": math.log(2), "chi2": 1.0, "hellinger": 2 - math.sqrt(2), "tv": 1.0}
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected)
    middle = 2 * 0.5 * math.log(2 * 0.5 / 0.75) + 4 * 0.25 * 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    assert found["jsd"] == pytest.approx(middle, abs=1e-12)
    for case in ("case0", "case1", "case2"):
        runs = g.SupersampleRuns(*(GOLDEN[f"{case}/{name}"] for name in ("S", "pred", "y")))
        values = g.f_information(runs._tables(runs._codes("loss_difference")))
        for name, key in (("mi", "mi"), ("chi2", "chi2"), ("hellinger", "hel"), ("jsd", "js"), ("tv", "tv")):
            np.testing.assert_allclose(values[name], GOLDEN[f"{case}/div/{key}"], rtol=0, atol=1e-12)
    independent = g.f_information(np.full((3, 2, 4), 5))
    assert all(np.abs(value).max() < 1e-12 for value in independent.values())


def test_bad_input():
    high, low, text, empty = (
        (ValueError, "<= 1"),
        (ValueError, ">= 0"),
        (TypeError, "numeric"),
        (ValueError, "at least one"),
    )
    nothing = ({"information": []}, *empty)
    rate = [
        ({"train_error": 1.5}, *high),
        ({"train_error": -0.1}, *low),
        ({"train_error": float("nan")}, ValueError, "finite"),
        ({"train_error": "low"}, TypeError, "number"),
        ({"information": [0.1, np.nan]}, ValueError, "finite"),
        ({"information": "much"}, *text),
        nothing,
    ]
    counts = np.ones((2, 2))
    divergences = {name: np.ones(3) for name in ("mi", "chi2", "hellinger", "jsd", "tv")}
    family = {"divergences": divergences, "squared_difference": np.ones(3), "mean_gap": np.ones(3)}
    stable = {"n": 10, "self_stability": 0.1, "test_stability": 0.1, "train_stability": 0.1, "dimension": 2}
    noise = {"n": 10, "batch_size": 2, "lr": [0.1, 0.1], "beta": [1.0, 1.0], "grad_variance": [1.0, 1.0]}
    table = [
        (g.binary_kl_bound, {"train_error": 0.1, "information": 0.1}, rate),
        (g.linear_bound, {"train_error": 0.1, "information": 0.1}, rate),
        (
            g.fast_rate_bound,
            {"train_error": 0.1, "information": 0.1},
            [*rate, ({"closed_form": "yes"}, TypeError, "True or False")],
        ),
        (
            g.variance_bound,
            {"train_error": 0.1, "second_moment": 0.01, "information": 0.1},
            [
                *rate[1:],
                ({"gamma": 0.0}, ValueError, "> 0"),
                ({"gamma": 2.0}, *high),
                ({"second_moment": 0.2}, ValueError, "0.1"),
            ],
        ),
        (
            g.fcmi_bound,
            {"information": 0.1},
            [nothing, ({"m": 0}, ValueError, ">= 1"), ({"m": 1.0}, TypeError, "integer")],
        ),
        (g.single_loss_bound, {}, [nothing, ({"information": [np.inf]}, ValueError, "finite")]),
        (g.interpolation_bound, {}, [nothing, ({"information": "all"}, TypeError, "numeric")]),
        (g.ensemble_bound, {}, [({"information": [0.1]}, ValueError, "(members, n)")]),
        (
            g.fcmi_squared_bound,
            {"information": 1.0, "n": 4},
            [({"information": -1.0}, *low), ({"constant": "b"}, ValueError, "one of")],
        ),
        (
            g.pair_squared_bound,
            {"information": 0.1, "n": 4},
            [({"n": 1}, ValueError, ">= 2"), nothing, ({"population": 1}, TypeError, "True or False")],
        ),
        (
            g.kl_inverse,
            {"q": 0.1, "c": 0.1},
            [({"q": 1.1}, ValueError, "[0, 1]"), ({"c": -1.0}, *low), ({"q": []}, ValueError, "[0, 1]")],
        ),
        (g.kl_inverse, {"q": [0.1, 0.2]}, [({"c": [0.1, 0.1, 0.1]}, ValueError, "broadcast")]),
        (
            g.vc_bound,
            {"n": 10, "d": 2},
            [({"n": 0}, ValueError, ">= 1"), ({"d": 0}, ValueError, ">= 1"), ({"d": 1.5}, TypeError, "integer")],
        ),
        (
            g.stability_bound,
            {"self_stability": 0.1, "dimension": 2},
            [({"self_stability": -1.0}, *low), ({"lipschitz": -1.0}, *low)],
        ),
        (
            g.stability_squared_bound,
            stable,
            [({"test_stability": -1.0}, *low), ({"constant": "x"}, ValueError, "one of")],
        ),
        (
            g.sgld_bound,
            noise,
            [
                ({"n": 1}, ValueError, ">= 2"),
                ({"batch_size": 11}, ValueError, "<= 10"),
                ({"lr": [0.1]}, ValueError, "at least 2"),
                ({"beta": [-1.0, 1.0]}, *low),
                ({"grad_variance": 1.0}, ValueError, "shape"),
                ({"grad_variance": [1.0, -1.0]}, *low),
            ],
        ),
        (
            g.pac_bayes_kl_bound,
            {"empirical_risk": 0.1, "kl": 1.0, "n": 10},
            [({"delta": 0.0}, ValueError, "> 0"), ({"kl": -1.0}, *low), ({"empirical_risk": 2.0}, *high)],
        ),
        (
            g.f_information,
            {},
            [
                ({"counts": [1, 2]}, ValueError, "2 axes"),
                ({"counts": 0 * counts}, ValueError, "at least one"),
                ({"counts": -counts}, *low),
            ],
        ),
        (
            g.f_information_bounds,
            family,
            [
                ({"divergences": {"mi": [1.0] * 3}}, ValueError, "chi2"),
                ({"squared_difference": np.ones(2)}, ValueError, "shape"),
                ({"mean_gap": np.ones((3, 1))}, ValueError, "shape"),
                ({"mean_gap": []}, ValueError, "at least one"),
                ({"squared_difference": -np.ones(3)}, *low),
                ({"divergences": {**divergences, "jsd": -np.ones(3)}}, *low),
                ({"divergences": [1.0] * 5}, TypeError, "dict"),
            ],
        ),
    ]
    for call, good, cases in table:
        check_bad_input(call, cases, **good)
