import json
import math
import struct
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from natwise import result as module
from natwise.result import Result, fingerprint, provenance
from natwise.testing import check_bad_input, check_result, same_bits

DTYPES = [*"?bBhHiIlLqQefd", ">f8", ">i4"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
TEXT = st.text(max_size=8)
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def saved(tmp_path):
    """A file, and its bytes."""
    result = Result(
        "demo",
        arrays={"score": np.linspace(0, 1, 5), "label": np.arange(5)},
        scalars={"mean": 0.5, "gap": math.nan},
        rows=list("abcde"),
        params={"zeros": "0" * 64, "fake": '{"digest": "' + "0" * 64, "path": "é\ud800\n"},
    )
    path = tmp_path / "demo.safetensors"
    result.save(path)
    return path, path.read_bytes(), result


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrays=st.dictionaries(NAMES, ARRAYS, max_size=3),
    scalars=st.dictionaries(TEXT, st.floats() | st.integers(-(2**60), 2**60) | st.booleans(), max_size=3),
    params=st.dictionaries(TEXT, JSON, max_size=3),
    warnings=st.lists(TEXT, max_size=2),
)
def test_round_trip(arrays, scalars, params, warnings):
    result = Result("demo", arrays=arrays, scalars=scalars, params=params, warnings=warnings)
    check_result(result)
    for name, array in arrays.items():
        assert same_bits(result.arrays[name], array.astype(array.dtype.newbyteorder("=")))


def test_content_is_frozen_and_independent_of_the_source():
    source = np.arange(3.0)
    result = Result("demo", arrays={"a": source}, params={"n": np.int64(3), "path": ("x", np.float32(0.5))})
    source[0] = 9
    assert result.arrays["a"].tolist() == [0, 1, 2]
    assert dict(result.params) == {"n": 3, "path": ["x", 0.5]}
    with pytest.raises(ValueError, match="read-only"):
        result.arrays["a"][0] = 1
    with pytest.raises(AttributeError):
        result.kind = "other"


def test_rows_are_sliced_together():
    arrays = {"a": np.arange(4), "b": np.arange(8).reshape(4, 2), "whole": np.zeros(3)}
    result = Result("demo", arrays=arrays, rows=["w", "x", "y", 7])
    for index in (slice(1, 3), [1, 2], np.array([False, True, True, False])):
        part = result[index]
        assert part.rows == ("x", "y")
        assert part.arrays["a"].tolist() == [1, 2]
        assert part.arrays["b"].tolist() == [[2, 3], [4, 5]]
        assert len(part.arrays["whole"]) == 3
    expected = pd.DataFrame({"a": range(4), "b_0": [0, 2, 4, 6], "b_1": [1, 3, 5, 7]}, index=["w", "x", "y", 7])
    pd.testing.assert_frame_equal(result.to_frame(), expected)
    assert Result("demo", scalars={"x": 1}).to_frame().loc["demo", "x"] == 1


def test_equality_and_text():
    result = Result("demo", arrays={"a": [1.0, math.nan]}, scalars={"s": math.nan})
    assert result == Result("demo", arrays={"a": [1.0, math.nan]}, scalars={"s": math.nan})
    for other in (Result("demo", arrays={"a": np.float32([1, 2])}), Result("demo"), "demo"):
        assert result != other
    assert repr(result) == "Result('demo', arrays=[a (2,)], scalars=[s=nan], rows=0)"


def test_bad_input():
    cases = [
        ({"kind": ""}, TypeError, "kind must be a non-empty str"),
        ({"kind": 3}, TypeError, "kind must be a non-empty str, got 3"),
        ({"arrays": {"a": np.array(["x"])}}, TypeError, "arrays['a'] must be a boolean, integer or float"),
        ({"arrays": {"a": [1, None]}}, TypeError, "got dtype object"),
        ({"arrays": {"a": [1j]}}, TypeError, "got dtype complex128"),
        ({"arrays": {"__metadata__": [1]}}, ValueError, "arrays must have printable names"),
        ({"arrays": {"\ud800": [1]}}, ValueError, "arrays must have printable names"),
        ({"scalars": {"s": "1"}}, TypeError, "scalars['s'] must be a number, got str"),
        ({"scalars": {"s": np.ones(2)}}, TypeError, "scalars['s'] must be a number, got ndarray"),
        ({"params": {"a": [1, {"b": {1}}]}}, TypeError, "params['a'][1]['b'] must be text"),
        ({"params": {"a": print}}, TypeError, "params['a'] must be text"),
        ({"provenance": {"a": 1j}}, TypeError, "provenance['a'] must be text"),
        ({"rows": [print]}, TypeError, "rows[0] must be text"),
    ]
    check_bad_input(Result, cases, kind="demo")


def _refused(path, text=None):
    with pytest.raises(ValueError, match=text) as caught:
        Result.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_refused(saved):
    path, content, _ = saved
    positions = np.random.default_rng(0).choice(8 * len(content), size=900, replace=False)
    header_starts = range(8 * 8)  # the length of the header, all of it
    for position in {*positions.tolist(), *header_starts}:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        _refused(path)


