"""Conversion: layer maps, low-rank deltas, folded norms, sizes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from natwise.core.io import load_npz
from natwise.lm import RecursiveConfig, RecursiveForCausalLM, to_recursive
from natwise.lm.relaxed_recursive import study
from natwise.lm.relaxed_recursive._folding import fold_norms
from natwise.lm.relaxed_recursive._layers import INITS, SHARINGS, layer_map, plan_layers
from natwise.lm.relaxed_recursive._lowrank import low_rank
from natwise.testing import check_bad_input, check_result, unchanged

# Reference numbers of the original implementation of the sharing strategies, on layers filled with their number and on
# a random tiny Llama; the optima are tails of singular values.
GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
SIZES = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
KV = {"num_key_value_heads": 2}
FAMILIES = {
    "llama": KV,
    "mistral": {**KV, "sliding_window": 5},
    "qwen2": KV,
    "qwen3": {**KV, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5},
    "gpt_neox": {"rotary_pct": 0.5},
}
IDS = torch.randint(3, 48, (2, 9), generator=torch.Generator().manual_seed(0))


def source(family="llama", layers=4, noise=0.1, **fields):
    """A model whose layers differ in everything, norms and biases too."""
    sizes = {**SIZES, "num_hidden_layers": layers, "max_position_embeddings": 64, **FAMILIES[family], **fields}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
        for parameter in model.parameters():
            parameter.data += noise * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(ids).logits


def float64_tolerance(family):
    return 1e-6 if "gemma" in family else 1e-10  # Gemma's norms multiply by their gains in float32 whatever comes


def test_layer_maps_are_the_original_ones():
    for (n, loops, sharing, init), sources, unique in zip(
        GOLDEN["cases"], GOLDEN["sources"], GOLDEN["maps"], strict=True
    ):
        options = {"init": str(init), "sharing": str(sharing), "on_indivisible": "drop"}
        plan = plan_layers(int(n), int(loops), **options)
        found = [np.mean(plan.sources[layer]) for layer in plan.layer_map]
        assert plan.layer_map == unique[unique >= 0].tolist()
        assert_allclose(found, sources[sources >= 0], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(1, 6), st.sampled_from(SHARINGS), st.sampled_from(INITS), st.booleans())
def test_plans_are_consistent(n, loops, sharing, init, extends):
    if n - 2 * sharing.startswith("middle") < loops:
        return
    plan = plan_layers(
        n, loops, init=init, sharing=sharing, on_indivisible="extend" if extends else "drop", random_state=0
    )
    depth = len(plan.layer_map)
    assert plan.layer_map == layer_map(depth, loops, sharing)
    assert abs(depth - n) < loops
    assert depth >= n if extends else depth <= n
    assert plan.kept == sorted(plan.kept)
    assert {plan.kept[0], plan.kept[-1]} == {0, n - 1} or depth == 1
    assert len(plan.sources) == max(plan.layer_map) + 1
    assert all(0 <= layer < n for group in plan.sources for layer in group)


@pytest.fixture(scope="module")
def golden_source():
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    weights = {name[6:]: torch.from_numpy(value) for name, value in GOLDEN.items() if name.startswith("orig::")}
    model.load_state_dict(weights, strict=False)
    return model


@pytest.mark.parametrize("init", ["average", "stepwise"])
def test_deltas_reach_the_published_residuals(golden_source, init):
    model = to_recursive(golden_source, 2, init, 4)
    report = model.conversion
    by_name = {f"model.{row}": i for i, row in enumerate(report.rows)}
    order = [by_name[name] for name in GOLDEN["names"]]
    for key in ("error", "optimum"):
        assert_allclose(report.arrays[key][order], GOLDEN[f"optimum::{init}"], atol=1e-5)
    check_result(report)
    if init == "average":
        for name in GOLDEN["names"]:
            module = model.get_submodule(name)
            assert_allclose((module.lora_b @ module.lora_a).detach(), GOLDEN[f"BA::{name}"], atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_against_the_slow_reference(rank):
    """Shared weights, deltas and the report, written out in float64."""
    model = source().double()
    recursive = to_recursive(model, 2, "average", rank)
    for i, row in enumerate(recursive.conversion.rows):
        _, depth, name = row.split(".", 2)
        weights = [model.model.layers[layer].get_submodule(name).weight.detach().numpy() for layer in range(4)]
        shared = (weights[int(depth) % 2] + weights[int(depth) % 2 + 2]) / 2
        u, s, v = np.linalg.svd(weights[int(depth)] - shared, full_matrices=False)
        kept = min(rank, *shared.shape)
        module = recursive.model.layers[int(depth)].get_submodule(name)
        assert_allclose(module.weight.detach(), shared, atol=1e-14)
        assert_allclose(module.merged().detach(), shared + (u[:, :kept] * s[:kept]) @ v[:kept], atol=1e-12)
        report = {key: recursive.conversion.arrays[key][i] for key in ("residual", "error", "optimum", "rank")}
        expected = [np.linalg.norm(s), np.linalg.norm(s[kept:]), np.linalg.norm(s[kept:]), kept]
        assert_allclose(list(report.values()), expected, atol=1e-12)


def test_residuals_of_an_average_cancel_and_errors_fall():
    model = source(layers=6)
    weights = [layer.mlp.up_proj.weight for layer in model.model.layers]
    recursive = to_recursive(model, 3, "average")
    shared = recursive.model.layers[1].mlp.up_proj.weight
    assert_allclose(sum(weights[i] - shared for i in (1, 3, 5)).detach(), np.zeros((24, 16)), atol=1e-6)
    errors = [to_recursive(model, 2, "average", r).conversion.arrays["error"] for r in (1, 4, 16)]
    assert (np.diff(errors, axis=0) <= 1e-6).all()
    zero = to_recursive(model, 2, "average", 4, "zero")
    assert torch.equal(logits(zero), logits(to_recursive(model, 2, "average")))
    assert_allclose(zero.conversion.arrays["error"], zero.conversion.arrays["residual"])


def test_selected_layers_start_from_zero():
    recursive = to_recursive(source(), 2, "stepwise", 4, random_state=0)
    for depth, zero in enumerate([True, False, False, True]):
        delta = recursive.model.layers[depth].mlp.up_proj
        assert bool((delta.lora_b == 0).all()) == zero
        assert (delta.lora_a != 0).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_with_folded_norms_is_the_source(family):
    model = source(family)
    with unchanged(model.state_dict()):
        exact = to_recursive(model, 2, "average", 512, "svd", True)
    assert (logits(exact) - logits(model)).abs().max() <= 1e-4
    assert (logits(to_recursive(model, 2, "average", 512)) - logits(model)).abs().max() > 1e-2
    unrolled = exact.unroll()
    assert (logits(unrolled) - logits(model)).abs().max() <= 1e-4
    assert type(unrolled) is type(model)
    assert unrolled.config.to_dict() == model.config.to_dict()
    assert torch.equal(logits(to_recursive(model, 1)), logits(model))
    wide = model.double()
    exact = to_recursive(wide, 2, "average", 512, "svd", True)
    assert (logits(exact) - logits(wide)).abs().max() <= float64_tolerance(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_no_output(family):
    model = source(family).double()
    before = logits(model)
    for layer in model.base_model.layers:
        layer.load_state_dict(fold_norms(dict(layer.named_parameters()), family))
    assert_allclose(logits(model), before, atol=float64_tolerance(family))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("policy", ["drop", "extend"])
def test_depth_that_loops_do_not_divide(sharing, policy):
    model = source(layers=7)
    recursive = to_recursive(model, 3, sharing=sharing, on_indivisible=policy)
    depth = {"drop": 6, "extend": 9}[policy] if "middle" not in sharing else {"drop": 5, "extend": 8}[policy]
    assert recursive.config.num_hidden_layers == len(recursive.model.layers) == depth
    assert torch.isfinite(logits(recursive)).all()


@pytest.mark.parametrize(("family", "loops", "rank"), [("gemma", 3, 256), ("llama", 2, 64), ("gpt_neox", 2, 512)])
def test_published_sizes(family, loops, rank):
    """On the meta device: nothing is allocated; Gemma's keys and values, 256 wide, cap the rank."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **study.SHAPES[family]))
    recursive = to_recursive(model, loops, "average", rank)
    assert all(parameter.is_meta for parameter in recursive.parameters())
    assert recursive.conversion is None
    size = sum(parameter.numel() for parameter in recursive.model.layers.parameters() if parameter.ndim == 2)
    assert round(size / 1e9, 3) == study.PUBLISHED[family][loops, rank]


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
@pytest.mark.parametrize("noise", [1.0, 1e-4])
def test_randomised_decomposition_is_near_the_optimum(shape, noise):
    """Also where almost nothing is left: squares of the singular values would drown it in float32."""
    generator = torch.Generator().manual_seed(0)
    matrix = noise * torch.randn(shape, generator=generator)
    matrix += torch.randn((shape[0], 8), generator=generator) @ torch.randn((8, shape[1]), generator=generator)
    found = low_rank(matrix, 8, generator)
    tail = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[8:]
    assert_allclose(found.optimum, np.linalg.norm(tail), rtol=1e-5)
    assert found.optimum * (1 - 1e-5) <= found.error <= 1.01 * found.optimum
    assert_allclose(found.error, torch.linalg.matrix_norm(matrix - found.b @ found.a), rtol=1e-3)


