import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from natwise.core.random import global_generators_kept
from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM
from natwise.lm.mixture_of_recursions._cache import MoRCache

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
