"""Groups and shortcuts: a planted shortcut is found with its cost, honest groups are not blamed, odd groups are met."""

import dataclasses

import numpy as np
import pytest

from natwise.audit import plan
from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import shortcuts
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table
from natwise.report import audit_page, figures
from natwise.result import Result, provenance

N = 1500


def table(agree=0.9, n=N, strength=4.0, names=("north", "south"), seed=0):
    """Return rows whose label is hard to see and whose group, which goes with the label, is easy to see in column 3."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    site = np.where(rng.random(n) < agree, y % len(names), rng.integers(len(names), size=n))
    X = rng.standard_normal((n, 5))
    X[:, 0] += 1.5 * y
    X[:, 3] = strength * site + 0.5 * rng.standard_normal(n)
    X[5, 1] = np.nan
    return make_table(X, y, group=np.array(names)[site])


def context(data, predicted=None):
    made = Context(data, encode(data.features), Streams(0))
    predicted = data.labels if predicted is None else predicted
    made.answered["label_issues"] = Result("audit/label_issues", arrays={"suggested_label": predicted})
    return made


@pytest.fixture(scope="module")
def found():
    data = table()
    predicted = np.where(np.asarray(data.group) == "south", 1, 0)  # a model that takes the shortcut
    return shortcuts.answer(context(data, predicted), Deadline(600))


def test_the_shortcut_is_found_with_its_cost(found):
    s, p = found.scalars, found.params
    assert p["names"][0] == "x3"
    assert found.arrays["group_auc"][0] > 0.95 > 0.7 > found.arrays["label_auc"][0]
    assert p["directions"][0][0] == "x3"
    assert s["model_worst"] == 0 < s["model_overall"]
    assert p["cells"][p["worst"][0]] in ("0, south", "1, north")
    assert s["gain_low"] > 0.1
    assert s["gain_low"] <= s["gain"] <= s["gain_high"]
    assert s["reweighted_worst"] == pytest.approx(s["plain_worst"] + s["gain"])
    assert s["association"] > 0.7
    assert "points in its worst group" in p["summary"][0]


def test_the_gain_is_that_of_the_cells(found):
    cells = found.arrays["cell_rows"] > 0
    assert found.scalars["plain_worst"] == pytest.approx(found.arrays["plain_accuracy"][cells].min())
    assert found.scalars["reweighted_worst"] == pytest.approx(found.arrays["reweighted_accuracy"][cells].min())


def test_picture_and_section(found):
    figure, words = figures.accuracy_by_group(found)
    assert len(figure.axes[0].get_yticks()) == 4
    assert "lowest first: " in words
    titled = dataclasses.replace(found, params={"title": "Groups and shortcuts", **found.params})
    with provenance(seed=0) as record:
        record["fingerprint"] = "0"
    record |= {"minutes": 1.0, "arguments": [], "table": "table"}
    html = audit_page.html((titled,), plan.combine((titled,), (), record))
    assert "Groups and shortcuts" in html
    assert "a gain of <strong>" in html


def test_honest_groups_promise_no_gain():
    result = shortcuts.answer(context(table(agree=0.0, strength=0.0)), Deadline(600))
    assert result.scalars["gain_low"] <= 0 <= result.scalars["gain_high"]
    assert result.scalars["telling_columns"] == 0
    assert "Reweighting" not in result.params["summary"][0]


def test_many_and_small_groups():
    names = tuple(f"site {i:02}" for i in range(40))
    result = shortcuts.answer(context(table(agree=0.0, names=names)), Deadline(600))
    assert len(result.params["groups"]) == 13
    assert result.params["groups"][-1] == "all others"
    assert result.params["rows"] + result.params["left_out"] == N


def test_it_is_asked_only_with_groups():
    without = make_table(np.eye(40), np.arange(40) % 2)
    assert "shortcuts" not in plan.asked(context(without))
    assert "shortcuts" in plan.asked(context(table()))
    with pytest.raises(Unanswered, match="--group"):
        shortcuts.answer(context(without), Deadline(60))


@pytest.mark.parametrize(
    ("data", "seconds", "words"),
    [
        (table(names=("north",)), 60, "two groups"),
        (table(agree=1.0), 60, "cannot be told from the labels"),
        (table(), 0.1, "minutes"),
    ],
)
def test_what_cannot_be_answered_says_why(data, seconds, words):
    with pytest.raises(Unanswered, match=words):
        shortcuts.answer(context(data), Deadline(seconds))


def test_short_time_takes_fewer_rows(monkeypatch):
    monkeypatch.setattr(shortcuts, "MAX_ROWS", 600)
    result = shortcuts.answer(context(table()), Deadline(600))
    assert result.params["rows"] <= 600
    assert np.nansum(result.arrays["model_count"]) > 600