def test_study_draws_what_it_measured():
    result = study.run("eckart-young", scale="ci", seed=0)
    assert 0 <= result.scalars["mean_excess"] <= result.scalars["worst_excess"] <= 0.01
    (axes,) = study.figure("eckart-young", result).axes
    assert len(axes.get_lines()) == result.arrays["y"].shape[1]


def test_random_layers_follow_the_seed():
    model = source(layers=6)
    first, same, other = (to_recursive(model, 2, "random", random_state=seed) for seed in (0, 0, 3))
    assert torch.equal(logits(first), logits(same))
    assert not torch.equal(logits(first), logits(other))
    assert to_recursive(model, 2).conversion.provenance["seconds"] >= 0


def test_half_precision_is_decomposed_wide():
    model = source().bfloat16()
    recursive = to_recursive(model, 2, "average", 8)
    assert {parameter.dtype for parameter in recursive.parameters()} == {torch.bfloat16}
    wide = to_recursive(source(), 2, "average", 8).conversion.arrays["error"]
    assert_allclose(recursive.conversion.arrays["error"], wide, rtol=0.05, atol=0.01)


def broken(change):
    model = source()
    change(model)
    return model


def test_bad_input():
    def poison(model):
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")

    def swap(model):
        model.model.layers[2].mlp.up_proj = torch.nn.Linear(16, 8, bias=False)

    def quantise(model):
        layer = model.model.layers[0].mlp.up_proj
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)

    mixtral = AutoConfig.for_model("mixtral", **SIZES, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=2)
    cases = [
        ({"num_loops": 3}, ValueError, "num_loops must divide num_hidden_layers=4"),
        ({"num_loops": 0}, ValueError, "must be >= 1"),
        ({"num_loops": 2.0}, TypeError, "must be an integer"),
        ({"num_loops": 9, "on_indivisible": "drop"}, ValueError, "at most 4"),
        ({"num_loops": 4, "sharing": "middle_cycle"}, ValueError, "at most 2"),
        ({"init": "stepwize"}, ValueError, "Did you mean 'stepwise'"),
        ({"sharing": "cyclic"}, ValueError, "must be one of"),
        ({"on_indivisible": "pad"}, ValueError, "must be one of"),
        ({"lora_rank": 0}, ValueError, ">= 1"),
        ({"lora_rank": 1.5}, TypeError, "integer"),
        ({"lora_init": "gaussian"}, ValueError, "must be one of"),
        ({"fold_norms": 1}, TypeError, "True or False"),
        ({"random_state": "a", "init": "random"}, TypeError, "random_state"),
        ({"model": torch.nn.Linear(2, 2)}, TypeError, "PreTrainedModel"),
        ({"model": LlamaModel(source().config)}, ValueError, "head"),
        ({"model": AutoModelForCausalLM.from_config(mixtral)}, ValueError, "mixtral"),
        ({"model": to_recursive(source(), 2)}, ValueError, "must be of type"),
        ({"model": broken(poison)}, ValueError, "layers.1.mlp.up_proj"),
        ({"model": broken(swap)}, ValueError, "layer 2"),
        ({"model": broken(quantise)}, ValueError, "quantised"),
        ({"model": source("gemma2", layers=6)}, ValueError, "layer_types"),
        ({"model": source("gpt_neox", attention_bias=False), "fold_norms": True}, ValueError, "bias"),
    ]
    cases[-2][0]["num_loops"] = 2
    check_bad_input(to_recursive, cases, model=source(), num_loops=2)


def test_bad_configurations():
    good = {**SIZES, "num_hidden_layers": 4, "num_loops": 2}
    cases = [
        ({"num_loops": 3}, ValueError, "must divide"),
        ({"num_loops": 0}, ValueError, ">= 1"),
        ({"lora_rank": 0}, ValueError, ">= 1"),
        ({"sharing": "circle"}, ValueError, "Did you mean"),
        ({"base_model_type": "gpt2"}, ValueError, "must be one of"),
        ({"tie_vectors": "yes"}, TypeError, "True or False"),
        ({"hidden_size": "16"}, TypeError, "integer"),
        ({"vocab_size": 0}, ValueError, ">= 1"),
        ({"rms_norm_eps": "small"}, ValueError, "float"),
    ]
    check_bad_input(lambda **fields: RecursiveForCausalLM(RecursiveConfig(**fields)), cases, **good)
    check_bad_input(RecursiveForCausalLM, [({"config": source().config}, TypeError, "RecursiveConfig")])
