"""
A language model with fewer weights
===================================

A transformer of eight layers becomes one block of four that runs twice, with a low-rank correction for each loop. How
much of each matrix the correction restores is known before any training: no correction of its rank can do better. The
layers here are random and have nothing in common, which is the hardest case.
"""

import matplotlib.pyplot as plt
from transformers import LlamaConfig, LlamaForCausalLM

from natwise.core.random import global_generators_kept
from natwise.lm import to_recursive

config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4)
with global_generators_kept():
    source = LlamaForCausalLM(config).eval()

ranks, weights, errors = [1, 4, 8, 16], [], []
for rank in ranks:
    small = to_recursive(source, num_loops=2, init="average", lora_rank=rank)
    report = small.conversion.to_frame()
    weights.append(small.num_parameters() / source.num_parameters())
    errors.append((report["error"] / report["residual"]).mean())
print(report.head().to_string())  # of the last conversion, rank 16

# %%
# What is left of the difference between the layers and their average, against the size of the model.
figure, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
axis.plot(weights, errors, marker="o")
for rank, x, y in zip(ranks, weights, errors, strict=True):
    axis.annotate(f"rank {rank}", (x, y), textcoords="offset points", xytext=(0, 6), ha="center")
axis.set(xlabel="weights, relative to the source", ylabel="difference left", ylim=(0, 1.15))
