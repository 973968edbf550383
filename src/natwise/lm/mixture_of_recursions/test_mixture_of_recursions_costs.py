import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from natwise.core.random import global_generators_kept
from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM, count_flops, kv_cache_bytes, router_diagnostics
from natwise.lm.mixture_of_recursions.study import MEASUREMENTS, figure, run
from natwise.testing import check_bad_input, check_result

LARGE = {
    "vocab_size": 49152,
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "max_position_embeddings": 2048,
}
SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 8}


def make(**options):
    with global_generators_kept():
        torch.manual_seed(0)
        return MoRForCausalLM(MoRConfig(**{**SMALL, "max_position_embeddings": 64, **options})).eval()


# Operations per token that the original's accounting gives, found by matching its released numbers of steps.
@pytest.mark.parametrize(
    ("recursions", "layers", "kv", "paper", "exact", "steps"),
    [
        (1, 32, "cache", 833617920.0, 849346560.0, 9438),
        (2, 32, "cache", 623493120.0, 657653760.0, 12619),
        (3, 32, "cache", 555636053.3333333, 595940693.3333333, 14161),
        (4, 34, "cache", 553451520.0, 593756160.0, 14216),
        (3, 32, "share", 536248320.0, 601128960.0, 14672),
    ],
)
def test_operations_give_the_released_steps(recursions, layers, kv, paper, exact, steps):
    config = MoRConfig(**LARGE, num_hidden_layers=layers, num_recursions=recursions, kv=kv)
    assert count_flops(config, 2048, "paper") == pytest.approx(paper, rel=1e-12)
    assert count_flops(config, 2048) == pytest.approx(exact, rel=1e-12)
    assert abs(16.5e18 / paper / (1024 * 2048) - steps) <= 1
    if recursions == 1:
        assert count_flops(LlamaConfig(**LARGE, num_hidden_layers=layers), 2048) == pytest.approx(exact, rel=1e-12)


def test_published_numbers_of_weights():
    for recursions, layers, millions in ((1, 32, 314.6), (2, 32, 167.1), (3, 32, 118.0), (4, 34, 98.3)):
        with torch.device("meta"):
            model = MoRForCausalLM(MoRConfig(**LARGE, num_hidden_layers=layers, num_recursions=recursions))
        assert sum(one.numel() for one in model.model.layers.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@torch.no_grad()
@pytest.mark.parametrize("kv", ["cache", "share", "hybrid"])
def test_bytes_are_those_of_a_cache(kv):
    """What top-k takes is what is counted."""
    model = make(kv=kv)
    ids = torch.arange(12)[None]
    chosen = model(input_ids=ids, selection="top_k").selected_positions
    taken = [12, *(one.shape[1] for one in chosen), 12]
    if kv == "share":
        taken[2:4] = [0, 0]
    width = 2 * 16 * 4  # keys and values of 4 heads of width 4, in float32
    expected = sum(n * layers for n, layers in zip(taken, (1, 2, 2, 2, 1), strict=True)) * width
    assert kv_cache_bytes(model, 12) == expected
    assert kv_cache_bytes(model.half(), 12, batch_size=3) == 3 * expected // 2


def test_diagnostics():
    model = make().train()
    ids = torch.randint(40, (6, 12), generator=torch.Generator().manual_seed(0))
    result = router_diagnostics(model, ids)
    check_result(result)
    assert model.training
    assert model.model.training_steps == 0
    assert result.arrays["depth_share"].sum() == pytest.approx(1.0)
    assert result.arrays["selected"].mean() == pytest.approx(4 / 12)
    with torch.no_grad():
        found = model.eval()(input_ids=ids, selection="top_k", labels=ids)
        depths = model(input_ids=ids).depths.numpy()
    assert result.scalars["sampling_accuracy"] == pytest.approx(float(found.sampling_accuracy))
    counts = np.bincount(depths.ravel(), minlength=4)[1:]
    assert result.scalars["max_vio"] == pytest.approx((counts.max() - counts.mean()) / counts.mean())
    assert result.warnings
    assert router_diagnostics(make(routing="token_choice"), [ids]).scalars["sampling_accuracy"] == 1


@pytest.mark.parametrize(
    "claim",
    [
        "published-steps",
        pytest.param("step-time", marks=pytest.mark.slow),
        pytest.param("block-calls", marks=pytest.mark.slow),
    ],
)
def test_studies_and_figures(claim):
    result = run(claim, scale="ci", seed=0)
    check_result(result)
    assert figure(claim, result).axes
    assert set(MEASUREMENTS) >= {claim}


def test_bad_input():
    check_bad_input(
        count_flops,
        [
            ({"seq_len": 0}, ValueError, ">= 1"),
            ({"seq_len": 2.5}, TypeError, "integer"),
            ({"convention": "mine"}, ValueError, "exact"),
            ({"model": "model"}, TypeError, "language model"),
        ],
        model=make(),
        seq_len=8,
    )
    check_bad_input(
        kv_cache_bytes,
        [
            ({"seq_len": 0}, ValueError, ">= 1"),
            ({"batch_size": 0}, ValueError, ">= 1"),
            ({"model": "model"}, TypeError, "language model"),
        ],
        model=make(),
        seq_len=8,
    )
    ids = torch.arange(12)[None]
    check_bad_input(
        router_diagnostics,
        [
            ({"model": "model"}, TypeError, "MoRForCausalLM"),
            ({"batches": None}, TypeError, "tensors of token ids"),
            ({"batches": []}, ValueError, "tensors of token ids"),
            ({"batches": [ids, ids[:, :5]]}, ValueError, "same number of columns"),
            ({"batches": ids.tolist()}, ValueError, "tensors"),
            ({"batches": ids[:, :1]}, ValueError, "2 or more"),
            ({"max_vio": float("nan")}, ValueError, "finite"),
        ],
        model=make(),
        batches=ids,
    )
