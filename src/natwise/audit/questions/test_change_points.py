"""Changes over time: a planted change is found with its columns, chance is not, and times of any kind are read."""

import numpy as np
import pytest

from natwise.audit import plan
from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import change_points
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table
from natwise.report import figures

N = 320
BEFORE, AFTER = [0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]  # columns 1 and 4 change sides
MONTHS = np.array([f"20{20 + i // 12}-{i % 12 + 1:02}-15" for i in range(24)])


def table(change=0.5, n=N, times=None, seed=0, spoil=None):
    """Return rows in random order, a share `change` of them from before two columns change sides."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n, 2))
    early = np.arange(n) < change * n
    X = np.where(early[:, None], hidden[:, BEFORE], hidden[:, AFTER]) + 0.5 * rng.standard_normal((n, 6))
    if spoil is not None:
        spoil(X, early)
    order = rng.permutation(n)
    when = MONTHS[np.arange(n) * len(MONTHS) // n] if times is None else np.asarray(times)
    return make_table(X[order], rng.integers(2, size=n), time=when[order])


def context(data):
    return Context(data, encode(data.features), Streams(0))


@pytest.fixture(scope="module")
def changed():
    def spoil(X, early):
        X[np.random.default_rng(1).random(X.shape) < 0.05] = np.nan

    return change_points.answer(context(table(spoil=spoil)), Deadline(600))


def test_the_planted_change_is_found_with_its_columns(changed):
    assert [change["start"] for change in changed.params["changes"]] == ["2021-01-15"]
    (change,) = changed.params["changes"]
    assert {"x1", "x4"} <= set(change["moved"])
    assert change["score"] > changed.arrays["limit"][change["step"]]
    assert (changed.arrays["typical"] < changed.arrays["limit"]).all()
    assert changed.params["summary"][0].startswith("How the columns hang together changes from 2021-01-15 on: ")
    assert changed.arrays["period_rows"].min() >= change_points.MIN_PERIOD
    assert changed.scalars["changes"] == 1


def test_it_is_drawn(changed):
    figure, words = figures.changes_over_time(changed)
    assert len(figure.axes[0].get_xticks()) == len(changed.arrays["scores"])
    assert "2021-01-15" in words


@pytest.mark.slow
def test_levels_and_outliers_are_no_change_of_dependence():
    def spoil(X, early):
        X[early] += 5
        X[::40] *= 1e6

    found = change_points.answer(context(table(change=0.0, n=160, spoil=spoil)), Deadline(600))
    assert found.params["changes"] == []
    assert "beyond chance" in found.params["summary"][0]


@pytest.mark.parametrize(
    ("texts", "note"),
    [
        (["3", "1.5", "", "20", "inf"], ""),
        (["2021-03-04", "2020-12-31", "", "2021-03-04 12:00", "soon"], ""),
        (["04.03.2021", "31.12.2020", "", "05.03.2021", "soon"], ""),
        (["3/4/2021", "2/4/2021", "", "3/5/2021", "soon"], "month/day/year"),
        (["4/3/2021", "31/12/2020", "", "5/3/2021", "soon"], ""),
        (["March 4, 2021", "Dec 31, 2020", "", "March 5, 2021", "soon"], ""),
    ],
)
def test_times_of_many_kinds_are_put_in_order(texts, note):
    moments, notes = change_points._moments(np.array(texts + texts[:2] * 30, dtype=object))
    assert np.argsort(moments[:5], kind="stable").tolist() == [1, 0, 3, 2, 4]  # NaN last
    assert np.isnan(moments[[2, 4]]).all()
    assert note in " ".join(notes)
    assert bool(note) == bool(notes)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.arange(100), [40, 60]),  # the rest joins the last
        (np.arange(120), [40, 40, 40]),
        (np.repeat([2019, 2020, 2021], [50, 90, 60]), [50, 90, 60]),
        (np.repeat([1, 2, 3], [10, 70, 60]), [80, 60]),
        (np.zeros(100), [100]),
        (np.arange(12_000), [1000] * 12),
    ],
)
def test_periods_have_enough_rows_and_keep_equal_times_together(times, expected):
    assert np.bincount(change_points._periods(times.astype(float))).tolist() == expected


def search(scores, limits, seconds=10.0):
    """Search given scores, where every shuffle of round r has steps of limits[r]; return the result and the parts."""
    scores, rounds = np.asarray(scores, dtype=float), []

    def fit(periods):
        rounds.append(periods)
        limit = limits[(len(rounds) - 1) // change_points.SHUFFLES]
        return np.full(len(scores), limit), np.full((len(scores), 3), limit / 2)

    periods = np.repeat(np.arange(len(scores) + 1), 3)
    found = change_points._search(scores, periods, fit, Streams(0), Deadline(seconds))
    return found, rounds[:: change_points.SHUFFLES]


def test_the_search_goes_on_in_the_parts_that_are_left():
    found, rounds = search([1, 2, 9, 7, 1, 5, 1], limits=[4, 3, 3])
    assert found.steps == [2, 5]  # the 7 beside the 9 counts to it
    np.testing.assert_array_equal(found.limit, [3, 4, 4, 4, 3, 3, 3])
    np.testing.assert_array_equal(found.column_limit, found.limit / 2)
    assert found.complete
    second = rounds[1].reshape(-1, 3)
    assert set(second[:2].ravel()) == {0, 1}  # shuffled before the change
    assert (second[2:4] == [[2] * 3, [3] * 3]).all()  # not beside it
    assert set(second[4:].ravel()) == {4, 5, 6, 7}


def test_the_search_ends():
    assert search([1.0], limits=[2.0])[0].steps == []
    assert search([3.0], limits=[2.0])[0].steps == [0]
    assert search([3.0, 3.5, 9.0, 3.1], limits=[4.0, 4.0])[0].steps == [2]


def test_no_time_for_a_further_round_is_said():
    deadline = iter([10.0] * change_points.SHUFFLES + [0.0] * 5)
    clock = type("Clock", (), {"left": lambda self: next(deadline)})()
    scores = np.array([1.0, 9.0, 1.0, 1.0, 1.0])
    result = change_points._search(
        scores, np.repeat(np.arange(6), 3), lambda periods: (np.ones(5), np.ones((5, 2))), Streams(0), clock
    )
    assert result.steps == [1]
    assert not result.complete


@pytest.mark.parametrize(
    ("data", "seconds", "message"),
    [
        (lambda: make_table(np.eye(60), np.arange(60) % 2), 10, "--time"),
        (lambda: table(times=["soon"] * N), 10, "'soon', cannot be read"),
        (lambda: table(times=[""] * N), 10, "empty"),
        (lambda: table(times=[2020] * N), 10, "two periods"),
        (lambda: table(n=60), 10, "two periods"),
        (lambda: table(), 0.0, "--minutes"),
    ],
)
def test_why_it_is_not_answered(data, seconds, message):
    with pytest.raises(Unanswered, match=message):
        change_points.answer(context(data()), Deadline(seconds))


def test_columns_without_values_in_a_period_are_left_out():
    def spoil(X, early):
        X[early, :4] = np.nan

    with pytest.raises(Unanswered, match="at least 3 numeric columns"):
        change_points.answer(context(table(spoil=spoil)), Deadline(10))


def test_many_rows_are_subsampled(monkeypatch):
    monkeypatch.setattr(change_points, "MAX_ROWS", 200)
    monkeypatch.setattr(change_points, "MAX_COLUMNS", 4)
    series = change_points._series(context(table()), Streams(0), Deadline(600))
    assert series.X.shape == (200, 4)
    assert any("200 of 320 rows" in note for note in series.notes)
    assert any("4 of 6 numeric columns" in note for note in series.notes)


def test_it_is_asked_only_when_there_are_times():
    data = table()
    assert "change_points" in plan.asked(context(data))
    assert "change_points" not in plan.asked(context(make_table(data.features, data.labels)))
