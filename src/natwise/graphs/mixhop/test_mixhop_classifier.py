"""Pruning, architecture learning, the classifier, and the data: contract, properties, what they refuse."""

import copy
import pickle
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.utils.estimator_checks import parametrize_with_checks

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.datasets.local import DataNotFoundError
from natwise.graphs import (
    NGCN,
    MixHop,
    MixHopClassifier,
    MixHopConv,
    convert_planetoid,
    group_lasso,
    homophily_graph,
    learn_architecture,
    load_planetoid,
    prune_columns,
    shrink_columns_,
)
from natwise.graphs.mixhop import study
from natwise.testing import check_bad_input, check_estimator_contract, check_result, unchanged

GRAPH = homophily_graph(0.8, n_nodes=200, n_classes=3, edges_per_node=3, random_state=0)
NODES = (GRAPH.train_idx, GRAPH.val_idx)
QUICK = {"max_epochs": 30, "dropout": 0.3, "input_dropout": 0.0, "random_state": 0}


def fitted(**options):
    return MixHopClassifier(**{**QUICK, **options}).fit(GRAPH.X, GRAPH.y, GRAPH.edge_index, *NODES)


def accuracy(model):
    return (model.predict() == GRAPH.y)[GRAPH.test_idx].mean()


@parametrize_with_checks([MixHopClassifier(max_epochs=15, hidden=(8,), learning_rate=0.05)])
def test_sklearn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_it_learns(device):
    names = np.array(["a", "b", "c"])
    with unchanged(GRAPH.X, GRAPH.y, GRAPH.edge_index):
        model = MixHopClassifier(**QUICK, device=device).fit(GRAPH.X, names[GRAPH.y], GRAPH.edge_index, *NODES)
    assert (model.predict() == names[GRAPH.y])[GRAPH.test_idx].mean() > 0.9
    assert model.predict_proba().shape == (200, 3)
    np.testing.assert_allclose(model.predict_proba().sum(axis=1), 1)
    assert model.best_step_ == np.argmax(model.validation_accuracy_)
    assert len(model.loss_) == model.n_iter_ == len(model.validation_accuracy_)
    assert model.architecture_ == [{0: 20, 1: 20, 2: 20}, {0: 3, 1: 3, 2: 3}]


@pytest.mark.slow
def test_contract():
    X, y, edges = GRAPH.X, GRAPH.y, GRAPH.edge_index
    check_estimator_contract(MixHopClassifier(**QUICK), X, y)
    check_estimator_contract(MixHopClassifier(**QUICK), X, y, edge_index=edges, train_idx=NODES[0], val_idx=NODES[1])


def test_hidden_labels_are_not_looked_at():
    hidden = GRAPH.y.copy()
    hidden[GRAPH.test_idx] = -1
    wrong = np.where(hidden == -1, 2, hidden)
    expected = fitted().predict_proba()
    for y in (hidden, wrong, torch.tensor(wrong), hidden.tolist()):
        model = MixHopClassifier(**QUICK).fit(GRAPH.X, y, GRAPH.edge_index, *NODES)
        np.testing.assert_array_equal(model.predict_proba(), expected)
    implied = MixHopClassifier(**QUICK).fit(GRAPH.X, hidden, GRAPH.edge_index, val_idx=GRAPH.val_idx)
    np.testing.assert_array_equal(implied.predict_proba(), expected)
    hidden[GRAPH.val_idx] = -1
    without = MixHopClassifier(**QUICK).fit(GRAPH.X, hidden, GRAPH.edge_index)
    assert without.best_step_ == without.n_iter_ - 1
    np.testing.assert_array_equal(without.classes_, [0, 1, 2])


def test_forms_of_input_do_not_matter():
    n, (row, column) = len(GRAPH.y), GRAPH.edge_index
    masks = [np.isin(np.arange(n), nodes) for nodes in NODES]
    matrix = sparse.coo_array((np.ones(len(row)), (row, column)), (n, n))
    X = np.abs(GRAPH.X).round()
    expected = MixHopClassifier(**QUICK).fit(X, GRAPH.y, GRAPH.edge_index, *NODES)
    assert expected.scaling_ == "rows"
    for features, graph, nodes in (
        (X.tolist(), {"adjacency": matrix}, masks),
        (torch.tensor(X), {"edge_index": torch.tensor(GRAPH.edge_index)}, map(torch.tensor, masks)),
        (sparse.csr_array(X), {"adjacency": matrix.tocsr()}, NODES),
        (torch.tensor(X).to_sparse_coo(), {"adjacency": matrix.toarray()}, NODES),
    ):
        train, val = nodes
        model = MixHopClassifier(**QUICK).fit(features, GRAPH.y, train_idx=train, val_idx=val, **graph)
        np.testing.assert_allclose(model.predict_proba(), expected.predict_proba(), atol=1e-4)


