"""Held-out groups: what was planted in a group is said of it, in time, and only when groups are given."""

import numpy as np
import pytest

from natwise.audit import plan
from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import held_out_groups
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table
from natwise.testing import check_result

N = 150
SITES = ("alike", "as well", "another", "one more", "mixed", "turned")


def context(X, labels, group):
    table = make_table(X, labels, group=group)
    return Context(table, encode(table.features), Streams(0))


def sites(seed=0, names=SITES, n=N):
    """Return rows of sites that differ as their names say: classes mixed, or the rule turned round."""
    rng = np.random.default_rng(seed)
    group = np.repeat(names, n)
    labels = rng.integers(2, size=len(group))
    sign = (2 * labels - 1.0) * np.where(group == "turned", -1, 1) * np.where(group == "mixed", 0, 1)
    X = rng.normal(size=(len(group), 3)) + 2 * np.column_stack([sign, 0 * sign, 0 * sign])
    return X, labels, group


@pytest.fixture(scope="module")
def answered():
    return held_out_groups.answer(context(*sites()), Deadline(600))


def test_what_was_planted_is_said(answered):
    check_result(answered)
    verdicts = dict(zip(answered.params["names"], answered.params["verdicts"], strict=True))
    assert verdicts["mixed"] == held_out_groups.CAUSES[1]
    assert verdicts["turned"] == held_out_groups.CAUSES[2]
    error = dict(zip(answered.params["names"], answered.arrays["held_out_error"], strict=True))
    assert error["alike"] < 0.15
    assert error["turned"] > 0.8
    assert answered.params["names"][int(answered.scalars["worst_group"])] == "turned"
    assert answered.scalars["worst_held_out_accuracy"] == pytest.approx(1 - error["turned"])
    assert answered.scalars["worst_known_accuracy"] == pytest.approx(1 - answered.arrays["known_error"].max())
    assert verdicts["alike"] == "no worse than in the groups it knows"
    assert answered.params["worst_cell"]["group"] == "turned"
    assert "turned" in answered.params["summary"][0]
    assert held_out_groups.CAUSES[2] in answered.params["summary"][0]


def test_the_causes_add_up(answered):
    np.testing.assert_allclose(answered.arrays["parts"].sum(axis=1), answered.arrays["held_out_error"], atol=1e-12)
    assert (answered.arrays["parts_se"] >= 0).all()


def test_equal_groups_are_said_to_be_equal():
    found = held_out_groups.answer(context(*sites(1, ("a", "b", "c"))), Deadline(600))
    assert found.params["verdicts"] == ["no worse than in the groups it knows"] * 3
    assert "no other group fares worse" in found.params["summary"][0]


def test_gaps_rare_classes_and_small_groups_do_no_harm():
    X, labels, group = sites(2)
    labels, group = labels.astype(object), group.astype(object)
    X[::7, 1] = np.nan
    group[:5] = "tiny"
    labels[:60:20] = "rare"
    found = held_out_groups.answer(context(X, labels.astype(str), group), Deadline(600))
    assert set(found.params["names"]) == set(SITES)
    assert found.arrays["rows"].sum() < len(X)
    assert np.isfinite(found.arrays["parts"]).all()


def test_it_needs_groups_time_and_classes():
    X, labels, group = sites()
    with pytest.raises(Unanswered, match="--group"):
        held_out_groups.answer(context(X, labels, None), Deadline(600))
    with pytest.raises(Unanswered, match="seconds"):
        held_out_groups.answer(context(X, labels, group), Deadline(0))
    with pytest.raises(Unanswered, match="two groups"):
        held_out_groups.answer(context(X, group == "mixed", group), Deadline(600))
    assert "held_out_groups" in plan.asked(context(X, labels, group))
    assert "held_out_groups" not in plan.asked(context(X, labels, None))


def test_it_stops_in_time(monkeypatch):
    monkeypatch.setattr(held_out_groups, "timed", lambda work: (work(), 1e6))
    found = held_out_groups.answer(context(*sites(n=100)), Deadline(600))
    assert len(found.params["names"]) == 1
    assert "No time was left for 5 groups" in found.warnings[0]
