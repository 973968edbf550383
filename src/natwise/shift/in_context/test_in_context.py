"""The transformer, its tokens, the baselines and the metrics, against the original implementation and slow references.

golden.npz holds weights, sequences, logits, mask and positions of the original model in six settings, the outputs of
its baselines after 100 epochs and its metrics on random predictions.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from natwise.core.io import load_npz
from natwise.shift import InContextTransformer, context_baseline, flip_labels, in_context_metrics, in_context_tokens
from natwise.shift.in_context._learner import warmup_cosine
from natwise.shift.in_context._transformer import attention_mask, token_positions
from natwise.testing import check_bad_input, unchanged

GOLDEN = load_npz(Path(__file__).parent / "golden.npz")
SETTINGS = ("wb_erm", "wb_dro", "inat_sum_erm", "inat_sum_dro", "wb_erm_simple", "wb_dro_simple")
QUERY_ATTRIBUTES = [1, 0, 1, 0, 1, 1]  # which spurious vector the original added to its queries
WEIGHTS = {name.removeprefix("forward_w__"): value for name, value in GOLDEN.items() if "_w__" in name}


def forward_array(name):
    return torch.from_numpy(GOLDEN[f"forward_{name}"])


def official():
    return InContextTransformer.from_official(WEIGHTS, n_head=3, rotary_dim=8)


def small(dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"n_layer": 2, "d_model": 12, "n_head": 2, **options}
    model = InContextTransformer(7, **options).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(autouse=True)
def leave_no_trace():
    with torch.random.fork_rng(), torch.no_grad():
        yield


# against the original


@pytest.mark.parametrize("setting", SETTINGS)
def test_logits_of_the_original(setting):
    tokens, positions = forward_array(f"seq_{setting}"), forward_array(f"qidx_{setting}")
    expected = GOLDEN[f"forward_logits_{setting}"]
    model = official()
    with unchanged(tokens, positions):
        np.testing.assert_allclose(model(tokens, positions), expected, atol=1e-5)
    np.testing.assert_allclose(model(tokens[None].repeat(3, 1, 1), positions)[2], expected, atol=1e-5)
    np.testing.assert_allclose(model.double()(tokens.double(), positions), expected, atol=1e-5)
    with torch.enable_grad():
        np.testing.assert_allclose(model(tokens.numpy(), positions.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_of_the_original(setting):
    X, X_query, attribute = (forward_array(name) for name in ("context", "query", "spurious"))
    if "inat" in setting:
        vectors = forward_array("x_spurious_tokens")
        X, X_query = X + vectors[attribute], X_query + vectors[QUERY_ATTRIBUTES]
    tokens, positions = in_context_tokens(
        X[None],
        forward_array("label")[None],
        X_query[None],
        attribute[None] if "dro" in setting else None,
        class_tokens=forward_array("class_tokens"),
        group_tokens=forward_array("c_spurious_tokens"),
        construction="compact" if "simple" in setting else "annotated",
    )
    np.testing.assert_allclose(tokens[0], GOLDEN[f"forward_seq_{setting}"], atol=1e-6)
    np.testing.assert_array_equal(positions, GOLDEN[f"forward_qidx_{setting}"])


def test_mask_and_positions_of_the_original():
    is_query = torch.zeros(18, dtype=torch.bool)
    is_query[forward_array("qidx_wb_erm")] = True
    np.testing.assert_array_equal(attention_mask(is_query), GOLDEN["forward_allowed_wb_erm"])
    np.testing.assert_array_equal(token_positions(is_query), GOLDEN["forward_positions_wb_erm"])


def test_baselines_of_the_original():
    X, y, c, X_query, w, b = (GOLDEN[f"baselines_{name}"] for name in ("x", "y", "c", "x_test", "w0", "b0"))
    expected = {  # outputs of the original; of its reweighted ERM the corrected one
        ("erm", 0.0): 0.691115140914917,
        ("reweight", 0.0): 0.7231030464172363,
        ("groupdro", 0.0): 0.7062200903892517,
        ("groupdro", 1.0): 0.6545825600624084,
        ("nearest", 0.0): 1.0,
    }
    for (method, weight_decay), value in expected.items():
        stacked = [np.stack([part, part]) for part in (X, y, X_query, c)]
        found = context_baseline(*stacked, method=method, weight_decay=weight_decay, initial=(w, b))
        np.testing.assert_allclose(found, [[value]] * 2, atol=1e-4)
    assert context_baseline(X[None], y[None], X_query[None], method="nearest", n_neighbors=5).item() > 0.5


def test_metrics_of_the_original():
    tasks = {
        "y": GOLDEN["metrics_c_label"],
        "attribute": GOLDEN["metrics_c_spurious"],
        "y_query": GOLDEN["metrics_q_label"][:, None],
        "attribute_query": GOLDEN["metrics_q_spurious"][:, None],
    }
    found = in_context_metrics(GOLDEN["metrics_pred"][:, None], tasks)
    expected = {
        "worst_group_accuracy": 0.6666666865,
        "minority_accuracy": 0.75,
        "minority_total": 16,
        "majority_accuracy": 0.9565217495,
        "majority_total": 23,
        "group_accuracy_0": 0.9090909362,
        "group_accuracy_1": 0.9166666865,
        "group_accuracy_2": 0.6666666865,
        "group_accuracy_3": 1.0,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    certain = in_context_metrics(tasks["y_query"], tasks)
    assert certain["accuracy"] == certain["worst_group_accuracy"] == 1


def test_schedule_of_the_original():
    expected = {0: 0.0, 1: 1e-7, 500: 5e-5, 999: 9.99e-5, 1000: 1e-4, 10000: 9.480828157e-5, 31750: 5e-5, 62500: 0.0}
    for step, rate in expected.items():
        assert 1e-4 * warmup_cosine(step, 62_500, warmup_steps=1000) == pytest.approx(rate, abs=1e-11)


# against a slow reference


def naive_logits(model, tokens, is_query):
    """Run the definition token by token with loops over heads and pairs, in float64."""
    weights = {name: value.numpy() for name, value in model.double().state_dict().items()}
    n_layer, n_head = len(model.blocks), model.blocks[0].n_head
    x = tokens.numpy() @ weights["input.weight"].T
    position = [sum(not q for q in is_query[:t]) for t in range(len(x))]
    for i in range(n_layer):
        part = {name.removeprefix(f"blocks.{i}."): w for name, w in weights.items() if name.startswith(f"blocks.{i}.")}
        normed = norm(x, part["norm.weight"], part["norm.bias"])
        q, k, v = np.split(normed @ part["qkv.weight"].T, 3, axis=1)
        attended = np.zeros_like(x)
        width = x.shape[1] // n_head
        for head in range(n_head):
            own = slice(head * width, (head + 1) * width)
            for t in range(len(x)):
                seen = [s for s in range(t + 1) if s == t or not is_query[s]]
                turned = turn(q[t, own], position[t], model.rotary_dim)
                scores = [turned @ turn(k[s, own], position[s], model.rotary_dim) / np.sqrt(width) for s in seen]
                powers = np.exp(np.array(scores) - max(scores))
                attended[t, own] = powers @ v[seen, own] / powers.sum()
        hidden = normed @ part["mlp.0.weight"].T + part["mlp.0.bias"]
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + attended @ part["out.weight"].T + hidden @ part["mlp.2.weight"].T + part["mlp.2.bias"]
    logits = norm(x, weights["norm.weight"], weights["norm.bias"]) @ weights["head.weight"].T + weights["head.bias"]
    return logits[is_query, 0]


def norm(x, weight, bias):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5) * weight + bias


def turn(vector, position, rotary_dim):
    turned = vector.copy()
    for i in range(rotary_dim // 2):
        angle = position * 10000 ** (-2 * i / rotary_dim)
        pair = vector[2 * i] + 1j * vector[2 * i + 1]
        pair = pair * np.exp(1j * angle)
        turned[2 * i], turned[2 * i + 1] = pair.real, pair.imag
    return turned


@pytest.mark.parametrize("rotary_dim", [0, 4, None])
def test_the_model_is_its_definition(rotary_dim):
    model = small(rotary_dim=rotary_dim)
    tokens, is_query = torch.randn(11, 7, dtype=torch.float64), np.zeros(11, dtype=bool)
    is_query[[2, 5, 6, 10]] = True
    np.testing.assert_allclose(
        model(tokens, np.flatnonzero(is_query)), naive_logits(model, tokens, is_query), rtol=1e-9
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 9), st.booleans(), st.integers(0, 10**6))
def test_cached_scores_are_the_definition(n_context, n_queries, double, seed):
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    model = small(dtype)
    context, queries = torch.randn(2, n_context, 7, dtype=dtype), torch.randn(2, n_queries, 7, dtype=dtype)
    cached = model.score(queries, model.encode(context))
    alone = [model(torch.cat([context, query[:, None]], 1), [n_context]) for query in queries.unbind(1)]
    np.testing.assert_allclose(cached, torch.cat(alone, dim=1), atol=1e-10 if double else 1e-5)
    together = model(torch.cat([context, queries], 1), n_context + np.arange(n_queries))
    np.testing.assert_allclose(cached, together, atol=1e-10 if double else 1e-5)


def test_a_logit_depends_on_the_past_context_alone():
    model, tokens = small(), torch.randn(9, 7, dtype=torch.float64)
    before = model(tokens, [2, 5, 8])
    for changed, same in {2: [1, 2], 5: [0, 2], 6: [0, 1], 8: [0, 1], 0: [], 4: [0]}.items():
        other = tokens.clone()
        other[changed] += 1.0
        after = model(other, [2, 5, 8])
        for i in range(3):
            assert (abs(float(after[i] - before[i])) < 1e-12) == (i in same), (changed, i)
    assert abs(float((model(tokens[[1, 0, 2]], [2]) - before[0]).item())) > 1e-6, "the order of examples matters"


def test_queries_stand_behind_what_they_have_seen():
    X, y = torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.int64)
    places = {1: [6], 2: [4, 7], 3: [2, 5, 8], 5: [2, 5, 8, 9, 10]}
    for n_queries, expected in places.items():
        tokens, positions = in_context_tokens(X, y, torch.ones(1, n_queries, 4), class_tokens=torch.zeros(2, 4))
        assert positions.tolist() == expected
        assert tokens[0, :, 3].nonzero().ravel().tolist() == expected


# the baselines against their definitions


def test_baselines_are_fitted_to_each_task_by_itself():
    rng = np.random.default_rng(0)
    X, X_query = rng.normal(size=(4, 15, 3)), rng.normal(size=(4, 6, 3))
    y, attribute = rng.integers(2, size=(2, 4, 15))
    for method in ("erm", "reweight", "groupdro", "nearest"):
        together = context_baseline(X, y, X_query, attribute, method=method)
        assert together.shape == (4, 6)
        for i in range(4):
            one = context_baseline(X[i : i + 1], y[i : i + 1], X_query[i : i + 1], attribute[i : i + 1], method=method)
            np.testing.assert_allclose(together[i], one[0], atol=1e-6)


def test_reweighting_is_weighting_and_absent_groups_are_left_out():
    """A context in which the groups are equally large is weighted alike; without two of the groups nothing breaks."""
    rng = np.random.default_rng(1)
    X, X_query, y = rng.normal(size=(1, 12, 3)), rng.normal(size=(1, 5, 3)), np.arange(12)[None] % 2
    for attribute in (np.arange(12)[None] // 2 % 2, y):
        erm, reweighted = (context_baseline(X, y, X_query, attribute, method=name) for name in ("erm", "reweight"))
        np.testing.assert_allclose(reweighted, erm, atol=1e-6)
    dro = context_baseline(X, y, X_query, y, method="groupdro")
    assert ((dro > 0) & (dro < 1)).all()


def test_nearest_neighbours_vote():
    X, y = np.array([[[0.0], [1.0], [2.0], [10.0]]]), np.array([[0, 1, 1, 0]])
    queries = np.array([[[0.2], [1.9], [8.0]]])
    assert context_baseline(X, y, queries, method="nearest").tolist() == [[0, 1, 0]]
    three = context_baseline(X, y, queries, method="nearest", n_neighbors=3)
    np.testing.assert_allclose(three, [[2 / 3, 2 / 3, 2 / 3]])


# bad input


def test_refuses_wrong_models_and_tokens():
    check_bad_input(
        InContextTransformer,
        [
            ({"n_head": 5}, ValueError, "divide d_model 12, got 5"),
            ({"n_layer": 0}, ValueError, ">= 1"),
            ({"d_model": 12.0}, TypeError, "integer"),
            ({"rotary_dim": 3}, ValueError, "even"),
            ({"rotary_dim": 8}, ValueError, "<= 6"),
        ],
        n_features=7,
        n_layer=1,
        d_model=12,
        n_head=2,
    )
    lacking = {name: value for name, value in WEIGHTS.items() if "fc_in.bias" not in name}
    check_bad_input(
        InContextTransformer.from_official,
        [
            ({"state_dict": lacking}, ValueError, "must hold '_network.h.0.mlp.fc_in.bias'"),
            ({"state_dict": {}}, ValueError, "must hold"),
            ({"state_dict": {**WEIGHTS, "extra": np.ones(2)}}, ValueError, "got ['extra']"),
            ({"state_dict": {**WEIGHTS, "_fc.bias": np.ones(2)}}, ValueError, "fit together"),
            ({"state_dict": list(WEIGHTS)}, TypeError, "mapping"),
            ({"n_head": 7}, ValueError, "divide"),
        ],
        state_dict=WEIGHTS,
        n_head=3,
        rotary_dim=8,
    )
    check_bad_input(
        small(n_positions=5),
        [
            ({"tokens": [[1.0] * 7] * 4}, TypeError, "float tensor, got list"),
            ({"tokens": np.full((4, 7), np.nan)}, ValueError, "finite"),
            ({"tokens": torch.ones(4, 7, dtype=torch.int64)}, TypeError, "float tensor, got torch.int64"),
            ({"tokens": torch.ones(4, 6, dtype=torch.float64)}, ValueError, "(..., n_tokens, 7), got (4, 6)"),
            ({"tokens": torch.ones(7, 7, dtype=torch.float64)}, ValueError, "n_positions = 5 positions, got 6"),
            ({"query_positions": [4]}, ValueError, "within 0 and 3"),
            ({"query_positions": [1, 1]}, ValueError, "distinct"),
            ({"query_positions": []}, (TypeError, ValueError), "query_positions"),
            ({"query_positions": [0.5]}, TypeError, "integers"),
            ({"query_positions": [True, False, True, False]}, TypeError, "integers"),
            ({"query_positions": "03"}, TypeError, "numeric"),
            ({"query_positions": [[3]]}, ValueError, "shape (n_queries,)"),
            ({"tokens": torch.ones(4, 7)}, TypeError, "dtype of the weights, torch.float64, got torch.float32"),
            ({"tokens": torch.full((4, 7), torch.inf, dtype=torch.float64)}, ValueError, "finite"),
        ],
        tokens=torch.ones(4, 7, dtype=torch.float64),
        query_positions=[3],
    )


def test_an_unused_embedding_of_the_original_is_left_out():
    unused = {**WEIGHTS, "_network.wte.weight": np.ones((9, 24))}
    models = [InContextTransformer.from_official(state, n_head=3, rotary_dim=8) for state in (unused, WEIGHTS)]
    ours, plain = (model.state_dict() for model in models)
    assert set(ours) == set(plain)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_refuses_wrong_contexts_and_scores():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=(2, 5))
    good = {"X": rng.normal(size=(2, 5, 3)), "y": y, "X_query": rng.normal(size=(2, 4, 3)), "attribute": y}
    check_bad_input(
        context_baseline,
        [
            ({"X": good["X"][0]}, ValueError, "shape"),
            ({"X": np.full((2, 5, 3), np.nan)}, ValueError, "finite"),
            ({"y": y + 1}, ValueError, "0 and 1 alone"),
            ({"y": y[:, :4]}, ValueError, "shape (2, 5)"),
            ({"X_query": good["X_query"][..., :2]}, ValueError, "shape"),
            ({"attribute": None, "method": "reweight"}, ValueError, "must be given"),
            ({"attribute": y - 0.5}, ValueError, "whole"),
            ({"method": "ridge"}, ValueError, "one of 'erm'"),
            ({"method": "nearest", "n_neighbors": 6}, ValueError, "<= 5"),
            ({"max_epochs": 1.0}, TypeError, "integer"),
            ({"initial": (np.ones(2), 0.0)}, ValueError, "shape (3)"),
            ({"initial": 0.0}, TypeError, "tuple (weights, bias)"),
            ({"learning_rate": 1.0, "weight_decay": 1e12}, ValueError, "diverged"),
        ],
        **good,
    )
    tasks = {"y": y, "attribute": y, "y_query": y, "attribute_query": y}
    check_bad_input(
        in_context_metrics,
        [
            ({"scores": y + 0.5}, ValueError, "<= 1"),
            ({"scores": y[:1]}, ValueError, "y_query"),
            ({"tasks": {**tasks, "y": y * 2}, "scores": y}, ValueError, "0 and 1"),
            ({"tasks": {"y": y}}, ValueError, "attribute"),
            ({"tasks": 3}, TypeError, "dict of arrays, got int"),
        ],
        scores=y,
        tasks=tasks,
    )
    check_bad_input(
        flip_labels,
        [
            ({"tasks": None}, TypeError, "dict of arrays"),
            ({"tasks": {**tasks, "y_query": y - 1}}, ValueError, "0 and 1"),
            ({"tasks": {**tasks, "attribute": y[:, :2]}}, ValueError, "shape (2, 5)"),
            ({"tasks": {**tasks, "X": np.full((2, 5, 3), np.inf)}}, ValueError, "finite"),
            ({"attribute": "no"}, TypeError, "True or False"),
        ],
        tasks=tasks,
    )
    X, labels, class_tokens = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2, 4)
    check_bad_input(
        in_context_tokens,
        [
            ({"class_tokens": None}, ValueError, "must be given"),
            ({"attribute": labels, "group_tokens": None}, ValueError, "group_tokens must be given"),
            ({"construction": "simple"}, ValueError, "'compact'"),
            ({"X": X.numpy()}, TypeError, "float tensor, got ndarray"),
            ({"X": X[0]}, ValueError, "(n_tasks, n_context, n_features), got (2, 4)"),
            ({"X_query": X[..., :3]}, ValueError, "(1, n_queries, 4), got (1, 2, 3)"),
            ({"X_query": X.double()}, TypeError, "dtype of X, torch.float32, got torch.float64"),
            ({"y": labels.float()}, TypeError, "integer tensor, got torch.float32"),
            ({"y": labels[:, :1]}, ValueError, "shape (1, 2), got (1, 1)"),
            ({"attribute": labels + 2}, ValueError, "0 and 1 alone, got 2"),
            ({"class_tokens": class_tokens[:1]}, ValueError, "shape (2, 4), got (1, 4)"),
        ],
        X=X,
        y=labels,
        X_query=X,
        class_tokens=class_tokens,
    )
