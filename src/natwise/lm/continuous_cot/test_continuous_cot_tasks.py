"""Data and the written-down weights: against enumerations in plain Python; the study and its pictures.

golden.npz: see test_continuous_cot.py.
"""

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from natwise.core.io import load_npz
from natwise.lm.continuous_cot import (
    GRPO,
    ContinuousCoT,
    _mnns,
    load_prosqa,
    mnns_dataset,
    mnns_targets,
    prontoqa_graphs,
    prosqa_graphs,
    study,
    subset_sum_transformer,
)
from natwise.lm.continuous_cot._runs import Network
from natwise.testing import check_bad_input, check_result, same_bits, unchanged

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))


def test_targets_reference_numbers():
    for i in range(5):
        digits, m = GOLDEN[f"mnns_{i}_digits"], len(GOLDEN[f"mnns_{i}_digits"])
        for budget in ("all", 1, 2, 4, 8):
            found = mnns_targets(digits[None], budget=None if budget == "all" else budget, max_sum=9 * m)
            np.testing.assert_allclose(found[0], GOLDEN[f"mnns_{i}_targets_{budget}"], rtol=0, atol=1e-15)
        data = mnns_dataset(1, 9, m)
        row = np.flatnonzero((data.digits == digits).all(axis=1))[0]
        assert data.answers[row] == GOLDEN[f"mnns_{i}_answer"]
        np.testing.assert_array_equal(data.traces[row], GOLDEN[f"mnns_{i}_trace"])


def slow_targets(digits, budget, half):
    """Kept traces by sorting tuples, as the rule is written down."""
    signs = itertools.product((1, -1), repeat=len(digits))
    traces = [(s, np.cumsum(np.multiply(s, digits)).tolist()) for s in signs]
    traces.sort(key=lambda t: (abs(t[1][-1]), t[1][-1] < 0, t[1][-1], t[0]))
    found = np.zeros((len(digits), 2 * half + 1))
    for _, trace in traces[:budget]:
        for step, total in enumerate(trace):
            found[step, total + half] += 1 / budget
    return found


@pytest.mark.parametrize("length", [1, 2, 3])
def test_targets_of_every_budget_equal_sorting(length):
    digits = np.array(list(itertools.product(range(5), repeat=length)))
    for budget in range(1, 2**length + 1):
        found = mnns_targets(digits, budget=budget, max_sum=4 * length)
        expected = [slow_targets(one, budget, 4 * length) for one in digits]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_dataset_properties():
    data = mnns_dataset()
    assert (len(data.train), len(data.validation), data.n_tokens) == (5253, 1308, 89)
    assert data.targets.shape == (6561, 4, 73)
    np.testing.assert_array_equal(np.bincount(data.answers), [1569, 2444, 1324, 664, 320, 152, 64, 20, 4])
    np.testing.assert_allclose(data.targets.sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(data.targets[:, :-1], data.targets[:, :-1, ::-1])  # as likely below zero as above
    np.testing.assert_array_equal(data.states[data.targets[:, -1].argmax(axis=1)], data.answers)
    np.testing.assert_array_equal(data.targets[:, -1].max(axis=1), 1)
    sums = data.digits.cumsum(axis=1)
    odd = (data.states[None, None] - sums[..., None]) % 2 == 1
    assert not data.targets[odd].any()  # signs do not change parity
    np.testing.assert_array_equal(np.abs(np.diff(data.traces, axis=1, prepend=0)), data.digits)
    np.testing.assert_array_equal(data.traces[:, -1], data.answers)
    sides = [{tuple(sorted(row)) for row in data.digits[rows].tolist()} for rows in (data.train, data.validation)]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1])) == (396, 99)
    np.testing.assert_array_equal(np.sort(np.concatenate([data.train, data.validation])), np.arange(6561))
    assert same_bits(mnns_dataset(random_state=42).train, data.train)
    assert not same_bits(mnns_dataset(random_state=np.random.default_rng(0)).train, data.train)


def test_blocks_of_sequences_change_nothing(monkeypatch):
    whole = mnns_dataset(1, 4, 3, budget=3)
    monkeypatch.setattr(_mnns, "BLOCK", 100)
    parts = mnns_dataset(1, 4, 3, budget=3)
    assert same_bits([parts.targets, parts.traces], [whole.targets, whole.traces])


def test_budget_one_is_a_trace():
    data = mnns_dataset(1, 4, 3, budget=1)
    assert set(np.unique(data.targets)) == {0, 1}
    np.testing.assert_array_equal(data.targets[:, -1].argmax(axis=1) + data.states[0], data.answers)


