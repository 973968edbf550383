"""The model: one pass equals many, cached equals uncached, thoughts and tokens agree; baselines; bad input.

golden.npz: reference numbers from the original implementation (targets, GRPO) and from independent float64 formulas
(Dirichlet densities, moments of a chain) on small fixed inputs.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from natwise.lm.continuous_cot import ContinuousCoT, coconut_loss, trace_loss
from natwise.lm.continuous_cot._distributions import evaluation
from natwise.testing import check_bad_input, same_bits, unchanged

V, STEPS = 13, 4


def gpt2(dropout=0.0):
    sizes = {"vocab_size": V, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 24, "initializer_range": 0.5}
    off = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=0, eos_token_id=0))


def llama():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, initializer_range=0.5, **sizes))


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=8, num_hidden_layers=1, state_size=4))


class PlainLM(torch.nn.Module):
    """A language model that knows neither caches nor options: a running mean and a linear map."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(V, 8)
        self.head = torch.nn.Linear(8, V)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, inputs_embeds):
        counts = torch.arange(1, inputs_embeds.shape[1] + 1)[:, None]
        hidden = (inputs_embeds.cumsum(dim=1) / counts).tanh()

        return SimpleNamespace(logits=self.head(hidden), hidden_states=(hidden,))


SINGLE = {"llama", "mamba"}  # their normalisation computes in float32, whatever the dtype
MODELS = {"gpt2": gpt2, "llama": llama, "mamba": mamba, "plain": PlainLM}


