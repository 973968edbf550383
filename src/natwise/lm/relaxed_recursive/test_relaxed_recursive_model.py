"""The model inside transformers: caches, padding, search, checkpoints, gradients, batching."""

import copy

import pytest
import torch
from numpy.testing import assert_allclose
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.cache_utils import DynamicCache

from natwise.lm import RecursiveConfig, RecursiveForCausalLM, to_recursive
from natwise.lm.relaxed_recursive.test_relaxed_recursive import FAMILIES, source
from natwise.testing import check_bad_input

GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
PROMPTS = [torch.randint(3, 48, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 9, 7)]


def recursive(family="llama", rank=4, loops=2, **fields):
    return to_recursive(source(family, **fields), loops, "average", rank).eval()


def alone(model, prompt):
    return model.generate(prompt[None], **GREEDY)[0, len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_caches_agree(family, tmp_path):
    """Uncached, cached, token by token, static, and after a round trip through a file."""
    model, ids = recursive(family), torch.stack([PROMPTS[1], PROMPTS[1].flip(0)])
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(ids.shape[1])]
    assert_allclose(torch.cat(steps, 1), whole, atol=1e-5)
    dynamic = model.generate(ids, **GREEDY)
    assert torch.equal(dynamic, model.generate(ids, use_cache=False, **GREEDY))
    assert torch.equal(dynamic, model.generate(ids, cache_implementation="static", **GREEDY))
    assert torch.equal(dynamic, model.unroll().generate(ids, **GREEDY))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is RecursiveForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_left_padding_changes_nothing(family):
    model, longest = recursive(family), max(map(len, PROMPTS))
    padded = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0)) for one in PROMPTS])
    mask = torch.stack([torch.arange(longest) >= longest - len(one) for one in PROMPTS]).long()
    together = model.generate(padded, attention_mask=mask, **GREEDY)[:, longest:]
    for one, prompt in zip(together, PROMPTS, strict=True):
        assert torch.equal(one, alone(model, prompt))


def test_search_and_assistance():
    model = recursive(layers=6)
    beams = {**GREEDY, "num_beams": 2}
    assert torch.equal(model.generate(PROMPTS[0][None], **beams), model.unroll().generate(PROMPTS[0][None], **beams))
    draft = recursive(layers=6, loops=3, rank=None)
    assisted = model.generate(PROMPTS[0][None], assistant_model=draft, **GREEDY)[0, len(PROMPTS[0]) :]
    assert torch.equal(assisted, alone(model, PROMPTS[0]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_continuous_batching_gives_the_same_tokens():
    model = recursive()
    settings = GenerationConfig(**{**GREEDY, "eos_token_id": -1})
    answers = model.generate_batch([one.tolist() for one in PROMPTS], generation_config=settings)
    assert len(answers) == len(PROMPTS)
    for answer in answers.values():
        prompt = next(one for one in PROMPTS if one.tolist() == list(answer.prompt_ids))
        assert answer.generated_tokens == alone(model, prompt).tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_stored_once(tmp_path, tied):
    model = recursive(layers=6, tie_word_embeddings=tied)
    first, fourth = model.model.layers[0].mlp, model.model.layers[3].mlp
    assert first.up_proj.weight is fourth.up_proj.weight
    assert first.up_proj.lora_a is not fourth.up_proj.lora_a
    count = sum(parameter.numel() for parameter in model.parameters())
    matrices = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24
    deltas = 4 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24))
    assert count == 3 * (matrices + 2 * 16) + 6 * deltas + 16 + (1 if tied else 2) * 48 * 16
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == count  # noqa: SIM118
    for other in (AutoModelForCausalLM.from_pretrained(tmp_path), copy.deepcopy(model), model.double()):
        assert sum(parameter.numel() for parameter in other.parameters()) == count


def test_a_checkpoint_is_not_read_with_other_layers(tmp_path):
    model = recursive(layers=6)
    model.save_pretrained(tmp_path / "recursive")
    for wrong in ({"num_loops": 3}, {"sharing": "sequence"}, {"lora_rank": 2}, {"lora_rank": None}):
        name = next(iter(wrong))
        with pytest.raises(ValueError, match=f"{name} is .* in the checkpoint"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "recursive", **wrong)
        other = RecursiveConfig(**{**model.config.to_dict(), **wrong})
        with pytest.raises(ValueError, match=f"{name} is .* in the checkpoint"):
            RecursiveForCausalLM.from_pretrained(tmp_path / "recursive", config=other)
    model.unroll().save_pretrained(tmp_path / "vanilla")
    with pytest.raises(ValueError, match=r"natwise_recursive.*llama"):
        RecursiveForCausalLM.from_pretrained(tmp_path / "vanilla")


