"""How the cost of every method grows: CPU seconds and peak memory at three sizes, fitted and extrapolated.

`python benchmarks/scaling.py [--method structure.linear_corex]` prints a table; docs/scale.md shows it. Each method has
a process of its own on one thread, and a first run at half of the smallest size that loads what is needed; the
memory of a run is what it takes beyond what the process held before (of Linux's /proc). The exponent is the slope of
logarithms over three sizes. The extrapolation follows it from the largest size: an estimate for who plans, not a
measurement.
"""

import argparse
import ctypes
import gc
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import numpy as np
import torch

RNG = np.random.default_rng


def linear_corex(p):
    """Return a fit of p variables, of a fixed number of steps."""
    from natwise.structure import LinearCorEx

    X = RNG(0).standard_normal((300, p))
    return lambda: LinearCorEx(10, max_iter=30, tol=0, random_state=0).fit(X)


def tcorex(p):
    """Return a fit of eight periods of p variables."""
    from natwise.structure import TCorEx

    X, times = RNG(0).standard_normal((160, p)), np.arange(160) // 20
    return lambda: TCorEx(8, l1=0.1, max_iter=30, random_state=0).fit(X, times)


def minsyn(p):
    """Return a fit of p variables."""
    from natwise.structure import MinSyn

    X = RNG(0).standard_normal((300, p))
    return lambda: MinSyn(5, max_iter=30, random_state=0).fit(X)


def unique_information(n):
    """Return the scores of n samples with a default network of one output."""
    from natwise.samples import SampleInformation

    X = RNG(0).standard_normal((n, 20))
    return lambda: SampleInformation(random_state=0).fit(X, (X[:, :1] > 0).astype(float))


def data_requirements(n):
    """Return a learning curve of up to n rows and its fit."""
    from sklearn.linear_model import LogisticRegression

    from natwise.samples import PiecewisePowerLaw, measure_learning_curve

    X = RNG(0).standard_normal((n, 50))
    y = X[:, 0] + X[:, 1:].sum(1) / 7 > 0

    def run():
        curve = measure_learning_curve(LogisticRegression(), X, y, random_state=0).arrays
        PiecewisePowerLaw().fit(curve["n"], curve["errors"])

    return run


def limit(n):
    """Return three epochs over n rows."""
    from natwise.supervision import LIMITClassifier

    X = RNG(0).standard_normal((n, 64))
    return lambda: LIMITClassifier(max_epochs=3, random_state=0).fit(X, np.argmax(X[:, :10], axis=1))


def distillation(n):
    """Return the complexity of the supervision of n samples under a kernel."""
    from natwise.supervision import supervision_complexity

    Z = RNG(0).standard_normal((n, 2 * n))
    kernel = Z @ Z.T / n
    return lambda: supervision_complexity(kernel, np.sign(Z[:, 0]))


def fcmi(k):
    """Return an experiment of k trainings on 50 rows each."""
    from sklearn.linear_model import LogisticRegression

    from natwise.generalization import run_supersample_experiment

    X = RNG(0).standard_normal((200, 10))
    return lambda: run_supersample_experiment(LogisticRegression(), X, X[:, 0] > 0, 50, n_splits=k)


def samplewise_limits(d):
    """Return all bounds of a problem with 2^d points."""
    from natwise.generalization import affine_parity_problem

    return lambda: affine_parity_problem(2, round(math.log2(d))).bounds(delta=0.1)


def failure_modes(n):
    """Return the parts of an error from n rows of training and test."""
    from natwise.shift import FailureModes

    rng = RNG(0)
    y, site = rng.integers(2, size=n), np.arange(n) % 4
    Z = rng.normal(size=(n, 16)) + y[:, None]
    return lambda: FailureModes(n_bootstrap=50).fit(Z, y, site, Z, y, y, y, y)


def spurious_features(p):
    """Return an erasure from p columns."""
    from natwise.shift import LEACE

    X = RNG(0).standard_normal((2000, p))
    return lambda: LEACE(shrinkage=True).fit(X, attribute=np.arange(2000) % 2).transform(X)


def in_context(n):
    """Return the predictions for 8 queries from contexts of n rows."""
    from natwise.shift import SpuriousInContextLearner, SyntheticSampler

    sampler = SyntheticSampler(8, n_context=n, n_queries=8)
    learner = SpuriousInContextLearner(2, 32, 4, n_steps=1, batch_size=1, random_state=0).meta_fit(sampler)
    tasks = sampler(8, RNG(0))
    return lambda: learner.predict_tasks(tasks)


