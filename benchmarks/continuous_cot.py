"""Epochs of continuous chain-of-thought training, one pass against a call per step, in CPU seconds of one thread.

The task is the minimum non-negative sum (5253 sequences, vocabulary 89), the model GPT-2 of 2 layers and width 32. The
per-step loop runs at the original's batch of 16 and at ours of 256, on a share of the epoch that is scaled up.
"""

import argparse
import copy
import time

import torch
from naive_continuous_cot import answers_one_by_one, stepwise_loss
from transformers import GPT2Config, GPT2LMHeadModel

from natwise.lm import ContinuousCoT, mnns_dataset


def epoch(model, loss, data, batch_size, share):
    """Return CPU seconds of an epoch, from a share of its batches in the middle of training."""
    prompts, targets = data.prompts(data.train), data.token_targets(data.train)
    batches = torch.randperm(len(prompts)).split(batch_size)
    count = max(round(share * len(batches)), 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    seconds = []
    for batch in [batches[0], *batches[:count]]:  # the first only warms up
        begin = time.process_time()
        optimizer.zero_grad()
        loss(prompts[batch], targets[batch]).backward()
        optimizer.step()
        seconds.append(time.process_time() - begin)
    return sum(seconds[1:]) / count * len(batches)


def main():
    """Print seconds per epoch, the ratios, and those of decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    share = 0.1 if parser.parse_args().quick else 0.5
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = mnns_dataset()
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(
        vocab_size=89, n_positions=11, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, **off
    )
    ours = ContinuousCoT(GPT2LMHeadModel(config))
    theirs = copy.deepcopy(ours.model)
    batch = torch.from_numpy(data.train[:32])
    gap = ours.loss(data.prompts(batch), data.token_targets(batch)) - stepwise_loss(
        theirs, data.prompts(batch), data.token_targets(batch)
    )
    print(f"same loss up to {abs(gap.item()):.1e}")
    found = {}
    for size in (16, 256):
        found["one pass", size] = epoch(ours, ours.loss, data, size, share)
        found["per step", size] = epoch(theirs, lambda p, t: stepwise_loss(theirs, p, t), data, size, share)
    for (name, size), seconds in found.items():
        print(f"{name}, batch {size:3d}: {seconds:6.2f} CPU s per epoch")
    best = found["one pass", 256]
    for size in (16, 256):
        ratio = found["per step", size] / found["one pass", size]
        print(f"per step at batch {size} / one pass at batch {size}: {ratio:.1f}x")
    print(
        f"per step at batch 16 (the original's) / one pass at batch 256: {found['per step', 16] / best:.1f}x (goal 8x)"
    )
    rows = data.validation[: 131 if share < 0.5 else 1308]
    begin = time.process_time()
    slow = answers_one_by_one(ours.model.eval(), data.prompts(rows), 4)
    middle = time.process_time()
    fast = ours.generate(data.prompts(rows), 4).answer
    end = time.process_time()
    print(f"answers that agree: {(slow == fast).float().mean():.4f}")
    slow_s, fast_s = middle - begin, end - middle
    print(f"decoding {len(rows)} prompts: one by one {slow_s:.2f} s, at once {fast_s:.3f} s: {slow_s / fast_s:.0f}x")


if __name__ == "__main__":
    main()
