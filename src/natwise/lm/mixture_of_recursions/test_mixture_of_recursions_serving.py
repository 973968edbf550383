from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from natwise.core.random import global_generators_kept
from natwise.lm import RecursiveConfig, RecursiveForCausalLM
from natwise.lm.mixture_of_recursions import DepthwiseBatchingEngine, MoRConfig, MoRForCausalLM
from natwise.lm.mixture_of_recursions._serving import serving_benchmark
from natwise.testing import check_bad_input, check_result

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {
    "cache": (MoRConfig, {"num_hidden_layers": 8}),
    "share": (MoRConfig, {"num_hidden_layers": 8, "kv": "share", "sampling": "aux_router"}),
    "cycle": (MoRConfig, {"num_hidden_layers": 3, "sharing": "cycle", "gating": "additive"}),
    "token": (MoRConfig, {"num_hidden_layers": 5, "routing": "token_choice"}),
    "narrow": (MoRConfig, {"num_hidden_layers": 5, "capacity": [0.6, 0.5, 0.2]}),  # some tokens skip the loop
    "recursive": (RecursiveConfig, {"num_hidden_layers": 6, "num_loops": 3}),
    "relaxed": (RecursiveConfig, {"num_hidden_layers": 6, "num_loops": 3, "lora_rank": 3, "tie_vectors": False}),
    "qwen3": (RecursiveConfig, {"num_hidden_layers": 3, "num_loops": 3, "base_model_type": "qwen3", "head_dim": 4}),
    "gpt_neox": (RecursiveConfig, {"num_hidden_layers": 3, "num_loops": 3, "base_model_type": "gpt_neox"}),
}
models = pytest.mark.parametrize("name", MODELS)


def make(name):
    config, options = MODELS[name]
    kind = MoRForCausalLM if config is MoRConfig else RecursiveForCausalLM
    with global_generators_kept():
        torch.manual_seed(0)
        model = kind(config(**{**SIZES, **options})).eval()
        for weight_name, weight in model.named_parameters():
            if weight_name.endswith(("lora_b", "norm.weight", "layernorm.weight")):
                torch.nn.init.normal_(weight, mean=0.5, std=0.3)
    return model.double()


def some_requests(seed=0, n=5, n_loops=None):
    rng = np.random.default_rng(seed)
    found = []
    for length, new in zip(rng.integers(1, 7, n), rng.integers(1, 6, n), strict=True):
        found.append({"input_ids": rng.integers(1, 40, length), "max_new_tokens": int(new)})
        if n_loops:
            found[-1]["exits"] = rng.integers(1, n_loops + 1, new).tolist()
    return found


def greedy(model, request):
    ids = torch.from_numpy(request["input_ids"])[None]
    found = model.generate(input_ids=ids, max_new_tokens=request["max_new_tokens"], do_sample=False)
    return found[0, ids.shape[1] :].tolist()


@models
def test_tokens_are_those_of_one_request_at_a_time(name):
    model, requests = make(name), some_requests()
    expected = [greedy(model, request) for request in requests]
    for schedule in ("depthwise", "sequence", "static"):
        engine = DepthwiseBatchingEngine(model, 3, schedule=schedule)
        assert engine.generate(requests) == expected
    assert engine.generate(requests[::-1]) == expected[::-1]  # nothing is left of the requests before


@models
def test_exits_do_not_depend_on_the_company(name):
    model, requests = make(name), some_requests(1, n_loops=3)
    policies = [None] if isinstance(model, MoRForCausalLM) else ["copy_hidden", "recompute"]
    for policy in [*policies, "recursion_wise", "share_first"] if name in ("recursive", "relaxed") else policies:
        alone = DepthwiseBatchingEngine(model, 1, missing_kv=policy)
        expected = alone.generate(requests)
        assert alone.stats["block_calls"] == sum(sum(one["exits"]) for one in requests)
        for lora in ("gather", "grouped") if name == "relaxed" else ("gather",):
            assert DepthwiseBatchingEngine(model, 4, missing_kv=policy, lora=lora).generate(requests) == expected


@torch.no_grad()
def test_recomputed_keys_are_those_of_a_full_pass():
    """With true keys and values a token that exits after loop e is the argmax of the full model's exit e."""
    for name in ("recursive", "relaxed", "gpt_neox"):
        model = make(name)
        for request in some_requests(2, n=3, n_loops=3):
            ids, expected = torch.from_numpy(request["input_ids"])[None], []
            for loop in request["exits"]:
                logits = model(input_ids=ids, output_exits=True).exit_logits[loop - 1]
                expected.append(int(logits[0, -1].argmax()))
                ids = torch.cat([ids, torch.tensor([[expected[-1]]])], dim=1)
            engine = DepthwiseBatchingEngine(model, 2, missing_kv="recompute")
            assert engine.generate([request, request]) == [expected, expected]


# golden_token.npz holds two queues (exits of 64 and 100 requests) and the calls of the block that an independent
# scheduler needed for them: sequence-wise and depth-wise, each without and with exits.
@pytest.mark.parametrize("queue", [0, 1])
def test_definition_of_the_schedules(queue):
    stored = np.load(Path(__file__).parent / "golden_token.npz")
    n_loops, n_slots, *expected = stored[f"schedule_{queue}"].tolist()
    ends = stored[f"lengths_{queue}"].cumsum()
    exits = [one.tolist() for one in np.split(stored[f"exits_{queue}"], ends[:-1])]
    full = [[n_loops] * len(one) for one in exits]
    found = [simulate(given, n_slots, depthwise) for depthwise in (False, True) for given in (full, exits)]
    assert found == expected


