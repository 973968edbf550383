"""Objectives against the reference numbers and slow formulas; GRPO's rollouts and updates; rewards; Pass@k.

golden.npz: see test_continuous_cot.py.
"""

import copy
import dataclasses
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import dirichlet
from sklearn.exceptions import ConvergenceWarning
from transformers import GPT2Config, GPT2LMHeadModel

from natwise.core.io import load_npz
from natwise.lm.continuous_cot import (
    GRPO,
    ContinuousCoT,
    answer_reward,
    dirichlet_log_ratio,
    grpo_loss,
    pass_at_k,
    process_reward,
)
from natwise.lm.continuous_cot._distributions import floored
from natwise.lm.continuous_cot._grpo import _Rollouts
from natwise.lm.continuous_cot._objectives import clipped_objective, dirichlet_log_probs, token_log_probs
from natwise.testing import check_bad_input, same_bits, unchanged

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
NORMS = {"temperature": 1, "geometric": 0}
V = 11


def rollouts(**changed):
    names = ("logits_new", "logits_old", "logits_ref", "tokens", "final", "rewards")
    values = {name.removeprefix("logits_"): GOLDEN[f"grpo_{name}"] for name in names}
    return {**values, **changed}


def make(dropout=0.0, seed=0):
    off = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    config = GPT2Config(
        vocab_size=V, n_embd=8, n_layer=1, n_head=1, n_positions=16, initializer_range=0.5, bos_token_id=0,
        eos_token_id=0, **off,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ContinuousCoT(GPT2LMHeadModel(config))


@pytest.mark.parametrize("ratio", NORMS)
@pytest.mark.parametrize("clip", [0.1, 0.2])
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_grpo_reference_numbers(ratio, clip, kl_weight):
    expected = float(GOLDEN[f"grpo_loss_norm{NORMS[ratio]}_eps{clip}_beta{kl_weight}".replace(".", "")])
    options = {"clip": clip, "kl_weight": kl_weight, "ratio": ratio}
    with unchanged(rollouts()):
        loss = grpo_loss(**rollouts(), **options)
    assert isinstance(loss, float)
    assert abs(loss - expected) <= 1e-12
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in rollouts().items()}
    assert grpo_loss(**tensors, **options).dtype == torch.float64
    assert abs(grpo_loss(**tensors, **options) - expected) <= 1e-12
    doubled = {name: np.stack([value, value]) for name, value in rollouts().items()}
    assert abs(grpo_loss(**doubled, **options) - expected) <= 1e-12
    new, old = (token_log_probs(tensors[n], tensors["tokens"], tensors["final"], ratio) for n in ("new", "old"))
    np.testing.assert_allclose((new - old).exp().numpy(), GOLDEN[f"grpo_ratio_norm{NORMS[ratio]}"], rtol=1e-12)


@pytest.mark.parametrize("ratio", NORMS)
def test_before_any_update_the_gradient_is_the_policy_gradient(ratio):
    given_ = {name: torch.from_numpy(np.array(value)) for name, value in rollouts().items()}
    new = given_["new"].requires_grad_()
    given_ |= {"old": new.detach(), "ref": new.detach()}
    loss = grpo_loss(**given_, ratio=ratio, kl_weight=0.1)
    assert abs(loss) < 1e-12
    log_p = token_log_probs(new, given_["tokens"], given_["final"], ratio)
    rewards = given_["rewards"]
    advantages = (rewards - rewards.mean()) / rewards.std(correction=0)
    reference = -(advantages[:, None] * log_p).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, new)[0], torch.autograd.grad(reference, new)[0])


def test_clipping_stops_gains_not_losses():
    zero = torch.zeros(2, 1, dtype=torch.float64)
    rewards = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for gain in (0.5, -0.5):
        new = torch.tensor([[gain], [gain]], dtype=torch.float64).requires_grad_()
        loss = clipped_objective(new, zero, zero, rewards, 0.1, 0.0)
        slopes = torch.autograd.grad(loss, new)[0][:, 0]
        assert (slopes != 0).tolist() == ([False, True] if gain > 0 else [True, False])


def test_policies_that_have_nothing_in_common_have_a_finite_loss():
    new, old = torch.zeros(2, 3, 2, 5), torch.zeros(2, 3, 2, 5)
    new[..., 0], old[..., 1] = 1e4, 1e4
    rewards = torch.tensor([[1.0, 1, 1], [0, 1, 2]])
    zeros = torch.zeros(2, 3, 2, dtype=torch.int64)
    for ref in (new, old):
        assert torch.isfinite(grpo_loss(new, old, ref, zeros[..., :1, None], zeros[..., 0], rewards, kl_weight=0.1))


