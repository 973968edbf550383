"""Conversion of a model of 360 million weights, and its decompositions against full ones, side by side in one run.

The model has random weights, whose flat spectrum is the hardest case. The naive form decomposes every residual of one
layer with `torch.linalg.svd` and keeps the first singular vectors.
"""

import argparse
import resource
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from natwise.lm import to_recursive
from natwise.lm.relaxed_recursive._lowrank import low_rank

SHAPE = {
    "vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15,
    "num_key_value_heads": 5, "tie_word_embeddings": True,
}  # fmt: skip
RANK = 64


def timed(call, *arguments):
    """Return what a call returns, its seconds and its processor seconds."""
    begin, busy = time.perf_counter(), time.process_time()
    value = call(*arguments)
    return value, time.perf_counter() - begin, time.process_time() - busy


def naive(matrix):
    """Return the rank-64 product from a full decomposition."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ v[:RANK]


def compare(residuals):
    """Print time and error of both forms on the same matrices."""
    generator = torch.Generator().manual_seed(0)
    slow, _, slow_busy = timed(lambda: [naive(one) for one in residuals])
    fast, _, fast_busy = timed(lambda: [low_rank(one, RANK, generator) for one in residuals])
    excess = [f.error / float((r - s).norm()) - 1 for r, s, f in zip(residuals, slow, fast, strict=True)]
    print(
        f"{len(residuals)} residuals of one layer: full {slow_busy:.2f} s, ours with the report {fast_busy:.2f} s of "
        f"processor time: {slow_busy / fast_busy:.1f}x; error at most {100 * max(excess):.2f} % above the least"
    )


def main():
    """Convert, and compare one layer's decompositions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 layers instead of 32")
    layers = 4 if parser.parse_args().quick else 32
    torch.manual_seed(0)
    model, seconds, _ = timed(LlamaForCausalLM, LlamaConfig(num_hidden_layers=layers, **SHAPE))
    print(f"{model.num_parameters() / 1e6:.0f} million weights, made in {seconds:.1f} s")
    first, last = model.model.layers[0], model.model.layers[layers // 2]
    pairs = zip(first.parameters(), last.parameters(), strict=True)
    compare([(a - b).detach() / 2 for a, b in pairs if a.ndim == 2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    small, seconds, busy = timed(to_recursive, model, 2, "average", RANK)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    kept = sum(p.numel() * p.element_size() for p in small.parameters()) / 2**20
    print(
        f"converted at rank {RANK} in {seconds:.1f} s ({busy:.1f} s of processor time); result {kept:.0f} MB, peak "
        f"{grown - kept:.0f} MB beyond it"
    )


if __name__ == "__main__":
    main()
