"""Mixture of recursions beside what it replaces, in one run.

A training step beside the plain network's, and beside a naive mixture that takes every token through every recursion;
serving depth-wise beside static and sequence-wise.
"""

import argparse
import time

import numpy as np
import torch

from natwise.core.random import Streams
from natwise.lm import MoRConfig, MoRForCausalLM, count_flops, serving_benchmark


def network(recursions, capacity=None):
    """Return a mixture with 14 layers of width 192; one recursion with a constant gate is the plain network's cost."""
    config = MoRConfig(
        vocab_size=256, hidden_size=192, intermediate_size=512, num_attention_heads=6, num_hidden_layers=14,
        num_recursions=recursions, capacity=capacity, max_position_embeddings=2048,
    )  # fmt: skip
    with Streams.of(0).torch_global("weights"):
        return MoRForCausalLM(config).train()


def training(length, rounds):
    """Print medians of training steps taken in turn."""
    models = {"plain": network(1), "every token in every recursion": network(3, [1.0] * 3), "mixture": network(3)}
    ids = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, length)))
    seconds = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            model.zero_grad()
            begin = time.process_time()  # one thread: what other programs do matters less
            model(input_ids=ids, labels=ids).loss.backward()
            if turn:
                seconds[name].append(time.process_time() - begin)
    for name, model in models.items():
        ratio = np.median(np.array(seconds[name]) / np.array(seconds["plain"]))
        operations = count_flops(model, length) / count_flops(models["plain"], length)
        print(f"training step, {length} tokens, {name}: {np.median(seconds[name]):.3f} s, "
              f"{ratio:.2f} of plain (operations: {operations:.2f})")  # fmt: skip


def serving(n_requests, repeats):
    """Print tokens per second of the ways to serve."""
    found = serving_benchmark(n_requests=n_requests, new_tokens=16, repeats=repeats).scalars
    for name in ("static", "sequence", "sequence_exits", "depthwise", "depthwise_exits"):
        print(f"serving {name}: {found[name]:.0f} tokens/s, {found[name] / found['sequence']:.2f} of sequence-wise")
    print(f"depth-wise with exits over sequence-wise: {found['speedup']:.2f} (calls: {found['calls_ratio']:.2f}, "
          f"limit {found['calls_limit']:.2f}); scheduling {found['overhead']:.1%} of the block's time")  # fmt: skip


def main():
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    training(512, 1 if quick else 5)
    serving(16 if quick else 64, 1 if quick else 5)


if __name__ == "__main__":
    main()
