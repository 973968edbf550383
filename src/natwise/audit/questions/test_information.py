"""What single rows tell, how much more data, and how much of it belongs in the score of a label."""

import numpy as np
import pytest

from natwise.audit import mixing, network
from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import data_requirements, sample_information
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table

N = 240
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 3
X = 3 * np.eye(3, 5)[LABELS] + RNG.standard_normal((N, 5))


def context(table, seconds=30.0, target=None):
    encoded, streams = encode(table.features), Streams(0)
    linearised = network.linearise(table, encoded.X, streams.child("network"), Deadline(seconds))
    return Context(table, encoded, streams.child("audit"), target, linearised)


@pytest.fixture(scope="module")
def scored():
    labels = LABELS.copy()
    labels[7] = (labels[7] + 1) % 3
    return sample_information.answer(context(make_table(X, labels)), Deadline(30.0))


def test_a_wrong_label_is_informative(scored):
    functional = scored.arrays["functional_information"]
    assert functional[7] > np.quantile(functional, 0.95)
    assert 7 in scored.arrays["most_informative"]
    assert (functional >= 0).all()
    assert (scored.arrays["weight_information"] >= 0).all()


def test_redundancy_is_a_ranking(scored):
    assert sorted(scored.arrays["redundancy_rank"]) == list(range(N))
    first = scored.arrays["most_redundant"]
    assert (scored.arrays["redundancy_rank"][first] == np.arange(len(first))).all()


def test_a_copied_row_is_redundant_and_an_isolated_group_is_not():
    features = np.concatenate([X, np.repeat(X[:1], 12, axis=0)])
    features[30:36] += 8 * RNG.standard_normal((6, 5))
    group = np.where((np.arange(len(features)) >= 30) & (np.arange(len(features)) < 36), "rare", "common")
    labels = np.append(LABELS, np.repeat(LABELS[:1], 12))
    result = sample_information.answer(context(make_table(features, labels, group=group)), Deadline(30.0))
    functional = result.arrays["functional_information"]
    assert functional[N:].max() < np.median(functional)
    ratio = dict(zip(result.params["group_names"], result.arrays["group_ratio"], strict=True))
    assert ratio["rare"] > 1.5 > ratio["common"]
    assert result.params["group_kind"] == "group"


def test_rescoring_the_given_labels_gives_the_same_scores():
    found = context(make_table(X, LABELS)).network
    np.testing.assert_array_equal(
        found.functional_information(LABELS[found.rows]), found.information.functional_information_
    )


def test_rows_that_were_not_scored_are_empty(monkeypatch):
    monkeypatch.setattr(network, "PROBE_ROWS", 100)
    monkeypatch.setattr(network, "MAX_ROWS", 100)
    result = sample_information.answer(context(make_table(X, LABELS)), Deadline(30.0))
    assert np.isnan(result.arrays["functional_information"]).sum() == N - 100
    assert "100 of 240 rows" in result.warnings[0]


@pytest.mark.parametrize("question", [sample_information, data_requirements])
def test_no_time_is_said(question):
    with pytest.raises(Unanswered, match="--minutes"):
        question.answer(context(make_table(X, LABELS), seconds=0.1), Deadline(0.1))


def test_no_network_when_many_classes_make_it_slow():
    labels = [f"class {i % 100}" for i in range(N)]
    assert context(make_table(X, labels), seconds=2.5).network is None


@pytest.fixture(scope="module")
def forecast():
    noisy = X + 1.5 * np.random.default_rng(1).standard_normal(X.shape)
    return data_requirements.answer(context(make_table(noisy, LABELS), target=0.5), Deadline(20.0))


def test_learning_curve_falls_and_forecasts(forecast):
    n, errors = forecast.arrays["n"], forecast.arrays["errors"]
    assert errors[n == n.max()].mean() < errors[n == n.min()].mean()
    assert (forecast.arrays["low"] <= forecast.arrays["forecast"]).all()
    assert (forecast.arrays["forecast"] <= forecast.arrays["high"]).all()
    assert forecast.scalars["error_doubled"] <= forecast.scalars["error_now"]


def test_a_target_within_reach_is_reached(forecast):
    assert forecast.scalars["goal_error"] == 0.5
    assert forecast.scalars["needed"] <= N
    assert "with the rows there are" in forecast.params["summary"][0]


def test_new_rows_are_divided_among_classes(forecast):
    assert forecast.arrays["new_rows"].sum() == N // 10
    assert len(forecast.params["names"]) == 3
    assert forecast.arrays["group_rows"].sum() == N


def test_small_groups_become_one():
    group = np.array(["big"] * 200 + ["small"] * 5 + [f"site {i}" for i in range(35)])
    members, names = data_requirements._groups(context(make_table(X, LABELS, group=group)))
    assert names == ["big", "all others"]
    assert np.bincount(members).tolist() == [200, 40]


def test_few_rows_have_no_learning_curve():
    with pytest.raises(Unanswered, match="at least 60 rows"):
        data_requirements.answer(context(make_table(X[:40], LABELS[:40])), Deadline(10.0))


@pytest.mark.parametrize(("useful", "expected"), [(True, 0.5), (False, 0.0)])
def test_information_is_mixed_in_only_when_it_finds_planted_mistakes(useful, expected):
    rng = np.random.default_rng(0)
    flags = rng.random(500) < 0.1
    scores = flags + 2 * rng.standard_normal(500)
    information = flags + (0.3 if useful else 3.0) * rng.standard_normal(500)
    aurocs = mixing.mean_aurocs([mixing.Planting(scores, information, flags)])
    assert mixing.choose_weight(aurocs) == expected
    assert mixing.choose_weight(mixing.mean_aurocs([mixing.Planting(scores, np.empty(0), flags)])) == 0.0