def mixhop(n):
    """Return five epochs over a graph of n nodes."""
    from natwise.graphs import MixHopClassifier, homophily_graph

    graph = homophily_graph(0.7, n_nodes=n, n_classes=5, random_state=0)
    model = MixHopClassifier(max_epochs=5, random_state=0)
    return lambda: model.fit(graph.X, graph.y, graph.edge_index, graph.train_idx, graph.val_idx)


def mimic(n):
    """Return the tables of one task from n patients."""
    from natwise.datasets.clinical import write_mimic3_tables
    from natwise.timeseries import MimicBenchmark

    folder = tempfile.mkdtemp()
    write_mimic3_tables(f"{folder}/tables", n_patients=n, seed=0)
    benchmark = MimicBenchmark.from_csv(f"{folder}/tables")
    return lambda: benchmark.build(f"{folder}/out", tasks=["in_hospital_mortality"])


def event_precursors(n):
    """Return three epochs over n target days."""
    from natwise.timeseries import EventForecaster, planted_precursors

    data, _ = planted_precursors(n, random_state=0)
    return lambda: EventForecaster(16, encoder="words", max_epochs=3, random_state=0).fit(data)


def llama(width, depth=4):
    """Return a small language model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 128, "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=depth)).eval()


def relaxed_recursive(width):
    """Return the conversion of a model of this width."""
    from natwise.lm import to_recursive

    source = llama(width)
    return lambda: to_recursive(source, num_loops=2, init="average", lora_rank=8)


def mixture_of_recursions(length):
    """Return a training step over sequences of this length."""
    from natwise.lm import MoRConfig, MoRForCausalLM

    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    model = MoRForCausalLM(
        MoRConfig(**sizes, num_hidden_layers=8, num_recursions=3, max_position_embeddings=length)
    ).train()
    ids = torch.arange(2 * length).reshape(2, length) % 128
    return lambda: model(input_ids=ids, labels=ids).loss.backward()


def salt(n):
    """Return the loss and its gradient for n tokens of a vocabulary of 8000."""
    from natwise.lm import salt_loss

    student, teacher = torch.randn(n, 8000, requires_grad=True), torch.randn(n, 8000)
    labels = torch.arange(n) % 8000
    return lambda: salt_loss(student, teacher, labels, 0.6, 1.0).backward()


def mimetic_init(length):
    """Return a training step over sequences of this length."""
    from natwise.lm import MambaLM, mimetic_init_

    model = MambaLM(64, 64, 2, d_state=32, head_dim=32, random_state=0)
    mimetic_init_(model, random_state=0)
    ids = torch.arange(2 * length).reshape(2, length) % 64
    return lambda: model(ids).square().mean().backward()


def continuous_cot(steps):
    """Return chains of this many steps after eight prompts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from natwise.lm import ContinuousCoT

    sizes = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    cot = ContinuousCoT(GPT2LMHeadModel(GPT2Config(**sizes, n_positions=steps + 8)))
    return lambda: cot.generate(torch.arange(64).reshape(8, 8) % 128, steps=steps)