def test_tokens():
    data = mnns_dataset()
    row = np.flatnonzero((data.digits == [5, 3, 2, 4]).all(axis=1))
    assert data.prompts(row).tolist() == [[1, 11, 9, 8, 10, 3]]
    assert data.prompts(row, n_arrows=4)[0, -4:].tolist() == [3, 3, 3, 3]
    assert data.prompts(row, n_arrows=0).shape == (1, 5)
    zero = 16 + 36
    assert data.token_targets(row, kind="trace")[0].argmax(dim=-1).tolist() == [zero + s for s in (5, 2, 4, 0)]
    assert data.token_targets(row, kind="answer").argmax(dim=-1).tolist() == [[zero]]
    assert data.token_targets(row)[0, 0, [zero - 5, zero + 5]].tolist() == [0.5, 0.5]
    assert data.token_targets(slice(0, 3)).shape == (3, 4, 89)
    for call in (data.prompts, data.token_targets, functools.partial(data.token_targets, kind="answer")):
        assert same_bits(call(int(row[0])), call(row))
        assert same_bits(call(np.arange(6561) == row[0]), call(row))
    assert data.answer_tokens[row].tolist() == [zero]
    check_bad_input(data.token_targets, [({"kind": "x"}, ValueError, "trace")])
    rows = [({"rows": wrong}, ValueError, "rows must") for wrong in ("a", 0.5, [7000], None, [[0, 1]], [0, [1]])]
    check_bad_input(data.prompts, [({"n_arrows": -1}, ValueError, ">= 0"), *rows])
    check_bad_input(data.token_targets, rows)


def test_mnns_bad_input():
    cases = [
        ({"low": -1}, ValueError, ">= 0"),
        ({"low": 1.5}, TypeError, "integer"),
        ({"high": 0}, ValueError, ">= 1"),
        ({"low": 5, "high": 4}, ValueError, ">= 5"),
        ({"length": 0}, ValueError, ">= 1"),
        ({"length": 9}, ValueError, "1,000,000"),
        ({"length": 10**9}, ValueError, "<= 20"),
        ({"high": 2, "length": 16}, ValueError, "partial sums"),
        ({"high": 10**6, "length": 1}, ValueError, "targets"),
        ({"budget": 0}, ValueError, ">= 1"),
        ({"budget": 17}, ValueError, "<= 16"),
        ({"budget": 2.0}, TypeError, "integer"),
        ({"train_fraction": 1.0}, ValueError, "< 1"),
        ({"train_fraction": 1e-9}, ValueError, "both sides"),
        ({"random_state": "a"}, TypeError, "random_state"),
        ({"random_state": -1}, ValueError, ">= 0"),
    ]
    check_bad_input(mnns_dataset, cases)
    cases = [
        ({"digits": [[1, -2]]}, ValueError, ">= 0"),
        ({"digits": [[1.5, 2]]}, ValueError, "whole"),
        ({"digits": [1, 2]}, ValueError, "shape"),
        ({"digits": np.zeros((3, 0))}, ValueError, "at least one"),
        ({"digits": [["1", "2"]]}, TypeError, "numeric"),
        ({"digits": np.ones((1, 21))}, ValueError, "at most 20"),
        ({"digits": [[2**62] * 3]}, ValueError, "<= 400,000,000"),
        ({"digits": [[200_000_000]]}, ValueError, "targets"),
        ({"max_sum": 10**12}, ValueError, "targets"),
        ({"max_sum": 2}, ValueError, "largest sum of digits, 3"),
        ({"max_sum": -1}, ValueError, ">= 0"),
        ({"budget": 5}, ValueError, "<= 4"),
    ]
    check_bad_input(mnns_targets, cases, digits=[[1, 2]])


@pytest.mark.parametrize(
    ("length", "high", "count"), [(1, 3, None), (2, 4, None), (3, 5, None), (4, 9, 200), (5, 3, None)]
)
def test_construction_equals_the_enumeration(length, high, count):
    data = mnns_dataset(1, high, length)
    rows = np.random.default_rng(0).permutation(len(data.digits))[:count]
    model = subset_sum_transformer(length, high)
    with unchanged(data.digits):
        found = model(data.digits[rows])
    assert found.dtype == np.float64
    assert np.abs(found - data.targets[rows]).max() <= 1e-9
    np.testing.assert_array_equal(found[:, -1].argmax(axis=1) + data.states[0], data.answers[rows])


