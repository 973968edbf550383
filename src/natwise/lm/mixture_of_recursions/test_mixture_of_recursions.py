import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from natwise.core.random import global_generators_kept
from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM
from natwise.lm.mixture_of_recursions._cache import MoRCache
from natwise.testing import check_bad_input

FOLDER = Path(__file__).parent
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "num_hidden_layers": 8,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
VARIANTS = {
    "cache": {},
    "share": {"kv": "share"},
    "hybrid": {"kv": "hybrid", "router": "mlp"},
    "cycle": {"sharing": "cycle", "num_recursions": 2, "router_activation": "tanh", "tie_attention": False},
    "sequence": {"sharing": "middle_sequence", "gating": "additive", "alpha": 1.0},
    "aux_router": {"sampling": "aux_router", "router": "wide_mlp", "sampling_first": False},
    "narrow": {"capacity": [0.8, 0.5, 0.2]},
    "softmax": {"routing": "token_choice"},
    "sigmoid": {"routing": "token_choice", "router_activation": "sigmoid", "kv": "hybrid"},
    "loss_free": {"routing": "token_choice", "balancing": "loss_free", "kv": "share"},
}


def make(seed=0, **options):
    with global_generators_kept():
        torch.manual_seed(seed)
        return MoRForCausalLM(MoRConfig(**{**SIZES, **options})).eval()


def some_ids(*shape, seed=0):
    return torch.randint(1, 40, shape, generator=torch.Generator().manual_seed(seed))


variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


# Both golden files: weights, input and outputs of the original implementation (a tiny Llama, d = 32, 8 layers, 3
# recursions, run once on a CPU); causal_*: the threshold rule, token by token in float64. Each weight is kept once.
def original(name):
    stored = np.load(FOLDER / name)
    flat = stored["weights"].T.copy().view(np.float32).ravel()
    names = json.loads(str(stored["names"]))
    weights = {name: torch.from_numpy(flat[at : at + np.prod(shape)]).view(shape) for name, shape, at in names}
    return stored, MoRForCausalLM.from_official_state_dict(str(stored["config_json"]), weights)


@pytest.mark.parametrize("name", ["golden.npz", "golden_token.npz"])
def test_training_pass_is_that_of_the_original(name):
    stored, model = original(name)
    ids = torch.from_numpy(stored["input_ids"])
    with torch.no_grad():
        found = model.train()(input_ids=ids, labels=ids, num_items_in_batch=ids.numel())
    assert np.abs(found.logits.numpy() - stored["logits"]).max() <= 2e-5
    assert abs(float(found.lm_loss) - float(stored["loss"])) <= 1e-5
    for key in ("sampling_loss", "router_z_loss", "balancing_loss", "balancing_ratio"):
        np.testing.assert_allclose(getattr(found, key), stored[key], atol=1e-5)
    assert abs(float(found.sampling_accuracy) - float(stored["sampling_acc"])) <= 1e-6
    for r in (1, 2, 3):
        if f"selected_{r}" in stored:
            np.testing.assert_array_equal(found.selected_positions[r - 1], stored[f"selected_{r}"])
    assert model.config.tie_attention == (name == "golden_token.npz")


def test_causal_pass_is_that_of_the_reference():
    stored, model = original("golden.npz")
    with torch.no_grad():
        found = model.eval()(input_ids=torch.from_numpy(stored["input_ids"]))
    assert np.abs(found.logits[0].numpy() - stored["causal_logits_0"]).max() <= 1e-5
    for row in (0, 1):
        np.testing.assert_array_equal(found.depths[row], stored[f"causal_depth_{row}"])


