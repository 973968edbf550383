"""One error style: the argument, what came, what was expected.

Every function takes the name of the argument first, returns the checked value in canonical form, never
changes its input, and raises `TypeError` for a value of the wrong kind and `ValueError` for a wrong value.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

NOT_NUMBERS = (bool, np.timedelta64)  # Python and NumPy count them among the integers


def shorten(value: object, limit: int = 60) -> str:
    """Return `repr(value)` cut to `limit` characters, safe to put into a one-line message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def suggest(value: str, options: Iterable[str]) -> str:
    """Return ' Did you mean …?' for the option nearest to `value`, or '' when none is near."""
    near = difflib.get_close_matches(str(value), [str(option) for option in options], n=3)
    return f" Did you mean {' or '.join(repr(option) for option in near)}?" if near else ""


def check_integer(name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as an int within [minimum, maximum]; booleans and floats are refused."""
    if isinstance(value, NOT_NUMBERS) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {shorten(value)} ({type(value).__name__})")
    return int(_check_range(name, int(value), minimum, maximum, exclusive=False))


def check_real(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive: bool = False,
) -> float:
    """Return `value` as a finite float within [minimum, maximum], or strictly inside when `exclusive`."""
    if isinstance(value, NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {shorten(value)} ({type(value).__name__})")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {shorten(value)}")
    return _check_range(name, number, minimum, maximum, exclusive)


def check_flag(name: str, value: Any) -> bool:
    """Return `value` when it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shorten(value)} ({type(value).__name__})")
    return bool(value)


def check_option(name: str, value: Any, options: Sequence[Any]) -> Any:
    """Return `value` when it is one of `options`, else say which exist and which is nearest."""
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        listed = ", ".join(repr(option) for option in options)
        hint = suggest(value, [o for o in options if isinstance(o, str)]) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {listed}, got {shorten(value)}.{hint}".rstrip("."))
    return value


def check_path(name: str, value: Any) -> str:
    """Return `value`, text or a path object, as text."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {shorten(value)} ({type(value).__name__})")
    return os.fspath(value)


def check_array(
    name: str,
    value: Any,
    *,
    shape: Sequence[int | str | None] | None = None,
    dtype: Any = None,
    finite: bool = True,
) -> np.ndarray:
    """Return `value` as a dense numeric array.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : array-like or CPU tensor
        Anything numeric that `numpy.asarray` takes; text, objects and complex numbers are refused.
    shape : sequence of int, str or None
        Expected shape. An int must match; a str names a free axis in the message; None is free.
    dtype : numpy dtype, optional
        Cast to it. Default: float32 and float64 stay, everything else becomes float64. For an integer dtype
        the values must be whole numbers.
    finite : bool
        Refuse NaN and infinity.
    """
    array = _as_numeric(name, value)
    if shape is not None:
        _check_shape(name, array, shape)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite, got {array[position]} at index {position if position else 'scalar'}")
    if dtype is None:
        dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype, copy=False)
    if cast.dtype.kind in "iu" and not (cast == array).all():
        wrong = array[cast != array].ravel()[0]
        raise ValueError(f"{name} must hold whole numbers that fit {cast.dtype}, got {wrong}")
    return cast


def check_device(name: str, value: Any) -> torch.device:
    """Return `value`, text or a torch device, as a torch device that this machine has."""
    import torch

    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{name} must be like 'cpu', 'cuda' or 'cuda:0', got {shorten(value)}") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ValueError(f"{name} must be a device of this machine, got {str(device)!r}")
    return device


def check_same_length(**arrays: Any) -> int:
    """Return the common length of the named arrays; `ValueError` lists all lengths when they differ."""
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{' and '.join(lengths)} must have the same length: {listed}")
    return next(iter(lengths.values()))


def to_numpy(name: str, value: Any) -> Any:
    """Return a tensor as an array and anything else as it is; masked values, and tensors NumPy lacks, are refused."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked values, got {shorten(value)}")
    if not hasattr(value, "detach"):
        return value
    try:
        return value.detach().cpu().numpy()
    except (TypeError, RuntimeError):
        kind = f"{value.layout} {value.dtype}"
        raise TypeError(f"{name} must be a dense tensor of a NumPy type, got {kind}") from None


def to_array(name: str, value: Any) -> np.ndarray:
    """Return an array-like or a tensor as an array of any dtype, in its shape."""
    value = to_numpy(name, value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a regular array, got {shorten(value)} ({error})") from None


def for_sklearn(name: str, value: Any) -> Any:
    """Return `to_numpy` of what scikit-learn is to read; times, of which it makes numbers, and records are refused."""
    value = to_numpy(name, value)
    for dtype in (getattr(value, "dtype", None), *np.atleast_1d(getattr(value, "dtypes", []))):
        if getattr(dtype, "kind", "") in ("m", "M", "V"):
            raise TypeError(f"{name} must hold no times and no records, got dtype {dtype}")
    return value


def _as_numeric(name: str, value: Any) -> np.ndarray:
    value = to_numpy(name, value)
    if value is None or isinstance(value, (dict, set, frozenset)):
        raise TypeError(f"{name} must be an array, got {shorten(value)}")
    if hasattr(value, "toarray"):
        raise TypeError(f"{name} must be a dense array, got a sparse {type(value).__name__}")
    array = to_array(name, value)
    if array.dtype == object:
        if any(isinstance(item, (str, bytes)) for item in array.flat):  # NumPy would parse it
            raise TypeError(f"{name} must be numeric, got text in {shorten(value)}")
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be numeric, got objects such as {shorten(value)}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numeric, got dtype {array.dtype}")
    return array


def _check_shape(name: str, array: np.ndarray, shape: Sequence[int | str | None]) -> None:
    fits = array.ndim == len(shape) and all(
        not isinstance(expected, numbers.Integral) or expected == size
        for expected, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if axis is None else str(axis) for axis in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {array.shape}")


def _check_range(name: str, value: float, minimum: float | None, maximum: float | None, exclusive: bool) -> float:
    low = minimum is not None and (value <= minimum if exclusive else value < minimum)
    high = maximum is not None and (value >= maximum if exclusive else value > maximum)
    if low or high:
        signs = ("> ", "< ") if exclusive else (">= ", "<= ")
        bounds = [sign + str(bound) for sign, bound in zip(signs, (minimum, maximum), strict=True) if bound is not None]
        raise ValueError(f"{name} must be {' and '.join(bounds)}, got {value}")
    return value
