"""What every public name owes its user, whatever the method: checked for all of them at once."""

import importlib
import inspect

import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError

from natwise import registry

PUBLIC = [
    pytest.param(getattr(importlib.import_module(f"natwise.{card.room}"), name), id=f"{card.room}.{name}")
    for card in registry.cards()
    for name in card.exports
]
ESTIMATORS = [
    entry for entry in PUBLIC if inspect.isclass(entry.values[0]) and issubclass(entry.values[0], BaseEstimator)
]


@pytest.mark.parametrize("public", PUBLIC)
def test_docstring_says_what_goes_in_and_comes_out(public):
    text = inspect.getdoc(public) or ""
    assert len(text.splitlines()[0]) <= 120
    if inspect.isclass(public) or inspect.isfunction(public):
        parameters = [name for name in inspect.signature(public).parameters if name != "self"]
        for name in parameters:
            assert name in text, f"the docstring does not speak of {name}"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_constructor_only_stores(estimator):
    signature = inspect.signature(estimator)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    needed = {name: object() for name, p in signature.parameters.items() if p.default is inspect.Parameter.empty}
    instance = estimator(**needed)
    for name, parameter in signature.parameters.items():
        assert getattr(instance, name) is needed.get(name, parameter.default)
    assert not [name for name in vars(instance) if name.endswith("_")]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_unfitted_says_so(estimator):
    if any(p.default is inspect.Parameter.empty for p in inspect.signature(estimator).parameters.values()):
        pytest.skip("needs arguments: its own tests cover it")
    instance = clone(estimator())
    for name in ("transform", "predict", "predict_proba", "score_samples", "required_samples"):
        method = getattr(instance, name, None)
        if method is not None:
            with pytest.raises(NotFittedError):
                method([[1.0, 2.0], [3.0, 4.0]] if name != "required_samples" else 0.1)
