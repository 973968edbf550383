"""Epochs of continuous chain-of-thought training, one pass against a call per step, in CPU seconds of one thread.

The task is the minimum non-negative sum (5253 sequences, vocabulary 89), the model GPT-2 of 2 layers and width 32. The
per-step loop runs at the original's batch of 16 and at ours of 256. All take turns, each on a share of an epoch that is
scaled up, for several rounds; a ratio is the median over rounds of what stood next to each other.
"""

import argparse
import copy
import time

import torch
from naive_continuous_cot import answers_one_by_one, stepwise_loss
from transformers import GPT2Config, GPT2LMHeadModel

from natwise.lm import ContinuousCoT, mnns_dataset

SIZES = (16, 256)


def new_model():
    """Return GPT-2 without dropout; its activation is GPT-2's own as one operation, for both ways of training."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_pytorch_tanh"}
    sizes = {"vocab_size": 89, "n_positions": 11, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=1, eos_token_id=2))


def epoch(model, optimizer, loss, data, batch_size, share):
    """Return CPU seconds of an epoch, from a share of its batches."""
    prompts, targets = data
    batches = torch.randperm(len(prompts)).split(batch_size)
    count = max(round(share * len(batches)), 2)
    begin = time.process_time()
    for batch in batches[:count]:
        optimizer.zero_grad()
        loss(prompts[batch], targets[batch]).backward()
        optimizer.step()
    return (time.process_time() - begin) / count * len(batches)


def training(ours, theirs, data, share, rounds):
    """Print seconds per epoch and their ratios."""
    sides = (data.prompts(data.train), data.token_targets(data.train))
    arms = {
        "one pass": (ours, ours.loss),
        "per step": (theirs, lambda prompt, targets: stepwise_loss(theirs, prompt, targets)),
    }
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, (model, _) in arms.items()}
    found = {(name, size): [] for name in arms for size in SIZES}
    for round_ in range(rounds + 1):
        for name, size in found:
            model, loss = arms[name]
            seconds = epoch(model, optimizers[name], loss, sides, size, share)
            if round_:  # the first only warms up
                found[name, size].append(seconds)
    found = {key: torch.tensor(seconds) for key, seconds in found.items()}
    for (name, size), seconds in found.items():
        print(f"{name}, batch {size:3d}: {seconds.median():6.2f} CPU s per epoch")
    for name, size in (("one pass", 16), ("per step", 256), ("per step", 16)):
        ratios = found[name, size] / found["one pass", 256]
        spread = f"{ratios.min():.1f} ... {ratios.max():.1f}"
        print(f"{name} at batch {size} / one pass at batch 256: {ratios.median():.1f}x ({spread})")
    same = found["per step", 16] / found["one pass", 16]
    print(f"per step / one pass, both at batch 16: {same.median():.1f}x")
    print("goal: per step at batch 16, the original's, / one pass at batch 256 >= 8x")


def decoding(ours, data, count):
    """Print seconds to answer prompts one by one and at once."""
    prompts = data.prompts(data.validation[:count])
    begin = time.process_time()
    slow = answers_one_by_one(ours.model.eval(), prompts, 4)
    middle = time.process_time()
    fast = ours.generate(prompts, 4).answer
    end = time.process_time()
    print(f"answers that agree: {(slow == fast).float().mean():.4f}")
    slow_s, fast_s = middle - begin, end - middle
    print(f"decoding {len(prompts)} prompts: one by one {slow_s:.2f} s, at once {fast_s:.3f} s: {slow_s / fast_s:.0f}x")


def main():
    """Print that both losses agree, and the ratios of training and decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = mnns_dataset()
    ours = ContinuousCoT(new_model())
    theirs = copy.deepcopy(ours.model)
    few = data.prompts(data.train[:32]), data.token_targets(data.train[:32])
    print(f"same loss up to {abs(ours.loss(*few) - stepwise_loss(theirs, *few)).item():.1e}")
    training(ours, theirs, data, share=0.1 if quick else 0.25, rounds=2 if quick else 9)
    decoding(ours, data, 100 if quick else 1308)


if __name__ == "__main__":
    main()