def test_prediction_for_other_graphs():
    model = fitted()
    order = np.random.default_rng(0).permutation(200)
    moved = np.argsort(order)[GRAPH.edge_index]
    np.testing.assert_allclose(model.predict_proba(GRAPH.X), model.predict_proba(), atol=1e-12)
    np.testing.assert_allclose(model.predict_proba(GRAPH.X[order], moved), model.predict_proba()[order], atol=1e-12)
    assert model.predict(GRAPH.X[:9], np.empty((2, 0), int)).shape == (9,)
    check_bad_input(model.predict, [({"X": GRAPH.X[:9]}, ValueError, "200 nodes")])
    again = copy.deepcopy(model)
    np.testing.assert_array_equal(again.predict_proba(), model.predict_proba())


@pytest.mark.parametrize(
    "options",
    [
        {"network": NGCN(2, 6, 3, dropout=0.2, input_dropout=0.0, normalize_rows=False), "learning_rate": 0.05},
        {"output": "linear", "batch_norm": "running", "activation": "tanh", "max_epochs": 60},
        {"optimizer": "sgd", "learning_rate": 0.5, "decrement_every": 2, "lasso": 1e-3, "hidden": [10, {0: 5, 1: 5}]},
        {"hidden": [], "batch_norm": None, "scaling": "rows", "max_epochs": 60},
    ],
)
def test_options_learn_too(options):
    assert accuracy(fitted(**options)) > 0.8


def test_divergence_is_said():
    with pytest.raises(ValueError, match=r"learning_rate=1e\+20 lets the loss diverge at step .*adam"):
        fitted(optimizer="sgd", learning_rate=1e20, batch_norm=None)


def test_group_lasso_and_its_proximal_step():
    conv = MixHopConv(4, {0: 3, 2: 2})
    with torch.no_grad():
        conv.weight[:, 1] = 0
    weight, norms = conv.weight.detach().clone(), conv.weight.detach().norm(dim=0)
    penalty = group_lasso(torch.nn.Sequential(conv))
    penalty.backward()
    assert penalty.item() == pytest.approx(norms.sum().item())
    expected = torch.nan_to_num(weight / norms)
    torch.testing.assert_close(conv.weight.grad, expected)
    amount = (norms[norms > 0].min() * 1.01).item()
    shrink_columns_(conv, amount)
    assert (conv.weight == 0).all(dim=0).sum() == 2
    torch.testing.assert_close(conv.weight, expected * (norms - amount).clamp(min=0))
    check_bad_input(shrink_columns_, [({"amount": -1}, ValueError, ">= 0")], module=conv)


def trained(batch_norm, output, bias):
    """Return a network whose statistics and shifts are not those of the start, with some columns at zero."""
    with Streams(0).torch_global("network"):
        widths = {0: 6, 1: 3}
        options = {"activation": "elu", "output_widths": widths, "bias": bias, "dropout": 0.2}
        model = MixHop(2, [6, {0: 3, 2: 5}], 3, batch_norm=batch_norm, output=output, **options).double()
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        labels, nodes = torch.tensor(GRAPH.y), torch.tensor(GRAPH.train_idx)
        for _ in range(10):
            optimizer.zero_grad()
            model.loss(GRAPH.X, GRAPH.edge_index, labels, nodes).backward()
            optimizer.step()
    with torch.no_grad():
        for conv, columns in zip(model.convs, ([0, 7, 8, 17], [6], [3, 4, 5]), strict=True):
            conv.weight[:, columns] = 0
        if bias:
            model.convs[2].bias[3:6] = 0
    return model.eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", ["weighted", "linear"])
