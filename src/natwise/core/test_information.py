import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from natwise.core.information import (
    ESTIMATORS,
    contingency_tables,
    entropy,
    entropy_from_counts,
    gaussian_entropy,
    gaussian_mutual_information,
    gaussian_total_correlation,
    kl_divergence,
    mutual_information,
    mutual_information_from_counts,
    total_correlation,
)
from natwise.core.random import Streams
from natwise.testing import check_bad_input

XOR = np.zeros((2, 2, 2))
for a, b in itertools.product(range(2), repeat=2):
    XOR[a, b, a ^ b] = 0.25


def pmfs(n_axes):
    shapes = hnp.array_shapes(min_dims=n_axes, max_dims=n_axes, max_side=4)
    weights = shapes.flatmap(lambda shape: hnp.arrays(float, shape, elements=st.sampled_from([0, 0.01, 0.3, 1, 5])))
    return weights.filter(lambda w: w.sum() > 0).map(lambda w: w / w.sum())


def covariance_of(n_variables, seed):
    a = Streams(seed).numpy("a").standard_normal((n_variables, n_variables + 2))
    return a @ a.T


def slow_information(p):
    """I(x; y | z) of a joint pmf with three axes, term by term."""
    value = 0.0
    for x, y, z in np.ndindex(*p.shape):
        if p[x, y, z]:
            value += p[x, y, z] * math.log(p[x, y, z] * p[:, :, z].sum() / (p[x, :, z].sum() * p[:, y, z].sum()))
    return value


@settings(deadline=None)
@given(pmfs(3))
def test_discrete_identities(p):
    assert mutual_information(p, 0, 1, 2) == pytest.approx(slow_information(p), abs=1e-12)
    chain = mutual_information(p, 0, 1) + mutual_information(p, 0, 2, given=1)
    assert mutual_information(p, 0, (1, 2)) == pytest.approx(chain, abs=1e-12)
    assert total_correlation(p) == pytest.approx(
        mutual_information(p, 0, 1) + mutual_information(p, (0, 1), 2), abs=1e-12
    )
    assert mutual_information(p, 0, 1) == pytest.approx(mutual_information(p, 1, 0), abs=1e-12)
    assert 0 <= mutual_information(p, 0, 1) <= min(entropy(p.sum((1, 2))), entropy(p.sum((0, 2)))) + 1e-12
    assert 0 <= entropy(p) <= math.log(p.size) + 1e-12
    product = p.sum((1, 2))[:, None] * p.sum((0, 2))
    assert kl_divergence(p.sum(2), product / product.sum()) == pytest.approx(mutual_information(p, 0, 1), abs=1e-9)


@settings(deadline=None)
@given(pmfs(2), st.integers(0, 100))
def test_data_processing(p, seed):
    channel = Streams(seed).numpy("channel").dirichlet(np.ones(3), size=p.shape[1])
    assert mutual_information(p @ channel) <= mutual_information(p) + 1e-12


def test_known_values():
    assert entropy(np.full((2, 4), 1 / 8)) == pytest.approx(math.log(8), abs=1e-15)
    assert [mutual_information(XOR, 0, 2), total_correlation(XOR)] == pytest.approx([0, math.log(2)], abs=1e-15)
    assert mutual_information(XOR, 0, 2, given=1) == pytest.approx(math.log(2), abs=1e-15)
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert kl_divergence([0.0, 1.0], [0.5, 0.5]) == pytest.approx(math.log(2))


def slow_mean_over_permutations(x, y):
    """Plug-in information averaged over every permutation of y."""
    values = [mutual_information_from_counts(contingency_tables(x, permuted)) for permuted in itertools.permutations(y)]
    return np.mean(values)


@pytest.mark.parametrize(
    ("x", "y"), [([0, 0, 1, 1, 1, 0], [0, 1, 2, 2, 5, 0]), ([3, 3, 3, 3], [1, 2, 1, 2]), ([0, 1, 2, 3, 4], range(5))]
)
def test_estimators_against_their_definitions(x, y):
    counts = contingency_tables(x, list(y))
    n = counts.sum()
    plugin = mutual_information(counts / n)
    cells = [(axis > 0).sum() for axis in (counts, counts.sum(0), counts.sum(1))]
    expected = {
        "plugin": plugin,
        "miller_madow": plugin - (cells[0] - cells[1] - cells[2] + 1) / (2 * n),
        "permutation": plugin - slow_mean_over_permutations(x, y),
    }
    for estimator in ESTIMATORS:
        value = mutual_information_from_counts(counts, estimator)
        assert value == pytest.approx(expected[estimator], abs=1e-12)
    rows, columns = counts.sum(1), counts.sum(0)
    joint = entropy_from_counts(counts.ravel(), "miller_madow")
    parts = entropy_from_counts(rows, "miller_madow") + entropy_from_counts(columns, "miller_madow")
    assert parts - joint == pytest.approx(expected["miller_madow"], abs=1e-12)
    assert entropy_from_counts(rows) == pytest.approx(entropy(rows / n), abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000))