def test_equal_rewards_teach_nothing_and_are_said():
    with pytest.warns(UserWarning, match="equal"):
        assert grpo_loss(**rollouts(rewards=np.ones(6))) == 0
    half = {name: np.stack([value, value]) for name, value in rollouts().items()}
    half["rewards"][0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert abs(grpo_loss(**half) - grpo_loss(**rollouts()) / 2) < 1e-12


def test_grpo_bad_input():
    bad_rewards = np.array([1, np.nan, 0, 0, 0, 0])
    cases = [
        ({"new": np.zeros((6, 11))}, ValueError, "n_rollouts"),
        ({"new": np.full((6, 4, 11), np.inf)}, ValueError, "finite"),
        ({"new": np.zeros((0, 4, 11))}, ValueError, "(0, 4, 11)"),
        ({"new": torch.zeros((6, 4, 11), dtype=torch.complex64)}, TypeError, "complex64"),
        ({"old": torch.full((6, 4, 11), torch.nan)}, ValueError, "finite"),
        ({"old": np.zeros((6, 4, 10))}, ValueError, "shape"),
        ({"ref": np.zeros((5, 4, 11))}, ValueError, "shape"),
        ({"ref": None, "kl_weight": 0.1}, ValueError, "given"),
        ({"tokens": np.full((6, 3, 3), 11)}, ValueError, "vocabulary"),
        ({"tokens": np.zeros((6, 2, 3), int)}, ValueError, "shape"),
        ({"tokens": np.zeros((6, 3, 3))}, TypeError, "integers"),
        ({"tokens": np.zeros((6, 3, 0), int)}, ValueError, "at least one token"),
        ({"old": None}, TypeError, "old"),
        ({"final": np.zeros(5, int)}, ValueError, "shape"),
        ({"final": np.full(6, -1)}, ValueError, "vocabulary"),
        ({"rewards": np.zeros(5)}, ValueError, "shape"),
        ({"rewards": bad_rewards}, ValueError, "finite"),
        ({"rewards": ["a"] * 6}, TypeError, "numeric"),
        ({"clip": 0.0}, ValueError, "> 0"),
        ({"clip": "a"}, TypeError, "number"),
        ({"kl_weight": 1e300}, ValueError, "1e+30"),
        ({"kl_weight": -1.0}, ValueError, ">= 0"),
        ({"ratio": "product"}, ValueError, "geometric"),
    ]
    check_bad_input(grpo_loss, cases, **rollouts())


def test_dirichlet_reference_numbers():
    x, new, old = (GOLDEN[f"dirichlet_{name}"] for name in ("x", "alpha_new", "alpha_old"))
    scale = float(GOLDEN["dirichlet_gamma"])
    found = dirichlet_log_ratio(x, new, old, scale)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, GOLDEN["dirichlet_log_ratio"], rtol=1e-11)
    as_tensor = dirichlet_log_ratio(torch.from_numpy(x), torch.from_numpy(new), torch.from_numpy(old), scale)
    np.testing.assert_array_equal(as_tensor.numpy(), found)
    np.testing.assert_array_equal(dirichlet_log_ratio(x, new, new, scale), np.zeros(5))
    np.testing.assert_allclose(dirichlet_log_ratio(x, old, new, scale), -found)
    np.testing.assert_allclose(dirichlet_log_ratio(x[0], np.stack([new, old])[:1], old, scale), found[:1])


@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(0.5, 200.0))
@settings(max_examples=30, deadline=None)
def test_dirichlet_against_scipy(seed, v, concentration):
    rng = np.random.default_rng(seed)
    new, old, x = rng.dirichlet(np.full(v, 3.0), size=3)
    expected = dirichlet.logpdf(x, concentration * new) - dirichlet.logpdf(x, concentration * old)
    np.testing.assert_allclose(dirichlet_log_ratio(x, new, old, concentration), expected, rtol=1e-9, atol=1e-9)
    logits = torch.from_numpy(np.log(np.stack([new, old])))[None]
    log_p = dirichlet_log_probs(logits, torch.from_numpy(x)[None, None], torch.tensor([1]), concentration, floor=1e-12)
    np.testing.assert_allclose(
        log_p, [[dirichlet.logpdf(x, concentration * new), math.log(old[1])]], rtol=1e-9, atol=1e-9
    )


