"""The audit's certificate: gap, bounds, null and verdict; within its time; said when it cannot be given."""

import time

import numpy as np
import pytest

from natwise.audit.context import Context, Deadline, Unanswered
from natwise.audit.questions import certificate
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table
from natwise.report import figures

RNG = np.random.default_rng(0)
N = 160
LABELS = np.arange(N) % 2
NOISE = RNG.standard_normal((N, 6))


def certify(X, labels, seconds=20.0, **options):
    table = make_table(X, labels)
    return certificate.answer(Context(table, encode(table.features), Streams(0), **options), Deadline(seconds))


@pytest.fixture(scope="module")
def memorised():
    return certify(NOISE, LABELS)


def test_a_gap_is_measured_and_bounded(memorised):
    s, p = memorised.scalars, memorised.params
    assert s["gap"] == pytest.approx(s["test_error"] - s["train_error"])
    assert 0.2 < s["gap"] <= s["tightest"] <= s["fcmi"]
    assert 0 < s["gap_se"] < 0.1
    assert s["null"] < s["null_95"] < s["fcmi"]
    assert p["verdict"] == "informative"
    assert f"30 trainings on {s['n']:.0f} rows" in p["cost"]
    assert f"{100 * s['tightest']:.1f} points" in p["summary"][0]
    figure, words = figures.certificate_bars(memorised)
    assert figure.axes
    assert f"{s['gap']:.1%}" in words


def test_the_cost_is_said_before_the_work():
    def stop(text):
        raise InterruptedError(text)

    with pytest.raises(InterruptedError, match=r"Generalisation certificate: 30 trainings on 80 rows each, about .* s"):
        certify(NOISE, LABELS, announce=stop)


def test_the_same_seed_gives_the_same_answer(memorised):
    again = certify(NOISE, LABELS).scalars
    timed = ("seconds", "planned_seconds")
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: memorised.scalars[k] for k in again if k not in timed
    }


def test_an_easy_table_is_not_told_from_no_information():
    easy = certify(NOISE + 20 * LABELS[:, None], LABELS)
    assert easy.scalars["gap"] == pytest.approx(0, abs=0.02)
    assert easy.params["verdict"] == "vacuous"
    assert "shuffled" in easy.params["reason"]
    assert "vacuous" in easy.params["summary"][0]


def test_above_one_is_vacuous():
    scalars = {"tightest": 1.2, "fcmi": 1.2, "null_95": 0.3}
    assert certificate._verdict(scalars)[0] == "vacuous"
    assert certificate._verdict({**scalars, "tightest": 0.9})[0] == "informative"


@pytest.mark.slow
def test_less_time_trains_on_fewer_rows():
    X = np.tile(NOISE, (8, 1)) + 0.01 * RNG.standard_normal((8 * N, 6))
    start = time.perf_counter()
    short = certify(X, np.tile(LABELS, 8), seconds=2.5)
    assert short.scalars["n"] < certify(X, np.tile(LABELS, 8), seconds=60.0).scalars["n"] == 4 * N
    assert short.scalars["planned_seconds"] <= 2.5 < time.perf_counter() - start + 2.5


@pytest.mark.parametrize(("rows", "seconds", "words"), [(39, 20.0, "at least 40 rows"), (N, 0.01, "--minutes")])
def test_what_cannot_be_certified_is_said(rows, seconds, words):
    with pytest.raises(Unanswered, match=words):
        certify(NOISE[:rows], LABELS[:rows], seconds)


def test_many_classes_and_missing_values():
    X = np.where(RNG.random((N, 6)) < 0.1, np.nan, NOISE)
    found = certify(X, np.arange(N) % 20)
    assert all(np.isfinite(value) for value in found.scalars.values())