@variants
@torch.no_grad()
def test_all_ways_to_compute_agree(options, tmp_path):
    """Whole, left padded, right padded, in chunks, token by token, and after a round trip through a file."""
    model = make(**options).double()
    lengths = (11, 7, 3)
    ids = some_ids(3, 11)
    mask = torch.arange(11) >= 11 - torch.tensor(lengths)[:, None]
    alone = [model(input_ids=ids[i : i + 1, 11 - n :]) for i, n in enumerate(lengths)]
    padded = model(input_ids=ids, attention_mask=mask.long())
    other = model(input_ids=torch.stack([torch.cat([row[m], row[~m]]) for row, m in zip(ids, mask, strict=True)]),
                  attention_mask=mask.flip(1).long())  # fmt: skip
    for i, n in enumerate(lengths):
        torch.testing.assert_close(padded.logits[i, 11 - n :], alone[i].logits[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(other.logits[i, :n], alone[i].logits[0], atol=1e-10, rtol=0)
        assert padded.depths[i, 11 - n :].tolist() == alone[i].depths[0].tolist()
        assert padded.depths[i, : 11 - n].tolist() == [0] * (11 - n)
    for steps in ([1] * 11, [4, 1, 6], [10, 1]):
        cache, parts, past = MoRCache(model.config), [], 0
        for step in steps:
            past += step
            parts.append(model(input_ids=ids[:, past - step : past], attention_mask=mask[:, :past].long(),
                               past_key_values=cache).logits)  # fmt: skip
        torch.testing.assert_close(torch.cat(parts, 1)[mask], padded.logits[mask], atol=1e-10, rtol=0)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(again(input_ids=ids, attention_mask=mask.long()).logits, padded.logits)


@variants
@torch.no_grad()
def test_earlier_logits_do_not_see_the_last_token(options):
    model = make(**options)
    ids = some_ids(2, 12)
    other = ids.clone()
    other[:, -1] = 41 - ids[:, -1] if 41 - ids[0, -1] < 40 else 1
    before, after = (model(input_ids=one).logits[:, :-1] for one in (ids, other))
    assert (before - after).abs().max() <= 1e-6
    if not options:  # while top-k looks ahead
        before, after = (model(input_ids=one, selection="top_k").logits[:, :-1] for one in (ids, other))
        assert (before - after).abs().max() > 1e-3


@torch.no_grad()
def test_generation_is_the_same_with_and_without_a_cache():
    for options in (VARIANTS["cache"], VARIANTS["hybrid"], VARIANTS["softmax"]):
        model = make(**options)
        ids = some_ids(2, 6)
        mask = torch.ones_like(ids)
        mask[1, :3] = 0
        ids[1, :3] = 0
        given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
        greedy = model.generate(**given)
        assert greedy.tolist() == model.generate(**given, use_cache=False).tolist()
        alone = model.generate(input_ids=ids[1:, 3:], max_new_tokens=5, do_sample=False)
        assert greedy[1, 6:].tolist() == alone[0, 3:].tolist()
        beams = model.generate(**given, num_beams=2)
        assert beams.tolist() == model.generate(**given, num_beams=2, use_cache=False).tolist()
        helped = {"input_ids": ids[:1], "max_new_tokens": 5, "do_sample": False}
        assert model.generate(**helped, assistant_model=make(1)).tolist() == greedy[:1].tolist()


@variants
def test_checkpointed_gradients_are_the_same(options):
    model, ids = make(**options).double().train(), some_ids(2, 12)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss.backward()
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert any("routers" in name for name in gradients[0])


def naive_top_k(model, ids):
    """Slow float64 reference of expert choice for one sequence, token by token; Llama's own layers do the attention."""
    config, inner = model.config, model.model

    def through(layers, x, places, seen):
        rope = inner.rotary_emb(x, position_ids=torch.tensor([places]))
        mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e300)[None, None]
        for layer in layers:
            x = layer(x, attention_mask=mask, position_embeddings=rope)
        return x

    places = list(range(ids.shape[1]))
    causal = torch.tril(torch.ones(len(places), len(places), dtype=torch.bool))
    x = through(inner.layers[:1], inner.embed_tokens(ids), places, causal)
    for r, router in enumerate(inner.routers):
        scores = {place: router(x[:, place]).item() for place in places}
        k = max(1, int(config.capacity[r] * ids.shape[1]))
        places = sorted(sorted(places, key=lambda place: -scores[place])[:k])
        block = through(inner.layers[1:3], x[:, places], places, causal[:k, :k])
        x = x.clone()
        for i, place in enumerate(places):
            x[:, place] += config.alpha / (1 + np.exp(-scores[place])) * block[:, i]
    x = through(inner.layers[3:], x, list(range(ids.shape[1])), causal)
    return model.lm_head(inner.norm(x))


@torch.no_grad()
def test_against_a_slow_reference():
    model, ids = make(3).double(), some_ids(1, 14, seed=3)
    found = model(input_ids=ids, selection="top_k")
    torch.testing.assert_close(found.logits, naive_top_k(model, ids), atol=1e-10, rtol=0)
    assert [chosen.shape[1] for chosen in found.selected_positions] == [14, 9, 4]
    sets = [set(chosen[0].tolist()) for chosen in found.selected_positions]
    assert sets[2] <= sets[1] <= sets[0]
    assert all(chosen[0].tolist() == sorted(chosen[0].tolist()) for chosen in found.selected_positions)


@torch.no_grad()
def test_top_k_does_not_see_padding():
    model = make(routing="expert_choice").double()
    ids = some_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    found = model(input_ids=ids, attention_mask=mask, selection="top_k")
    alone = model(input_ids=ids[1:, 5:], selection="top_k")
    torch.testing.assert_close(found.logits[1:, 5:], alone.logits, atol=1e-10, rtol=0)
    assert [(chosen[1] >= 0).sum().item() for chosen in found.selected_positions] == [7, 4, 2]


def test_weights_are_tied_and_counted_once(tmp_path):
    model = make(tie_word_embeddings=True)
    block = 4 * 16 * 16 - 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16  # query, output, half as many keys and values; mlp; norms
    assert sum(one.numel() for one in model.model.layers.parameters()) == 4 * block
    assert model.model.attention(1) is model.model.attention(3) is model.model.attention(5)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert len(make(tie_attention=False).model.attentions) == 4
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    for (name, one), (_, two) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, two), name


