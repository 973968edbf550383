"""The learner: what it learns, its cached scores, options, resume, study, and what it refuses."""

import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from natwise.shift import (
    SingleTaskSampler,
    SpuriousInContextLearner,
    SyntheticSampler,
    flip_labels,
    in_context_metrics,
    in_context_tokens,
)
from natwise.shift.in_context._tasks import as_tensors
from natwise.testing import check_bad_input, check_resume, same_bits, unchanged

QUICK = {"n_steps": 4, "batch_size": 8, "warmup_steps": 1, "learning_rate": 0.01, "random_state": 0}


def learner(**options):
    return SpuriousInContextLearner(**{"n_layer": 2, "d_model": 16, "n_head": 2, **QUICK, **options})


def sampler(**options):
    return SyntheticSampler(5, n_context=6, **options)


def numpy_tasks(n_tasks, rng):
    """Give what a sampler of a user's own may: float64 arrays, bool labels, more queries than examples."""
    X, X_query = rng.normal(size=(n_tasks, 6, 5)), rng.normal(size=(n_tasks, 9, 5))
    return {"X": X, "y": X[..., 0] > 0, "X_query": X_query, "y_query": X_query[..., 0] > 0}


def a_context(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)), np.arange(n) % 2, rng.integers(2, size=n), rng.normal(size=(7, 5))


@pytest.mark.parametrize("construction", ["annotated", "compact"])
@pytest.mark.parametrize("group_tokens", [False, True])
def test_cached_predictions_are_the_definition(construction, group_tokens):
    model = learner(construction=construction, group_tokens=group_tokens).meta_fit(sampler())
    X, y, attribute, X_query = a_context()
    found = model.set_context(X, y, attribute).predict_proba(X_query)
    X, y, attribute, queries = (torch.as_tensor(part)[None] for part in (X, y, attribute, X_query))
    for i in range(7):
        tokens, positions = in_context_tokens(
            *(torch.nn.functional.pad(part.float(), (3, 0)) for part in (X,)),
            y,
            torch.nn.functional.pad(queries[:, i : i + 1].float(), (3, 0)),
            attribute if group_tokens else None,
            class_tokens=model.class_tokens_,
            group_tokens=model.group_tokens_,
            construction=construction,
        )
        with torch.no_grad():
            expected = torch.sigmoid(model.transformer_(tokens, positions)).item()
        assert found[i] == pytest.approx([1 - expected, expected], abs=1e-5)
    tasks = {"X": X, "y": y, "attribute": attribute, "X_query": queries}
    np.testing.assert_allclose(model.predict_tasks(tasks), found[None, :, 1], atol=1e-5)
    np.testing.assert_array_equal(model.predict(X_query), found.argmax(axis=1))