def test_dirichlet_density_is_the_density_of_the_samples():
    """E[p_new / p_old] over samples of p_old is 1."""
    new, old = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    x = np.random.default_rng(0).dirichlet(5 * old, size=40_000)
    assert abs(np.exp(dirichlet_log_ratio(x, new, old, 5.0)).mean() - 1) < 0.02


def test_dirichlet_bad_input():
    uniform = np.full(4, 0.25)
    cases = [
        ({"x": np.array([0.5, 0.5, 0.0, 0.0])}, ValueError, "> 0"),
        ({"x": np.full(4, 0.3)}, ValueError, "sum"),
        ({"alpha_new": np.full(5, 0.2)}, ValueError, "broadcast"),
        ({"alpha_old": np.full((2, 3, 4), 0.25), "x": np.full((4, 4), 0.25)}, ValueError, "broadcast"),
        ({"alpha_new": np.array([1.0, 0.0, 0.0, 0.0])}, ValueError, "> 0"),
        ({"alpha_old": uniform * np.nan}, ValueError, "finite"),
        ({"x": [[0.5, 0.5], [1.0]]}, ValueError, "regular"),
        ({"x": 1.0}, ValueError, "shape"),
        ({"x": []}, ValueError, "at least one"),
        ({"x": torch.full((4,), 0.25).to_sparse()}, TypeError, "dense"),
        ({"alpha_old": "abc"}, TypeError, "numeric"),
        ({"concentration": 0.0}, ValueError, "> 0"),
        ({"concentration": np.inf}, ValueError, "finite"),
        ({"concentration": 1e308}, ValueError, "float64"),
        ({"concentration": None}, TypeError, "number"),
    ]
    check_bad_input(dirichlet_log_ratio, cases, x=uniform, alpha_new=uniform, alpha_old=uniform, concentration=2.0)


def test_floor_keeps_a_distribution():
    alpha = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    raised = floored(alpha, 1e-3)
    torch.testing.assert_close(raised.sum(dim=-1), torch.ones(2))
    assert (raised >= 9.9e-4).all()
    torch.testing.assert_close(raised[1], alpha[1])


@pytest.mark.parametrize("policy", ["tokens", "dirichlet"])
@pytest.mark.parametrize("ratio", NORMS)
def test_rollouts_of_a_batch_have_ratio_one_and_no_dropout(policy, ratio):
    cot = make(dropout=0.5).train()
    prompt = torch.tensor([[1, 2], [3, 4], [5, 6]])
    options = GRPO(steps=3, policy=policy, ratio=ratio, n_tokens=2, n_rollouts=4, kl_weight=0.1)
    seen = {}

    def reward(rows, tokens, final):
        seen.update(rows=rows, tokens=tokens, final=final)
        return (final % 2).double()

    drawn = _Rollouts(options, cot, prompt, None, reward)
    batch = drawn.draw(5, np.random.default_rng(0))
    assert seen["final"].shape == (20,)
    assert batch[-1].shape == (5, 4)
    assert (batch[0] == batch[0][:, :1]).all()  # a group has one prompt
    loss = drawn.loss(cot, batch, 0)
    assert abs(loss) < 1e-6  # advantages sum to zero, ratios are one, the reference is the policy
    assert loss.requires_grad
    assert cot.training
    with torch.no_grad():
        twice = [drawn._log_probs(cot.eval(), batch) for _ in range(2)]
    assert same_bits(*twice)


@pytest.mark.parametrize(("policy", "kl_weight"), [("tokens", 0.0), ("tokens", 0.1), ("dirichlet", 0.0)])
def test_grpo_learns_an_answer(policy, kl_weight):
    prompt = torch.tensor([[1, 2], [3, 4]])
    options = GRPO(
        steps=3, policy=policy, n_tokens=2, n_rollouts=8, batch_size=8, max_iter=25, learning_rate=1e-2,
        kl_weight=kl_weight, random_state=0,
    )  # fmt: skip
    with unchanged(prompt):
        rewards = options.fit(make(), prompt, answer_reward([7, 2]))
    assert rewards.shape == (25,)
    assert rewards[-5:].mean() > rewards[:5].mean() + 0.15
    again = dataclasses.replace(options, max_iter=3).fit(make(), prompt, answer_reward([7, 2]))
    assert same_bits(again, rewards[:3])


def test_grpo_says_when_nothing_can_be_learned():
    cot = make()
    before = copy.deepcopy(cot.state_dict())
    with pytest.warns(ConvergenceWarning, match="equal"):
        GRPO(steps=2, max_iter=2, batch_size=2, random_state=0).fit(
            cot, [[1, 2]], lambda rows, tokens, final: 0.0 * final
        )
    assert all(torch.allclose(a, before[name], rtol=0.01) for name, a in cot.state_dict().items())


