import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from natwise.core.linearized import empirical_ntk
from natwise.core.linearized._layers import Network
from natwise.testing import check_bad_input


class Residual(nn.Module):
    """In-place activations and a skip connection."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.c(x + torch.relu_(self.b(F.relu(self.a(x), inplace=True))))


class Tied(nn.Module):
    """The embedding is the output matrix."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 4)
        self.out = nn.Linear(4, 9, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(self.embedding(x))).mean(1))


class Elsewhere(nn.Module):
    """A weight that is also used outside its layer, and a parameter without a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.scale = nn.Linear(5, 5), nn.Linear(5, 2), nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.c(self.scale * torch.tanh(F.linear(torch.tanh(self.a(x)), self.a.weight)))


class Twice(nn.Module):
    """A layer that is applied twice."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.c(torch.tanh(self.a(torch.tanh(self.a(x)))))


class TimeFirst(nn.Module):
    """The first axis inside is not the samples."""

    def __init__(self):
        super().__init__()
        self.h, self.o = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(torch.tanh(self.h(x.transpose(0, 1))).sum(0))


class Returning(nn.Linear):
    """A linear layer whose output is handed to a function."""

    def __init__(self, function):
        super().__init__(3, 1)
        self.function = function

    def forward(self, x):
        return self.function(super().forward(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.h, self.o = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.o(self.h(x)[0][:, -1])


class Tokens(nn.Module):
    """A long embedded sequence: few features, many positions."""

    def __init__(self, n_tokens):
        super().__init__()
        self.e, self.n, self.h = nn.Embedding(n_tokens, 4, padding_idx=0), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.h(torch.tanh(self.n(self.e(x)))).mean(1)


def convolutional():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, (3, 1), dilation=(1, 2), padding="same", padding_mode="circular"), nn.GroupNorm(2, 6),
        nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(54, 3),
    )  # fmt: skip
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def sequential(*layers):
    return lambda: nn.Sequential(*layers)


def frozen():
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


CASES = {  # module, shape of a sample (None: tokens), parameters that need the fallback
    "mlp": (sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), (5,), 0),
    "positions": (sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten()), (3, 5), 0),
    "residual": (Residual, (5,), 0),
    "conv2d": (convolutional, (4, 9, 9), 0),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 4, stride=2, padding="valid"), nn.BatchNorm1d(4), nn.Tanh(),
            nn.Conv1d(4, 2, 4, padding="same", dilation=2), nn.LayerNorm([2, 8]), nn.Flatten(), nn.Linear(16, 1),
        ).eval(), (3, 18), 0),
    "tokens": (lambda: Tokens(9), None, 0),
    "many tokens": (lambda: Tokens(500), None, 0),
    "frozen parameters": (frozen, (5,), 0),
    "tied": (Tied, None, 1),
    "elsewhere": (Elsewhere, (5,), 3),
    "twice": (Twice, (5,), 2),
    "time first": (TimeFirst, (6, 5), 2),
    "lstm": (Recurrent, (3, 5), 4),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0), nn.Flatten(), nn.Linear(18, 2)
        ).eval(), (3, 6), 4),
    "unknown layers": (
        sequential(nn.Unflatten(1, (1, 5)), nn.ConvTranspose1d(1, 2, 3), nn.PReLU(), nn.Flatten(), nn.Linear(14, 2)),
        (5,), 3),
}  # fmt: skip


def build(name):
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    make, shape, n_fallback = CASES[name]
    module = make()
    inputs = torch.randint(0, 9, (7, 6)) if shape is None else torch.randn(7, *shape, dtype=torch.float64)
    torch.set_rng_state(torch_state)
    return module, inputs, n_fallback