def make(name="gpt2", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ContinuousCoT(MODELS[name]()).double()


@pytest.fixture
def prompt():
    return torch.tensor([[1, 2, 3], [4, 5, 6], [7, 0, 12], [3, 3, 3], [9, 8, 7]])


@pytest.fixture
def targets(prompt):
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(len(prompt), STEPS, V, generator=generator, dtype=torch.float64)
    p[..., ::3] = 0
    return p / p.sum(dim=-1, keepdim=True)


def slow_logits(cot, prompt, feed):
    """All steps by whole passes without a cache, one prompt at a time; feed(step, logits) gives an embedding."""
    weight = cot.model.get_input_embeddings().weight
    found = []
    for one in prompt:
        inputs = weight[one][None]
        rows = []
        for step in range(STEPS):
            rows.append(cot.model(inputs_embeds=inputs).logits[0, -1])
            inputs = torch.cat([inputs, feed(len(found), step, rows[-1])[None, None]], dim=1)
        found.append(torch.stack(rows))
    return torch.stack(found)


def slow_loss(logits, targets):
    """The sum of KL divergences by a loop, skipping what has no mass."""
    total = 0.0
    for row, aim in zip(logits.log_softmax(dim=-1).flatten(0, 1), targets.flatten(0, 1), strict=True):
        for log_q, p in zip(row, aim, strict=True):
            if p > 0:
                total = total + p * (p.log() - log_q)
    return total / len(targets)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("forcing", ["hard", "soft"])
def test_loss_and_gradient_equal_step_by_step_passes(name, forcing, prompt, targets):
    cot = make(name)
    weight = cot.model.get_input_embeddings().weight

    def feed(i, step, logits):
        return (targets[i, step] if forcing == "hard" else logits.softmax(dim=-1).to(weight)) @ weight

    reference = slow_loss(slow_logits(cot, prompt, feed), targets)
    with unchanged(prompt, targets):
        loss = cot.loss(prompt, targets, forcing=forcing)
    assert loss.dtype == torch.float64
    precision = {"rtol": 1e-4, "atol": 1e-5} if name in SINGLE else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(loss, reference, **precision)
    parameters = [p for p in cot.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(reference, parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **precision)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("feedback", ["distribution", "token"])
def test_decoding_equals_uncached_passes(name, feedback, prompt):
    cot = make(name)
    weight = cot.model.get_input_embeddings().weight

    def feed(i, step, logits):
        return logits.softmax(dim=-1).to(weight) @ weight if feedback == "distribution" else weight[logits.argmax()]

    with torch.no_grad():
        reference = slow_logits(cot.eval(), prompt, feed).softmax(dim=-1)
    thought = cot.generate(prompt, STEPS, feedback=feedback)
    precision = {"rtol": 0, "atol": 1e-6 if name in SINGLE else 1e-12}
    torch.testing.assert_close(thought.distributions, reference, **precision)
    torch.testing.assert_close(thought.answer, reference[:, -1].argmax(dim=-1))
    if feedback == "distribution":
        whole = cot(prompt, thought.distributions[:, :-1]).softmax(dim=-1)
        torch.testing.assert_close(whole, reference, **precision)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_on_the_left_changes_nothing(name, prompt, targets):
    cot = make(name)
    padded = torch.cat([torch.zeros(5, 2, dtype=torch.long), prompt], dim=1)
    mask = torch.cat([torch.zeros(5, 2), torch.ones(5, 3)], dim=1)
    plain = cot.generate(prompt, STEPS).distributions
    torch.testing.assert_close(cot.generate(padded, STEPS, mask=mask).distributions, plain, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(cot.loss(padded, targets, mask=mask), cot.loss(prompt, targets), rtol=1e-9, atol=1e-9)
    tokens, final = cot.sample(prompt, STEPS, 2, 0)
    padded_tokens, padded_final = cot.sample(padded, STEPS, 2, 0, mask=mask)
    assert tokens.equal(padded_tokens)
    assert final.equal(padded_final)


def test_batch_size_and_kind_of_input_change_nothing(prompt, targets):
    cot = make()
    whole = cot.generate(prompt, STEPS).distributions
    parts = torch.cat([cot.generate(one[None], STEPS).distributions for one in prompt])
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-12)
    loss = cot.loss(prompt, targets)
    mean = torch.stack([cot.loss(p[None], t[None]) for p, t in zip(prompt, targets, strict=True)]).mean()
    torch.testing.assert_close(loss, mean)
    for as_kind in (np.asarray, lambda x: np.asarray(x).tolist()):
        assert same_bits(cot.generate(as_kind(prompt), STEPS).distributions, whole)
        torch.testing.assert_close(cot.loss(as_kind(prompt), as_kind(targets)), loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(cot.loss(prompt.int(), targets.float()), loss, rtol=1e-6, atol=1e-6)


def test_half_precision_models_have_distributions_in_single_precision(prompt, targets):
    cot = make("llama").to(torch.bfloat16)
    thought = cot.generate(prompt, STEPS)
    assert thought.distributions.dtype == torch.float32
    assert cot.loss(prompt, targets.float()).dtype == torch.float32
    torch.testing.assert_close(
        cot.loss(prompt, targets.bfloat16()).double(), cot.loss(prompt, targets), rtol=0.05, atol=0
    )
    assert float((thought.distributions.sum(dim=-1) - 1).abs().max()) < 1e-5


def test_a_wrapper_that_hands_on_what_it_gets_is_decoded_like_the_model(prompt, targets):
    cot = make()

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cot.model

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    wrapped = ContinuousCoT(Wrapper())
    torch.testing.assert_close(wrapped.loss(prompt, targets), cot.loss(prompt, targets), rtol=1e-12, atol=0)
    expected = cot.generate(prompt, STEPS).distributions
    torch.testing.assert_close(wrapped.generate(prompt, STEPS).distributions, expected, rtol=0, atol=1e-12)


def test_one_hot_distributions_decode_like_greedy_tokens(prompt):
    cot = make("plain")
    with torch.no_grad():
        cot.model.head.weight *= 1e4
    continuous, greedy = (cot.generate(prompt, STEPS, feedback=kind) for kind in ("distribution", "token"))
    torch.testing.assert_close(continuous.distributions, greedy.distributions, rtol=0, atol=1e-9)


def test_one_step_is_no_chain(prompt, targets):
    cot = make()
    thought = cot.generate(prompt, 1)
    with torch.no_grad():
        plain = cot.model(input_ids=prompt).logits[:, -1:].softmax(dim=-1)
    torch.testing.assert_close(thought.distributions, plain, rtol=1e-10, atol=1e-12)
    tokens, final = cot.sample(prompt, 1, 3, 0)
    assert tokens.shape == (5, 0, 3)
    assert final.shape == (5,)
    points, final = cot.sample_dirichlet(prompt, 1, 5.0, 0)
    assert points.shape == (5, 0, V)
    assert cot.loss(prompt, targets[:, :1]).shape == ()


def test_sampled_thoughts_are_means_of_drawn_tokens(prompt):
    cot = make()
    tokens, final = cot.sample(prompt, STEPS, 3, 7)
    assert tokens.dtype == final.dtype == torch.int64
    counts = torch.nn.functional.one_hot(tokens, V).double().mean(dim=2)
    torch.testing.assert_close(cot(prompt, tokens), cot(prompt, counts), rtol=1e-10, atol=1e-10)
    assert tokens.equal(cot.sample(prompt, STEPS, 3, 7)[0])
    assert not tokens.equal(cot.sample(prompt, STEPS, 3, 8)[0])


@pytest.mark.parametrize("ratio", ["geometric", "temperature"])
def test_tokens_follow_the_policy(ratio):
    """First thought: frequencies; K tokens have a K-th of the variance; the mean is unbiased."""
    cot, n = make(), 6000
    prompt = torch.tensor([[1, 2, 3]]).repeat(n, 1)
    logits = cot(prompt[:1], torch.zeros(1, 0, V, dtype=torch.float64))[0, 0].detach()
    spread = {}
    for k in (1, 4):
        tokens, _ = cot.sample(prompt, 2, k, 0, ratio=ratio)
        means = torch.nn.functional.one_hot(tokens[:, 0], V).double().mean(dim=1)
        expected = (logits / (k if ratio == "temperature" else 1)).softmax(dim=-1)
        torch.testing.assert_close(means.mean(dim=0), expected, rtol=0, atol=0.03)
        spread[k] = means.var(dim=0).sum() / (expected * (1 - expected)).sum()
    assert abs(4 * spread[4] / spread[1] - 1) < 0.1


def test_many_tokens_come_close_to_the_distribution(prompt):
    cot = make()
    tokens, _ = cot.sample(prompt, STEPS, 20_000, 0)
    sampled = cot(prompt, tokens).softmax(dim=-1)
    torch.testing.assert_close(sampled, cot.generate(prompt, STEPS).distributions, rtol=0, atol=0.03)


def test_dirichlet_points_lie_on_the_simplex_around_the_policy(prompt):
    cot = make()
    points, final = cot.sample_dirichlet(prompt, STEPS, 1e7, 0, floor=1e-9)
    assert points.dtype == torch.float64
    base = cot.generate(prompt, STEPS).distributions
    torch.testing.assert_close(points, base[:, :-1], rtol=0, atol=2e-3)
    wide, _ = cot.sample_dirichlet(prompt, STEPS, 0.5, 0)
    assert (wide > 0).all()
    torch.testing.assert_close(wide.sum(dim=-1), torch.ones(5, STEPS - 1, dtype=torch.float64))
    assert final.shape == (5,)


def test_decoding_and_sampling_are_in_evaluation_mode(prompt):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cot = ContinuousCoT(gpt2(dropout=0.5)).train()
        calm = copy.deepcopy(cot).eval()
    cot.model.transformer.drop.eval()  # modes of parts are as they were, too
    modes = [part.training for part in cot.modules()]
    with unchanged():
        for call in (lambda c: c.generate(prompt, 3).distributions, lambda c: c.sample(prompt, 3, 2, 0)[0]):
            assert same_bits(call(cot), call(calm))
    assert [part.training for part in cot.modules()] == modes
    with pytest.raises(ZeroDivisionError), evaluation(cot):
        raise ZeroDivisionError
    assert [part.training for part in cot.modules()] == modes


def test_coconut_feeds_hidden_states(prompt, targets):
    cot = make()
    torch.testing.assert_close(coconut_loss(cot, prompt, targets, 0), cot.loss(prompt, targets))
    weight = cot.model.get_input_embeddings().weight
    inputs, rows = weight[prompt], []
    for step in range(STEPS):
        output = cot.model(inputs_embeds=inputs, output_hidden_states=True)
        rows.append(output.logits[:, -1])
        thought = output.hidden_states[-1][:, -1:] if step < 2 else targets[:, step : step + 1] @ weight
        inputs = torch.cat([inputs, thought], dim=1)
    reference = slow_loss(torch.stack(rows, dim=1)[:, 2:], targets[:, 2:])
    torch.testing.assert_close(coconut_loss(cot, prompt, targets, 2), reference, rtol=1e-9, atol=1e-9)
    latent = cot.generate(prompt, 3, feedback="hidden").distributions
    torch.testing.assert_close(latent, torch.stack(rows[:3], dim=1).softmax(dim=-1), rtol=0, atol=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_trace_loss_is_a_divergence(seed, n, steps, v):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, steps, v, generator=generator, dtype=torch.float64)
    targets = torch.rand(n, steps, v, generator=generator, dtype=torch.float64)
    targets[..., 0] = 0
    targets /= targets.sum(dim=-1, keepdim=True)
    loss = trace_loss(logits, targets)
    torch.testing.assert_close(loss, slow_loss(logits, targets), rtol=1e-10, atol=1e-10)
    assert loss >= -1e-12
    assert abs(trace_loss(logits, logits.softmax(dim=-1))) < 1e-12
    torch.testing.assert_close(trace_loss(logits + 5, targets), loss)


def test_bad_input(prompt, targets):
    cot = make()
    short = targets[:, :, :-1] / targets[:, :, :-1].sum(dim=-1, keepdim=True)
    negative = targets.clone()
    negative[0, 0, 1], negative[0, 0, 2] = -0.5, negative[0, 0, 2] + 0.5 + negative[0, 0, 1]
    gap = torch.ones(5, 3)
    gap[0, 1] = 0
    prompts = [
        ({"prompt": prompt + 10}, ValueError, "13"),
        ({"prompt": prompt.double()}, TypeError, "integers"),
        ({"prompt": prompt.to_sparse()}, TypeError, "dense"),
        ({"prompt": prompt.numpy() / 2}, TypeError, "integers"),
        ({"prompt": [["a", "b"]]}, TypeError, "numeric"),
        ({"prompt": prompt[0]}, ValueError, "shape"),
        ({"prompt": prompt[:, :0]}, ValueError, "at least one token"),
        ({"mask": torch.ones(5, 2)}, ValueError, "shape"),
        ({"mask": gap}, ValueError, "left"),
        ({"mask": torch.zeros(5, 3)}, ValueError, "at least one"),
    ]
    aims = [
        ({"targets": short}, ValueError, "shape"),
        ({"targets": targets[:2]}, ValueError, "shape"),
        ({"targets": targets[:, :0]}, ValueError, "at least one step"),
        ({"targets": targets * 0.9}, ValueError, "0.9"),
        ({"targets": targets.to_sparse()}, TypeError, "dense"),
        ({"targets": targets * torch.nan}, ValueError, "sum to 1"),
        ({"targets": negative}, ValueError, "sum to 1"),
        ({"targets": "x"}, TypeError, "numeric"),
    ]
    check_bad_input(
        cot.loss, [*prompts, *aims, ({"forcing": "firm"}, ValueError, "hard")], prompt=prompt, targets=targets
    )
    stage = [
        ({"n_latent": value}, kind, "n_latent") for value, kind in ((4, ValueError), (-1, ValueError), (1.0, TypeError))
    ]
    stage.append(({"cot": cot.model}, TypeError, "GPT2"))
    check_bad_input(coconut_loss, [*prompts, *aims, *stage], cot=cot, prompt=prompt, targets=targets, n_latent=1)
    steps = [({"steps": 0}, ValueError, "steps"), ({"steps": 2.0}, TypeError, "integer")]
    check_bad_input(cot.generate, [*prompts, *steps, ({"feedback": "x"}, ValueError, "hidden")], prompt=prompt, steps=2)
    tokens = [
        ({"n_tokens": 0}, ValueError, ">= 1"),
        ({"n_tokens": 1.5}, TypeError, "integer"),
        ({"ratio": "x"}, ValueError, "geometric"),
    ]
    check_bad_input(cot.sample, [*prompts, *steps, *tokens], prompt=prompt, steps=2, n_tokens=2, random_state=0)
    scales = [
        ({"concentration": 0.0}, ValueError, "> 0"),
        ({"concentration": "a"}, TypeError, "number"),
        ({"floor": 0.0}, ValueError, "> 0"),
    ]
    check_bad_input(cot.sample_dirichlet, [*prompts, *steps, *scales], prompt=prompt, steps=2, concentration=2.0)
    thoughts = [
        ({"thoughts": targets[..., :-1]}, ValueError, "shape"),
        ({"thoughts": torch.full((5, 2, 2), V)}, ValueError, "vocabulary"),
        ({"thoughts": targets.numpy()}, TypeError, "tensor"),
        ({"thoughts": torch.zeros((5, 2, 0), dtype=torch.int64)}, ValueError, "at least one token"),
        ({"thoughts": 2 * targets}, ValueError, "sum to 1"),
        ({"thoughts": targets * torch.nan}, ValueError, "sum to 1"),
    ]
    check_bad_input(cot.forward, thoughts, prompt=prompt, thoughts=targets)
    cases = [
        ({"targets": targets[:, :1]}, ValueError, "shape"),
        ({"targets": targets.numpy()}, TypeError, "ndarray"),
        ({"logits": targets.long()}, TypeError, "int64"),
        ({"logits": targets * torch.nan}, ValueError, "finite"),
        ({"targets": -targets}, ValueError, ">= 0"),
        ({"logits": targets[0], "targets": targets[0]}, ValueError, "(4, 13)"),
    ]
    check_bad_input(trace_loss, cases, logits=targets, targets=targets)


def test_models_that_do_not_fit():
    with pytest.raises(TypeError, match="get_input_embeddings"):
        ContinuousCoT(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="get_input_embeddings"):
        ContinuousCoT("gpt2")

    class NoEmbeds(PlainLM):
        def forward(self, input_ids):
            return None

    with pytest.raises(TypeError, match="inputs_embeds"):
        ContinuousCoT(NoEmbeds())

    class NoHidden(PlainLM):
        def forward(self, inputs_embeds):
            return SimpleNamespace(logits=super().forward(inputs_embeds).logits)

    with pytest.raises(ValueError, match="hidden_states"):
        ContinuousCoT(NoHidden()).generate([[1]], 2, feedback="hidden")
    assert ContinuousCoT(PlainLM()).generate([[1]], 2, feedback="hidden").answer.shape == (1,)
    broken = make("plain")
    with torch.no_grad():
        broken.model.head.bias[0] = torch.nan
    for call in (lambda: broken.generate([[1]], 2), lambda: broken.sample([[1]], 2, 1, 0)):
        with pytest.raises(ValueError, match="finite"):
            call()
