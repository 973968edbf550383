"""Training steps of a Mamba-2 in natwise and in transformers' torch path, side by side in one run.

Both models have the same sizes (2 layers, vocabulary 64) and take the same steps of AdamW in float32. transformers
pads every sequence to its chunk size, 256 by default; its best setting here is shown too. Times are those of the
processor, summed over threads, which other work on the machine disturbs least.
"""

import argparse
import time

import torch
from torch.nn.functional import cross_entropy
from transformers import Mamba2Config, Mamba2ForCausalLM

from natwise.lm import MambaLM

SIZES = ((64, 64, 32, 64, 32), (128, 64, 64, 128, 16), (128, 128, 64, 512, 4))  # d, N, P, time, batch


def peer(d, n, p, chunk_size):
    """Return transformers' model."""
    sizes = {"hidden_size": d, "state_size": n, "head_dim": p, "num_heads": 2 * d // p, "n_groups": 1}
    config = Mamba2Config(vocab_size=64, num_hidden_layers=2, chunk_size=chunk_size, use_cache=False, **sizes)
    return Mamba2ForCausalLM(config).train()


def stepper(model, logits, tokens):
    """Return a function that takes one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        out = logits(model, tokens)
        cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def best_seconds(steps, repeats):
    """Return the shortest processor time of each step, measured in turns."""
    times = [[] for _ in steps]
    for _ in range(repeats):
        for step, found in zip(steps, times, strict=True):
            begin = time.process_time()
            step()
            found.append(time.process_time() - begin)
    return [min(found) for found in times]


def main():
    """Print milliseconds per step and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for d, n, p, length, batch in SIZES:
        torch.manual_seed(0)
        tokens = torch.randint(64, (batch, length))
        ours = MambaLM(64, d, 2, d_state=n, head_dim=p, random_state=0)
        peers = [peer(d, n, p, chunk_size) for chunk_size in (256, 64)]
        steps = [stepper(model, lambda model, ids: model(input_ids=ids).logits, tokens) for model in peers]
        steps.insert(0, stepper(ours, lambda model, ids: model(ids), tokens))
        own, default, tuned = best_seconds(steps, 3 if arguments.quick else 8)
        print(
            f"d={d} N={n} P={p} T={length} batch={batch}: natwise {1e3 * own:.0f} ms; transformers, chunk 256: "
            f"{1e3 * default:.0f} ms ({default / own:.1f}x), chunk 64: {1e3 * tuned:.0f} ms ({tuned / own:.2f}x)",
            flush=True,
        )


if __name__ == "__main__":
    main()