def test_counters_survive_a_resume(tmp_path):
    ids = some_ids(1, 12)
    model = make(capacity_warmup_steps=4).train()
    sizes = [[one.shape[1] for one in model(input_ids=ids).selected_positions] for _ in range(2)]
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    sizes += [[one.shape[1] for one in again(input_ids=ids).selected_positions] for _ in range(3)]
    assert sizes == [[12, 12, 12], [12, 11, 10], [12, 10, 8], [12, 8, 5], [12, 8, 4]]
    balanced = make(**VARIANTS["loss_free"]).train()
    gates = balanced(input_ids=ids).balancing_ratio
    assert balanced.model.router_bias.tolist() == pytest.approx((0.001 * (1 / 3 - gates).sign()).tolist())
    balanced.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).model.router_bias, balanced.model.router_bias)


def test_losses_and_their_gradients():
    ids = some_ids(2, 12)
    model = make(sampling_coef=0.5, z_coef=0.25).train()
    with torch.no_grad():
        found = model(input_ids=ids, labels=ids)
        share = model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(44))  # one of two accumulated batches
    total = found.lm_loss + 0.5 * found.sampling_loss + 0.25 * found.router_z_loss
    torch.testing.assert_close(found.loss, total)
    torch.testing.assert_close(share.loss, total / 2)
    model = make(sampling="aux_router").train()
    model(input_ids=ids).sampling_loss.backward()
    reached = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert reached == {f"model.aux_routers.{r}.map.weight" for r in range(3)}
    balanced = make(routing="token_choice", balancing_warmup_steps=1).train()
    first, second = (balanced(input_ids=ids) for _ in range(2))
    assert set(first.depths.flatten().tolist()) == {3}
    assert set(second.depths.flatten().tolist()) > {3}
    assert second.balancing_ratio.sum().item() == pytest.approx(1.0)