def test_input_kinds_and_batches_do_not_matter():
    model = learner().meta_fit(sampler())
    X, y, _, X_query = a_context()
    expected = model.set_context(X, y).predict_proba(np.tile(X_query, (60, 1)))
    assert expected.dtype == np.float64
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    for kind in (np.ndarray.tolist, torch.from_numpy, np.asfortranarray, lambda x: x.astype(np.float32)):
        labels = y if kind is not torch.from_numpy else torch.from_numpy(y)
        with unchanged(X, y, X_query):
            found = model.set_context(kind(X), labels).predict_proba(kind(X_query))
        np.testing.assert_allclose(found, expected[:7], atol=1e-6)
    one_by_one = np.concatenate([model.predict_proba(X_query[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(one_by_one, expected[:7], atol=1e-6)
    np.testing.assert_allclose(model.set_context(X, y == 1).predict_proba(X_query), expected[:7], atol=1e-6)


def test_same_seed_same_bits_and_parameters_stay():
    model = learner(permute=True, induction=0.3)
    with unchanged(model.get_params()):
        first = clone(model).meta_fit(numpy_tasks)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        second = clone(model).meta_fit(numpy_tasks)
    assert same_bits(first.history_, second.history_)
    assert same_bits(first.transformer_.state_dict(), second.transformer_.state_dict())
    other = learner(permute=True, induction=0.3, random_state=1).meta_fit(numpy_tasks)
    assert other.history_.losses != first.history_.losses
    assert len(first.history_.losses) == 4


def test_what_is_asked_in_training():
    tasks = as_tensors(sampler()(50, np.random.default_rng(0)))
    X, y = tasks["X"], tasks["y"]
    torch.manual_seed(0)
    same = learner(permute=False)._augment(tasks)
    assert all(torch.equal(same[name], tasks[name]) for name in tasks)
    naive = learner(permute=False, queries="context")._augment(tasks)
    assert torch.equal(naive["X_query"], torch.cat([X[:, 1:], tasks["X_query"][:, -1:]], dim=1))
    assert torch.equal(naive["y_query"], torch.cat([y[:, 1:], tasks["y_query"][:, -1:]], dim=1))
    copied = learner(permute=False, induction=1.0)._augment(tasks)
    matches = (copied["X_query"][:, :, None] == X[:, None]).all(dim=-1)
    assert torch.equal(matches.sum(dim=2), torch.ones(50, 6, dtype=torch.int64))
    source = matches.long().argmax(dim=2)
    assert torch.equal(copied["y_query"], y.gather(1, source))
    assert (source <= torch.arange(6)).all()
    assert (source == torch.arange(6)).any(dim=0).all()
    exchanged = learner(permute=False, exchange_labels=True)._augment(tasks)
    for names in (("y", "y_query"), ("attribute",)):
        flipped = {tuple((exchanged[name][i] != tasks[name][i]).unique().tolist()) for name in names for i in range(50)}
        assert flipped == {(True,), (False,)}, "all of a task or none"
    together = (exchanged["y"] != y)[:, 0] == (exchanged["y_query"] != tasks["y_query"])[:, 0]
    assert bool(together.all())
    some = learner(permute=False, induction=0.25)._augment(tasks)["X_query"]
    assert 0.15 < float((some != tasks["X_query"]).any(dim=-1).double().mean()) < 0.35


def test_permutation_is_one_per_task():
    tasks = as_tensors(sampler()(50, np.random.default_rng(0)))
    tasks["X"][:, 0] = torch.arange(5.0)
    torch.manual_seed(0)
    permuted = learner(permute=True)._augment(tasks)
    order = permuted["X"][:, 0].long()
    assert len({tuple(row) for row in order.tolist()}) > 20
    for name in ("X", "X_query"):
        assert torch.equal(permuted[name], tasks[name].gather(2, order[:, None].expand_as(tasks[name])))


@pytest.mark.slow
def test_learns_in_context_and_reads_labels():
    model = learner(
        d_model=32,
        n_head=4,
        construction="compact",
        group_tokens=True,
        permute=False,
        n_steps=400,
        batch_size=64,
        learning_rate=5e-3,
        warmup_steps=60,
    ).meta_fit(SyntheticSampler())
    tasks = SyntheticSampler()(300, np.random.default_rng(1))
    for asked in (tasks, flip_labels(tasks)):
        found = in_context_metrics(model.predict_tasks(asked), asked)
        assert found["accuracy"] > 0.88
        assert found["worst_group_accuracy"] > 0.8


SCRIPT = """
import sys
from natwise.shift import SpuriousInContextLearner, SyntheticSampler
from natwise.core.training import Trainer
import functools, natwise.shift.in_context._learner as module
module.Trainer = functools.partial(Trainer, checkpoint_every=0)
model = SpuriousInContextLearner(1, 8, 2, n_steps=100, batch_size=4, warmup_steps=5, random_state=0)
model.meta_fit(SyntheticSampler(5, n_context=4), checkpoint=sys.argv[1])
print(model.history_.n_steps)
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    options = {"n_steps": 100, "batch_size": 4, "warmup_steps": 5}
    tasks = SyntheticSampler(5, n_context=4)
    plain = SpuriousInContextLearner(1, 8, 2, random_state=0, **options).meta_fit(tasks)
    checkpoint = tmp_path / "run.pt"
    check_resume([sys.executable, "-c", SCRIPT, str(checkpoint)], checkpoint, kills=1, seconds=0.3)
    resumed = SpuriousInContextLearner(1, 8, 2, random_state=0, **options).meta_fit(tasks, checkpoint=checkpoint)
    assert same_bits(resumed.transformer_.state_dict(), plain.transformer_.state_dict())
    assert resumed.history_.losses == plain.history_.losses


def test_order_of_calls():
    model, (X, y, _, X_query) = learner(), a_context()
    for call in (lambda: model.set_context(X, y), lambda: model.predict_proba(X_query), lambda: model.predict(X_query)):
        with pytest.raises(NotFittedError):
            call()
    model.meta_fit(sampler())
    with pytest.raises(NotFittedError, match="set_context"):
        model.predict_proba(X_query)
    assert model.set_context(X, y).predict(X_query).shape == (7,)
    model.meta_fit(sampler())
    with pytest.raises(NotFittedError, match="set_context"):
        model.predict_proba(X_query)


def test_refuses_wrong_contexts_and_queries():
    X, y, attribute, X_query = a_context()
    holes = X.copy()
    holes[2, 2] = np.nan
    model = learner(group_tokens=True, n_positions=13).meta_fit(sampler())
    check_bad_input(
        model.set_context,
        [
            ({"X": holes}, ValueError, "must be finite, got nan at index (2, 2)"),
            ({"X": X[:, :4]}, ValueError, "shape (n_context, 5), got (6, 4)"),
            ({"X": X[0]}, ValueError, "shape"),
            ({"X": X[:0], "y": y[:0]}, ValueError, "not be empty"),
            ({"X": X * 1e300}, ValueError, "fit float32"),
            ({"X": "text"}, TypeError, "numeric"),
            ({"y": 2 * y - 1}, ValueError, "0 and 1 alone, got -1"),
            ({"y": y + 0.5}, ValueError, "whole numbers"),
            ({"y": y[:3]}, ValueError, "shape (6)"),
            ({"y": np.ones_like(y)}, ValueError, "both classes, 0 and 1, got 1 alone"),
            ({"y": np.array(["a"] * 6)}, TypeError, "numeric"),
            ({"attribute": None}, ValueError, "must be given to a learner with group_tokens=True"),
            ({"attribute": attribute + 2}, ValueError, "0 and 1 alone"),
            ({"attribute": attribute.astype("datetime64[D]")}, TypeError, "numeric"),
        ],
        X=X,
        y=y,
        attribute=attribute,
    )
    with pytest.raises(ValueError, match="at most n_positions = 13 positions, got 15"):
        model.set_context(*a_context(7)[:3])
    model.set_context(X, y, attribute)
    check_bad_input(
        model.predict_proba,
        [
            ({"Xq": holes}, ValueError, "finite"),
            ({"Xq": X_query[:, :2]}, ValueError, "shape (n_queries, 5)"),
            ({"Xq": X_query[0]}, ValueError, "shape"),
            ({"Xq": [["a"] * 5]}, TypeError, "numeric"),
        ],
    )


def test_refuses_wrong_options_and_samplers():
    def fit(sampler=numpy_tasks, **options):
        learner(**options).meta_fit(sampler)

    def changed(**entries):
        return lambda n, rng: {k: v for k, v in {**numpy_tasks(n, rng), **entries}.items() if v is not None}

    check_bad_input(
        fit,
        [
            ({"permute": 1}, TypeError, "True or False"),
            ({"group_tokens": "yes"}, TypeError, "True or False"),
            ({"queries": "balanced"}, ValueError, "'sampled', 'context'"),
            ({"construction": "v2"}, ValueError, "'annotated', 'compact'"),
            ({"induction": 1.5}, ValueError, "<= 1"),
            ({"n_steps": 0}, ValueError, ">= 1"),
            ({"batch_size": 2.5}, TypeError, "integer"),
            ({"learning_rate": -1.0}, ValueError, ">= 0"),
            ({"warmup_steps": -1}, ValueError, ">= 0"),
            ({"n_head": 3}, ValueError, "divide d_model"),
            ({"n_layer": 0}, ValueError, ">= 1"),
            ({"device": "tpu"}, ValueError, "'cpu'"),
            ({"random_state": -1}, ValueError, ">= 0"),
            ({"sampler": 3}, TypeError, "callable"),
            ({"sampler": lambda n, rng: 0}, TypeError, "dict of arrays"),
            ({"sampler": changed(y_query=None)}, ValueError, "lacks y_query"),
            ({"sampler": changed(), "group_tokens": True}, ValueError, "lacks attribute"),
            ({"sampler": changed(y=np.full((8, 6), 2))}, ValueError, "0 and 1 alone, got 2"),
            ({"sampler": changed(y=np.zeros((8, 5)))}, ValueError, "shape (8, 6)"),
            ({"sampler": changed(X=np.full((8, 6, 5), np.nan))}, ValueError, "finite"),
            ({"sampler": changed(X_query=np.zeros((8, 9, 4)))}, ValueError, "shape (8, n_queries, 5)"),
            ({"sampler": changed(X=np.zeros((8, 5)))}, ValueError, "shape"),
        ],
    )


def test_single_task_sampler_feeds_the_learner():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(80, 5)), np.arange(80) % 2, np.arange(80) // 2 % 2
    model = learner(group_tokens=True, queries="context").meta_fit(SingleTaskSampler(*data, n_context=8, n_queries=3))
    assert np.isfinite(model.history_.losses).all()
    assert model.n_features_in_ == 5
