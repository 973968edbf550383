"""Contract checks: what every estimator, result and long run of natwise keeps, and yours can too.

Each check raises `AssertionError` saying what was broken. They need neither pytest nor a test runner.
"""

from __future__ import annotations

import copy
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from natwise.core.random import Streams
from natwise.core.validation import shorten
from natwise.result import Result

BadInput: TypeAlias = "tuple[Mapping[str, Any], type[Exception], str]"
_OUTPUTS = ("predict", "predict_proba", "decision_function", "transform")


def check_estimator_contract(estimator: Any, X: Any, y: Any = None, **fit_params: Any) -> None:
    """Check that a scikit-learn estimator keeps natwise's contract.

    scikit-learn's own checks pass without exception (they are run when `fit` needs no more than X and y); `fit`
    returns the estimator, changes neither parameters nor inputs nor anything global, and gives the same bits
    for the same seed whatever the global generators hold; outputs and learned attributes are finite; outputs
    before `fit` raise `NotFittedError`.

    Parameters
    ----------
    estimator : estimator
        An unfitted one, whose settings are right for X and y; it is cloned and stays as it is.
    X, y : array-like
        Data on which it can be fitted.
    **fit_params
        More arguments of `fit`.
    """
    from sklearn.base import clone
    from sklearn.utils.estimator_checks import check_estimator

    if not fit_params:
        check_estimator(clone(estimator), on_skip=None)
    if "random_state" in estimator.get_params():
        estimator = clone(estimator).set_params(random_state=0)
    arguments = (X,) if y is None else (X, y)
    _check_not_fitted(clone(estimator), X)
    first, second = clone(estimator), clone(estimator)
    for fitted in (first, second):
        with unchanged(estimator.get_params(), arguments, fit_params):
            assert fitted.fit(*arguments, **fit_params) is fitted, "fit must return the estimator itself"
        assert same_bits(fitted.get_params(), estimator.get_params()), "fit must not change parameters"
        _draw_from_global_generators()
    for name, value in _learned(first).items():
        assert same_bits(value, _learned(second)[name]), f"{name} must be the same for the same seed"
        assert _is_finite(value), f"{name} must be finite"
    _check_outputs(first, second, X)


def with_derived_arguments(estimator: Any, derive: Callable[[Any, Any], Mapping[str, Any]]) -> Any:
    """Return a subclass whose ``fit(X, y=None)`` makes up the other arguments, so that scikit-learn's checks can run.

    Parameters
    ----------
    estimator : type
        A class of estimators whose `fit` needs more than X and y.
    derive : callable
        ``derive(X, y)`` returns the keyword arguments of `fit`; an entry ``y`` replaces y. A function of a module, so
        that the subclass can be pickled.
    """

    def fit(self: Any, X: Any, y: Any = None) -> Any:
        return estimator.fit(self, X, **{"y": y, **derive(X, y)})

    def reduce(self: Any) -> tuple[Any, ...]:
        return _blank, (estimator, derive), self.__getstate__()

    content = {"fit": fit, "__reduce__": reduce, "__module__": estimator.__module__, "__doc__": estimator.__doc__}
    return type(estimator.__name__, (estimator,), content)


def _blank(estimator: Any, derive: Callable[[Any, Any], Mapping[str, Any]]) -> Any:
    subclass = with_derived_arguments(estimator, derive)
    return subclass.__new__(subclass)


def check_bad_input(call: Callable[..., Any], cases: Iterable[BadInput], **good: Any) -> None:
    """Check that each wrong argument is answered by one clear error.

    Parameters
    ----------
    call : callable
        ``call(**good, **kwargs)`` must raise.
    cases : iterable of (kwargs, exception type, text)
        The message must be one line, name one of the wrong arguments, and contain the text; the arguments and
        everything global must be as they were.
    **good
        Right arguments, which a case may replace.
    """
    broken = []
    for kwargs, expected, text in cases:
        shown = f"{shorten(kwargs)} -> "
        try:
            with unchanged({**good, **kwargs}):
                call(**{**good, **kwargs})
        except expected as error:
            message = str(error)
            named = any(re.search(rf"(?<!\w){name}(?!\w)", message) for name in kwargs)
            if "\n" in message or text not in message or not named:
                broken.append(shown + f"message {message!r}, expected one line with {text!r} and the argument")
        except Exception as error:
            broken.append(shown + f"{type(error).__name__} {error}, expected {expected.__name__}")
        else:
            broken.append(shown + f"no error, expected {expected.__name__}")
    assert not broken, "\n".join(broken)


