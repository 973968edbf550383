"""A label that is a number: the answers that apply hold, the others say why they do not."""

import numpy as np
import pandas as pd
import pytest

from natwise import audit
from natwise.audit import judging, numeric_curve, own_model, swaps
from natwise.audit.context import Context
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table

N = 300
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 4))
TRUE = 2 * X[:, 0] - X[:, 1] + 0.3 * RNG.standard_normal(N)
WRONG = np.arange(N) % 15 == 0
GIVEN = np.where(WRONG, np.roll(TRUE, 7) + np.sign(np.roll(TRUE, 7) - TRUE), TRUE)


@pytest.fixture(scope="module")
def result():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(site=np.where(X[:, 2] > 0, "u", "v"))
    return audit.run(make_table(frame, GIVEN, group=frame.site, planted=WRONG), minutes=1, target=0.99)


def test_wrong_numbers_are_found(result):
    issues = result.answers[0]
    assert issues.scalars["planted_auroc"] > 0.95
    assert issues.scalars["r2"] > 0.6
    assert issues.scalars["estimated_noise_low"] <= WRONG.mean() <= issues.scalars["estimated_noise_high"] + 0.02
    frame = result.to_frame()
    np.testing.assert_allclose(frame["label"], GIVEN)
    assert np.corrcoef(frame["suggested_label"], TRUE)[0, 1] > 0.9
    assert frame["wrong_probability"][WRONG].mean() > 5 * frame["wrong_probability"][~WRONG].mean()


def test_what_applies_is_answered_and_the_rest_says_why(result):
    named = {answer.kind.removeprefix("audit/"): answer for answer in result.answers}
    unanswered = {name: a.params["unanswered"] for name, a in named.items() if "unanswered" in a.params}
    assert set(unanswered) == {"shortcuts", "held_out_groups", "certificate"}
    assert all("number" in reason for reason in unanswered.values())
    assert 0 < named["data_requirements"].scalars["error_now"] < 0.6
    assert named["label_memory"].scalars["complexity"] < named["label_memory"].arrays["shuffled_complexity"].min()
    assert named["data_card"].params["target"]["high"] == pytest.approx(GIVEN.max())
    assert any("R²" in sentence for sentence in result.summary)
    page = result.html()
    assert "Ranges of the label" in page
    assert page.count("Not answered.") == 3


def test_a_large_error_counts_less_where_errors_are_large():
    predicted = np.repeat([0.0, 100.0], 200)
    errors = np.where(predicted > 0, 10.0, 1.0) * RNG.standard_normal(400)
    errors[5], errors[300] = 8.0, 8.0
    scores = judging.value_issue_score(predicted, predicted + errors)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[5] > 0.8 > scores[300]


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("tails", [3, 100])
def test_noise_of_numbers_that_are_hard_to_predict(noise, tails):
    rng = np.random.default_rng(1)
    predicted = 3 * rng.standard_normal(2000)
    values = predicted + rng.standard_t(tails, 2000)
    wrong = rng.random(2000) < noise
    values[wrong] = rng.permutation(values)[wrong]
    found = swaps.fit_swaps(predicted, values, Streams(0))
    assert found.noise[1] - 0.01 <= wrong.mean() <= found.noise[2] + 0.01
    assert abs(found.noise[0] - wrong.mean()) < 0.04
    assert ((found.wrong >= 0) & (found.wrong <= 1)).all()


def test_planted_numbers_come_from_another_range():
    codes = np.searchsorted(np.quantile(TRUE, [0.25, 0.5, 0.75]), TRUE)
    noisy, flags = judging.plant_mistakes(TRUE, codes, np.zeros((N, 1)), Streams(0))
    np.testing.assert_array_equal(noisy != TRUE, flags)
    assert set(noisy[flags]) <= set(TRUE)


def test_curve_of_unexplained_variance_falls():
    table = make_table(X, TRUE)
    context = Context(table, encode(table.features), Streams(0))
    curve = numeric_curve.numeric_curve(context, Streams(1), 20.0).arrays
    assert curve["errors"][curve["n"] == curve["n"].max()].max() < curve["errors"][curve["n"] == curve["n"].min()].min()
    assert (curve["sample_weight"] > 0).all()


def test_an_own_regressor():
    from sklearn.linear_model import LinearRegression

    name, factory = own_model.own_factory(LinearRegression(), 0)
    own_model.try_model(factory, X, TRUE, 0)
    assert name == "LinearRegression"
    with pytest.raises(TypeError, match="no predict"):
        own_model.own_factory(lambda: type("Mute", (), {"fit": lambda self, X, y: self})(), 0)


@pytest.mark.parametrize(
    ("y", "task", "regression"),
    [
        (TRUE, "auto", True),
        (np.arange(N) // 30, "auto", False),
        (np.arange(N) // 30, "regression", True),
        (np.arange(N) // 2, "auto", True),
        (np.round(TRUE), "classification", False),
    ],
)
def test_the_task_is_told_from_the_labels(y, task, regression):
    table = make_table(X, y, task=task)
    assert (table.target is not None) == regression
    if regression:
        np.testing.assert_array_equal(table.target, y)
        assert len(table.classes) <= 10