METHODS = {  # what grows, how in theory, three sizes, the size to extrapolate to
    "structure.linear_corex": (linear_corex, "variables (300 rows, 10 factors)", "n", (4000, 8000, 16_000), 100_000),
    "structure.tcorex": (tcorex, "variables (8 periods, 8 factors)", "n", (500, 1000, 2000), 20_000),
    "structure.minsyn": (minsyn, "variables (300 rows, 5 factors)", "n", (1000, 2000, 4000), 20_000),
    "samples.unique_information": (
        unique_information,
        "samples (one output)",
        "n³, memory n²",
        (500, 1000, 2000),
        20_000,
    ),
    "samples.data_requirements": (
        data_requirements,
        "rows (24 fits, 50 columns)",
        "the estimator's",
        (20_000, 40_000, 80_000),
        1_000_000,
    ),
    "supervision.limit": (limit, "rows (3 epochs, 64 columns)", "n", (4000, 8000, 16_000), 1_000_000),
    "supervision.distillation": (distillation, "samples of a kernel", "n³, memory n²", (1000, 2000, 4000), 30_000),
    "generalization.fcmi": (fcmi, "trainings (of 50 rows)", "n", (50, 100, 200), 5000),
    "generalization.samplewise_limits": (
        samplewise_limits,
        "points of the domain (2 samples)",
        "nᵐ⁺¹ for m samples",
        (32, 64, 128),
        512,
    ),
    "shift.failure_modes": (failure_modes, "rows (16 columns, 4 domains)", "n", (4000, 8000, 16_000), 1_000_000),
    "shift.spurious_features": (spurious_features, "columns (2000 rows)", "n³, memory n²", (400, 800, 1600), 10_000),
    "shift.in_context": (in_context, "rows of context (8 tasks, 8 queries)", "n²", (256, 512, 1024), 4096),
    "graphs.mixhop": (mixhop, "nodes (5 epochs)", "edges", (5000, 10_000, 20_000), 100_000),
    "timeseries.mimic": (mimic, "patients", "n, memory bounded", (75, 150, 300), 46_520),
    "timeseries.event_precursors": (event_precursors, "days (3 epochs)", "n", (200, 400, 800), 10_000),
    "lm.relaxed_recursive": (relaxed_recursive, "width (4 layers)", "n³, memory n²", (128, 256, 512), 4096),
    "lm.mixture_of_recursions": (
        mixture_of_recursions,
        "tokens per sequence (2, width 64)",
        "n²",
        (256, 512, 1024),
        16_384,
    ),
    "lm.salt": (salt, "tokens (vocabulary 8000)", "n", (500, 1000, 2000), 1_000_000),
    "lm.mimetic_init": (mimetic_init, "tokens per sequence (2, width 64)", "n", (512, 1024, 2048), 100_000),
    "lm.continuous_cot": (continuous_cot, "steps of a chain (8 prompts)", "n²", (32, 64, 128), 1000),
}


def resident(name):
    """Return a line of Linux's account of this process, in megabytes: VmRSS is what it holds, VmHWM the most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def spend(key, size):
    """Return CPU seconds and megabytes of one run, in this process."""
    work = METHODS[key][0](size)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = resident("VmRSS"), time.process_time()
    work()
    return time.process_time() - start, resident("VmHWM") - before


def measure(key, results):
    """Send seconds and megabytes at the three sizes, after a small run that loads packages."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = METHODS[key][3]
    spend(key, sizes[0] // 2)
    results.put([spend(key, size) for size in sizes])


def slope(sizes, values):
    """Return the exponent of the power law through the values."""
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def amount(value, units):
    """Return a value in the largest unit that it reaches."""
    for name, factor in reversed(units):
        if value >= factor:
            return f"{value / factor:.3g} {name}"
    return f"{value / units[0][1]:.2g} {units[0][0]}"


def seconds(value):
    """Return a time as text."""
    return amount(value, [("s", 1), ("min", 60), ("h", 3600), ("d", 86_400)])


def megabytes(value):
    """Return memory as text; below a megabyte the allocator's noise is larger."""
    return amount(value, [("MB", 1), ("GB", 1024), ("TB", 1024**2)]) if value >= 1 else "< 1 MB"


def row(key):
    """Measure a method; return its row of the table."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(key, results))
    process.start()
    while process.is_alive() and results.empty():
        time.sleep(0.1)
    if results.empty():
        sys.exit(f"{key} failed")
    times, memory = zip(*results.get(), strict=True)
    process.join()
    _, what, theory, sizes, large = METHODS[key]
    exponent = slope(sizes, times)
    ahead = [seconds(times[-1] * (large / sizes[-1]) ** exponent), "-"]
    memory_exponent = "-"
    if min(memory) >= 1:
        growth = slope(sizes, memory)
        memory_exponent, ahead[1] = f"{growth:.1f}", megabytes(memory[-1] * (large / sizes[-1]) ** growth)
    measured = [", ".join(map(seconds, times)), f"{exponent:.1f}", ", ".join(map(megabytes, memory)), memory_exponent]
    shown = ", ".join(f"{size:,}" for size in sizes)
    return [f"`{key}`", what, theory, shown, *measured, f"{large:,}: {ahead[0]}, {ahead[1]}"]


def main():
    """Print the table, row by row as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, help="only this one")
    chosen = parser.parse_args().method
    heads = [
        "method",
        "what grows (n)",
        "in theory",
        "sizes",
        "CPU time",
        "exponent",
        "peak memory",
        "exponent",
        "extrapolated to",
    ]
    print("|" + "|".join(heads) + "|\n" + "|---" * len(heads) + "|", flush=True)
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    for key in [chosen] if chosen else METHODS:
        print("| " + " | ".join(row(key)) + " |", flush=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\nAll runs together: {(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime) / 60:.1f} CPU minutes."
    )


if __name__ == "__main__":
    main()