def test_grpo_options_are_checked():
    right = answer_reward([1])

    def fit(cot=None, prompt=((1, 2),), reward=right, mask=None, **options):
        GRPO(**{"steps": 2, "max_iter": 1, "batch_size": 2, **options}).fit(cot or make(), prompt, reward, mask=mask)

    cases = [({name: 0}, ValueError, name) for name in ("steps", "n_tokens", "batch_size", "max_iter")]
    cases += [
        ({"n_rollouts": 1}, ValueError, ">= 2"),
        ({"n_tokens": 1.5}, TypeError, "integer"),
        ({"policy": "x"}, ValueError, "dirichlet"),
        ({"ratio": "x"}, ValueError, "geometric"),
        ({"clip": 0.0}, ValueError, "> 0"),
        ({"kl_weight": -0.1}, ValueError, ">= 0"),
        ({"concentration": -1.0}, ValueError, "> 0"),
        ({"cot": torch.nn.Linear(1, 1)}, TypeError, "ContinuousCoT"),
        ({"prompt": [[1, 99]]}, ValueError, "vocabulary"),
        ({"reward": lambda rows, tokens, final: torch.zeros(3)}, ValueError, "shape"),
        ({"reward": lambda rows, tokens, final: final * torch.nan}, ValueError, "finite"),
        ({"reward": lambda rows, tokens, final: None}, TypeError, "None"),
        ({"reward": lambda rows, tokens, final: ["a"] * len(rows)}, TypeError, "numeric"),
        ({"learning_rate": 0.0}, ValueError, "> 0"),
        ({"reward": "right"}, TypeError, "callable"),
        ({"mask": np.ones((1, 3))}, ValueError, "shape"),
        ({"mask": np.ones((2, 2))}, ValueError, "shape"),
    ]
    check_bad_input(fit, cases)


def test_rewards():
    rows, final = torch.tensor([0, 1, 1]), torch.tensor([4, 4, 5])
    tokens = torch.tensor([[[0, 1]], [[0, 0]], [[1, 2]]])
    assert answer_reward([4, 5])(rows, tokens, final).tolist() == [1.0, 0.0, 1.0]
    targets = np.zeros((2, 2, 6))
    targets[:, 0, :2], targets[0, 1, 4], targets[1, 1, 5] = 0.5, 1, 1
    assert process_reward(targets)(rows, tokens, final).tolist() == [1.5, 0.5, 1.25]
    points = torch.tensor([[[0.5, 0.5, 0, 0, 0, 0]], [[1.0, 0, 0, 0, 0, 0]], [[0, 0.5, 0.5, 0, 0, 0]]])
    assert process_reward(targets)(rows, points, final).tolist() == [1.5, 0.5, 1.25]
    assert process_reward(targets[:, 1:])(rows, tokens[:, :0], final).tolist() == [1.0, 0.0, 1.0]
    check_bad_input(
        answer_reward, [({"answers": [[1]]}, ValueError, "shape"), ({"answers": [0.5]}, ValueError, "whole")]
    )
    cases = [
        ({"targets": targets * 2}, ValueError, "sum"),
        ({"targets": targets[:, :0]}, ValueError, "at least one step"),
        ({"weight": -1.0}, ValueError, ">= 0"),
    ]
    check_bad_input(process_reward, cases, targets=targets)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
def test_pass_at_k_is_the_mean_over_all_choices(correct, k):
    expected = np.mean([np.mean([any(c) for c in itertools.combinations(row, k)]) for row in correct])
    assert abs(pass_at_k(correct, [k])[0] - expected) < 1e-12


def test_pass_at_k_bad_input():
    cases = [
        ({"correct": [[0.5]]}, ValueError, "0 and 1"),
        ({"correct": np.zeros((0, 3))}, ValueError, "at least one"),
        ({"correct": [1, 0]}, ValueError, "shape"),
        ({"ks": [0]}, ValueError, ">= 1"),
        ({"ks": [3]}, ValueError, "<= 2"),
        ({"ks": [1.0]}, TypeError, "integer"),
        ({"ks": 1}, ValueError, "shape"),
        ({"ks": [[1], [1, 1]]}, ValueError, "regular"),
        ({"ks": []}, ValueError, "at least one"),
    ]
    check_bad_input(pass_at_k, cases, correct=[[True, False]], ks=[1])
