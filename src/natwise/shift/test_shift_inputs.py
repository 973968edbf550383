"""Sizes of numbers, strengths of penalties, candidates."""

import numpy as np

from natwise.shift import _inputs
from natwise.testing import check_bad_input


def test_sizes_strengths_and_candidates():
    assert _inputs.check_strength("C", np.float32(np.inf)) == np.inf
    assert _inputs.to_candidates("C", (1, 2)) == [1, 2]
    assert _inputs.to_candidates("C", 0.5) == [0.5]
    rows = np.ones((2, 2))
    check_bad_input(lambda X: _inputs.check_matrix("X", X, ("n", 2)), [
        ({"X": rows * [1, -1e71]}, ValueError, "below 1e+70 in size, got -1e+71 in row 0, column 1"),
        ({"X": rows * np.nan}, ValueError, "finite"),
        ({"X": rows[:, :1]}, ValueError, "shape (n, 2)"),
    ])  # fmt: skip
    check_bad_input(lambda C: _inputs.check_strength("C", C), [
        ({"C": 0}, ValueError, "> 0"), ({"C": np.nan}, ValueError, "finite"), ({"C": True}, TypeError, "number"),
    ])  # fmt: skip
    check_bad_input(lambda C: _inputs.to_candidates("C", C), [({"C": []}, ValueError, "at least one")])