def test_cache_holds_the_tokens_of_each_recursion():
    model, ids = make(), some_ids(2, 12)
    with torch.no_grad():
        found = model(input_ids=ids)
    per_recursion = [int((found.depths > r).sum()) for r in range(3)]
    assert found.past_key_values.n_entries() == [24, *per_recursion, 24]
    found.past_key_values.crop(5)
    assert found.past_key_values.n_entries() == [10, *(int((found.depths[:, :5] > r).sum()) for r in range(3)), 10]
    found.past_key_values.reset()
    assert found.past_key_values.get_seq_length() == 0


def test_bad_configurations_and_calls():
    check_bad_input(
        lambda **options: MoRConfig(**{**SIZES, **options}),
        [
            ({"num_recursions": 4}, ValueError, "such as 6 or 10, got 8"),
            ({"num_recursions": 0}, ValueError, ">= 1"),
            ({"num_recursions": 2.0}, TypeError, "integer"),
            ({"num_hidden_layers": 2}, ValueError, "multiple of num_recursions=3 plus 2"),
            ({"sharing": "middle"}, ValueError, "middle_cycle"),
            ({"routing": "expert"}, ValueError, "expert_choice"),
            ({"kv": "shared"}, ValueError, "share"),
            ({"kv": "share", "sharing": "middle_sequence"}, ValueError, "cache"),
            ({"kv": "share", "capacity": [0.9, 0.5, 0.1]}, ValueError, "begin with 1"),
            ({"capacity": [1, 0.5]}, ValueError, "3 entries"),
            ({"capacity": [1, 0.5, 0.6]}, ValueError, "not increase"),
            ({"capacity": [1, 0.5, 0]}, ValueError, "above 0"),
            ({"capacity": [1, 0.5, float("nan")]}, ValueError, "finite"),
            ({"capacity": "1,0.5,0.2"}, TypeError, "sequence"),
            ({"router_activation": "softmax"}, ValueError, "sigmoid"),
            ({"router": "Linear"}, ValueError, "linear"),
            ({"sampling": ["aux_loss", "aux_router"]}, ValueError, "one of"),
            ({"threshold": 1.5}, ValueError, "<= 1.0"),
            ({"alpha": 0.0}, ValueError, "> 0"),
            ({"z_coef": -1.0}, ValueError, ">= 0"),
            ({"temperature": "hot"}, TypeError, "number"),
            ({"hidden_size": 18}, ValueError, "multiple of num_attention_heads=4"),
            ({"hidden_size": "16"}, TypeError, "integer"),
            ({"num_key_value_heads": 3}, ValueError, "divide num_attention_heads=4"),
            ({"vocab_size": 0}, ValueError, ">= 1"),
            ({"tie_attention": 1}, TypeError, "True or False"),
        ],
    )
    model, ids = make(), some_ids(1, 6)
    with torch.no_grad():
        cache = model(input_ids=ids).past_key_values
    check_bad_input(
        lambda mode="eval", **given: getattr(model, mode)()(**given),
        [
            ({"input_ids": ids.float()}, TypeError, "integers"),
            ({"input_ids": [[1, 2]]}, TypeError, "tensor"),
            ({"input_ids": ids + 40}, ValueError, "0..39"),
            ({"input_ids": ids > 3}, TypeError, "integers"),
            ({"input_ids": ids[0]}, ValueError, "(sequences, tokens)"),
            ({"input_ids": ids[:, :0]}, ValueError, "hold tokens"),
            ({"input_ids": ids.repeat(1, 12)}, ValueError, "max_position_embeddings=64"),
            ({"input_ids": ids, "attention_mask": ids[:, :3]}, ValueError, "(1, 6)"),
            ({"input_ids": ids, "attention_mask": ids * 0}, ValueError, "at least one token"),
            ({"input_ids": ids, "attention_mask": ids * 0 + 2}, ValueError, "0 and 1"),
            ({"input_ids": ids, "attention_mask": ids.tolist()}, TypeError, "tensor"),
            ({"input_ids": ids, "position_ids": ids[:, :5]}, ValueError, "(1, 6)"),
            ({"input_ids": ids, "labels": ids[:, :5]}, ValueError, "labels"),
            ({"input_ids": ids, "labels": ids + 40}, ValueError, "0..39"),
            ({"input_ids": ids, "labels": ids * 0 - 100}, ValueError, "counts, got none"),
            ({"input_ids": ids, "labels": ids / 2}, TypeError, "integers"),
            ({"inputs_embeds": torch.full((1, 6, 16), torch.nan)}, ValueError, "finite"),
            ({"inputs_embeds": torch.zeros(1, 6, 15)}, ValueError, "hidden_size=16"),
            ({"inputs_embeds": torch.zeros(1, 6, 16).long()}, TypeError, "floats"),
            ({"input_ids": ids, "use_cache": 1}, TypeError, "True or False"),
            ({"input_ids": ids, "selection": "topk"}, ValueError, "top_k"),
            ({"input_ids": ids, "selection": np.zeros(2)}, ValueError, "top_k"),
            ({"input_ids": ids, "selection": "top_k", "past_key_values": cache}, ValueError, "yet to come"),
            ({"input_ids": ids.repeat(2, 1), "past_key_values": cache}, ValueError, "2 sequences"),
            ({"input_ids": ids, "past_key_values": []}, TypeError, "MoRCache"),
        ],
    )
    with pytest.raises(ValueError, match="yet to come"):
        make().train().generate(input_ids=ids)
    with pytest.raises(ValueError, match="yet to come"):
        make().generate(input_ids=ids, selection="top_k")
    with pytest.raises(ValueError, match="cache_implementation"):
        make().generate(input_ids=ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        make()()
    with pytest.raises(ValueError, match="max_position_embeddings=64"):
        make().generate(input_ids=ids, max_new_tokens=60)
    short = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    for given in ({"input_ids": ids[:, :2]}, {"input_ids": ids.repeat(2, 1), "attention_mask": short}):
        with pytest.warns(UserWarning, match="2 tokens with a capacity of 0.333: one token is taken"):
            make()(**given, selection="top_k")


def test_other_layers_are_not_loaded(tmp_path):
    make().save_pretrained(tmp_path)
    for wrong in ({"num_recursions": 2, "capacity": None}, {"sharing": "middle_sequence"}, {"router": "mlp"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* in the checkpoint"):
            AutoModelForCausalLM.from_pretrained(tmp_path, **wrong)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, threshold=0.7).config.threshold == 0.7
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"natwise_mor.*llama"):
        MoRForCausalLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_saturated_gates_do_not_leave_the_choice_to_chance():
    model, ids = make(router_activation="tanh"), some_ids(2, 12)
    for router in model.model.routers:
        router.map.weight *= 1e3
    before = model(input_ids=ids, selection="top_k").selected_positions
    padded = model(input_ids=torch.nn.functional.pad(ids, (3, 0)), selection="top_k",
                   attention_mask=torch.arange(15).expand(2, 15) >= 3).selected_positions  # fmt: skip
    assert [(one + 3).tolist() for one in before] == [one.tolist() for one in padded]


def test_bad_official_weights():
    check_bad_input(
        MoRForCausalLM.from_official_state_dict,
        [
            ({"config_json": "{}"}, ValueError, "'llama'"),
            ({"config_json": "{"}, ValueError, "'llama'"),
            ({"config_json": {}}, TypeError, "text"),
            ({"weights": []}, TypeError, "dict"),
            ({"weights": {}}, ValueError, "embed_tokens"),
        ],
        config_json=str(np.load(FOLDER / "golden.npz")["config_json"]),
        weights={},
    )
