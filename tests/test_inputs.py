"""Inputs of every kind, for the calls of all methods that take arrays: hostile, odd, in other containers and dtypes.

Each case is a call with good arrays. What is put in their place is answered by one ValueError or TypeError (never by
another error, never by a number that is not finite), and whatever happens, inputs and everything global stay as they
are.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.tree import DecisionTreeClassifier

from natwise import generalization, graphs, samples, shift, structure, supervision, timeseries
from natwise.core.random import Streams
from natwise.result import Result
from natwise.testing import unchanged

N = 40
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 2
X = RNG.standard_normal((N, 6)) + LABELS[:, None]
PROBABILITIES = RNG.dirichlet([1, 1], N)
KERNEL = X @ X.T + np.eye(N)
EDGES = np.array([np.arange(N), (np.arange(N) + 2) % N])


@dataclass
class Case:
    """A call with good float arrays; `labels` are arrays of classes, which may be of any type."""

    call: Callable
    arrays: dict
    labels: dict = field(default_factory=dict)
    optional: tuple = ()  # arrays that may be None
    ranks: tuple = ()  # arrays of any number of axes
    infinite: tuple = ()  # arrays that may hold infinity
    leaves: tuple = ()  # changes that the user's own estimator decides on
    undefined: bool = False  # NaN stands for a ratio of nothing, as in the original


def fitted(estimator, *outputs):
    """Return a call that fits a fresh copy and returns what it learned or gives out."""

    def call(X, **others):
        model = estimator().fit(X, **others)
        given = [getattr(model, name) for name in outputs]
        return [value(X) if callable(value) else value for value in given]

    return call


def network(n_inputs=6, n_outputs=1):
    with Streams(0).torch_global("init"):
        return (
            torch.nn.Sequential(torch.nn.Linear(n_inputs, 4), torch.nn.Tanh(), torch.nn.Linear(4, n_outputs))
            .double()
            .eval()
        )


def supersample(S, predictions, y):
    return generalization.SupersampleRuns(S, predictions, y).bounds()


def failure_modes(Z_train, Z_test):
    names = ["y_train", "y_test", "y_pred_id", "y_id", "y_pred_test"]
    others = {name: LABELS[: len(Z_test)] if "test" in name else LABELS for name in names}
    others["domain"] = np.arange(N) // 2 % 2
    return shift.FailureModes(n_bootstrap=10).fit(Z_train=Z_train, Z_test=Z_test, **others).parts_


def nested(w, X):
    return timeseries.nmil_objective(w, [[X]], [1], [np.zeros(1)])


SIZES = np.array([10.0, 20, 40, 80, 160, 320])
GROUPS = {"attribute": np.arange(N) // 2 % 2}
CASES = {
    "structure.LinearCorEx": Case(
        fitted(lambda: structure.LinearCorEx(2, max_iter=20, random_state=0), "transform", "tc_"), {"X": X}
    ),
    "structure.TCorEx": Case(
        fitted(lambda: structure.TCorEx(2, max_iter=5, random_state=0), "covariances_"),
        {"X": X},
        {"times": np.arange(N) // 10},
        optional=("times",),
    ),
    "structure.MinSyn": Case(fitted(lambda: structure.MinSyn(2, max_iter=5, random_state=0), "transform"), {"X": X}),
    "structure.corex_moments": Case(structure.corex_moments, {"X": X, "weights": RNG.standard_normal((2, 6)) / 9}),
    "structure.synergy.wms": Case(
        lambda covariance: structure.synergy.wms(covariance=covariance), {"covariance": np.cov(X.T)}
    ),
    "structure.synergy.ci": Case(structure.synergy.ci, {"pmf": np.full((2, 2, 2), 0.125)}, ranks=("pmf",)),
    "samples.empirical_ntk": Case(
        lambda X, X2: samples.empirical_ntk(network(), X, X2),
        {"X": X, "X2": X[:7]},
        optional=("X2",),
        ranks=("X", "X2"),
    ),
    "samples.leave_one_out": Case(
        samples.leave_one_out,
        {"ntk": KERNEL, "ntk_val": KERNEL, "init_preds": X[:, :1], "val_init_preds": X[:, :1], "targets": X[:, 1:2]},
    ),
    "samples.SampleInformation": Case(
        fitted(lambda: samples.SampleInformation(network(), t=9), "functional_information_"),
        {"X": X, "y": X[:, :1]},
        ranks=("X",),
    ),
    "samples.PowerLaw": Case(
        lambda n, errors: samples.PowerLaw().fit(n, errors).predict([500.0]), {"n": SIZES, "errors": SIZES**-0.5}
    ),
    "samples.PiecewisePowerLaw": Case(
        lambda n, errors: samples.PiecewisePowerLaw().fit(n, errors).predict([500.0]),
        {"n": SIZES, "errors": SIZES**-0.5},
    ),
    "samples.measure_learning_curve": Case(
        lambda X, y: samples.measure_learning_curve(
            DecisionTreeClassifier(max_depth=2), X, y, sizes=[8, 12, 20], random_state=0
        ),
        {"X": X},
        {"y": LABELS},
    ),
    "samples.information_by_group": Case(
        samples.information_by_group, {"scores": X[:, 0]}, {"groups": LABELS}, leaves=("numbers between",)
    ),
    "supervision.LIMITClassifier": Case(
        fitted(lambda: supervision.LIMITClassifier(max_epochs=1, random_state=0), "predict_proba"),
        {"X": X},
        {"y": LABELS},
        ranks=("X",),
    ),
    "supervision.RobustClassifier": Case(
        fitted(lambda: supervision.RobustClassifier(max_epochs=1, random_state=0), "predict_proba"),
        {"X": X},
        {"y": LABELS},
        ranks=("X",),
    ),
    "supervision.estimate_transition_matrix": Case(
        supervision.estimate_transition_matrix, {"probabilities": PROBABILITIES}
    ),
    "supervision.confident_joint": Case(supervision.confident_joint, {"probabilities": PROBABILITIES}, {"y": LABELS}),
    "supervision.supervision_complexity": Case(
        supervision.supervision_complexity, {"kernel": KERNEL, "targets": X[:, 0]}, ranks=("targets",)
    ),
    "supervision.distillation_bound": Case(
        lambda **arrays: supervision.distillation_bound(**arrays, gamma=0.1),
        {"kernel": KERNEL, "targets": np.sign(X[:, 0]), "predictions": X[:, 0]},
    ),
    "supervision.kernel_alignment": Case(supervision.kernel_alignment, {"a": KERNEL, "b": KERNEL + 1}),
    "supervision.soft_targets": Case(
        lambda logits: supervision.soft_targets(logits, 2.0), {"logits": X}, ranks=("logits",)
    ),
    "supervision.fano_error_lower_bound": Case(
        lambda **arrays: supervision.fano_error_lower_bound(**arrays, n_classes=4),
        {"label_entropy": np.array([1.0, 1.1]), "information": np.array([0.2, 0.3])},
        ranks=("label_entropy", "information"),
    ),
    "generalization.SupersampleRuns": Case(
        supersample,
        {},
        {
            "S": RNG.integers(2, size=(9, 5)),
            "predictions": RNG.integers(2, size=(9, 5, 2)),
            "y": RNG.integers(2, size=(5, 2)),
        },
    ),
    "generalization.run_supersample_experiment": Case(
        lambda X, y: generalization.run_supersample_experiment(
            DecisionTreeClassifier(max_depth=2), X, y, 5, n_splits=2
        ),
        {"X": X},
        {"y": LABELS},
        ranks=("X",),
        leaves=("nan", "text in it"),
    ),
    "generalization.kl_inverse": Case(
        generalization.kl_inverse,
        {"q": np.array([0.1, 0.2]), "c": np.array([0.1, 0.3])},
        ranks=("q", "c"),
        infinite=("c",),
    ),
    "generalization.fcmi_bound": Case(
        generalization.fcmi_bound, {"information": np.array([0.1, 0.2])}, ranks=("information",)
    ),
    "generalization.FiniteLearningProblem": Case(
        lambda **arrays: generalization.FiniteLearningProblem(**arrays).bounds(),
        {"pz": np.array([0.5, 0.5]), "loss": np.eye(2), "kernel": np.eye(2)},
        ranks=("kernel",),
    ),
    "shift.FailureModes": Case(failure_modes, {"Z_train": X, "Z_test": X[:20]}),
    "shift.DomainGeneralizer": Case(
        lambda X, y, domain: (
            shift.DomainGeneralizer("vrex", max_epochs=1, n_hidden=4, random_state=0).fit(X, y, domain).predict_proba(X)
        ),
        {"X": X},
        {"y": LABELS, "domain": np.arange(N) // 2 % 2},
        ranks=("X",),
    ),
    "shift.LEACE": Case(lambda X, attribute: shift.LEACE().fit(X, attribute=attribute).transform(X), {"X": X}, GROUPS),
    "shift.INLP": Case(lambda X, attribute: shift.INLP(2).fit(X, attribute=attribute).transform(X), {"X": X}, GROUPS),
    "shift.CounterfactualProjection": Case(
        lambda X, counterfactual: (
            shift.CounterfactualProjection().fit(X, counterfactual=counterfactual, attribute=LABELS).transform(X)
        ),
        {"X": X, "counterfactual": X + 1},
    ),
    "shift.LinearDisentangler": Case(
        lambda X, y, attribute: (
            shift.LinearDisentangler(2, 2, random_state=0, max_iter=20).fit(X, y, attribute=attribute).transform(X)
        ),
        {"X": X},
        {"y": LABELS, **GROUPS},
    ),
    "shift.LastLayerRetrainer": Case(
        lambda X, y, attribute: (
            shift.LastLayerRetrainer("reweight", random_state=0).fit(X, y, attribute=attribute).predict_proba(X)
        ),
        {"X": X},
        {"y": LABELS, **GROUPS},
    ),
    "shift.group_metrics": Case(shift.group_metrics, {}, {"y": LABELS, "y_pred": LABELS[::-1].copy(), **GROUPS}),
    "graphs.MixHopClassifier": Case(
        lambda X, y: (
            graphs.MixHopClassifier(max_epochs=1, hidden=(4,), random_state=0).fit(X, y, EDGES).predict_proba()
        ),
        {"X": X},
        {"y": LABELS},
    ),
    "timeseries.Normalizer": Case(fitted(timeseries.Normalizer, "transform"), {"X": X}),
    "timeseries.binary_metrics": Case(
        timeseries.binary_metrics, {"y_score": PROBABILITIES[:, 0]}, {"y_true": LABELS}, undefined=True
    ),
    "timeseries.multilabel_metrics": Case(
        timeseries.multilabel_metrics,
        {"y_true": np.stack([LABELS, 1 - LABELS], 1).astype(float), "y_score": PROBABILITIES},
    ),
    "timeseries.length_of_stay_metrics": Case(
        timeseries.length_of_stay_metrics, {"y_true": np.abs(X[:, 0]), "y_pred": np.abs(X[:, 1])}
    ),
    "timeseries.event_metrics": Case(timeseries.event_metrics, {"probability": PROBABILITIES[:, 0]}, {"y": LABELS}),
    "timeseries.nmil_objective": Case(nested, {"w": X[0], "X": X[:3]}, ranks=("w",)),
}


def spoil(array, value):
    """Return a float copy with one entry replaced."""
    array = np.array(array, dtype=float)
    array.flat[array.size // 2] = value
    return array


def objects(array):
    made = np.empty(array.shape, dtype=object)
    made[...] = [{}]
    return made


HOSTILE = {
    "nan": lambda a: spoil(a, np.nan),
    "infinity": lambda a: spoil(a, np.inf),
    "minus infinity": lambda a: spoil(a, -np.inf),
    "complex": lambda a: a + 1j,
    "text in it": lambda a: np.where(a == a.flat[0], "x", a.astype(str)),
    "objects": objects,
    "nothing": lambda a: a[:0],
    "no columns": lambda a: a[..., :0],
    "an axis more": lambda a: a[None],
    "a number": lambda a: 3.0,
    "None": lambda a: None,
    "text": lambda a: "abc",
    "a dict": lambda a: {"a": 1},
    "a function": lambda a: len,
    "ragged": lambda a: [[1.0, 2.0], [3.0]],
}
ODD = {
    "huge": lambda a: a * 1e30,
    "tiny": lambda a: a * 1e-30,
    "copies of one row": lambda a: np.repeat(a[:1], len(a), axis=0),
    "all zero": np.zeros_like,
    "one column constant": lambda a: np.where(np.arange(a.shape[-1]) == 0, 7.0, a),
    "two rows": lambda a: a[:2],
    "one row": lambda a: a[:1],
}
HOSTILE_LABELS = {
    "nan": lambda a: spoil(a, np.nan),
    "numbers between": lambda a: spoil(a, 0.5),
    "one axis more": lambda a: a[None],
    "nothing": lambda a: a[:0],
    "too few": lambda a: a[:-1],
    "None": lambda a: None,
    "a number": lambda a: 1,
    "objects": objects,
}


def table(changes, kind):
    return [
        pytest.param(case, name, change, id=f"{key}-{name}-{change}")
        for key, case in CASES.items()
        for name in getattr(case, kind)
        for change in changes
        if not (change in ("an axis more", "a number") and name in case.ranks)
        and not (change == "None" and name in case.optional)
        and not (change == "infinity" and name in case.infinite)
        and change not in case.leaves
    ]


def outcome(case, **replaced):
    """Return the output of a call, or the error when it is of the right kind."""
    arrays = {**case.arrays, **case.labels, **replaced}
    with unchanged(arrays), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            return case.call(**arrays)
        except (ValueError, TypeError) as error:
            return error


def finite(value):
    """Say whether all numbers in an output are finite."""
    if isinstance(value, Result):
        return finite(dict(value.arrays))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    array = np.asarray(value)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


@pytest.mark.parametrize(("case", "name", "change"), table(HOSTILE, "arrays"))
def test_hostile_arrays(case, name, change):
    got = outcome(case, **{name: HOSTILE[change](case.arrays[name])})
    assert isinstance(got, (ValueError, TypeError)), f"accepted: {got!r:.200}"
    assert "could not be broadcast" not in str(got)


@pytest.mark.parametrize(("case", "name", "change"), table(HOSTILE_LABELS, "labels"))
def test_hostile_labels(case, name, change):
    got = outcome(case, **{name: HOSTILE_LABELS[change](case.labels[name])})
    assert isinstance(got, (ValueError, TypeError)), f"accepted: {got!r:.200}"
    assert "could not be broadcast" not in str(got)


@pytest.mark.parametrize(("case", "name", "change"), table(ODD, "arrays"))
def test_odd_arrays(case, name, change):
    got = outcome(case, **{name: ODD[change](case.arrays[name])})
    assert isinstance(got, (ValueError, TypeError)) or case.undefined or finite(got), f"not finite: {got!r:.300}"


CONTAINERS = {
    "lists": lambda a: a.tolist(),
    "Fortran order": np.asfortranarray,
    "every second row of a larger array": lambda a: np.repeat(a, 2, axis=0)[::2],
    "read-only": lambda a: _locked(a),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "float32": lambda a: a.astype(np.float32),
    "tensor": lambda a: torch.from_numpy(a.copy()),
    "data frame": lambda a: pd.DataFrame(a, columns=[("a", i) if i else 3.5 for i in range(a.shape[1])]),
    "series": lambda a: pd.Series(a, index=np.arange(len(a))[::-1] * 2),
}


def _locked(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def close(a, b, rtol):
    """Say whether two outputs agree, whatever they consist of."""
    if isinstance(a, Result):
        return close(dict(a.arrays), dict(b.arrays), rtol) and close(dict(a.scalars), dict(b.scalars), rtol)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name], rtol) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(close(one, other, rtol) for one, other in zip(a, b, strict=True))
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=rtol, atol=rtol, equal_nan=True))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("key", CASES)
def test_containers_and_dtypes(key, container):
    """The numbers are those of the plain array; single precision may cost digits, labels as text cost nothing."""
    case = CASES[key]
    dimensions = {"data frame": (2,), "series": (1,)}.get(container, (1, 2, 3))
    fits = {name: array for name, array in {**case.arrays, **case.labels}.items() if array.ndim in dimensions}
    if not fits or (container == "float32" and not case.arrays):
        pytest.skip(f"no {container} among its arguments")
    arrays = {
        name: CONTAINERS[container](array)
        for name, array in fits.items()
        if container != "float32" or name in case.arrays
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names|.*Feature names only support names")
        got = outcome(case, **arrays)
    assert close(outcome(case), got, 2e-2 if container == "float32" else 1e-6), f"{got!r:.300}"


@pytest.mark.parametrize("key", CASES)
def test_same_call_same_bits(key):
    """Every case is a good call, and gives the same again, whatever the global generators hold."""
    first = outcome(CASES[key])
    assert not isinstance(first, Exception)
    assert finite(first) or CASES[key].undefined
    np.random.random(), torch.rand(())  # noqa: NPY002
    assert close(first, outcome(CASES[key]), 0.0)