def explicit(module, inputs):
    """The kernel from one backward pass per sample and output."""
    module = copy.deepcopy(module).double()
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for sample in inputs:
        for output in module(sample[None]).flatten():
            gradient = torch.autograd.grad(
                output, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([part.flatten() for part in gradient]))
    jacobian = torch.stack(rows)
    return (jacobian @ jacobian.T).numpy()


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*nested tensor")
def test_equals_the_explicit_jacobian(name):
    module, inputs, n_fallback = build(name)
    expected = explicit(module, inputs)
    k = len(expected) // len(inputs)
    mean = np.einsum("iojo->ij", expected.reshape(7, k, 7, k)) / k
    single = empirical_ntk(module, inputs, dtype="float32")
    assert single.dtype == np.float32
    assert relative(single, expected) < 1e-5
    module = module.double()
    assert relative(empirical_ntk(module, inputs), expected) < 1e-10
    assert relative(empirical_ntk(module, inputs, method="jacobian"), expected) < 1e-10
    assert relative(empirical_ntk(module, inputs[:3], inputs, max_bytes=2000), expected[: 3 * k]) < 1e-10
    assert relative(empirical_ntk(module, inputs, outputs="mean"), mean) < 1e-10
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert len(Network(module, parameters, inputs[:6], structured=True).fallback) == n_fallback


def test_module_inputs_and_generators_are_left_alone():
    module, inputs, _ = build("conv2d")
    module = module.double()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    state, before = torch.get_rng_state(), copy.deepcopy(module)
    given = inputs.clone()
    with torch.no_grad():
        empirical_ntk(module, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, given)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    assert module[3].weight.grad is None
    assert not any(child._forward_hooks for child in module.modules())
    assert not module.training


def test_last_layer_is_the_kernel_of_its_inputs():
    module, inputs, _ = build("mlp")
    module = module.double()
    hidden = module[1](module[0](inputs)).detach().numpy()
    kernel = hidden @ hidden.T + 1.0
    assert np.allclose(empirical_ntk(module, inputs, method="last_layer"), np.kron(kernel, np.eye(3)))
    assert np.allclose(empirical_ntk(module, inputs, method="last_layer", outputs="mean"), kernel)


def test_projection_is_unbiased_seeded_and_exact_when_it_keeps_everything():
    module, inputs, _ = build("conv1d")
    exact = empirical_ntk(module, inputs, dtype="float64")
    everything = empirical_ntk(module, inputs, method="projected", n_projections=1000, dtype="float64")
    assert np.allclose(everything, exact)
    draws = [
        empirical_ntk(module, inputs, method="projected", n_projections=30, dtype="float64", random_state=seed)
        for seed in range(40)
    ]
    assert relative(np.mean(draws, axis=0), exact) < 0.05
    again = empirical_ntk(module, inputs[:2], inputs, method="projected", n_projections=30, dtype="float64")
    assert np.allclose(again, draws[0][:2])


def test_bad_input():
    good = {"module": nn.Linear(3, 1), "X": np.ones((4, 3))}
    dropout = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))
    unstable = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval()
    huge = np.broadcast_to(np.ones(3), (3_000_000, 3))
    check_bad_input(
        empirical_ntk,
        [
            ({"module": dropout}, ValueError, "Dropout '1' in training mode"),
            ({"module": nn.BatchNorm1d(3)}, ValueError, "training mode"),
            ({"module": unstable}, ValueError, "without running statistics"),
            ({"module": nn.Linear(3, 1).requires_grad_(False)}, ValueError, "require a gradient"),
            ({"module": lambda x: x}, TypeError, "torch.nn.Module"),
            ({"module": Returning(lambda y: (y, y))}, TypeError, "must return a tensor"),
            ({"module": Returning(torch.sum)}, ValueError, "one row of outputs"),
            ({"X": np.full((2, 3), np.nan)}, ValueError, "finite"),
            ({"X": np.full((2, 3), 1e300)}, ValueError, "finite in torch.float32"),
            ({"X": torch.ones(2, 3) * 1j}, TypeError, "numeric"),
            ({"X": np.ones((0, 3))}, ValueError, "at least one sample"),
            ({"method": "structrued"}, ValueError, "Did you mean 'structured'"),
            ({"outputs": "sum"}, ValueError, "'mean'"),
            ({"dtype": "float16"}, ValueError, "float32 or float64"),
            ({"n_projections": 0}, ValueError, ">= 1"),
            ({"max_bytes": -1}, ValueError, ">= 1"),
        ],
        **good,
    )
    with pytest.raises(ValueError, match=r"36,000,000,000,000 bytes.*outputs='mean'"):
        empirical_ntk(good["module"], huge)