def simulate(exits, n_slots, depthwise):
    """Count the calls of the block by the definition of the schedules (all requests wait from the start)."""
    queue, slots, calls = [list(one) for one in exits], [], 0
    while queue or slots:
        while queue and len(slots) < n_slots:
            slots.append([queue.pop(0), 0])
        calls += 1 if depthwise else max(tokens[0] for tokens, _ in slots)
        for slot in slots:
            slot[1] += 1
            if not depthwise or slot[1] == slot[0][0]:
                slot[0].pop(0)
                slot[1] = 0
        slots = [slot for slot in slots if slot[0]]
    return calls


@pytest.mark.parametrize("seed", [0, 1])
def test_calls_are_those_of_the_scheduler(seed):
    model, rng = make("recursive"), np.random.default_rng(seed)
    requests = [
        {"input_ids": [1], "max_new_tokens": int(n), "exits": rng.integers(1, 4, n)} for n in rng.integers(1, 7, 10)
    ]
    for schedule in ("depthwise", "sequence"):
        for early in (False, True):
            given = [{**one, "exits": one["exits"] if early else None} for one in requests]
            engine = DepthwiseBatchingEngine(model, 4, schedule=schedule)
            engine.generate(given)
            exits = [one["exits"].tolist() if early else [3] * one["max_new_tokens"] for one in requests]
            assert engine.stats["block_calls"] == simulate(exits, 4, schedule == "depthwise")
            assert engine.stats["rows"] == sum(map(sum, exits))


def test_threshold_and_end_of_text():
    model, requests = make("recursive"), some_requests()
    everything = DepthwiseBatchingEngine(model, 2, threshold=0.0)
    everything.generate(requests)
    tokens = sum(one["max_new_tokens"] for one in requests)
    assert everything.stats["rows"] == tokens
    nothing = DepthwiseBatchingEngine(model, 2, threshold=1.0)
    full = nothing.generate(requests)
    assert nothing.stats["rows"] == 3 * tokens
    stop = full[0][0]
    cut = DepthwiseBatchingEngine(model, 2, eos_token_id=stop).generate(requests)
    assert cut == [one[: one.index(stop) + 1] if stop in one else one for one in full]
    assert DepthwiseBatchingEngine(model, 2).generate([]) == []


def test_benchmark_is_a_result():
    result = serving_benchmark(make("cache"), n_slots=3, n_requests=5, new_tokens=3, repeats=2)
    check_result(result)
    assert result.scalars["identical"] == 1
    assert result.scalars["calls_sequence"] == result.scalars["calls_depthwise"]
    assert result.scalars["calls_depthwise_exits"] < result.scalars["calls_depthwise"]


def test_bad_benchmarks():
    counts = ("n_slots", "n_requests", "new_tokens", "prompt_length", "repeats")
    bad = [({name: 0}, ValueError, ">= 1") for name in counts]
    check_bad_input(serving_benchmark, [*bad, ({"model": "model"}, TypeError, "MoRForCausalLM")], model=None)


def test_bad_input():
    model, good = make("recursive"), {"input_ids": [1, 2], "max_new_tokens": 2}
    with global_generators_kept():
        plain = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2))
        hybrid = MoRForCausalLM(MoRConfig(**SIZES, num_hidden_layers=8, kv="hybrid"))
        sequence = RecursiveForCausalLM(RecursiveConfig(**SIZES, num_hidden_layers=6, num_loops=3, sharing="sequence"))
    check_bad_input(
        lambda **given: DepthwiseBatchingEngine(**given),
        [
            ({"max_slots": 0}, ValueError, ">= 1"),
            ({"max_slots": 2.5}, TypeError, "integer"),
            ({"schedule": "depth"}, ValueError, "depthwise"),
            ({"threshold": 1.5}, ValueError, "<= 1.0"),
            ({"missing_kv": "copy"}, ValueError, "copy_hidden"),
            ({"lora": "bmm"}, ValueError, "gather"),
            ({"model": "path"}, TypeError, "MoRForCausalLM"),
            ({"model": plain}, TypeError, "LlamaForCausalLM"),
            ({"model": hybrid}, ValueError, "hybrid"),
            ({"model": sequence}, ValueError, "sequence"),
            ({"model": make("cache"), "missing_kv": "recompute"}, ValueError, "recursion_wise"),
            ({"model": make("cache"), "threshold": 0.5}, ValueError, "routers"),
        ],
        model=model,
        max_slots=2,
    )
    check_bad_input(
        lambda requests: DepthwiseBatchingEngine(model, 2).generate([good, requests]),
        [
            ({"requests": [1, 2]}, TypeError, "dict"),
            ({"requests": {"input_ids": [1]}}, ValueError, "max_new_tokens"),
            ({"requests": {**good, "exit": [1]}}, ValueError, "exits"),
            ({"requests": {**good, "input_ids": []}}, ValueError, "0..39"),
            ({"requests": {**good, "input_ids": [1, 40]}}, ValueError, "0..39"),
            ({"requests": {**good, "input_ids": [0.5]}}, ValueError, "whole"),
            ({"requests": {**good, "input_ids": "text"}}, TypeError, "numeric"),
            ({"requests": {**good, "max_new_tokens": 0}}, ValueError, ">= 1"),
            ({"requests": {**good, "max_new_tokens": 63}}, ValueError, "64"),
            ({"requests": {**good, "exits": [1]}}, ValueError, "shape (2)"),
            ({"requests": {**good, "exits": [0, 1]}}, ValueError, "1..3"),
            ({"requests": {**good, "exits": [1, 4]}}, ValueError, "1..3"),
        ],
    )
    wrong = [({"requests": one}, TypeError, "sequence of dicts") for one in (None, good, "text")]
    check_bad_input(DepthwiseBatchingEngine(model, 2).generate, wrong)
