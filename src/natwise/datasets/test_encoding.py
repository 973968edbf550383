"""Columns of any type become finite numbers of ordinary size, or are left out for a stated reason."""

import numpy as np
import pandas as pd
import pytest

from natwise.datasets._text import as_numbers
from natwise.datasets.encoding import CLIP, MAX_CATEGORIES, encode

N = 100
RNG = np.random.default_rng(1)
NORMAL = RNG.normal(size=N)

KINDS = {
    "numeric": NORMAL,
    "with gaps": np.where(NORMAL > 1, np.nan, NORMAL),
    "huge": NORMAL * 1e300,
    "text of numbers": [f"{x:.2f}" if i % 20 else "n/a" for i, x in enumerate(NORMAL)],
    "decimal commas": [f"{x:.2f}".replace(".", ",") for x in NORMAL],
    "flags": NORMAL > 0,
    "cities": np.where(NORMAL > 0, "Rome", "Oslo"),
    "dates": pd.date_range("2020-01-01", periods=N).astype(str),
    "German dates": pd.date_range("2020-01-01", periods=N).strftime("%d.%m.%Y"),
    "timestamps": pd.date_range("2020-01-01", periods=N),
    "counter": np.arange(N),
    "keys": [f"k{i}" for i in range(N)],
    "comments": [f"the quick brown fox number {i} jumps over the lazy dog" for i in range(N)],
    "fixed": 7,
    "nothing": np.nan,
    "infinite": np.inf,
    "lists": [[1, 2]] * N,
    "complex": NORMAL * 1j,
}
EXPECTED = ("numeric",) * 6 + ("category", "date", "date", "date", "id-like", "id-like", "free text") + (
    "constant", "empty", "empty", "unsupported", "unsupported",
)  # fmt: skip


def test_kinds():
    encoded = encode(pd.DataFrame(KINDS))
    assert dict(zip(KINDS, encoded.kinds, strict=True)) == dict(zip(KINDS, EXPECTED, strict=True))
    assert encoded.X.shape == (N, 11)
    assert encoded.X.dtype == np.float32
    assert np.nanmax(np.abs(encoded.X)) <= CLIP
    assert set(encoded.names[6:8]) == {"cities = Rome", "cities = Oslo"}
    np.testing.assert_array_equal(encoded.numeric, ["cities" not in name for name in encoded.names])
    np.testing.assert_array_equal(np.isnan(encoded.X[:, 1]), NORMAL > 1)


@pytest.mark.parametrize(
    "texts",
    [
        ["1,5", "-2", "1234,25", "0,125"],
        ["1,5", "-2,0", "1.234,25", "0,125"],
        ["1.5", "-2", "1,234.25", "0.125"],
    ],
)
def test_commas_in_numbers(texts):
    np.testing.assert_array_equal(as_numbers(pd.Series([*texts, None])), [1.5, -2, 1234.25, 0.125, np.nan])


def test_scaling_is_affine_and_keeps_order():
    X = encode(pd.DataFrame({"a": NORMAL, "b": 5 - 3e6 * NORMAL})).X
    np.testing.assert_allclose(X[:, 0], -X[:, 1], atol=1e-5)
    assert np.median(X[:, 0]) == pytest.approx(0, abs=1e-6)


def test_rare_categories_are_gathered():
    column = [f"c{i % (MAX_CATEGORIES + 10)}" for i in range(3000)]
    encoded = encode(pd.DataFrame({"code": column}))
    assert encoded.X.shape[1] == MAX_CATEGORIES + 1
    assert encoded.names[-1] == "code = another"
    np.testing.assert_array_equal(encoded.X.sum(axis=1), 1)


def test_missing_category_is_no_category():
    X = encode(pd.DataFrame({"city": ["Rome", None, "Oslo", ""] * 10})).X
    np.testing.assert_array_equal(X.sum(axis=1), [1, 0, 1, 0] * 10)


def test_images_share_one_scale():
    X = encode(pd.DataFrame({"dark": NORMAL, "bright": 10 * NORMAL}), is_image=True).X
    assert X[:, 1].std() == pytest.approx(10 * X[:, 0].std(), rel=1e-5)


@pytest.mark.parametrize("column", ["nothing", "comments", "keys", "fixed"])
def test_nothing_usable(column):
    with pytest.raises(ValueError, match="no usable features"):
        encode(pd.DataFrame({column: KINDS[column]}, index=range(N)))
    if column == "comments":
        with pytest.raises(ValueError, match="embeddings"):
            encode(pd.DataFrame({column: KINDS[column]}))