@pytest.mark.parametrize("batch_norm", ["running", "batch", None])
def test_removing_zero_columns_changes_nothing(batch_norm, output, bias):
    model = trained(batch_norm, output, bias)
    with unchanged(dict(model.state_dict())):
        pruned = prune_columns(model)
    assert pruned.architecture == [{0: 5, 1: 4, 2: 5}, {0: 3, 2: 4}, {0: 3, 1: 3}]
    before, after = (network(GRAPH.X, GRAPH.edge_index) for network in (model, pruned))
    np.testing.assert_allclose(after.detach(), before.detach(), rtol=0, atol=1e-12)
    fresh = MixHop(
        2,
        pruned.architecture[:-1],
        3,
        batch_norm=batch_norm,
        output=output,
        bias=bias,
        output_widths=pruned.architecture[-1],
    )
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in pruned.parameters()]
    pruned.train().loss(GRAPH.X, GRAPH.edge_index, torch.tensor(GRAPH.y), torch.tensor(GRAPH.train_idx)).backward()


def test_pruning_to_a_budget():
    model = trained("batch", "weighted", False)

    def columns(**options):
        return [sum(widths.values()) for widths in prune_columns(model, **options).architecture]

    assert sum(columns(budget=20)) == 20
    assert columns(budget=[4, 5, 3]) == [4, 5, 3]
    assert columns(budget=99) == columns() == [14, 7, 6]
    assert columns(threshold=1e9) == [1, 1, 3]
    norms = model.convs[0].weight.detach().norm(dim=0)
    kept = prune_columns(model, budget=[5, 8, 9]).convs[0].weight.detach().norm(dim=0)
    np.testing.assert_allclose(np.sort(kept), np.sort(norms)[-5:])
    cases = [
        ({"budget": 4}, ValueError, ">= 5"),
        ({"budget": [5, 5]}, ValueError, "per mixing layer"),
        ({"budget": 7.5}, TypeError, "integer"),
        ({"threshold": -1.0}, ValueError, ">= 0"),
        ({"threshold": 0.1, "budget": 9}, ValueError, "None"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "MixHop"),
    ]
    check_bad_input(prune_columns, cases, model=copy.deepcopy(model))


def test_learn_architecture():
    arguments = (GRAPH.X, GRAPH.y, GRAPH.edge_index, *NODES)
    base = MixHopClassifier(hidden=(6,), **QUICK)
    with unchanged(base.get_params()):
        found = learn_architecture(*arguments, budget=18, lasso=0.3, classifier=base)
    assert found.n_columns <= 18
    assert found.classifier.architecture_ == found.widths
    assert accuracy(found.classifier) > 0.8
    free = learn_architecture(*arguments, lasso=3.0, classifier=base)
    assert free.widths == [{p: w for p, w in layer.items() if w} for layer in free.search.architecture_]
    cases = [
        ({"lasso": 0.0}, ValueError, "> 0"),
        ({"lasso": 1e6}, ValueError, "all columns of a layer"),
        ({"classifier": MixHop(2, [3], 3)}, TypeError, "MixHopClassifier"),
        ({"classifier": MixHopClassifier(network=NGCN(2, 2, 3))}, ValueError, "network"),
    ]
    names = ("X", "y", "edge_index", "train_idx", "val_idx")
    check_bad_input(learn_architecture, cases, **dict(zip(names, arguments, strict=True)))


