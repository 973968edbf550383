"""The samplers: counts, disjointness, uniformity, seeds, the two spurious features, and what they refuse."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from natwise.shift import (
    CategoryPairSampler,
    SingleTaskSampler,
    SpuriousVectorSampler,
    SwapSampler,
    SyntheticSampler,
    flip_labels,
)
from natwise.shift.in_context._draws import draw_examples, generator_of
from natwise.testing import check_bad_input, same_bits, unchanged

NAMES = ["X", "y", "attribute", "X_query", "y_query", "attribute_query"]


def rng(seed=0):
    return np.random.default_rng(seed)


def grouped(n=200, width=5, seed=0):
    """A data set whose first feature is the row number, and all groups present."""
    draws = rng(seed)
    X = draws.normal(size=(n, width))
    X[:, 0] = np.arange(n)
    group = np.arange(n) % 4
    return X, group // 2, group % 2


def categories(n_categories=5, size=20, width=6):
    X = rng().normal(size=(n_categories * size, width))
    X[:, 0] = np.arange(len(X))
    return X, np.repeat(np.arange(n_categories) * 7 - 3, size)


def single(**options):
    return SingleTaskSampler(*grouped(), **{"n_context": 20, "n_queries": 12, **options})


def pairs(**options):
    return CategoryPairSampler(*categories(), **{"n_context": 12, "n_queries": 8, **options})


SAMPLERS = {
    "synthetic": lambda: SyntheticSampler(6, n_context=12, n_queries=8),
    "single": single,
    "pairs": pairs,
    "vector": lambda: SpuriousVectorSampler(pairs()),
    "swap": lambda: SwapSampler(pairs(), n_coordinates=(2, 3)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_shapes_and_seeds(name):
    sampler = SAMPLERS[name]()
    tasks = sampler(7, rng(1))
    assert list(tasks) == NAMES
    assert tasks["X"].ndim == 3
    assert tasks["X"].shape[:2] == tasks["y"].shape == tasks["attribute"].shape
    assert tasks["X_query"].shape[:2] == tasks["y_query"].shape == tasks["attribute_query"].shape
    assert tasks["X"].dtype == torch.float32
    assert {tasks[key].dtype for key in NAMES if "X" not in key} == {torch.int64}
    with unchanged():
        assert same_bits(tasks, sampler(7, rng(1)))
    assert not same_bits(tasks, sampler(7, rng(2)))
    with pytest.raises(TypeError, match="rng must be a numpy"):
        sampler(7, 0)
    with pytest.raises(ValueError, match="n_tasks must be >= 1"):
        sampler(-1, rng())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(0, 10**6))
def test_draws_are_distinct_and_queries_lie_outside(k, other, more, seed):
    counts, sizes = torch.tensor([[k, other], [other, k]]), torch.tensor([[k + more, 15], [40, 12 + more]])
    drawn = draw_examples(
        sizes, counts, torch.tensor([[9, 1], [5, 5]]), None, generator_of(1, rng(seed), torch.device("cpu"))
    )
    for task, (group, member, group_query, member_query) in enumerate(
        zip(*(part.tolist() for part in drawn), strict=True)
    ):
        for g in (0, 1):
            inside = [m for h, m in zip(group, member, strict=True) if h == g]
            asked = [m for h, m in zip(group_query, member_query, strict=True) if h == g]
            assert len(set(inside)) == len(inside) == counts[task, g]
            assert not set(inside) & set(asked)
            assert all(0 <= m < sizes[task, g] for m in inside + asked)


def test_draws_are_uniform_in_order_too():
    n = 24_000
    sizes, counts = torch.full((n, 1), 4), torch.full((n, 1), 2)
    _, member, _, query = draw_examples(sizes, counts, counts // 2, None, generator_of(1, rng(), torch.device("cpu")))
    for drawn, kinds in (
        (member, permutations(range(4), 2)),
        (torch.cat([member, query], 1), permutations(range(4), 3)),
    ):
        counted, expected = Counter(map(tuple, drawn.tolist())), list(kinds)
        assert set(counted) == set(expected)
        each = n / len(expected)
        # chi2 at p = .001 for 11 and 23 degrees of freedom
        limit = {12: 31.3, 24: 49.7}[len(expected)]
        assert sum((count - each) ** 2 / each for count in counted.values()) < limit


def test_groups_have_exact_counts_where_shares_allow():
    tasks = single(context_shares=(0.45, 0.05, 0.05, 0.45))(50, rng())
    for end, counts in (("", [9, 1, 1, 9]), ("_query", [3, 3, 3, 3])):
        group = 2 * tasks[f"y{end}"] + tasks[f"attribute{end}"]
        found = torch.nn.functional.one_hot(group, 4).sum(dim=1)
        np.testing.assert_array_equal(found, [counts] * 50)
        assert len({tuple(row) for row in group.tolist()}) > 40, "the order must be random"
    uneven = single(n_context=10)(400, rng())  # 4.5, .5, .5, 4.5
    counts = torch.nn.functional.one_hot(2 * uneven["y"] + uneven["attribute"], 4).sum(dim=1).double()
    assert counts.min(dim=0).values.tolist() == [4, 0, 0, 4]
    np.testing.assert_allclose(counts.mean(dim=0), [4.9, 0.1, 0.1, 4.9], atol=0.1)


@pytest.mark.parametrize("name", ["single", "pairs"])
def test_context_is_distinct_and_apart_from_the_queries(name):
    tasks = SAMPLERS[name]()(200, rng())
    for context, queries in zip(tasks["X"][..., 0].tolist(), tasks["X_query"][..., 0].tolist(), strict=True):
        assert len(set(context)) == len(context)
        assert not set(context) & set(queries)


def test_queries_reach_every_sample_that_is_left():
    X, y, attribute = grouped(24)
    sampler = SingleTaskSampler(X, y, attribute, n_context=20, n_queries=400, context_shares=(0.25,) * 4)
    tasks = sampler(5, rng())
    for context, queries in zip(tasks["X"][..., 0].tolist(), tasks["X_query"][..., 0].tolist(), strict=True):
        assert set(queries) == set(range(24)) - set(context)


def test_single_task_tells_the_truth_about_each_row():
    X, y, attribute = grouped()
    other = (X + 1000, y, attribute)
    tasks = single(query_data=other)(20, rng())
    for end, offset in (("", 0), ("_query", 1000)):
        rows = tasks[f"X{end}"][..., 0].numpy().astype(int) - offset
        np.testing.assert_array_equal(tasks[f"y{end}"], y[rows])
        np.testing.assert_array_equal(tasks[f"attribute{end}"], attribute[rows])


def test_pairs_are_two_categories_in_random_order():
    _, category = categories()
    tasks = pairs()(300, rng())
    seen = Counter()
    for x, y, x_query, y_query in zip(*(tasks[name] for name in ("X", "y", "X_query", "y_query")), strict=True):
        of = category[x[:, 0].numpy().astype(int)]
        names = [set(of[y == label]) for label in (0, 1)]
        assert [len(name) for name in names] == [1, 1]
        assert names[0] != names[1]
        assert int(y.sum()) == 6
        assert int(y_query.sum()) == 4
        of_query = category[x_query[:, 0].numpy().astype(int)]
        assert [set(of_query[y_query == label]) for label in (0, 1)] == names
        seen[min(names[0]), min(names[1])] += 1
    assert len(seen) == 20, "all ordered pairs of five categories"


def test_attributes_differ_as_often_as_asked():
    tasks = SyntheticSampler(n_context=50)(400, rng())
    for end, share in (("", 0.1), ("_query", 0.5)):
        assert abs(float((tasks[f"y{end}"] != tasks[f"attribute{end}"]).double().mean()) - share) < 0.02


def test_signs_of_synthetic_directions_say_nothing():
    tasks = SyntheticSampler(n_context=2, noise=0.0)(4000, rng())
    means = (tasks["X"] * (2 * tasks["y"] - 1)[..., None]).mean(dim=(0, 1))
    assert float(means.abs().max()) < 0.05
    x, y = tasks["X"].double(), 2 * tasks["y"] - 1
    np.testing.assert_allclose(x.norm(dim=-1), np.hypot(1.5, 2.0), rtol=1e-5)
    same = tasks["attribute"][:, 0] == tasks["attribute"][:, 1]
    inner = (x[:, 0] * x[:, 1]).sum(-1)
    np.testing.assert_allclose(inner, 2.25 * y[:, 0] * y[:, 1] + torch.where(same, 4.0, -4.0), rtol=1e-4)


def test_spurious_vector_is_added_along_the_attribute():
    plain, tasks = pairs()(9, rng(3)), SpuriousVectorSampler(pairs(), norm=2.5)(9, rng(3))
    for end in ("", "_query"):
        added = tasks[f"X{end}"] - plain[f"X{end}"]
        v = added * (2 * tasks[f"attribute{end}"] - 1)[..., None]
        np.testing.assert_allclose(v, v[:, :1].expand_as(v), atol=1e-5)
        np.testing.assert_allclose(v.norm(dim=-1), 2.5, rtol=1e-4)
    fixed = SpuriousVectorSampler(pairs(), vector=np.arange(6.0))(9, rng(3))
    expected = plain["X"] + (2 * plain["attribute"] - 1)[..., None] * torch.arange(6.0)
    np.testing.assert_allclose(fixed["X"], expected, rtol=1e-6)
    by_default = SpuriousVectorSampler(pairs())(9, rng(3))["X"] - plain["X"]
    np.testing.assert_allclose(by_default.norm(dim=-1), float(plain["X"].norm(dim=-1).mean()), rtol=1e-3)


def test_swap_exchanges_coordinates_and_attributes():
    plain, tasks = pairs()(40, rng(3)), SwapSampler(pairs(), n_coordinates=(2, 3), minority=0.4)(40, rng(3))
    for end, m in (("", 2), ("_query", 2)):
        y, attribute = tasks[f"y{end}"], tasks[f"attribute{end}"]
        for label in (0, 1):
            np.testing.assert_array_equal(((y == label) & (attribute != label)).sum(dim=1), m)
        moved = tasks[f"X{end}"] != plain[f"X{end}"]
        np.testing.assert_array_equal(moved.any(dim=2), y != attribute)
        counts = moved.sum(dim=2)[y != attribute]
        assert set(counts.tolist()) == {2, 3}
        sort = torch.sort(plain[f"X{end}"], dim=1).values, torch.sort(tasks[f"X{end}"], dim=1).values
        assert torch.equal(*sort), "each coordinate keeps its values"


def test_flip_exchanges_labels_and_attributes():
    tasks = pairs()(4, rng())
    with unchanged(tasks):
        both, labels = flip_labels(tasks), flip_labels(tasks, attribute=False)
    for name in NAMES:
        turned = 1 - tasks[name] if "X" not in name else tasks[name]
        assert torch.equal(both[name], turned)
        assert torch.equal(labels[name], tasks[name] if "attribute" in name else turned)


def test_refuses_wrong_data():
    X, y, attribute = grouped()
    holes = X.copy()
    holes[3, 1] = np.nan
    good = {"X": X, "y": y, "attribute": attribute, "n_context": 20}
    few = np.where((y == 0) & (attribute == 1) & (np.arange(200) > 8), 0, attribute)
    check_bad_input(
        SingleTaskSampler,
        [
            ({"X": holes}, ValueError, "must be finite"),
            ({"X": X[:, 0]}, ValueError, "shape"),
            ({"X": "no"}, TypeError, "numeric"),
            ({"y": y + 1}, ValueError, "0 and 1 alone, got 2"),
            ({"y": y[:-1]}, ValueError, "shape (200)"),
            ({"attribute": attribute + 0.5}, ValueError, "whole numbers"),
            ({"n_context": 1}, ValueError, ">= 2"),
            ({"n_context": 20.0}, TypeError, "integer"),
            ({"n_queries": 0}, ValueError, ">= 1"),
            ({"context_shares": (0.5, 0.5)}, ValueError, "shape (4)"),
            ({"query_shares": (0.5, 0.5, 0.5, -0.5)}, ValueError, "sum to 1"),
            ({"X": X, "attribute": few, "context_shares": (0.25,) * 4}, ValueError, "at least 6 samples of group 1"),
            ({"query_data": (X[:, :3], y, attribute)}, ValueError, "5 features, got 3"),
            ({"query_data": (X, y, 0 * attribute)}, ValueError, "a sample of group 1"),
            ({"query_data": X}, TypeError, "tuple"),
            ({"device": "abacus"}, ValueError, "'cpu'"),
        ],
        **good,
    )
    X, category = categories()
    check_bad_input(
        CategoryPairSampler,
        [
            ({"n_context": 7}, ValueError, "even"),
            ({"n_context": 40, "category": category}, ValueError, "at least 21 samples of each, got 20 of -3"),
            ({"category": 0 * category}, ValueError, "two categories, got 1"),
            ({"category": category[:5]}, ValueError, "same length"),
            ({"X": X + np.inf}, ValueError, "finite"),
            ({"minority": 1.5}, ValueError, "<= 1.0"),
        ],
        X=X,
        category=category,
        n_context=8,
    )
    for sampler, cases in {
        SyntheticSampler: [
            ({"n_features": 1}, ValueError, ">= 2"),
            ({"noise": -1.0}, ValueError, ">= 0"),
            ({"minority_query": None}, TypeError, "number"),
        ],
        SpuriousVectorSampler: [
            ({"sampler": 3}, TypeError, "callable"),
            ({"sampler": pairs(), "norm": -1}, ValueError, ">= 0"),
            ({"sampler": pairs(), "norm": 1, "vector": np.ones(6)}, ValueError, "vector is given"),
            ({"sampler": pairs(), "vector": [np.nan] * 6}, ValueError, "finite"),
        ],
        SwapSampler: [
            ({"sampler": None}, TypeError, "callable"),
            ({"sampler": pairs(), "n_coordinates": (3, 2)}, ValueError, ">= 3"),
            ({"sampler": pairs(), "n_coordinates": 3}, TypeError, "tuple"),
        ],
    }.items():
        check_bad_input(sampler, cases)
    with pytest.raises(ValueError, match="at most the number of features, 6, got 99"):
        SwapSampler(pairs())(2, rng())
    with pytest.raises(ValueError, match="vector has 4, features has 6"):
        SpuriousVectorSampler(pairs(), vector=np.ones(4))(2, rng())