def check_result(result: Result) -> None:
    """Check that a result survives its file bit by bit, and that its rows name the rows of its arrays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.safetensors"
        result.save(path)
        assert Result.load(path) == result, "a saved result must load as the same result"
    frame = result.to_frame()
    if result.rows:
        assert list(frame.index) == list(result.rows), "to_frame must be indexed by rows"
        assert len(frame.columns), "a result with rows must have an array with an entry per row"


def check_resume(
    command: Sequence[str], progress: Path, *, kills: int = 1, seconds: float = 0.5, random_state: int = 0
) -> None:
    """Check that a command that is killed again and again ends well when it is started once more.

    Parameters
    ----------
    command : sequence of str
        Starts the run, or resumes it; must exit with 0.
    progress : Path
        A file that the run writes as it goes. Each kill waits until it was written since the start.
    kills : int
        How many times to send SIGKILL.
    seconds : float
        Upper limit of the random time between the write and the kill.
    random_state : int
        Seed of these times.
    """
    delays = Streams(random_state).numpy("delays").uniform(0, seconds, size=kills)
    for delay in delays:
        before = _modified(progress)
        process = subprocess.Popen(command)
        try:
            while process.poll() is None and _modified(progress) == before:
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            process.kill()
        status = process.wait()
        assert status == -9, f"the run ended with {status} before it was killed: make it longer"
    status = subprocess.run(command, check=False).returncode
    assert status == 0, f"the resumed run ended with {status}"


@contextmanager
def unchanged(*inputs: Any) -> Iterator[None]:
    """Check that the block changes neither `inputs` nor anything global.

    Global are the generators of Python, NumPy and torch, torch's default dtype, threads and gradient mode, and
    NumPy's error handling.
    """
    kept, before = _copied(inputs), _global_state()
    try:
        yield
    finally:
        changed = [name for name, value in _global_state().items() if not same_bits(value, before[name])]
        assert not changed, f"changed: {', '.join(changed)}"
        for value, copied in zip(inputs, kept, strict=True):
            assert same_bits(value, copied), f"an input was changed: {shorten(copied)} -> {shorten(value)}"


def same_bits(a: Any, b: Any) -> bool:
    """Say whether two values agree bit by bit: arrays, tensors, frames, containers, or objects made of these."""
    if a is b or type(a) is not type(b):
        return a is b
    if hasattr(a, "detach"):
        same_kind = a.dtype == b.dtype and a.shape == b.shape and a.layout == b.layout and a.device == b.device
        return same_kind and same_bits(_bytes(a), _bytes(b))
    if isinstance(a, np.ndarray):
        same_kind = a.dtype == b.dtype and a.shape == b.shape
        if a.dtype == object:
            return same_kind and all(map(same_bits, a.ravel().tolist(), b.ravel().tolist()))
        return same_kind and a.tobytes() == b.tobytes()
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same_bits(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if hasattr(a, "equals"):
        return bool(a.equals(b))
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    if hasattr(a, "__dict__") and not isinstance(a, (date, timedelta)):  # of which pandas' times are subclasses
        return same_bits(vars(a), vars(b))
    return bool(a == b)


def _copied(value: Any) -> Any:
    """Return a deep copy; torch's compressed sparse tensors know no `deepcopy`."""
    import torch

    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, torch.Tensor) and value.layout not in (torch.strided, torch.sparse_coo):
        return value.detach().clone()
    return copy.deepcopy(value)


def _bytes(tensor: Any) -> np.ndarray:
    import torch

    return tensor.detach().cpu().to_dense().contiguous().flatten().view(torch.uint8).numpy()


def _check_not_fitted(estimator: Any, X: Any) -> None:
    from sklearn.exceptions import NotFittedError

    for name in _OUTPUTS:
        if not hasattr(estimator, name):
            continue
        try:
            getattr(estimator, name)(X)
        except NotFittedError:
            continue
        raise AssertionError(f"{name} before fit must raise NotFittedError")


def _check_outputs(first: Any, second: Any, X: Any) -> None:
    for name in _OUTPUTS:
        if not hasattr(first, name):
            continue
        with unchanged(X, _learned(first)):
            output = getattr(first, name)(X)
        assert _is_finite(output), f"{name} must be finite"
        assert same_bits(output, getattr(second, name)(X)), f"{name} must be the same for the same seed"


def _learned(estimator: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(estimator).items() if name.endswith("_")}


def _is_finite(value: Any) -> bool:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, (float, np.ndarray, np.generic)):
        array = np.asarray(value)
        return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
    return True


def _draw_from_global_generators() -> None:
    import torch

    np.random.random()  # noqa: NPY002 - a result must not depend on it
    torch.rand(())


def _global_state() -> dict[str, Any]:
    import torch

    return {
        "Python's generator": random.getstate(),
        "NumPy's generator": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch's generator": torch.get_rng_state(),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's threads": torch.get_num_threads(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "NumPy's error handling": np.geterr(),
    }


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
