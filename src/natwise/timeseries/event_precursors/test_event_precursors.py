"""The model and nested MIL against reference numbers, explicit loops and their properties.

`golden.npz` holds a forward pass of the hierarchical attention LSTM by explicit loops (float64, gate order i, f, g, o),
and the value of the nested MIL objective with its gradient by finite differences, both with their inputs as JSON.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import check_grad

from natwise.core.io import load_npz
from natwise.testing import check_bad_input
from natwise.timeseries import HierarchicalAttentionLSTM, NestedMIL, nmil_objective, planted_precursors

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
ATTENTION, NMIL = (json.loads(GOLDEN[f"{name}/expected"].tobytes()) for name in ("attention", "nmil"))


def golden_model():
    g = {name.removeprefix("attention/"): torch.from_numpy(np.asarray(value)) for name, value in GOLDEN.items()}
    state = {"embedding.weight": g["emb"], "empty_day": g["empty"], "output.weight": g["o_w"][None]}
    state["output.bias"] = g["o_b"][None]
    for name, short in (("word", "w"), ("day", "d")):
        state[f"{name}_lstm.weight_ih_l0"], state[f"{name}_lstm.weight_hh_l0"] = g[f"{short}_Wx"], g[f"{short}_Wh"]
        state[f"{name}_lstm.bias_ih_l0"], state[f"{name}_lstm.bias_hh_l0"] = g[f"{short}_b"], 0 * g[f"{short}_b"]
    for name, short in (("word", "wa"), ("document", "da"), ("day", "ta")):
        state[f"{name}_attention.projection.weight"] = g[f"{short}_W"]
        state[f"{name}_attention.projection.bias"] = g[f"{short}_b"]
        state[f"{name}_attention.query"] = g[f"{short}_u"]
    model = HierarchicalAttentionLSTM(30, 6, 5, 4).double()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def flat(nested):
    if isinstance(nested, torch.Tensor):
        return nested.detach().ravel().tolist()
    return [value for part in nested for value in flat(part)] if isinstance(nested, list) else [nested]


def assert_close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(flat(actual), flat(expected), rtol=0, atol=tolerance)


def draw(seed, n=3, history=4, vocab=30):
    rng = np.random.default_rng(seed)
    return [
        [
            [rng.integers(vocab, size=rng.integers(1, 6)).tolist() for _ in range(rng.integers(4))]
            for _ in range(history)
        ]
        for _ in range(n)
    ]


def test_forward_of_the_reference():
    output = golden_model()([ATTENTION["days"]])
    assert_close(output.probability, [ATTENTION["prob"]], 1e-8)
    assert_close(output.day_attention, [ATTENTION["time_attention"]], 1e-8)
    assert_close(output.document_attention, [ATTENTION["doc_attention"]], 1e-8)
    assert_close(output.word_attention, [ATTENTION["word_attention"]], 1e-8)
    assert_close(output.document_scores, [ATTENTION["document_precursor_score"]], 1e-8)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_properties_of_the_model(seed):
    model, instances = golden_model(), draw(seed)
    output = model(instances)
    for i, instance in enumerate(instances):
        alone = model([instance])  # a batch is what its instances are alone
        assert_close(alone.probability, output.probability[i])
        assert_close(alone.document_scores, [output.document_scores[i]])
        scores = flat(output.document_scores[i])
        if scores:
            assert abs(sum(scores) - 1) < 1e-12
        for day, beta, gammas in zip(instance, output.day_attention[i], output.word_attention[i], strict=True):
            assert (beta > 0) == (len(day) > 0)
            assert all(abs(float(gamma.sum()) - 1) < 1e-12 for gamma in gammas)
    backwards = [[day[::-1] for day in instance] for instance in instances]  # order within a day says nothing
    assert_close(model(backwards).probability, output.probability)
    twice = [[[*day, day[0]] if day else [] for day in instance] for instance in instances]
    for day in model(twice).document_attention[0]:  # a document that stands twice shares its attention evenly
        if len(day):
            assert_close(day[0], day[-1])
    longer = model([instances[0], [*instances[1], *instances[2]]])  # padding of days
    assert_close(longer.probability[0], output.probability[0])


def test_days_are_read_forward_and_empty_instances_are_finite():
    model, (instance,) = golden_model(), draw(1, n=1)
    changed = [*instance[:3], [[1, 2], [3]]]
    before, after = (model([days]) for days in (instance, changed))
    assert_close(before.document_attention[0][:3], after.document_attention[0][:3])
    weights = [output.day_attention[0][:3] / output.day_attention[0][:3].sum() for output in (before, after)]
    assert_close(*weights)  # a later day takes attention from the earlier ones alike
    empty = model([[[], [], []]])
    assert 0 < float(empty.probability) < 1
    assert not empty.day_attention[0].any()
    assert_close(empty.probability, torch.sigmoid(model.output.bias))
    counting = HierarchicalAttentionLSTM(30, 6, 5, counts=True).requires_grad_(False)
    one, two = (float(counting([[[[4, 2]] * n]]).probability) for n in (1, 20))
    assert one != two  # the same mean, but more documents


@pytest.mark.parametrize("excerpts", [True, False])
def test_vectors_in_the_place_of_words(excerpts):
    rng = np.random.default_rng(0)
    model = HierarchicalAttentionLSTM(None, 6, 5, excerpts=excerpts).double().eval()
    documents = [rng.normal(size=(3, 6)) if excerpts else rng.normal(size=6) for _ in range(3)]
    output = model([[documents[:2], [], documents[2:]]])
    assert [len(day) for day in output.document_scores[0]] == [2, 0, 1]
    assert [len(gamma) for gamma in output.word_attention[0][0]] == ([3, 3] if excerpts else [1, 1])
    as_lists = model([[[d.tolist() for d in documents[:2]], [], [torch.from_numpy(documents[2])]]])
    assert_close(as_lists.probability, output.probability)
    wrong = [np.ones((3, 7)) if excerpts else np.ones(7)]
    check_bad_input(model.forward, [({"instances": [[wrong]]}, ValueError, "shape")])


def test_bad_input_of_the_model():
    cases = [
        ({"instances": [[[[30]]]]}, ValueError, "below vocab_size=30"),
        ({"instances": [[[[-1]]]]}, ValueError, ">= 0"),
        ({"instances": [[[[]]]]}, ValueError, "at least one word"),
        ({"instances": [[[[0.5]]]]}, ValueError, "whole numbers"),
        ({"instances": [[["text"]]]}, TypeError, "numeric"),
        ({"instances": []}, ValueError, "at least one"),
    ]
    check_bad_input(golden_model().forward, cases)
    sizes = [
        ({"vocab_size": 0}, ValueError, ">= 1"),
        ({"hidden_dim": 2.0}, TypeError, "integer"),
        ({"attention_dim": 0}, ValueError, ">= 1"),
        ({"dropout": 2.0}, ValueError, "<= 1"),
        ({"counts": 1}, TypeError, "True or False"),
    ]
    check_bad_input(HierarchicalAttentionLSTM, sizes, vocab_size=9, embedding_dim=2, hidden_dim=3)


# nested multi-instance learning


def naive_nmil(w, X, y, cosines, beta=3.0, gamma=0.5, margin=0.5, threshold=0.5, hinge_weight=0.5):
    total = 0.0
    for bag, label, cosine in zip(X, y, cosines, strict=True):
        p = [[1 / (1 + np.exp(-w @ x)) for x in day] for day in bag]
        days = [np.mean(day) for day in p]
        event = np.mean(days)
        total -= beta * np.log(event if label else 1 - event)
        for j in range(len(bag)):
            if j:
                total += gamma / len(bag) * cosine[j] * (days[j] - days[j - 1]) ** 2
            hinge = [max(0, margin - np.sign(q - threshold) * (w @ x)) for q, x in zip(p[j], bag[j], strict=True)]
            total += hinge_weight / len(bag) * np.mean(hinge)
    return total / len(X)


def bags(seed, n=4, d=3, days=None):
    rng = np.random.default_rng(seed)
    X = [[rng.normal(size=(rng.integers(1, 4), d)) for _ in range(days or rng.integers(1, 5))] for _ in range(n)]
    return X, rng.integers(2, size=n), [rng.uniform(-1, 1, size=len(bag)) for bag in X], rng.normal(size=d)


def test_objective_and_gradient_of_the_reference():
    X = [[np.array(day) for day in bag] for bag in NMIL["X"]]
    settings = {"beta": NMIL["beta"], "gamma": NMIL["gamma"], "margin": NMIL["m0"], "threshold": NMIL["p0"]}
    value, gradient = nmil_objective(NMIL["w"], X, NMIL["Y"], NMIL["cross_cosine"], **settings)
    assert abs(value - NMIL["objective"]) < 1e-8
    np.testing.assert_allclose(gradient, NMIL["grad_finite_difference"], rtol=0, atol=1e-8)
    same_days = np.ones((2, 3, 4, len(NMIL["w"])))  # instances of one shape may be an array
    assert nmil_objective(NMIL["w"], same_days, [0, 1], np.ones((2, 3)))[0] > 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), hinge_weight=st.sampled_from([0.5, 1.0]))
def test_objective_against_loops_and_gradient_against_differences(seed, hinge_weight):
    X, y, cosines, w = bags(seed)
    value, _ = nmil_objective(w, X, y, cosines, hinge_weight=hinge_weight)
    np.testing.assert_allclose(value, naive_nmil(w, X, y, cosines, hinge_weight=hinge_weight), rtol=1e-12)
    call = [lambda v, part=part: nmil_objective(v, X, y, cosines, hinge_weight=hinge_weight)[part] for part in (0, 1)]
    assert check_grad(*call, w) < 1e-5  # the hinge has kinks; away from them the difference is far smaller


def test_weights_of_each_day_and_days_without_documents():
    X, y, cosines, w = bags(3, days=3)
    shared, gradient = nmil_objective(w, X, y, cosines)
    per_day, by_day = nmil_objective(np.tile(w, (3, 1)), X, y, cosines)
    np.testing.assert_allclose(per_day, shared, rtol=1e-14)
    np.testing.assert_allclose(by_day.sum(axis=0), gradient, atol=1e-14)
    gaps = [[bag[0], np.empty((0, 3)), *bag[1:]] for bag in X]
    wider = [np.insert(cosine, 1, 9.0) for cosine in cosines]
    np.testing.assert_allclose(nmil_objective(w, gaps, y, wider)[0], shared, rtol=1e-14)
    far = nmil_objective(1e4 * w, X, y, cosines)
    assert np.isfinite(far[0])
    assert np.isfinite(far[1]).all()


def test_bad_input_of_the_objective():
    X, y, cosines, w = bags(0)
    cases = [
        ({"w": [np.nan] * 3}, ValueError, "finite"),
        ({"w": np.ones((9, 3))}, ValueError, "row for each"),
        ({"X": [[np.ones((2, 4))] * len(bag) for bag in X]}, ValueError, "shape"),
        ({"X": [[np.empty((0, 3))]] * 4, "cross_cosine": [[0.0]] * 4}, ValueError, "document in every instance"),
        ({"X": []}, ValueError, "at least one"),
        ({"y": [0, 1, 2, 1]}, ValueError, "0 or 1"),
        ({"y": [0, 1]}, ValueError, "shape"),
        ({"cross_cosine": cosines[:2]}, ValueError, "same length"),
        ({"beta": -1.0}, ValueError, ">= 0"),
        ({"threshold": "half"}, TypeError, "number"),
    ]
    check_bad_input(nmil_objective, cases, w=w, X=X, y=y, cross_cosine=cosines)


@pytest.mark.parametrize("variant", ["nmil", "delta", "omega"])
def test_nested_mil_learns_and_points_at_documents(variant):
    data, planted = planted_precursors(200, random_state=0)
    train, test = data.split(data.target_dates[140])
    model = NestedMIL(variant, n_iterations=150, random_state=0).fit(train)
    again = NestedMIL(variant, n_iterations=150, random_state=0).fit(train)
    assert np.array_equal(model.coef_, again.coef_)
    assert model.coef_.ndim == (2 if variant == "omega" else 1)
    assert (np.linalg.norm(model.coef_, axis=-1) <= 0.05**-0.5 + 1e-12).all()
    probability = model.predict_proba(test)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    first = model.precursors(test, top_k=1)
    hit = planted[first["document"][test.y[first["instance"]] == 1]].mean()
    assert hit > (0.9 if variant != "omega" else 0.2)
    cases = [({"variant": "nmil-x"}, ValueError, "one of"), ({"weight_decay": 0.0}, ValueError, "> 0")]
    check_bad_input(lambda **kwargs: NestedMIL(**kwargs).fit(train), cases)