def test_every_truncation_is_refused(saved):
    path, content, _ = saved
    for length in [*range(20), *range(20, len(content), 37), len(content) - 1]:
        path.write_bytes(content[:length])
        _refused(path)
    path.write_bytes(content + b"\0")
    _refused(path, "should have")


def _signed(text, header=None, payload=b"", digest=None):
    """Return a file with this text in place of natwise's JSON, signed as it should be."""
    text = '{"digest": "' + "0" * 64 + '", ' + text
    header = {"__metadata__": {"natwise": text}, **(header or {})}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    content = struct.pack("<Q", len(encoded)) + encoded + payload
    digest = digest or module._digest(memoryview(content))
    return content.replace(b"0" * 64, digest, 1)


FIELDS = '"kind": "x", "arrays": [], "scalars": {}, "rows": [], "params": {}, "provenance": {}, "warnings": []}'
A = {"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}


def test_signed_file_of_the_test_is_right(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(_signed('"schema": 1, ' + FIELDS))
    assert Result.load(path) == Result("x")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "header claims"),
        (struct.pack("<Q", 2**60) + b"{}", "its header claims 1,152,921,504,606,846,976 bytes"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "its header claims"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "natwise did not write"),
        (struct.pack("<Q", 2) + b"[]", "natwise did not write"),
        (struct.pack("<Q", 2) + b"\xff\xff", "natwise did not write"),
        (_signed('"schema": 2, ' + FIELDS), "its schema is not 1"),
        (_signed('"schema": "1", ' + FIELDS), "its schema is not 1"),
        (_signed(FIELDS), "schema"),
        (_signed(FIELDS, {"a": [[]]}), "indices"),
        (struct.pack("<Q", 200_000) + module._PREFIX.ljust(200_000, b"["), "json|delimiter|control|unterminated"),
        (_signed('"schema": 1, "more": 2, ' + FIELDS), "more"),
        (_signed('"schema": 1, "kind": "x"}'), "arrays"),
        (_signed('"schema": 1, ' + FIELDS, digest=b"f" * 64), "checksum does not match"),
        (_signed('"schema": 1, "x": ' + "[" * 100_000), "recursion"),
        (_signed('"schema": 1, ' + FIELDS.replace("[]", '["b"]', 1), A, b"8 bytes!"), "'b'"),
        (_signed('"schema": 1, ' + FIELDS.replace("{}", "[1]", 1)), "items"),
        (_signed('"schema": 1, ' + FIELDS, {"a": {**A["a"], "data_offsets": [0, 2**60]}}), "truncated"),
        (_signed('"schema": 1, ' + FIELDS, {"a": {**A["a"], "data_offsets": [0, "8"]}}), "unsupported"),
        (_signed('"schema": 1, ' + FIELDS, {"a": {**A["a"], "shape": [2**60]}}, b"8 bytes!"), "overflow"),
        (_signed('"schema": 1, ' + FIELDS, {"a": {"dtype": "F64"}}), "data_offsets"),
    ],
)
def test_hostile_file_is_refused_without_large_allocations(tmp_path, content, text):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    _refused(path, f"(?i){text}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(content) + 8_000_000  # modules that are imported only now count too


def test_oversized_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40 + 8)  # a sparse file of a tebibyte
    _refused(path, "exceeds the limit of 67,108,864")
    huge = Result("x", rows=["a" * 40_000_000])
    with pytest.raises(ValueError, match="rows and params of x exceed 33,554,432 bytes"):
        huge.save(tmp_path / "huge.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_other_files(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(3)}, path)
    _refused(path, "natwise did not write")
    save_file({"a": np.ones(3)}, path, metadata={"natwise": "{}", "digest": "0" * 64})
    _refused(path, "natwise did not write")
    np.save(tmp_path / "object.npy", np.array([{}, print], dtype=object), allow_pickle=True)
    _refused(tmp_path / "object.npy")
    torch.save({"a": torch.ones(2)}, path)
    _refused(path)
    with pytest.raises(OSError, match=str(tmp_path)):
        Result.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        Result.load(tmp_path / "absent")


def test_same_result_same_file(saved, tmp_path):
    path, content, result = saved
    result.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content
    assert Result.load(path) == result


def test_provenance():
    data = {"X": np.eye(2)}
    with provenance(seed=3, data=data) as record:
        assert "seconds" not in record
    assert (record["seed"], record["device"], record["fingerprint"]) == (3, "cpu", fingerprint(data))
    assert record["seconds"] >= 0
    assert record["versions"]["numpy"] == np.__version__
    Result("demo", provenance=record)


def test_fingerprint_sees_names_types_shapes_and_values():
    base = {"X": np.arange(4.0)}
    different = [
        {"Y": np.arange(4.0)},
        {"X": np.arange(4)},
        {"X": np.arange(4.0).reshape(2, 2)},
        {"X": np.arange(1.0, 5.0)},
        {"X": np.arange(4.0), "y": np.zeros(0)},
        {"X": np.array(["a", None], dtype=object)},
        {"X": np.array(3.0)},
    ]
    assert len({fingerprint(data) for data in [base, *different]}) == 8
    assert fingerprint(base) == fingerprint({"X": np.arange(8.0)[::2] / 2})
