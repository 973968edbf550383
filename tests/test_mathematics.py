"""What holds whatever the data: kernels are positive, caches change nothing, memory is what was said."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from natwise.core.random import Streams
from natwise.lm import MoRConfig, MoRForCausalLM, RecursiveConfig, RecursiveForCausalLM, kv_cache_bytes, to_recursive
from natwise.samples import empirical_ntk
from natwise.structure import LinearCorEx, TCorEx

ROWS = np.random.default_rng(0).standard_normal((24, 8))


def smallest_over_largest(matrix):
    values = np.linalg.eigvalsh(np.asarray(matrix, dtype=float))
    return values[0] / values[-1]


class Tokens(torch.nn.Module):
    """Embeds the signs of the inputs, so that all kinds of layers have a kernel here."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.out = torch.nn.Embedding(2, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.norm(self.embedding((x > 0).long())).mean(1))


def networks():
    yield "wide", torch.nn.Sequential(torch.nn.Linear(8, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    yield (
        "convolution",
        torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 8)),
            torch.nn.Conv1d(1, 4, 3),
            torch.nn.GELU(),
            torch.nn.Flatten(),
            torch.nn.Linear(24, 3),
        ),
    )
    yield "tokens", Tokens()


with Streams(0).torch_global("init"):
    NETWORKS = {name: module.double().eval() for name, module in networks()}


@pytest.mark.parametrize("outputs", ["all", "mean"])
@pytest.mark.parametrize("method", ["structured", "jacobian", "projected", "last_layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tangent_kernels_are_symmetric_and_positive(name, method, outputs):
    kernel = empirical_ntk(NETWORKS[name], ROWS, method=method, outputs=outputs, n_projections=30)
    np.testing.assert_allclose(kernel, kernel.T, rtol=1e-12, atol=1e-12)
    assert smallest_over_largest(kernel) > -1e-12


@pytest.mark.parametrize("n", [4, 24, 200])
def test_covariances_are_positive_definite_whatever_the_number_of_rows(n):
    X = np.random.default_rng(1).standard_normal((n, 2))[:, [0, 0, 0, 1, 1, 1]]
    X = X + 0.3 * np.random.default_rng(2).standard_normal(X.shape)
    models = [LinearCorEx(2, max_iter=300, tol=1e-3, random_state=0).fit(X).covariance_]
    models += list(TCorEx(2, max_iter=30, tol=1e-2, random_state=0).fit(X, np.arange(n) % 2).covariances_)
    for covariance in models:
        np.testing.assert_allclose(covariance, covariance.T, rtol=1e-6)
        assert smallest_over_largest(covariance) > 0


def test_a_kernel_beyond_the_memory_is_refused_with_its_bytes():
    rows = np.zeros((3_000_000, 1))
    module = torch.nn.Linear(1, 2).eval()
    with pytest.raises(ValueError, match=f"{(6_000_000**2) * 4:,} bytes"):
        empirical_ntk(module, rows)


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES |= {"max_position_embeddings": 64, "initializer_range": 0.2}
IDS = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(0))


def models():
    yield "recursive", RecursiveForCausalLM(RecursiveConfig(**SIZES, num_hidden_layers=4, num_loops=2, lora_rank=2))
    source = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=4))
    yield "converted", to_recursive(source.eval(), num_loops=2, init="average", lora_rank=3)
    for kv in ("cache", "share"):
        yield f"mixture, {kv}", MoRForCausalLM(MoRConfig(**SIZES, num_hidden_layers=6, num_recursions=2, kv=kv))


with Streams(1).torch_global("init"):
    MODELS = {name: model.double().eval() for name, model in models()}


def one_by_one(model, ids):
    cache, logits = None, []
    for position in range(ids.shape[1]):
        output = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("name", MODELS)
def test_language_models_are_exact(name, tmp_path):
    """At once, with a cache, token by token, padded on the left, alone or in company, and from a file: the same."""
    model = MODELS[name]
    with torch.no_grad():
        whole = model(input_ids=IDS, use_cache=False).logits
        ways = {"with a cache": model(input_ids=IDS, use_cache=True).logits, "one by one": one_by_one(model, IDS)}
        ways["alone"] = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in IDS])
        mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(IDS)], 1)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        ways["padded"] = model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, 3:]
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
        ways["from a file"] = again(input_ids=IDS, use_cache=False).logits
    for way, logits in ways.items():
        tolerance = 5e-6 if way == "padded" else 1e-10  # transformers turns positions into angles in single precision
        torch.testing.assert_close(logits, whole, rtol=0, atol=tolerance, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("name", ["recursive", "converted"])
def test_bytes_of_the_cache_are_those_said(name):
    model = MODELS[name]
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert kv_cache_bytes(model, seq_len=IDS.shape[1], batch_size=2) == held


def test_one_loop_is_the_plain_model():
    with Streams(2).torch_global("init"):
        source = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3)).double().eval()
    with torch.no_grad():
        plain, looped = source(input_ids=IDS).logits, to_recursive(source, num_loops=1)(input_ids=IDS).logits
    torch.testing.assert_close(looped, plain, rtol=0, atol=1e-12)