@pytest.mark.slow
def test_the_longest_construction_keeps_every_trace():
    """A single trace of 2^40 decides when one digit is larger than all others together."""
    digits = np.ones((2, 40), dtype=int)
    digits[0, 7], digits[1, 39] = 50, 45
    answers = subset_sum_transformer(40, 50)(digits)[:, -1].argmax(axis=1) - 2000
    np.testing.assert_array_equal(answers, [11, 6])


def test_construction_is_a_language_model():
    model, digits = subset_sum_transformer(3, 4), [[0, 4, 2], [3, 3, 1]]
    arrow = [[*one, 5] for one in digits]
    thought = ContinuousCoT(model).generate(arrow, 3)
    np.testing.assert_array_equal(thought.distributions[..., 6:], model(digits))
    torch.testing.assert_close(
        ContinuousCoT(model)(arrow, thought.distributions[:, :-1]).softmax(-1), thought.distributions
    )
    batch = np.concatenate([model([one]) for one in digits])
    np.testing.assert_allclose(model(digits), batch, atol=1e-14)
    bad = [
        ({"digits": [[1, 2, 5]]}, ValueError, "0 … 4"),
        ({"digits": [[1, 2, -1]]}, ValueError, "0 … 4"),
        ({"digits": [[1, 2]]}, ValueError, "shape"),
        ({"digits": [[1, 2, 0.5]]}, ValueError, "whole"),
        ({"digits": np.zeros((0, 3), int)}, ValueError, "at least one"),
        ({"digits": None}, TypeError, "None"),
    ]
    check_bad_input(model, bad)
    bad = [
        ({"length": 0}, ValueError, ">= 1"),
        ({"max_digit": 0}, ValueError, ">= 1"),
        ({"length": 41}, ValueError, "<= 40"),
        ({"max_digit": 1334}, ValueError, "<= 1333"),
        ({"length": 2.0}, TypeError, "integer"),
    ]
    check_bad_input(subset_sum_transformer, bad, length=3, max_digit=3)


def slow_reach(edges, root):
    reached, front = set(), {root}
    while front:
        front = {b for a, b in edges if a in front} - reached
        reached |= front
    return reached


@pytest.mark.parametrize("make", [prosqa_graphs, prontoqa_graphs])
def test_graph_questions_have_one_right_answer(make):
    data = make(20, random_state=0)
    assert len(data) == 20
    assert same_bits(make(20, random_state=0).edges, data.edges)
    assert not same_bits(make(20, random_state=1).edges, data.edges)
    for edges, root, answer, wrong in zip(data.edges, data.roots, data.answers, data.wrong, strict=True):
        reached = slow_reach(edges.tolist(), int(root))
        assert int(answer) in reached
        assert int(wrong) not in reached | {int(root)}
        assert len(np.unique(edges, axis=0)) == len(edges)
    assert 0.1 < data.swapped.mean() < 0.9
    assert set(data.hops) <= ({3, 4, 5, 6} if make is prosqa_graphs else {5})
    if make is prosqa_graphs:
        assert {len(edges) for edges in data.edges} == {36}
        assert np.corrcoef(np.concatenate(data.edges).T)[0, 1] < 0.5  # numbers do not tell the order


