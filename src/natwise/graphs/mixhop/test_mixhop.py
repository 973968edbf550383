"""Layers and networks: reference numbers, a slow dense reference, the properties of the paper, what is refused."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import sparse

from natwise.core.io import load_npz
from natwise.graphs import NGCN, MixHop, MixHopConv, WeightedBlockOutput, group_lasso, normalized_adjacency
from natwise.graphs.mixhop._features import SparseFeatures
from natwise.graphs.mixhop._graph import product, to_csr_tensor
from natwise.testing import check_bad_input, unchanged

# layer outputs and gradients by a second implementation with explicit matrix powers, in float64; delta: paper, Thm 2
GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
EDGES = np.array([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 5, 5]])
N = 8  # nodes 6 and 7 have no neighbours


def dense_reference(edges, n):
    """Normalise by loops."""
    A = np.eye(n)
    for i, j in edges.T:
        A[i, j] = A[j, i] = 1
    degree = A.sum(axis=1)
    return np.array([[A[i, j] / np.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)])


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def layer(*args, **options):
    return seeded(lambda: MixHopConv(*args, **options).double())


def features(n=N, width=5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)))


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer_matches_reference_numbers(case, dtype):
    data = {name[2:]: value for name, value in GOLDEN.items() if name.startswith(f"{case}_")}
    tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    conv = MixHopConv(data["X"].shape[1], dict(zip(data["pows"].tolist(), data["dims"].tolist(), strict=True)))
    conv = conv.to(dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(np.concatenate([data[f"W{i}"] for i in range(3)], axis=1)))
    x = torch.tensor(data["X"], dtype=dtype, requires_grad=True)
    out = conv(x, data["edges"].T)
    out.backward(torch.tensor(data["grad_out"], dtype=dtype))
    close = {"rtol": 0, "atol": tolerance}
    np.testing.assert_allclose(normalized_adjacency(data["edges"].T).toarray(), data["A_norm"], **close)
    np.testing.assert_allclose(out.detach(), data["out"], **close)
    np.testing.assert_allclose(x.grad, data["grad_X"], **close)
    expected = np.concatenate([data[f"gradW{i}"] for i in range(3)], axis=1)
    np.testing.assert_allclose(conv.weight.grad, expected, **close)
    assert 0.01 * group_lasso(conv).item() == pytest.approx(float(data["group_lasso"]), abs=tolerance)
    assert 0.01 * conv.weight.square().sum().item() == pytest.approx(float(data["l2"]), abs=tolerance)
    output = WeightedBlockOutput(out.shape[1], int(data["psum_c"])).to(dtype)
    with torch.no_grad():
        output.q.copy_(torch.from_numpy(data["psum_q"]))
        np.testing.assert_allclose(output(out.detach()), data["psum_out"], **close)


def test_two_hop_delta_operator_is_exact():
    X = torch.from_numpy(GOLDEN["delta_X"])
    first = MixHopConv(3, {1: 3, 2: 3}).double()
    readout = MixHopConv(6, {0: 3}).double()
    with torch.no_grad():
        first.weight.copy_(torch.eye(3).repeat(1, 2))
        readout.weight.copy_(torch.from_numpy(GOLDEN["delta_readout"]))
    edges = GOLDEN["delta_edges"].T
    out = readout(torch.relu(first(X, edges)), edges)
    np.testing.assert_allclose(out.detach(), GOLDEN["delta_target"], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    powers=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    data=st.data(),
    n_features=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_layer_equals_explicit_powers(powers, data, n_features, seed):
    """Whatever the order of powers and of products: narrow and wide inputs take different ways."""
    widths = {power: data.draw(st.integers(1, 4)) for power in powers}
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, N, size=(2, 9))
    A, X = dense_reference(edges, N), rng.normal(size=(N, n_features))
    conv = layer(n_features, widths, bias=True)
    torch.nn.init.normal_(conv.bias)
    x = torch.tensor(X, requires_grad=True)
    out = conv(x, edges)
    blocks = {power: block.detach().numpy() for power, block in conv.weights.items()}
    plain = [np.linalg.matrix_power(A, power) @ X @ blocks[power] for power in powers]
    np.testing.assert_allclose(out.detach(), np.concatenate(plain, axis=1) + conv.bias.detach().numpy(), atol=1e-12)
    upstream = rng.normal(size=out.shape)
    out.backward(torch.from_numpy(upstream))
    parts = dict(zip(powers, np.split(upstream, np.cumsum(list(widths.values()))[:-1], axis=1), strict=True))
    by_power = {p: np.linalg.matrix_power(A, p) @ part for p, part in parts.items()}
    np.testing.assert_allclose(x.grad, sum(by_power[p] @ blocks[p].T for p in powers), atol=1e-12)
    np.testing.assert_allclose(
        conv.weight.grad, np.concatenate([X.T @ by_power[p] for p in powers], axis=1), atol=1e-12
    )
    np.testing.assert_allclose(conv(torch.from_numpy(X), edges).detach(), out.detach(), atol=1e-12)


def test_second_derivatives():
    conv, graph = layer(3, {0: 2, 2: 2}), EDGES
    x = features(width=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: conv(x, graph), x)
    assert torch.autograd.gradgradcheck(lambda x: conv(x, graph).square(), x)
    features_times = SparseFeatures.prepare(sparse.csr_array(np.eye(4, 3)), torch.float64, torch.device("cpu"))
    assert torch.autograd.gradgradcheck(lambda w: (features_times @ w).square(), features(3, 2).requires_grad_())


def test_special_powers():
    A, x = torch.from_numpy(dense_reference(EDGES, N)), features()
    gcn, mlp = layer(5, 4, powers=(1,)), layer(5, 4, powers=[0])
    np.testing.assert_allclose(gcn(x, EDGES).detach(), (A @ x @ gcn.weight).detach(), atol=1e-14)
    np.testing.assert_allclose(mlp(x, EDGES).detach(), (x @ mlp.weight).detach(), atol=1e-14)
    with_gap = layer(5, {0: 2, 1: 0, 2: 3})
    assert (with_gap.widths, with_gap.powers, with_gap.out_channels) == ({0: 2, 2: 3}, (0, 2), 5)
    assert torch.equal(with_gap(x, EDGES), layer(5, {0: 2, 2: 3})(x, EDGES))


def test_normalisation():
    A = normalized_adjacency(EDGES, N).toarray()
    np.testing.assert_allclose(A, dense_reference(EDGES, N), atol=1e-15)
    spectrum = np.linalg.eigvalsh(A)
    assert abs(spectrum).max() <= 1 + 1e-12
    np.testing.assert_array_equal(np.linalg.matrix_power(A, 3)[6], np.eye(N)[6])
    np.testing.assert_allclose(normalized_adjacency(A).toarray(), A, atol=1e-15)
    tensor = normalized_adjacency(torch.from_numpy(EDGES), N)
    np.testing.assert_array_equal(tensor.to_dense(), A)


def watched(value):
    """Return what can be copied and compared: torch cannot copy its CSR layout."""
    return () if getattr(value, "layout", None) is torch.sparse_csr else (value,)


def graph_forms():
    A = np.zeros((N, N))
    A[tuple(EDGES)] = 1
    both = np.concatenate([EDGES, EDGES[::-1]], axis=1)
    tensor = torch.from_numpy
    coo = torch.sparse_coo_tensor(tensor(EDGES), torch.ones(6), (N, N), check_invariants=True)
    yield from (
        EDGES.tolist(),
        both.astype(np.int32),
        np.concatenate([EDGES, EDGES, [[3], [3]]], axis=1),
        tensor(both),
        A,
        A * 2.5,
        (A + A.T).astype(bool),
        tensor(A + np.eye(N)),
        sparse.csr_matrix(A),
        sparse.coo_array(A + A.T),
        sparse.lil_array(A),
        coo,
        to_csr_tensor(sparse.csr_array(A)),
        SimpleNamespace(edge_index=tensor(both), num_nodes=N),
        SimpleNamespace(edge_index=EDGES),
    )


def test_every_form_of_a_graph_is_the_same_graph():
    conv, x = layer(5, 2), features()
    expected = conv(x, EDGES)
    for graph in graph_forms():
        with unchanged(*watched(graph), x):
            assert torch.equal(conv(x, graph), expected), type(graph)


@pytest.mark.parametrize("widths", [{0: 3, 1: 2, 2: 1}, {1: 9, 2: 9}])
def test_every_form_of_features_gives_the_same(widths):
    conv = layer(5, widths)
    dense = features() * (features(seed=1) > 0.3)
    expected = conv(dense, EDGES)
    expected.square().sum().backward()
    gradient = conv.weight.grad.clone()
    array = dense.numpy()
    forms = (array, array.tolist(), sparse.csr_matrix(array), sparse.coo_array(array), dense.to_sparse_coo())
    for x in (*forms, to_csr_tensor(array), sparse.csc_array(array)):
        conv.weight.grad = None
        with unchanged(*watched(x)):
            out = conv(x, EDGES)
            out.square().sum().backward()
        np.testing.assert_allclose(out.detach(), expected.detach(), atol=1e-14)
        np.testing.assert_allclose(conv.weight.grad, gradient, atol=1e-13)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda e: sparse.coo_array((np.ones(6), e), (N, N))])
def test_a_changed_graph_is_normalised_again(kind):
    conv, x = layer(5, 2), features()
    graph, other = kind(EDGES.tolist()), np.array([[0, 1, 2, 3, 4, 2], [1, 2, 3, 4, 5, 5]])
    before = conv(x, graph)
    assert torch.equal(conv(x, graph), before)
    if sparse.issparse(graph):
        graph.coords[0][5] = 2
    else:
        graph[0][5] = 2
    assert torch.equal(conv(x, graph), conv(x, other))
    assert not torch.equal(conv(x, graph), before)
    assert conv(x, EDGES.copy()).equal(before)


def test_both_sparse_products_agree():
    """In float32 on a CPU rows are summed by an embedding bag; empty rows and matrices are zero."""
    rng = np.random.default_rng(0)
    for entries in (rng.normal(size=(7, 5)) * (rng.random((7, 5)) < 0.3), np.zeros((3, 5))):
        matrix, dense = to_csr_tensor(entries), torch.from_numpy(rng.normal(size=(5, 4)))
        found = product(matrix.float(), dense.float())
        np.testing.assert_allclose(found, product(matrix, dense), rtol=0, atol=1e-6)
        np.testing.assert_allclose(product(matrix, dense), entries @ dense.numpy(), rtol=0, atol=1e-14)


def test_copies_and_files_hold_no_graph():
    conv, x = layer(5, 2), features()
    out = conv(x, EDGES)
    assert len(pickle.dumps(conv)) == len(pickle.dumps(layer(5, 2)))
    assert torch.equal(copy.deepcopy(conv)(x, EDGES), out)
    assert list(conv.state_dict()) == ["weight"]
    assert conv.float()(x, EDGES).dtype == torch.float32


def networks():
    common = {"dropout": 0.3, "activation": "elu"}
    yield lambda: MixHop(5, [3, {0: 2, 3: 4}], 2, **common)
    yield lambda: MixHop(5, [4], 2, batch_norm="running", output="linear", bias=True, **common)
    yield lambda: MixHop(5, [], 2, batch_norm=None, binarize=True, normalize_rows=False)
    yield lambda: NGCN(5, 4, 2, n_replicas=2)
    yield lambda: NGCN(5, 4, 2, powers=(2, 0), output="linear", normalize_rows=False)


@pytest.mark.parametrize("make", list(networks()))
def test_networks(make):
    model, x = seeded(make).double(), features()
    labels, nodes = torch.tensor([0, 1] * 4), torch.tensor([0, 1, 5])
    loss = model.loss(x, EDGES, labels, nodes)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    out = model(x, EDGES)
    order = torch.from_numpy(np.random.default_rng(0).permutation(N))
    place = torch.argsort(order).numpy()
    assert out.shape == (N, 2)
    np.testing.assert_allclose(model(x[order], place[EDGES]).detach(), out[order].detach(), atol=1e-12)
    np.testing.assert_allclose(model(sparse.csr_array(x.numpy()), EDGES).detach(), out.detach(), atol=1e-12)


def test_sparse_features_in_training():
    """With everything random switched off, training mode too treats both storages alike."""
    model = seeded(lambda: MixHop(5, [3], 2, input_dropout=0.0, dropout=0.0, binarize=True).double())
    x = features() * (features(seed=1) > 0)
    np.testing.assert_allclose(model(x, EDGES).detach(), model(sparse.csr_array(x.numpy()), EDGES).detach(), atol=1e-12)
    dropping = seeded(lambda: MixHop(5, [3], 2, dropout=0.0).double())
    out = [seeded(lambda: dropping(sparse.csr_array(x.numpy()), EDGES), seed) for seed in (0, 0, 1)]
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


def test_ngcn_has_all_towers():
    A, x = torch.from_numpy(dense_reference(EDGES, N)), features()
    model = seeded(lambda: NGCN(5, 4, 3, powers=(2, 0), n_replicas=2, normalize_rows=False).double().eval())
    towers = model.towers(x, EDGES)
    assert towers.shape == (N, 4, 3)
    for t, power in enumerate((2, 2, 0, 0)):
        P = torch.linalg.matrix_power(A, power)
        plain = P @ torch.relu(P @ x @ model.first.weight[:, 4 * t : 4 * t + 4]) @ model.second[t]
        np.testing.assert_allclose(towers[:, t].detach(), plain.detach(), atol=1e-13)
    mean = towers.softmax(2).mean(1)
    np.testing.assert_allclose(model(x, EDGES).softmax(1).detach(), mean.detach(), atol=1e-13)
    model(x, EDGES).sum().backward()
    assert model.second.grad is None
    assert model.output.q.grad is not None


def test_weighted_output():
    x = features(width=6)
    plain = WeightedBlockOutput(6, 2).double()
    np.testing.assert_allclose(plain(x).detach(), (x[:, :2] + x[:, 2:4] + x[:, 4:]) / 3, atol=1e-15)
    assert torch.equal(WeightedBlockOutput(6, 6).double()(x), x)
    with torch.no_grad():
        plain.q.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert plain.penalty().item() == pytest.approx(1e-3 * 14 / 3)


def test_bad_layers():
    cases = [
        ({"powers": [0, -1]}, ValueError, ">= 0"),
        ({"powers": [0, 1, 1]}, ValueError, "different"),
        ({"powers": [0.5]}, TypeError, "integer"),
        ({"powers": []}, ValueError, "at least one power, got []"),
        ({"powers": 2.5}, TypeError, "list of integers"),
        ({"powers": [[0]]}, TypeError, "integer"),
        ({"out_channels": {0: 0, 1: 0}}, ValueError, "positive sum"),
        ({"out_channels": {-1: 2}}, ValueError, ">= 0"),
        ({"out_channels": {"1": 2}}, TypeError, "integer"),
        ({"out_channels": {0: -2}}, ValueError, ">= 0"),
        ({"out_channels": {}}, ValueError, "at least one"),
        ({"out_channels": 0}, ValueError, ">= 1"),
        ({"in_channels": 2.0}, TypeError, "integer"),
        ({"bias": "no"}, TypeError, "True or False"),
    ]
    check_bad_input(MixHopConv, cases, in_channels=3, out_channels=2)


def test_bad_graphs_and_features():
    nan, square = features(), np.eye(N)
    nan[2, 3] = torch.nan
    cases = [
        ({"x": nan}, ValueError, "finite"),
        ({"x": nan.numpy()}, ValueError, "finite"),
        ({"x": sparse.csr_array(nan.numpy())}, ValueError, "finite"),
        ({"x": features(width=4)}, ValueError, "(n_nodes, 5)"),
        ({"x": torch.zeros(5)}, ValueError, "(n_nodes, 5)"),
        ({"x": torch.zeros(0, 5)}, ValueError, "at least one row"),
        ({"x": "text"}, TypeError, "numeric"),
        ({"x": features().to_sparse_coo().requires_grad_()}, ValueError, "dense"),
        ({"adjacency": EDGES.T}, ValueError, "transpose"),
        ({"adjacency": EDGES + 5}, ValueError, "nodes in [0, 8)"),
        ({"adjacency": EDGES - 1}, ValueError, "got node -1"),
        ({"adjacency": EDGES + 0.5}, ValueError, "integers"),
        ({"adjacency": square[:5, :5]}, ValueError, "(8, 8)"),
        ({"adjacency": sparse.csr_array(square[:5])}, ValueError, "(8, 8)"),
        ({"adjacency": square * np.nan}, ValueError, "finite"),
        ({"adjacency": "graph"}, TypeError, "edge index"),
        ({"adjacency": None}, TypeError, "edge index"),
        ({"adjacency": SimpleNamespace(edge_index=EDGES, num_nodes=9)}, ValueError, "row per node"),
    ]
    check_bad_input(layer(5, 2).forward, cases, x=features(), adjacency=EDGES)
    check_bad_input(normalized_adjacency, [({"n_nodes": None}, ValueError, "given")], adjacency=np.empty((2, 0), int))


def test_bad_networks():
    cases = [
        ({"output": "mean"}, ValueError, "weighted"),
        ({"output_widths": {0: 2}}, ValueError, "at least n_classes"),
        ({"output": "linear", "output_widths": {0: 2}}, ValueError, "at least n_classes"),
        ({"output_widths": {0: 4}}, ValueError, "multiple"),
        ({"n_classes": 0}, ValueError, ">= 1"),
        ({"hidden": 20}, TypeError, "list"),
        ({"hidden": [{0: 0}]}, ValueError, "positive sum"),
        ({"activation": "sine"}, ValueError, "relu"),
        ({"batch_norm": True}, ValueError, "running"),
        ({"dropout": 1.0}, ValueError, "< 1"),
        ({"input_dropout": -0.1}, ValueError, ">= 0"),
        ({"binarize": 1}, TypeError, "True or False"),
    ]
    check_bad_input(MixHop, cases, in_channels=4, hidden=[6], n_classes=3)
    check_bad_input(WeightedBlockOutput, [({"in_channels": 7}, ValueError, "multiple")], in_channels=6, n_classes=3)
    check_bad_input(WeightedBlockOutput(6, 3), [({"x": torch.ones(2, 5)}, ValueError, "6")], x=torch.ones(2, 6))
    check_bad_input(group_lasso, [({"module": torch.nn.Linear(2, 2)}, ValueError, "MixHopConv")])
    check_bad_input(group_lasso, [({"module": 3}, TypeError, "Module")])
