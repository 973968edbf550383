"""A user's own model judges in every answer that needs one; what is wrong with it is one error before the work."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from natwise import audit
from natwise.audit import plan
from natwise.audit.own_model import OwnModel, own_factory

N = 90
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 3
X = 3 * np.eye(3, 4)[LABELS] + RNG.standard_normal((N, 4))
FITTED = []


class Counting(LogisticRegression):
    """A model that tells how often it was fitted, and that it never sees a missing value."""

    def fit(self, X, y):
        assert np.isfinite(X).all()
        FITTED.append(len(X))
        return super().fit(X, y)


class Plain:
    """Not of scikit-learn: the share of each class, whatever the row."""

    def fit(self, X, y):
        self.share = np.bincount(np.unique(y, return_inverse=True)[1]) / len(y)

    def predict_proba(self, X):
        return np.tile(self.share, (len(X), 1))


class Failing(Plain):
    def fit(self, X, y):
        raise RuntimeError("no\nluck")


class Short(Plain):
    def predict_proba(self, X):
        return np.ones((len(X), 1))


class NotANumber(Plain):
    def predict_proba(self, X):
        return np.full((len(X), 3), np.nan)


class Refusing:
    def __init__(self):
        raise OSError("no licence")


@pytest.mark.slow
def test_it_judges_everywhere_and_the_page_says_so():
    FITTED.clear()
    holed = np.where(RNG.random(X.shape) < 0.05, np.nan, X)
    result = audit.run(holed, LABELS, model=Counting(max_iter=200), minutes=1, target=0.9)
    issues = result.answers[0]
    assert issues.params["models"] == ["Counting"]
    assert len(FITTED) > 25  # folds, plantings, learning curve, certificate
    assert "Your model predicts" in result.html()
    assert "model=Counting" in result.html()
    named = {answer.kind: answer for answer in result.answers}
    assert named["audit/label_memory"].params["models"][0] == "Counting"
    assert {f"audit/{name}" for name in plan.asked(_context())} == set(named)


def _context():
    from natwise.audit.context import Context
    from natwise.core.random import Streams
    from natwise.datasets.encoding import encode
    from natwise.datasets.tables import make_table

    table = make_table(X, LABELS)
    return Context(table, encode(table.features), Streams(0))


def test_estimators_factories_names_and_foreign_objects():
    for model in (LogisticRegression(), LogisticRegression, lambda: LogisticRegression(), Plain, Plain()):
        _, factory = own_factory(model, 3)
        fitted = factory(4, 7).fit(X, LABELS)
        assert isinstance(fitted, OwnModel)
        np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1.0)
        assert set(fitted.predict(X)) <= {0, 1, 2}
    name, factory = own_factory("sklearn.ensemble:RandomForestClassifier", 3)
    assert name == "sklearn.ensemble:RandomForestClassifier"
    assert factory(4, 7).get_params()["estimator__random_state"] == 7
    np.testing.assert_allclose(own_factory(LinearRegression, 0)[1](4, 0).fit(X, X[:, 0]).predict(X), X[:, 0], atol=1e-8)


def test_a_name_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "a_users_model.py").write_text(
        "from sklearn.naive_bayes import GaussianNB\n\ndef build():\n    return GaussianNB()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert own_factory("a_users_model:build", 2)[1](4, 0).fit(X, LABELS).predict(X).shape == (N,)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("no_colon", ValueError, "package:factory"),
        ("os:system('x')", ValueError, "package:factory"),
        ("no_such_module:build", ValueError, "no_such_module cannot be imported"),
        ("sklearn.linear_model:LogisticRegresion", ValueError, "Did you mean 'LogisticRegression'"),
        ("sklearn.linear_model:LinearRegression", TypeError, "no predict_proba"),
        (3, TypeError, "model must be an estimator"),
        (Refusing, ValueError, "the factory of Refusing failed: OSError: 'no licence'"),
        (Failing, ValueError, "fit of Failing failed: RuntimeError"),
        (Short, ValueError, r"predict_proba of Short must return shape \(30, 3\)"),
        (NotANumber, ValueError, "must return probabilities"),
    ],
)
def test_bad_models(model, error, words):
    with pytest.raises(error, match=words) as raised:
        audit.run(pd.DataFrame(X), LABELS, model=model)
    assert "\n" not in str(raised.value)