def test_bad_fits():
    X, y, edges = GRAPH.X, GRAPH.y, GRAPH.edge_index
    hidden, nan = y.copy(), X.copy()
    hidden[GRAPH.train_idx[2]], nan[0, 0] = -1, np.nan
    cases = [
        ({"X": nan}, ValueError, "NaN"),
        ({"X": X[:-1]}, ValueError, "inconsistent"),
        ({"y": hidden}, ValueError, "train_idx must hold nodes with a label"),
        ({"y": np.zeros(200, int)}, ValueError, "2 classes"),
        ({"y": X[:, 0]}, ValueError, "continuous"),
        ({"edge_index": edges.T}, ValueError, "transpose"),
        ({"edge_index": edges + 1}, ValueError, "[0, 200)"),
        ({"adjacency": edges}, ValueError, "both"),
        ({"train_idx": []}, ValueError, "at least one"),
        ({"train_idx": [0, 200]}, ValueError, "[0, 200)"),
        ({"train_idx": [0.5, 1]}, ValueError, "whole"),
        ({"train_idx": "first"}, TypeError, "numeric"),
        ({"train_idx": [[0], [1, 2]]}, ValueError, "regular"),
        ({"train_idx": np.ma.masked_equal([0, 1, 2], 1)}, ValueError, "no masked values"),
        ({"y": y.astype("datetime64[D]")}, TypeError, "datetime64"),
        ({"y": np.ma.masked_equal(y, 1)}, ValueError, "no masked values"),
        ({"X": np.zeros(X.shape, "timedelta64[s]")}, TypeError, "timedelta64"),
        ({"X": torch.tensor(X).to(torch.bfloat16)}, TypeError, "bfloat16"),
        ({"X": X * 1e200}, ValueError, "finite variance"),
        ({"edge_index": edges.astype(object)}, TypeError, "edge index"),
        ({"edge_index": torch.ones(3).to_sparse()}, TypeError, "sparse matrix"),
        ({"val_idx": np.ones(7, bool)}, ValueError, "mask"),
        ({"val_idx": [-1]}, ValueError, "[0, 200)"),
    ]
    fit = MixHopClassifier(**QUICK).fit

    def call(**arguments):
        try:
            fit(**arguments)
        except ValueError as error:
            text = str(error)  # scikit-learn's own messages name the argument in their way
            raise ValueError(" ".join(text.split()) + " X y") from None

    check_bad_input(call, cases, X=X, y=y, edge_index=edges, train_idx=NODES[0], val_idx=NODES[1])
    options = [
        ({"optimizer": "lbfgs"}, ValueError, "adam"),
        ({"scaling": "max"}, ValueError, "rows"),
        ({"l2": -1}, ValueError, ">= 0"),
        ({"lasso": "much"}, TypeError, "number"),
        ({"learning_rate": np.nan}, ValueError, "finite"),
        ({"decrement_every": 0}, ValueError, ">= 1"),
        ({"max_epochs": 0}, ValueError, ">= 1"),
        ({"network": torch.nn.Linear(2, 3)}, TypeError, "loss"),
        ({"hidden": [{0: 0}]}, ValueError, "positive sum"),
        ({"hidden": 20}, TypeError, "list"),
        ({"hidden": b"20"}, TypeError, "list"),
        ({"powers": b"012"}, TypeError, "list"),
        ({"powers": np.array(2)}, TypeError, "list"),
        ({"device": "abacus"}, ValueError, "cpu"),
    ]
    check_bad_input(fitted, options)