def test_tables_are_counted_and_estimated_one_by_one(n_samples, n_tables, seed):
    rng = Streams(seed).numpy("codes")
    x, y = rng.integers(-3, 3, (n_samples, n_tables)), rng.integers(0, 2**40, (n_samples, n_tables)) % 4 * 2**38
    counts = contingency_tables(x, y)
    for table in range(n_tables):
        values = [np.unique(code[:, table], return_inverse=True)[1] for code in (x, y)]
        expected = np.zeros(counts.shape[1:], dtype=int)
        np.add.at(expected, tuple(values), 1)
        np.testing.assert_array_equal(counts[table], expected)
        for estimator in ESTIMATORS:
            one = mutual_information_from_counts(contingency_tables(x[:, table], y[:, table]), estimator)
            assert mutual_information_from_counts(counts, estimator)[table] == pytest.approx(one, abs=1e-12)
    mixed = mutual_information_from_counts(np.stack([counts, 2 * counts]), "permutation")
    assert mixed.shape == (2, n_tables)
    np.testing.assert_allclose(mixed[0], mutual_information_from_counts(counts, "permutation"), atol=1e-12)


def test_bias_of_independent_variables():
    """30 runs, two classes: the plug-in reads about 0.05 nats where there is nothing; the corrections do not."""
    rng = Streams(0).numpy("runs")
    counts = contingency_tables(rng.integers(0, 2, (30, 4000)), rng.integers(0, 4, (30, 4000)))
    plugin, miller_madow, permutation = (mutual_information_from_counts(counts, e).mean() for e in ESTIMATORS)
    assert plugin == pytest.approx(0.055, abs=0.005)
    assert abs(miller_madow) < 0.015
    assert abs(permutation) < 0.002


@settings(deadline=None)
@given(st.integers(3, 7), st.integers(0, 1000))
def test_gaussian_identities(n_variables, seed):
    s = covariance_of(n_variables, seed)
    everything = tuple(range(n_variables))
    chain = sum(gaussian_mutual_information(s, everything[:i], i) for i in everything[1:])
    assert gaussian_total_correlation(s) == pytest.approx(chain, abs=1e-9)
    entropies = sum(gaussian_entropy(s[i : i + 1, i : i + 1]) for i in everything)
    assert gaussian_total_correlation(s) == pytest.approx(entropies - gaussian_entropy(s), abs=1e-9)
    joint = gaussian_mutual_information(s, 0, (1, 2))
    parts = gaussian_mutual_information(s, 0, 1) + gaussian_mutual_information(s, 0, 2, given=1)
    assert joint == pytest.approx(parts, abs=1e-9)
    scale = np.diag(np.logspace(-2, 2, n_variables))
    assert gaussian_mutual_information(scale @ s @ scale, 0, (1, 2)) == pytest.approx(joint, abs=1e-8)


def test_gaussian_closed_forms():
    s = np.array([[4.0, 1.2], [1.2, 1.0]])
    rho = 0.6
    assert gaussian_mutual_information(s) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-14)
    assert gaussian_entropy([[4.0]]) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 4), abs=1e-14)
    p = 10
    equal = np.full((p, p), rho) + (1 - rho) * np.eye(p)
    expected = -0.5 * ((p - 1) * math.log(1 - rho) + math.log(1 + (p - 1) * rho))
    assert gaussian_total_correlation(equal) == pytest.approx(expected, abs=1e-12)


CASES = [
    (entropy, {"pmf": [0.5, 0.6]}, ValueError, "pmf must sum to 1, got a sum of 1.1"),
    (entropy, {"pmf": [1.5, -0.5]}, ValueError, "pmf must hold probabilities >= 0"),
    (entropy, {"pmf": []}, ValueError, "pmf must hold probabilities"),
    (entropy, {"pmf": [math.nan, 1]}, ValueError, "pmf must be finite"),
    (kl_divergence, {"p": [1.0], "q": [0.5, 0.5]}, ValueError, "q must have shape (1)"),
    (mutual_information, {"pmf": XOR, "x": 3}, ValueError, "x must hold variables from 0 to 2, got (3,)"),
    (mutual_information, {"pmf": XOR, "y": ()}, ValueError, "y must hold variables from 0 to 2, got ()"),
    (mutual_information, {"pmf": XOR, "given": (1,)}, ValueError, "x, y, given must not share a variable"),
    (total_correlation, {"pmf": "ab"}, TypeError, "pmf must be numeric"),
    (contingency_tables, {"x": [1, 2], "y": [1]}, ValueError, "x and y must have one shape"),
    (contingency_tables, {"x": [0.5], "y": [1]}, ValueError, "x must hold whole numbers"),
    (contingency_tables, {"x": [], "y": []}, ValueError, "not empty"),
    (entropy_from_counts, {"counts": [1, -1]}, ValueError, "counts must have at least 1 axes and no negative entry"),
    (entropy_from_counts, {"counts": [1], "estimator": "permutation"}, ValueError, "estimator must be one of"),
    (mutual_information_from_counts, {"counts": [1, 2]}, ValueError, "counts must have at least 2 axes"),
    (mutual_information_from_counts, {"counts": [[0, 0]]}, ValueError, "counts must hold at least one sample"),
    (mutual_information_from_counts, {"counts": [[1]], "estimator": "plug-in"}, ValueError, "Did you mean 'plugin'"),
    (gaussian_entropy, {"covariance": [1.0, 2.0]}, ValueError, "covariance must be a square matrix"),
    (gaussian_entropy, {"covariance": [[1, 0.5], [0.4, 1]]}, ValueError, "covariance must be symmetric"),
    (gaussian_total_correlation, {"covariance": [[1, 1], [1, 1]]}, ValueError, "covariance must be positive definite"),
    (gaussian_mutual_information, {"covariance": np.eye(2), "y": 2}, ValueError, "y must hold variables from 0 to 1"),
]


@pytest.mark.parametrize("function", dict.fromkeys(case[0] for case in CASES))
def test_bad_input(function):
    check_bad_input(function, [case[1:] for case in CASES if case[0] is function])