def gradients(model, **options):
    model.zero_grad()
    ids = torch.stack([PROMPTS[1], PROMPTS[1].flip(0)])
    model(ids, labels=ids, **options).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradients():
    """Shared weights get the sum over depths; checkpointing changes nothing."""
    model = recursive(layers=6).train()
    plain, unrolled = gradients(model), gradients(model.unroll())
    for name in ("mlp.up_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight"):
        parts = [unrolled[f"model.layers.{depth}.{name}"] for depth in (1, 4)]
        assert_allclose(plain[f"model.layers.1.{name}"], sum(parts), atol=1e-5)
    model.activation_checkpointing_enable()
    for options in ({}, {"output_exits": True}):
        checkpointed = gradients(model, use_cache=False, **options)
        assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@torch.no_grad()
def test_exits_are_norm_and_head_after_each_loop():
    model, ids = recursive(layers=6, loops=3), PROMPTS[1][None]
    output = model(ids, output_exits=True)
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(output.exit_logits) == 3
    for depth, logits in zip((2, 4), output.exit_logits, strict=False):
        assert torch.equal(logits, model.lm_head(model.model.norm(states[depth])))
    assert torch.equal(output.exit_logits[-1], output.logits)
    middle = to_recursive(source(layers=6), 2, sharing="middle_cycle")
    with pytest.raises(ValueError, match="output_exits needs sharing='cycle'"):
        middle(ids, output_exits=True)


def test_tokens_beyond_the_positions_are_refused():
    model, cache = recursive(), DynamicCache()
    whole, one = torch.zeros(1, 64, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    model(whole, past_key_values=cache)
    packed = torch.cat([torch.arange(40), torch.arange(30)])[None]
    assert model(packed % 48, position_ids=packed).logits.shape == (1, 70, 48)
    cases = [
        (lambda: model(torch.cat([whole, one], 1)), "input_ids .* must stay within .*=64 tokens, got 65"),
        (lambda: model(one, past_key_values=cache), "input_ids .* must stay within .*=64 tokens, got 65"),
        (lambda: model.generate(whole[:, :60], **GREEDY), "prompt must stay within .*=64 tokens, got 65"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_calls():
    model, ids = recursive(), torch.arange(6)[None]
    cases = [
        ({"input_ids": ids.float()}, TypeError, "integers"),
        ({"input_ids": ids.tolist()}, TypeError, "tensor"),
        ({"input_ids": ids + 48}, ValueError, "0..47"),
        ({"input_ids": ids[:, :0]}, ValueError, "hold tokens"),
        ({"labels": ids[:, :5]}, ValueError, "shape of the input"),
        ({"labels": ids + 48}, ValueError, "0..47"),
        ({"labels": ids * 0 - 100}, ValueError, "counts, got none"),
    ]
    check_bad_input(lambda **given: model(**given), cases, input_ids=ids)
    assert torch.equal(model(ids, labels=ids.int()).loss, model(ids, labels=ids).loss)


@torch.no_grad()
def test_outputs_and_settings_are_those_of_the_vanilla_class():
    vanilla = source()
    model, ids = to_recursive(vanilla, 2), PROMPTS[0][None]
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)
    model.generation_config.max_length = 7
    assert vanilla.generation_config.max_length != 7
    model.resize_token_embeddings(50)
    assert model(ids).logits.shape[-1] == 50


def test_new_models_are_random_and_tied():
    config = RecursiveConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=2, num_loops=3,
        lora_rank=2,
    )  # fmt: skip
    assert config.layer_map == [0, 1, 0, 1, 0, 1]
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in RecursiveForCausalLM(config).parameters())
    model = RecursiveForCausalLM(config)
    layers = model.model.layers
    assert layers[0].mlp.up_proj.weight is layers[4].mlp.up_proj.weight
    assert all((layer.mlp.up_proj.lora_b == 0).all() for layer in layers)
    assert 0.005 < float(layers[0].mlp.up_proj.weight.detach().std()) < 0.05
    assert model.conversion is None
