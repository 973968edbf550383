import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given, strategies as st

from natwise.core.validation import (
    check_array,
    check_flag,
    check_integer,
    check_option,
    check_path,
    check_real,
    check_same_length,
    for_sklearn,
    shorten,
    suggest,
    to_array,
    to_numpy,
)
from natwise.testing import check_bad_input, same_bits

CASES = [
    (check_integer, {"value": 1.0}, TypeError, "value must be an integer, got 1.0 (float)"),
    (check_integer, {"value": True}, TypeError, "value must be an integer, got True (bool)"),
    (check_integer, {"value": np.bool_(True)}, TypeError, "value must be an integer"),
    (check_integer, {"value": np.timedelta64(3)}, TypeError, "value must be an integer"),
    (check_integer, {"value": "a\n" * 99}, TypeError, "…"),
    (check_integer, {"value": 0, "minimum": 1}, ValueError, "value must be >= 1, got 0"),
    (check_integer, {"value": 9, "minimum": 1, "maximum": 8}, ValueError, "value must be >= 1 and <= 8, got 9"),
    (check_real, {"value": "1"}, TypeError, "value must be a number, got '1' (str)"),
    (check_real, {"value": 1j}, TypeError, "value must be a number"),
    (check_real, {"value": False}, TypeError, "value must be a number"),
    (check_real, {"value": np.timedelta64(3)}, TypeError, "value must be a number"),
    (check_real, {"value": math.nan}, ValueError, "value must be finite, got nan"),
    (check_real, {"value": 10**400}, ValueError, "value must be finite, got 1000"),
    (check_real, {"value": 0, "minimum": 0, "exclusive": True}, ValueError, "value must be > 0, got 0.0"),
    (check_real, {"value": 2, "maximum": 1.0}, ValueError, "value must be <= 1.0, got 2.0"),
    (check_option, {"value": "meen", "options": ("mean", "sum")}, ValueError, "'mean', 'sum', got 'meen'. Did you"),
    (check_option, {"value": 1, "options": (True, "a")}, ValueError, "value must be one of True, 'a', got 1"),
    (check_flag, {"value": 1}, TypeError, "value must be True or False, got 1 (int)"),
    (check_flag, {"value": None}, TypeError, "value must be True or False, got None"),
    (check_path, {"value": 3}, TypeError, "value must be a path, got 3 (int)"),
    (check_array, {"value": None}, TypeError, "value must be an array, got None"),
    (check_array, {"value": {"a": 1}}, TypeError, "value must be an array, got {'a': 1}"),
    (check_array, {"value": "abc"}, TypeError, "value must be numeric, got dtype <U3"),
    (check_array, {"value": [1j]}, TypeError, "value must be numeric, got dtype complex128"),
    (check_array, {"value": [1, "2"]}, TypeError, "value must be numeric"),
    (check_array, {"value": np.array([1, "2"], object)}, TypeError, "value must be numeric, got text in"),
    (check_array, {"value": [print]}, TypeError, "value must be numeric, got objects such as"),
    (check_array, {"value": np.array(["2020"], "M8[Y]")}, TypeError, "value must be numeric, got dtype datetime64"),
    (check_array, {"value": [[1], [1, 2]]}, ValueError, "value must be a regular array"),
    (check_array, {"value": scipy.sparse.eye(2)}, TypeError, "value must be a dense array, got a sparse dia_matrix"),
    (check_array, {"value": torch.eye(2).to_sparse()}, TypeError, "value must be a dense tensor of a NumPy type"),
    (check_array, {"value": torch.ones(2, dtype=torch.bfloat16)}, TypeError, "got torch.strided torch.bfloat16"),
    (check_array, {"value": [[0, 1], [2, math.inf]]}, ValueError, "value must be finite, got inf at index (1, 1)"),
    (check_array, {"value": np.ma.array([1, 2], mask=[0, 1])}, ValueError, "value must have no masked values, got"),
    (check_array, {"value": [1.0, None]}, ValueError, "value must be finite, got nan at index (1,)"),
    (check_array, {"value": [1, 2], "shape": ("n", 2)}, ValueError, "value must have shape (n, 2), got (2,)"),
    (check_array, {"value": [[1]], "shape": (None, np.int64(2))}, ValueError, "shape (any, 2), got (1, 1)"),
    (check_array, {"value": [1, 2.5], "dtype": int}, ValueError, "value must hold whole numbers that fit int64"),
    (check_array, {"value": [1e30], "dtype": int}, ValueError, "value must hold whole numbers that fit int64"),
    (for_sklearn, {"value": pd.DataFrame({"a": pd.to_datetime(["2020"])})}, TypeError, "no times and no records, got"),
    (for_sklearn, {"value": np.ma.array([1, 2], mask=[0, 1])}, ValueError, "value must have no masked values, got"),
    (to_array, {"value": [[1], [1, 2]]}, ValueError, "value must be a regular array"),
    (to_numpy, {"value": torch.eye(2).to_sparse()}, TypeError, "value must be a dense tensor of a NumPy type"),
    (check_array, {"value": [3, -1], "dtype": np.uint8}, ValueError, "value must hold whole numbers that fit uint8"),
]


@pytest.mark.parametrize("function", dict.fromkeys(case[0] for case in CASES))
def test_bad_input(function):
    def call(value, **options):
        function("value", value, **options)

    check_bad_input(call, [case[1:] for case in CASES if case[0] is function])


def test_good_values_come_back_in_canonical_form():
    assert same_bits(check_integer("a", np.int8(3), minimum=3, maximum=3), 3)
    assert same_bits(check_real("a", Fraction(1, 4), minimum=0.25), 0.25)
    assert same_bits(check_real("a", np.float32(0.5), minimum=0, maximum=1, exclusive=True), 0.5)
    assert check_option("a", None, (None, "x")) is None
    assert check_flag("a", np.bool_(False)) is False
    for value, dtype in [([1, 2], "f8"), (np.float16([1]), "f8"), (np.float32([1]), "f4"), ([True], "f8")]:
        assert check_array("a", value).dtype == dtype
    assert check_array("a", pd.DataFrame({"x": [1, 2]}), shape=(2, 1)).tolist() == [[1.0], [2.0]]
    assert check_array("a", torch.ones(2, requires_grad=True)).tolist() == [1.0, 1.0]
    assert check_array("a", [1.0, 2.0], dtype=np.int32).dtype == np.int32
    assert math.isnan(check_array("a", [math.nan], finite=False)[0])
    assert check_array("a", 3.0, shape=()).shape == ()


def test_same_length():
    assert check_same_length(X=[1, 2], y=np.zeros((2, 3)), weight=None) == 2
    with pytest.raises(ValueError, match="X and y must have the same length: X has 2, y has 3"):
        check_same_length(X=[1, 2], y=[1, 2, 3])


@given(st.text() | st.binary() | st.lists(st.integers()), st.integers(1, 80))
def test_shortened_text_is_one_short_line(value, limit):
    text = shorten(value, limit)
    assert len(text) <= limit
    assert len(text.splitlines()) <= 1


def test_suggestions():
    assert suggest("lable", ["label", "age"]) == " Did you mean 'label'?"
    assert suggest("zzz", ["label", "age"]) == ""