@pytest.mark.parametrize("homophily", [0.0, 0.3, 1.0])
def test_homophily_graph(homophily):
    g = homophily_graph(homophily, n_nodes=3000, random_state=1)
    start, end = g.edge_index[:, : g.edge_index.shape[1] // 2]
    assert abs((g.y[start] == g.y[end]).mean() - homophily) <= 0.03
    assert len({*zip(start.tolist(), end.tolist(), strict=True)}) == (3000 - 60) * 6 == len(start)
    assert not (start == end).any()
    degree = np.bincount(g.edge_index[0], minlength=3000)
    assert degree.max() > 5 * degree.mean()
    assert sorted(np.concatenate([g.train_idx, g.val_idx, g.test_idx])) == list(range(3000))
    for k in (0, 3):
        own, angle = g.X[g.y == k], 2 * np.pi * k / 10
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        np.testing.assert_allclose(own.mean(axis=0), 300 * turn[0][::-1], atol=40)
        np.testing.assert_allclose(turn.T @ np.cov(own.T) @ turn, np.diag([24500, 7000]), atol=6000)
    again = homophily_graph(homophily, n_nodes=3000, random_state=1)
    np.testing.assert_array_equal(again.edge_index, g.edge_index)


def test_bad_homophily_graphs():
    cases = [
        ({"homophily": 1.2}, ValueError, "<= 1"),
        ({"homophily": "half"}, TypeError, "number"),
        ({"n_nodes": 60}, ValueError, ">= 61"),
        ({"n_classes": 1}, ValueError, ">= 2"),
        ({"edges_per_node": 0}, ValueError, ">= 1"),
    ]
    check_bad_input(homophily_graph, cases, homophily=0.5)


def planetoid_arrays(**changes):
    X = sparse.csr_array([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    arrays = {"indptr": X.indptr, "indices": X.indices, "data": np.float32(1), "shape": np.array(X.shape)}
    arrays |= {"edges": np.array([[0, 1], [2, 2]]), "labels": np.array([0, 1, -1, 1], dtype=np.int8)}
    split = {"train_idx": np.array([0]), "val_idx": np.array([1]), "test_idx": np.array([3])}
    return {name: value for name, value in {**arrays, **split, **changes}.items() if value is not None}


def test_load_planetoid(tmp_path):
    (tmp_path / "graphs").mkdir()
    path = tmp_path / "graphs" / "tiny.npz"
    np.savez(path, **planetoid_arrays())
    for data in (load_planetoid("tiny", tmp_path), load_planetoid(path), load_planetoid(str(path))):
        np.testing.assert_array_equal(data.X.toarray(), [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
        np.testing.assert_array_equal(data.edge_index, [[0, 2, 1, 2], [1, 2, 0, 2]])
        np.testing.assert_array_equal(data.y, [0, 1, -1, 1])
        assert data.test_idx.tolist() == [3]
    for changes, message in (
        ({"indptr": None}, "lacks indptr"),
        ({"labels": np.zeros(3)}, "labels"),
        ({"edges": np.array([[0, 4]])}, "edges must be nodes"),
        ({"test_idx": np.array([-1])}, "test_idx must be nodes"),
        ({"indptr": np.array([0, 2])}, "does not hold a graph"),
        ({"labels": np.array([{}] * 4)}, "Object arrays"),
    ):
        np.savez(path, **planetoid_arrays(**changes))
        with pytest.raises(ValueError, match=f"tiny.npz.*{message}"):
            load_planetoid(path)
    with pytest.raises(DataNotFoundError, match=r"graphs/absent\.npz"):
        load_planetoid("absent", tmp_path)
    check_bad_input(load_planetoid, [({"name": 3}, TypeError, "path")])


class Command:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_convert_planetoid(protocol, tmp_path, capsys):
    """Four nodes are known, of the test nodes 4 to 6 the middle one is left out; the files are as published."""
    X = sparse.csr_matrix(np.diag(np.arange(1, 8)).astype(np.float32))
    one_hot = np.eye(3, dtype=np.int32)[[0, 1, 2, 0, 1, 2, 0]]
    known, test = slice(4), np.array([6, 4])
    parts = {"x": X[:2], "y": one_hot[:2], "tx": X[test], "ty": one_hot[test], "allx": X[known]}
    parts |= {"ally": np.asfortranarray(one_hot[known]), "graph": defaultdict(list, {0: [1, 1], 1: [0], 6: [2, 6]})}
    for part, value in parts.items():
        (tmp_path / f"ind.tiny.{part}").write_bytes(pickle.dumps(value, protocol=protocol))
    (tmp_path / "ind.tiny.test.index").write_text("6\n4\n")
    convert_planetoid(tmp_path, "tiny", tmp_path / "tiny.npz")
    arrays = load_npz(tmp_path / "tiny.npz")
    np.testing.assert_array_equal(arrays["val_idx"], np.arange(2, 502))
    np.savez(tmp_path / "tiny.npz", **{**arrays, "val_idx": np.array([2])})  # such a small graph has no 500 others
    data = load_planetoid(tmp_path / "tiny.npz")
    np.testing.assert_array_equal(data.X.toarray(), np.diag([1, 2, 3, 4, 5, 0, 7]))
    np.testing.assert_array_equal(data.y, [0, 1, 2, 0, 1, -1, 0])
    np.testing.assert_array_equal(data.edge_index, [[0, 2, 6, 1, 6, 6], [1, 6, 6, 0, 2, 6]])
    assert (data.train_idx.tolist(), data.test_idx.tolist()) == ([0, 1], [6, 4])
    bad = [pickle.dumps(Command(), protocol=protocol), b"", b"no pickle", pickle.dumps(1j), pickle.dumps({1: 2})[:-1]]
    for content in bad:
        (tmp_path / "ind.tiny.tx").write_bytes(content)
        with pytest.raises(ValueError, match=r"ind\.tiny\.tx is no pickle of plain data"):
            convert_planetoid(tmp_path, "tiny", tmp_path / "other.npz")
    (tmp_path / "ind.tiny.tx").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"test\.index .* do not hold a graph"):
        convert_planetoid(tmp_path, "tiny", tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("claim", ["delta-operator", pytest.param("high-homophily", marks=pytest.mark.slow)])
def test_study(claim, monkeypatch):
    monkeypatch.setattr(study, "SYNTHETIC", {**study.SYNTHETIC, "max_epochs": 2})
    result = study.run(claim, scale="ci", seed=0)
    check_result(result)
    assert study.figure(claim, result).axes
    if claim == "delta-operator":
        assert result.scalars["max_error"] <= 1e-12
        assert result.scalars["gcn_error"] > 0.1


def test_cora(local_data):
    data = load_planetoid(local_data("graphs/cora.npz"))
    assert data.X.shape == (2708, 1433)
    assert data.edge_index.shape == (2, 2 * 5278)
    assert (len(data.train_idx), len(data.val_idx), len(data.test_idx)) == (140, 500, 1000)
    assert np.bincount(data.y).argmax() == 3
