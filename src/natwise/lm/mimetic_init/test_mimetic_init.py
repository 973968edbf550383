"""Scans against the recurrence, layers against transformers', and what the initialisation changes."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.functional import softplus
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from natwise.core.random import global_generators_kept
from natwise.lm import (
    Mamba1,
    Mamba2,
    MambaLM,
    mimetic_init_,
    parameter_groups,
    safe_decay,
    ssd_attention_map,
    ssd_scan,
)
from natwise.lm.mimetic_init._init import best_factors
from natwise.lm.mimetic_init._mamba import causal_convolution
from natwise.lm.mimetic_init._scan import selective_scan
from natwise.testing import check_bad_input

# reference numbers of independent float64 recurrences, checked against the public implementations
GOLDEN = np.load(Path(__file__).parent / "golden.npz")


def golden(prefix):
    return {k.removeprefix(prefix): torch.from_numpy(GOLDEN[k]) for k in GOLDEN.files if k.startswith(prefix)}


def slow_scan(x, dt, A, B, C, state=None):
    """The recurrence, step by step."""
    heads = x.shape[2]
    B, C = (part.repeat_interleave(heads // B.shape[2], dim=2) for part in (B, C))
    state = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[-1], dtype=x.dtype) if state is None else state
    ys = []
    for t in range(x.shape[1]):
        state = (dt[:, t] * A).exp()[..., None, None] * state
        state = state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        ys.append((state @ C[:, t, :, :, None])[..., 0])
    return torch.stack(ys, dim=1), state


def draw(seed, b=2, t=11, h=4, p=3, g=2, n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    A = -normal(h).exp()
    return normal(b, t, h, p), softplus(normal(b, t, h)), A, normal(b, t, g, n), normal(b, t, g, n)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 23, 64])
def test_reference_scan_and_gradients(chunk_size):
    data = golden("ssd_")
    inputs = [data[name].requires_grad_() for name in ("x", "dt", "A", "B", "C")]
    y, state = ssd_scan(*inputs, chunk_size=chunk_size)
    assert_allclose(y.detach(), data["y"], rtol=0, atol=1e-12)
    assert_allclose(state.detach(), data["final_state"], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad((y * data["w"]).sum(), inputs)
    for name, gradient in zip(("gx", "gdt", "gA", "gB", "gC"), gradients, strict=True):
        assert_allclose(gradient, data[name], rtol=0, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    t=st.integers(1, 20),
    groups=st.sampled_from([1, 2, 4]),
    chunk_size=st.integers(1, 25),
    split=st.integers(0, 19),
    told=st.sampled_from(["y", "state", "both"]),
)
def test_scan_and_gradients_equal_the_recurrence_and_can_be_split(seed, t, groups, chunk_size, split, told):
    initial = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = [part.requires_grad_() for part in (*draw(seed, t=t, g=groups), initial)[: 6 - seed % 2]]

    def answer(scan, *options):
        y, state = scan(*inputs[:5], *options, *inputs[5:])
        loss = (y.sin().sum() if told != "state" else 0) + (state.cos().sum() if told != "y" else 0)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return y.detach(), state.detach(), *gradients

    for ours, slow in zip(answer(ssd_scan, chunk_size), answer(slow_scan), strict=True):
        assert_allclose(ours, slow, rtol=1e-10, atol=1e-10)
    if 0 < split < t:
        x, dt, A, B, C = (part.detach() for part in inputs[:5])
        first, second = ([part[:, s] for part in (x, dt)] + [A] + [part[:, s] for part in (B, C)]
                         for s in (slice(split), slice(split, None)))  # fmt: skip
        y1, state = ssd_scan(*first, chunk_size=chunk_size)
        y2, state = ssd_scan(*second, chunk_size=chunk_size, initial_state=state)
        y, whole = ssd_scan(x, dt, A, B, C)
        assert_allclose(torch.cat([y1, y2], 1), y, rtol=1e-10, atol=1e-10)
        assert_allclose(state, whole, rtol=1e-10, atol=1e-10)


def test_scan_gradcheck():
    inputs = [part.requires_grad_() for part in draw(0, b=1, t=5, h=2, p=2, g=1, n=2)]
    state = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *parts: ssd_scan(*parts[:5], 2, parts[5]), (*inputs, state))


def test_limits_of_the_decay():
    x, dt, A, B, C = draw(1)
    B2, C2 = (part.repeat_interleave(2, dim=2) for part in (B, C))
    scores = torch.einsum("bihn,bjhn->bhij", C2, B2).tril() * dt.transpose(1, 2)[:, :, None]
    linear_attention = torch.einsum("bhij,bjhp->bihp", scores, x)
    assert_allclose(ssd_scan(x, dt, 0 * A, B, C, 4)[0], linear_attention, rtol=1e-10, atol=1e-12)
    alone = scores.diagonal(dim1=2, dim2=3).transpose(1, 2)[..., None] * x
    assert_allclose(ssd_scan(x, dt, -1e6 + 0 * A, B, C, 4)[0], alone, rtol=1e-10, atol=1e-12)


def test_strong_decay_over_a_long_time_in_float32():
    inputs = draw(2, b=1, t=600, dtype=torch.float32)
    inputs = (*inputs[:2], -16 + 0 * inputs[2], *inputs[3:])
    precise = slow_scan(*(part.double() for part in inputs))[0]
    assert_allclose(ssd_scan(*inputs, chunk_size=256)[0], precise, rtol=0, atol=2e-5)


def test_low_precision_keeps_one_dtype_in_both_directions():
    for layer in (Mamba2(16, d_state=8, head_dim=8, chunk_size=8, random_state=0), Mamba1(16, random_state=0)):
        u = torch.randn(2, 21, 16, generator=torch.Generator().manual_seed(0))
        precise = layer(u).detach()
        with torch.autocast("cpu", torch.bfloat16):
            rough = layer(u)
        rough.float().sum().backward()
        assert_allclose(rough.detach().float(), precise, rtol=0, atol=0.02 * precise.abs().max())
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_convolution_is_that_of_torch(taps):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv1d(5, 5, taps, groups=5, padding=taps - 1).double()
    x = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    ours, torchs = causal_convolution(x, conv), conv(x.mT)[..., :6].mT
    assert_allclose(ours.detach(), torchs.detach(), rtol=1e-12, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), inputs) for y in (ours, torchs)), strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_attention_map_is_the_layer():
    inputs = draw(3)
    M = ssd_attention_map(*inputs[1:])
    assert_allclose(torch.einsum("bhij,bjhp->bihp", M, inputs[0]), ssd_scan(*inputs)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 7])
def test_selective_scan(t):
    generator = torch.Generator().manual_seed(t)
    shapes = (2, t, 3), (2, t, 3), (3, 4), (2, t, 4), (2, t, 4)
    x, dt, A, B, C = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    state, expected = torch.zeros(2, 3, 4, dtype=torch.float64), []
    for i in range(t):
        state = (dt[:, i, :, None] * -A).exp() * state + (dt * x)[:, i, :, None] * B[:, i, None]
        expected.append((state * C[:, i, None]).sum(-1))
    inputs = [part.requires_grad_() for part in (x, dt, -A, B, C)]
    assert_allclose(selective_scan(*inputs).detach(), torch.stack(expected, 1), rtol=1e-12)
    torch.autograd.gradcheck(selective_scan, inputs)


def load(layer, prefix):
    names = {"conv": "conv1d", "norm_w": "norm.weight"}
    state = {}
    for name, value in golden(prefix).items():
        head, *tail = name.split("__")
        state[".".join([names.get(head, head), *tail])] = value
    u, y = state.pop("u"), state.pop("y")
    layer.double().load_state_dict(state)
    return u, y


def test_reference_layers():
    for layer, prefix in (
        (Mamba2(16, d_state=8, head_dim=8), "mamba2_"),
        (Mamba1(16, d_state=6, dt_rank=1), "mamba1_"),
    ):
        u, y = load(layer, prefix)
        assert_allclose(layer(u).detach(), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_parity_with_transformers_mamba2(groups):
    sizes = {"state_size": 8, "head_dim": 8, "num_heads": 4, "n_groups": groups}
    with global_generators_kept():
        theirs = Mamba2Mixer(Mamba2Config(hidden_size=16, num_hidden_layers=1, chunk_size=8, **sizes), 0).eval()
    ours = Mamba2(16, d_state=8, head_dim=8, n_groups=groups)
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(2, 21, 16, generator=torch.Generator().manual_seed(0))
    assert_allclose(ours(u).detach(), theirs(u).detach(), rtol=0, atol=1e-5)


def test_parity_with_transformers_mamba1():
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4)
    with global_generators_kept():
        theirs = MambaMixer(config, 0).eval()
    ours = Mamba1(16, d_state=4)
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(2, 21, 16, generator=torch.Generator().manual_seed(0))
    assert_allclose(ours(u).detach(), theirs(u).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mixer", [Mamba1, Mamba2])
def test_models_are_causal_and_repeat(mixer):
    options = {"d_state": 4} | ({"head_dim": 8} if mixer is Mamba2 else {})
    model = MambaLM(11, 8, 2, mixer=mixer, random_state=0, **options)
    again = MambaLM(11, 8, 2, mixer=mixer, random_state=0, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    tokens = torch.randint(11, (1, 12), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 7] = (other[0, 7] + 1) % 11
    a, b = model(tokens), model(other)
    assert torch.equal(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


def test_reference_initialisation():
    data = golden("mimetic_")
    d, n, p, inner, _ = data["dims"].tolist()
    layer = Mamba2(d, d_state=n, head_dim=p).double()
    assert inner == layer.d_inner
    with torch.no_grad():
        layer.in_proj.weight.copy_(data["in_proj_before"])
    u = data["emb"][data["ids"]]
    mimetic_init_(layer, conv=True)
    assert_allclose(layer.in_proj.weight.detach(), data["in_proj_after"], rtol=0, atol=1e-15)
    assert_allclose(layer.A_log.detach(), data["A_log"])
    assert_allclose(layer.dt_bias.detach(), data["dt_bias"], rtol=0, atol=1e-7)
    assert_allclose(layer.conv1d.weight.detach(), data["conv_w"])
    maps = layer.attention_map(u).detach()
    assert_allclose(maps, data["M_mimetic"], rtol=0, atol=1e-7)
    assert_allclose(repeated_over_others(maps, data["ids"][0]), data["ratio"][1], rtol=1e-6)


def repeated_over_others(maps, ids):
    """Mean size of M over pairs of equal tokens at different places, over that of all other pairs."""
    same = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
    past = torch.ones(len(ids), len(ids), dtype=torch.bool).tril(-1)
    size = maps.abs().mean(dim=(0, 1))
    return size[same & past].mean() / size[~same & past].mean()


def test_reference_attention():
    data = golden("attention_")
    identity = torch.eye(24, dtype=torch.float64)
    for name, matrix in (("QK", 0.7 * data["Z1"] + 0.7 * identity), ("VO", 0.4 * data["Z2"] - 0.4 * identity)):
        left, right = best_factors(matrix, 24)
        assert_allclose(left @ right.T, data[name], rtol=0, atol=1e-10)


def test_attention_layers_get_the_best_low_rank_factors():
    layer = mimetic_init_(nn.MultiheadAttention(12, 3), random_state=0)
    queries, keys, values = layer.in_proj_weight.detach().double().view(3, 12, 12)
    for head in range(3):
        product = queries[4 * head : 4 * head + 4].T @ keys[4 * head : 4 * head + 4]
        assert np.linalg.matrix_rank(product, tol=1e-5) == 4
        assert product.trace() > 1  # the part along the identity
    assert (values.T @ layer.out_proj.weight.detach().double().T).trace() < -2
    again = mimetic_init_(nn.MultiheadAttention(12, 3), random_state=0)
    assert torch.equal(layer.in_proj_weight, again.in_proj_weight)


def transformers_layers():
    with global_generators_kept():
        mamba2 = Mamba2Mixer(
            Mamba2Config(hidden_size=16, num_hidden_layers=1, state_size=8, head_dim=8, num_heads=4), 0
        )
        mamba1 = MambaMixer(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4), 0)
    return mamba2, mamba1


@pytest.mark.parametrize("which", ["ours2", "ours1", "theirs2", "theirs1"])
@pytest.mark.parametrize("conv", [False, True])
def test_only_what_is_named_changes(which, conv):
    theirs2, theirs1 = transformers_layers()
    layer = {"ours2": Mamba2(16, d_state=8, head_dim=8), "ours1": Mamba1(16, d_state=4), "theirs2": theirs2, "theirs1": theirs1}[which]  # fmt: skip # noqa: E501
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    generator = torch.get_rng_state()
    assert mimetic_init_(layer, conv=conv) is layer
    assert torch.equal(generator, torch.get_rng_state())
    after = layer.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {"A_log", "in_proj.weight", "dt_bias"} if "2" in which else {"A_log", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"}  # fmt: skip # noqa: E501
    assert changed == expected | ({"conv1d.weight", "conv1d.bias"} if conv else set())
    assert layer.A_log._no_weight_decay
    if "2" in which:
        old, new = before["in_proj.weight"], after["in_proj.weight"]
        start, n = 2 * layer.out_proj.in_features, (layer.conv1d.in_channels - layer.out_proj.in_features) // 2
        B, C = old[start : start + n], old[start + n : start + 2 * n]
        assert torch.equal(new[: start + n], old[: start + n])
        assert_allclose(new[start + n : start + 2 * n], (B + C) / 2, atol=1e-6)
        assert not new[start + 2 * n :].any()


def test_steps_are_one_and_decays_equal():
    layer = mimetic_init_(Mamba2(16, d_state=8, head_dim=8, random_state=0), decay=6.0)
    u = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    *_, dt, _, _ = layer._project(u)
    assert_allclose(dt.detach(), 1.0, atol=1e-6)
    assert_allclose(layer.A_log.detach(), -6.0)
    assert_allclose(math.exp(-300 * math.exp(-safe_decay(300, 0.9))), 0.9)
    with pytest.warns(UserWarning, match="max_length=10000"):
        mimetic_init_(Mamba2(16, d_state=8, head_dim=8), max_length=10_000)
    mimetic_init_(Mamba2(16, d_state=8, head_dim=8), max_length=10_000, state=False)  # nothing to warn of


def test_repeated_tokens_attend_to_each_other():
    ratios = []
    generator = torch.Generator().manual_seed(0)
    ids, embedding = torch.tensor([3, 1, 2, 0, 4, 3, 1, 2, 0, 4]), torch.randn(5, 64, generator=generator)
    for mimetic in (False, True):
        layer = Mamba2(64, d_state=32, head_dim=32, random_state=0)
        if mimetic:
            mimetic_init_(layer, conv=True)
        ratios.append(float(repeated_over_others(layer.attention_map(embedding[ids][None]).detach(), ids)))
    assert ratios[1] > 2 > ratios[0]


def test_marked_parameters_do_not_decay():
    model = MambaLM(7, 8, 2, d_state=4, head_dim=8)
    groups = parameter_groups(model, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {id(p) for p in groups[1]["params"]} == {id(p) for m in model.layers for p in (m.A_log, m.dt_bias, m.D)}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


@pytest.mark.parametrize("linear", [0, 6])
def test_layers_of_mamba_ssm_are_recognised_by_their_attributes(linear):
    """A part of the inner width may be a gated linear unit: rows before the gate, and columns after y."""
    layer = Mamba2(16, d_state=8, head_dim=8)
    stranger = type("Mamba2", (nn.Module,), {})()
    for name in ("conv1d", "A_log", "dt_bias", "D"):
        setattr(stranger, name, getattr(layer, name))
    stranger.in_proj = nn.Linear(16, 2 * linear + layer.in_proj.out_features, bias=False)
    stranger.out_proj = nn.Linear(linear + 32, 16)
    stranger.d_ssm, stranger.dt_limit = 32, (0.0, float("inf"))
    before = stranger.in_proj.weight.detach().clone()
    mimetic_init_(stranger)
    after = stranger.in_proj.weight.detach()
    start = 2 * linear + 64
    assert torch.equal(after[: start + 8], before[: start + 8])
    assert_allclose(after[start + 8 : start + 16], (before[start : start + 8] + before[start + 8 : start + 16]) / 2)
    assert not after[start + 16 :].any()
    assert_allclose(layer.A_log.detach(), -8.0)


def test_a_failed_call_changes_nothing():
    first, second = Mamba2(16, d_state=8, head_dim=8), Mamba2(16, d_state=8, head_dim=8)
    mimetic_init_(second)
    before = first.A_log.clone()
    with pytest.raises(ValueError, match="twice"):
        mimetic_init_(nn.ModuleList([first, second]))
    assert torch.equal(first.A_log, before)


def limited():
    layer = Mamba2(16, d_state=8, head_dim=8)
    layer.time_step_limit = (0.001, 0.1)
    return layer


def quantised():
    layer = Mamba2(16, d_state=8, head_dim=8)
    layer.in_proj = SimpleModule()
    return layer


class SimpleModule(nn.Module):
    def weight(self):
        """Quantised linear layers unpack their weight by a call."""


def test_bad_input():
    x, dt, A, B, C = draw(0)
    cases = [
        ({"chunk_size": 0}, ValueError, "0"),
        ({"x": x[0]}, ValueError, "(11, 4, 3)"),
        ({"dt": dt[:, :-1]}, ValueError, "(2, 10, 4)"),
        ({"A": A[:3]}, ValueError, "(3,)"),
        ({"B": B[:, :, :1].repeat(1, 1, 3, 1)}, ValueError, "4"),
        ({"C": C[..., :4]}, ValueError, "(2, 11, 2, 4)"),
        ({"x": x.long()}, TypeError, "torch.int64"),
        ({"x": x.numpy()}, TypeError, "ndarray"),
        ({"x": x[0, 0].to_sparse()}, TypeError, "dense"),
        ({"dt": dt * math.inf}, ValueError, "finite"),
        ({"dt": -dt}, ValueError, ">= 0"),
        ({"A": -A}, ValueError, "<= 0"),
        ({"C": C * math.nan}, ValueError, "finite"),
        ({"initial_state": x}, ValueError, "(2, 4, 3, 5)"),
    ]
    check_bad_input(ssd_scan, cases, x=x, dt=dt, A=A, B=B, C=C)
    cases = [
        ({"dt": dt[0]}, ValueError, "(11, 4)"),
        ({"dt": None}, TypeError, "None"),
        ({"A": A * math.nan}, ValueError, "finite"),
        ({"B": B[:, :3]}, ValueError, "(2, 3, 2, 5)"),
    ]
    check_bad_input(ssd_attention_map, cases, dt=dt, A=A, B=B, C=C)
    cases = [
        ({"module": nn.Linear(2, 2)}, TypeError, "Mamba2Mixer"),
        ({"module": SimpleNamespace()}, TypeError, "SimpleNamespace"),
        ({"module": limited()}, ValueError, "0.1"),
        ({"module": quantised()}, ValueError, "another kind"),
        ({"blend": 1.5}, ValueError, "1.5"),
        ({"conv": "no"}, TypeError, "'no'"),
        ({"state": 1}, TypeError, "True or False"),
        ({"decay": math.nan}, ValueError, "nan"),
        ({"decay": 1e300}, ValueError, "60"),
        ({"decay": -100.0}, ValueError, "-10"),
        ({"max_length": 0}, ValueError, "0"),
        ({"max_length": 0, "state": False}, ValueError, "0"),
        ({"random_state": "a"}, TypeError, "random_state"),
    ]
    check_bad_input(mimetic_init_, cases, module=nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match="module must have float weights in memory"):
        mimetic_init_(Mamba2(16, d_state=8, head_dim=8).to("meta"))
    cases = [({"head_dim": 5}, ValueError, "5"), ({"n_groups": 3}, ValueError, "3"), ({"d_state": 0}, ValueError, "0")]
    check_bad_input(Mamba2, cases, d_model=16, head_dim=8)
    for layer in (Mamba2(16, head_dim=8), Mamba1(16)):
        cases = [
            ({"u": x[0]}, ValueError, "(11, 4, 3)"),
            ({"u": x}, ValueError, "16"),
            ({"u": x.long()}, TypeError, "int64"),
            ({"u": [[1.0]]}, TypeError, "tensor"),
            ({"u": x * math.nan}, ValueError, "finite"),
            ({"u": torch.zeros(0, 3, 16)}, ValueError, "(0, 3, 16)"),
        ]
        check_bad_input(layer, cases, u=x)
    cases = [({"mixer": nn.Linear}, ValueError, "Mamba1"), ({"tie_embeddings": "no"}, TypeError, "'no'")]
    check_bad_input(MambaLM, cases, vocabulary=3, d_model=8, n_layers=1, head_dim=8)
    tokens = torch.zeros((1, 4), dtype=torch.int64)
    cases = [
        ({"tokens": tokens + 3}, ValueError, "0 … 2"),
        ({"tokens": tokens - 1}, ValueError, "got -1"),
        ({"tokens": tokens[0]}, ValueError, "(4,)"),
        ({"tokens": tokens[:, :0]}, ValueError, "(1, 0)"),
        ({"tokens": tokens.float()}, TypeError, "float32"),
        ({"tokens": tokens.to_sparse()}, TypeError, "dense"),
        ({"tokens": tokens.numpy()}, TypeError, "array"),
    ]
    check_bad_input(MambaLM(3, 8, 1, head_dim=8), cases, tokens=tokens)
    cases = [({"model": 3}, TypeError, "int"), ({"weight_decay": -1.0}, ValueError, "-1")]
    check_bad_input(parameter_groups, cases, model=nn.Linear(2, 2), weight_decay=0.1)
    assert_allclose(safe_decay(10**400), 400 * math.log(10) - math.log(-math.log(0.9)))
    check_bad_input(safe_decay, [({"length": 0}, ValueError, "0"), ({"kept": 1.0}, ValueError, "1")], length=5)
