import numpy as np
import pytest
import torch

from natwise.datasets.synthetic import associative_recall, copying
from natwise.testing import check_bad_input


@pytest.mark.parametrize("mixed", [False, True])
def test_copying_asks_for_the_second_copy(mixed):
    draw, rng, lengths = copying(5, (2, 4), mixed=mixed), np.random.default_rng(0), set()
    for _ in range(20):
        tokens, labels = draw(10, rng)
        assert tokens.shape == labels.shape
        assert tokens.dtype == labels.dtype == torch.int64
        found = [row.index(5) for row in tokens.tolist()]
        assert tokens.shape == (10, 2 * max(found))
        assert mixed or len(set(found)) == 1
        lengths |= set(found)
        for row, wanted, length in zip(tokens.tolist(), labels.tolist(), found, strict=True):
            full = [*row[:length], 5, *row[:length]] + [5] * 8
            assert row == full[: len(row)]
            assert wanted == [-100] * length + row[:length] + [-100] * (len(row) - 2 * length)
    assert lengths == {2, 3, 4}


def test_recall_asks_for_the_value_of_each_key_once():
    tokens, labels = associative_recall(32, 24, 4)(300, np.random.default_rng(0))
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        table = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        assert len(table) == 4
        assert all(1 <= key < 16 <= value < 32 for key, value in table.items())
        asked = {row[i]: wanted[i] for i in range(24) if wanted[i] != -100}
        assert asked == table
        assert all(row[i] == 0 for i in range(8, 24) if wanted[i] == -100)
    gaps = np.flatnonzero((labels != -100).any(0).numpy())
    assert gaps.min() == 8
    assert (labels[:, 8] != -100).float().mean() > 0.5  # small gaps are likely


def test_draws_repeat():
    for draw in (copying(5, (2, 4)), copying(5, (2, 4), mixed=True), associative_recall(32, 24, 4)):
        first, second = (draw(5, np.random.default_rng(1)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bad_input():
    check_bad_input(
        copying,
        [({"vocabulary": 1}, ValueError, "1"), ({"lengths": (4, 2)}, ValueError, "(4, 2)")],
        vocabulary=5,
        lengths=(2, 4),
    )
    cases = [
        ({"length": 15}, ValueError, "15"),
        ({"length": 17}, ValueError, "even"),
        ({"vocabulary": 9}, ValueError, "9"),
        ({"pairs": 0}, ValueError, "0"),
        ({"power": 0.0}, ValueError, "0"),
    ]
    check_bad_input(associative_recall, cases, vocabulary=32, length=24, pairs=4)


@pytest.mark.parametrize("seed", range(3))
def test_recall_without_replacement(seed):
    tokens, _ = associative_recall(10, 16, 4)(50, np.random.default_rng(seed))
    assert all(len(set(row[0:8:2])) == len(set(row[1:8:2])) == 4 for row in tokens.tolist())