@pytest.mark.parametrize("kind", ["within", "at", "walks", "path"])
def test_graph_targets_by_hand(kind):
    data = prosqa_graphs(1, random_state=0)
    diamond = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [3, 4], [5, 6]])
    data = type(data)(
        (diamond, diamond[:3]), *(np.array([x, y]) for x, y in ((0, 0), (4, 3), (6, 6), (1, 0))), n_nodes=7
    )
    expected = {
        "within": [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]],
        "at": [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        "walks": [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        "path": [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
    }
    found = data.token_targets(4, kind=kind)[..., 5:10].numpy()
    rows = np.array(expected[kind])
    np.testing.assert_allclose(found[0, :3], rows / rows.sum(axis=1, keepdims=True), rtol=1e-6)
    assert found[0, 3].tolist() == [0, 0, 0, 0, 1]
    ends = [0, 0, 1, 1, 0]  # walks stay at leaves, paths at the answer
    last = {"within": [0, 1, 1, 1, 0], "at": ends, "walks": ends, "path": [0, 0, 0, 1, 0]}[kind]
    np.testing.assert_allclose(found[1, 2], np.array(last) / sum(last), rtol=1e-6)
    prompts, mask = data.prompts()
    assert prompts[1, -14:].tolist() == [1, 5, 6, 2, 5, 7, 2, 6, 8, 2, 4, 8, 11, 5, 3][1:]
    assert mask[1].tolist() == [0] * 9 + [1] * 15
    assert prompts[0, -4:].tolist() == [11, 9, 5, 3]
    assert data.answer_tokens.tolist() == [9, 8]


def test_reader(tmp_path):
    text = "Every a is a b. Every b is a c. Is Sam a d or c?"
    entry = {
        "question": text, "idx_to_symbol": ["Sam", "b", "c", "d"], "edges": [[0, 1], [1, 2]], "root": 0, "target": 2,
        "neg_target": 3,
    }  # fmt: skip
    path = tmp_path / "text" / "prosqa_test500.json"
    path.parent.mkdir()
    path.write_text(json.dumps([entry]))
    data = load_prosqa(tmp_path)
    assert (data.roots[0], data.answers[0], data.wrong[0], data.swapped[0], data.n_nodes) == (0, 2, 3, True, 4)
    for broken in ("[", "{}", "[]", json.dumps([{**entry, "root": 9}]), json.dumps([{**entry, "edges": []}]), "[1]"):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"prosqa_test500\.json"):
            load_prosqa(tmp_path)


def test_published_questions(local_data):
    data = load_prosqa(local_data("text/prosqa_test500.json").parents[1])
    assert len(data) == 500
    assert set(data.hops) <= {3, 4, 5, 6}
    for edges, root, answer, wrong in zip(data.edges, data.roots, data.answers, data.wrong, strict=True):
        reached = slow_reach(edges.tolist(), int(root))
        assert int(answer) in reached
        assert int(wrong) not in reached
    torch.testing.assert_close(data.token_targets(6).sum(dim=-1), torch.ones(500, 6))


def test_graphs_bad_input():
    cases = [
        ({"n": 0}, ValueError, ">= 1"),
        ({"n_nodes": 3}, ValueError, ">= 4"),
        ({"n_edges": 4}, ValueError, ">= 8"),
        ({"hops": 3}, TypeError, "pair"),
        ({"hops": (3, 2)}, ValueError, ">= 3"),
        ({"hops": (9, 9), "n_nodes": 4, "n_edges": 2}, ValueError, "must occur"),
    ]
    check_bad_input(prosqa_graphs, cases, n=1, n_nodes=10, n_edges=15, random_state=0)
    check_bad_input(
        prontoqa_graphs, [({"hops": 0}, ValueError, ">= 1"), ({"n_distractors": -1}, ValueError, ">= 0")], n=1
    )
    cases = [({"steps": 0}, ValueError, ">= 1"), ({"kind": "x"}, ValueError, "walks")]
    check_bad_input(prontoqa_graphs(1, random_state=0).token_targets, cases, steps=2)


def test_chain_reference_numbers():
    transition, start = GOLDEN["chain_transition"], GOLDEN["chain_start"]
    for k, trace in zip((1, 2, 4, 16), GOLDEN["chain_traces"], strict=True):
        mean, exact = study.chain_moments(transition, start, 4, k)
        np.testing.assert_allclose(mean, GOLDEN["chain_mean"], rtol=1e-12)
        assert abs(exact - trace) <= 1e-12
        mean, sampled = study.sampled_traces(transition, start, k, seed=0)
        np.testing.assert_allclose(mean, GOLDEN["chain_mean"], atol=0.01)
        assert abs(sampled / trace - 1) < 0.05
    base = ContinuousCoT(study.ChainLM(transition, start)).generate([[6]], 4)
    np.testing.assert_allclose(base.distributions[0, -1, :6], GOLDEN["chain_mean"], rtol=1e-12)


@pytest.mark.parametrize("claim", ["construction-error", "mts-variance"])
def test_study(claim):
    result = study.run(claim, scale="ci", seed=0)
    check_result(result)
    study.figure(claim, result).canvas.draw()


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["mnns-accuracy", "mnns-longer", "baselines", "budgets", "narrow", "grpo", "graphs"])
def test_study_of_trained_models(claim, monkeypatch):
    """Everything but the length of the training."""
    monkeypatch.setitem(study.SIZES, "ci", study.Sizes(2, 1, 20, 30, 16, (8,), 20, (1, 16), 20))
    monkeypatch.setattr(
        study, "Network", lambda *sizes, **options: Network(*sizes, **{**options, "steps": min(options["steps"], 30)})
    )
    monkeypatch.setattr(study, "GRPO", functools.partial(GRPO, max_iter=3))
    result = study.run(claim, scale="ci", seed=0)
    check_result(result)
    study.figure(claim, result).canvas.draw()
