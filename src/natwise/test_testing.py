"""The checks find what they look for: one broken thing at a time."""

import random
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from natwise.result import Result
from natwise.testing import (
    check_bad_input,
    check_estimator_contract,
    check_result,
    check_resume,
    same_bits,
    unchanged,
    with_derived_arguments,
)

X = np.arange(12.0).reshape(6, 2)


class Scaler(TransformerMixin, BaseEstimator):
    """A right one; `weight` keeps scikit-learn's own checks out, which have tests of their own."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y=None, *, weight=1.0):
        X = validate_data(self, X)
        self.scale_ = X.std() * weight + np.random.default_rng(self.random_state).random()
        return self

    def transform(self, X):
        check_is_fitted(self)
        return validate_data(self, X, reset=False) / self.scale_


class Plain(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        validate_data(self, X)
        return self

    def transform(self, X):
        check_is_fitted(self, "n_features_in_")
        return validate_data(self, X, reset=False)


def test_right_estimators_pass():
    check_estimator_contract(Plain(), X)
    check_estimator_contract(Scaler(random_state=5), X, weight=2.0)


class Weighted(Plain):
    def fit(self, X, y=None, *, weight):
        super().fit(X)
        self.weight_ = weight
        return self


def _ones(X, y):
    return {"weight": 1.0}


def test_fit_with_more_arguments_can_be_checked():
    check_estimator_contract(with_derived_arguments(Weighted, _ones)(), X)
    assert with_derived_arguments(Weighted, _ones)().fit(X).weight_ == 1.0


def _broken(fit=None, transform=None):
    class Broken(Scaler):
        def fit(self, X, y=None, *, weight=1.0):
            super().fit(X, y, weight=weight)
            return fit(self, X) if fit else self

        def transform(self, X):
            return transform(self, X) if transform else super().transform(X)

    return Broken


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (_broken(fit=lambda self, X: None), "fit must return the estimator"),
        (_broken(fit=lambda self, X: np.random.random() and self), "changed: NumPy's generator"),  # noqa: NPY002
        (_broken(fit=lambda self, X: torch.rand(()) is not None and self), "changed: torch's generator"),
        (_broken(fit=lambda self, X: (random.random(), self)[1]), "changed: Python's generator"),
        (_broken(fit=lambda self, X: (X.sort(), X.__setitem__((0, 0), 99), self)[2]), "an input was changed"),
        (_broken(fit=lambda self, X: setattr(self, "random_state", 1) or self), "must not change parameters"),
        (_broken(fit=lambda self, X: setattr(self, "a_", np.random.default_rng().random()) or self), "a_ must be the"),
        (_broken(fit=lambda self, X: setattr(self, "a_", np.array([np.nan])) or self), "a_ must be finite"),
        (_broken(transform=lambda self, X: X), "transform before fit must raise NotFittedError"),
        (_broken(transform=lambda self, X: check_is_fitted(self) or X / 0.0), "transform must be finite"),
        (
            _broken(transform=lambda self, X: check_is_fitted(self) or np.random.default_rng().random(3)),
            "transform must be the same",
        ),
    ],
)
def test_broken_estimators_are_found(broken, text):
    with pytest.raises(AssertionError, match=text), np.errstate(divide="ignore", invalid="ignore"):
        check_estimator_contract(broken(), X.copy(), weight=1.0)


def _half(n):
    if n < 0:
        raise ValueError(f"n must be >= 0, got {n}")
    if n == 1:
        raise ValueError("wrong")
    if n == 3:
        raise ValueError("n is\nodd")
    if n == 5:
        raise RuntimeError("n")
    return n / 2


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (({"n": 2}, ValueError, "n"), "no error, expected ValueError"),
        (({"n": -1}, ValueError, "positive"), "message 'n must be >= 0, got -1'"),
        (({"n": -1}, TypeError, "n"), "ValueError n must be >= 0, got -1, expected TypeError"),
        (({"n": 1}, ValueError, "rong"), "expected one line with 'rong' and the argument"),
        (({"n": 3}, ValueError, "n is"), "expected one line"),
        (({"n": 5}, ValueError, "n"), "RuntimeError"),
    ],
)
def test_unclear_errors_are_found(case, text):
    check_bad_input(_half, [({"n": -1}, ValueError, "n must be >= 0")])
    with pytest.raises(AssertionError, match=text):
        check_bad_input(_half, [case])


def test_results():
    check_result(Result("demo", arrays={"a": [1.0, np.nan]}, rows=["x", "y"]))
    check_result(Result("demo", scalars={"a": 1}))
    with pytest.raises(AssertionError, match="must have an array with an entry per row"):
        check_result(Result("demo", arrays={"a": [1.0]}, rows=["x", "y"]))


def test_runs_that_do_not_resume_are_found(tmp_path):
    start = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); again = p.exists(); p.touch();"
    fails = start + "sys.exit(3) if again else time.sleep(60)"
    with pytest.raises(AssertionError, match="the resumed run ended with 3"):
        check_resume([sys.executable, "-c", fails, str(tmp_path / "a")], tmp_path / "a", seconds=0.01)
    with pytest.raises(AssertionError, match="ended with 0 before it was killed"):
        check_resume([sys.executable, "-c", start, str(tmp_path / "b")], tmp_path / "b", seconds=2)
    check_resume(
        [sys.executable, "-c", start + "again or time.sleep(60)", str(tmp_path / "c")], tmp_path / "c", seconds=0.01
    )


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1.0, 1, False),
        (np.nan, np.nan, True),
        (0.0, -0.0, False),
        (np.ones(2), np.ones((1, 2)), False),
        (np.array([0.0]), np.array([-0.0]), False),
        (np.array(["a", 1.0], dtype=object), np.array(["a", 1.0], dtype=object), True),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), True),
        (torch.eye(2).to_sparse(), torch.zeros(2, 2).to_sparse(), False),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), False),
        (torch.eye(2).to_sparse(), torch.eye(2), False),
        (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-01"), True),
        (pd.Timestamp("2020-01-01"), pd.Timestamp("2020-01-02"), False),
        (pd.DataFrame({"a": [1, None]}), pd.DataFrame({"a": [1, None]}), True),
        (scipy.sparse.eye(2).tocsr(), scipy.sparse.eye(2).tocsr(), True),
        ({"a": [1, (2.0,)]}, {"a": [1, (2.5,)]}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
    ],
)
def test_same_bits(a, b, same):
    assert same_bits(a, b) is same
    assert same_bits(a, a)


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (np.eye(2), lambda array: array),
        (torch.eye(2), lambda tensor: tensor),
        (torch.eye(2).to_sparse(), lambda tensor: tensor._values()),
    ],
)
def test_changed_inputs_are_found_in_containers(value, content):
    with unchanged({"a": [value]}):
        pass
    with pytest.raises(AssertionError, match="an input was changed"), unchanged({"a": [value]}):
        content(value).mul_(2) if isinstance(value, torch.Tensor) else np.multiply(value, 2, out=value)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_changed_rows_of_compressed_tensors_are_found():
    value = torch.eye(2).to_sparse_csr()
    with unchanged({"a": [value]}):
        pass
    with pytest.raises(AssertionError, match="an input was changed"), unchanged({"a": [value]}):
        value.values().mul_(2)


def test_changed_settings_are_found():
    changes = {
        "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
        "torch's gradient mode": lambda: torch.set_grad_enabled(False),
        "NumPy's error handling": lambda: np.seterr(all="raise"),
    }
    before = torch.get_default_dtype(), torch.is_grad_enabled(), np.geterr()
    for name, change in changes.items():
        with pytest.raises(AssertionError, match=f"changed: {name}"), unchanged():
            change()
        torch.set_default_dtype(before[0])
        torch.set_grad_enabled(before[1])
        np.seterr(**before[2])
