"""In-context learners: 1000 queries behind a cached context against the definition, and samplers against a plain loop.

``--device cuda`` measures on a GPU.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from natwise.shift import InContextTransformer, SingleTaskSampler, in_context_tokens

sys.path.insert(0, str(Path(__file__).parent))
import naive_in_context as naive


def seconds(work, device, repeats):
    """Return the least time of the work, after a first round that is not counted, and its result.

    CPU seconds on a CPU, which other programs on the machine change little; wall seconds on a GPU.
    """
    clock, times = time.perf_counter if device.type == "cuda" else time.process_time, []
    for _ in range(repeats + 1):
        start = clock()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return min(times[1:]), result


def scoring(device, n_context=100, n_queries=1000, n_naive=20):
    """Time all queries behind the cache, and some of them query by query, which costs the same for each."""
    torch.manual_seed(0)
    model = InContextTransformer(131, n_layer=3, d_model=128, n_head=4).to(device).eval()
    context, queries = torch.randn(2 * n_context, 131, device=device), torch.randn(n_queries, 131, device=device)

    @torch.no_grad()
    def cached():
        cache = model.encode(context)
        return torch.cat([model.score(part, cache) for part in queries.split(256)])

    ours, found = seconds(cached, device, 3)
    theirs, expected = seconds(lambda: naive.score_query_by_query(model, context, queries[:n_naive]), device, 1)
    theirs *= n_queries / n_naive
    apart = float((found[:n_naive] - expected).abs().max())
    assert apart < 1e-5, apart
    print(
        f"{n_queries} queries behind {n_context} examples, 3 layers of 128: {ours:.3f} s cached, query by query "
        f"{theirs:.1f} s ({n_naive} of them measured): {theirs / ours:.0f}x; largest difference {apart:.1e}"
    )


def sampling(device, n_tasks, n_context, width):
    X, y, attribute = naive.waterbirds_like(width=width)
    sampler = SingleTaskSampler(X, y, attribute, n_context=n_context, device=device)
    plain, rng = naive.NaiveSampler(X, y, attribute, n_context), np.random.default_rng(0)
    ours, _ = seconds(lambda: sampler(n_tasks, rng), device, 5)
    theirs, _ = seconds(lambda: plain(n_tasks, rng), torch.device("cpu"), 2)
    report(f"{n_tasks} tasks of {n_context} examples and queries, {width} features, drawn on {device}", ours, theirs)
    class_tokens, group_tokens = torch.randn(2, 2, width + 3, device=device)

    def tokens():
        tasks = sampler(n_tasks, rng)
        order = torch.rand(n_tasks, 1, width, device=device).argsort(dim=-1)
        X, X_query = (pad(tasks[name].gather(2, order.expand_as(tasks[name])), (3, 0)) for name in ("X", "X_query"))
        options = {"class_tokens": class_tokens, "group_tokens": group_tokens}
        return in_context_tokens(X, tasks["y"], X_query, tasks["attribute"], **options)

    def plain_tokens():
        told = [part[:, 3:].cpu().numpy() for part in (class_tokens, group_tokens)]
        return naive.tokens_task_by_task(plain.tasks(n_tasks, rng), *told, rng).to(device)

    ours, (found, _) = seconds(tokens, device, 5)
    theirs, expected = seconds(plain_tokens, device, 2)
    assert found.shape == expected.shape
    report("    drawn, permuted and put into tokens", ours, theirs)


def report(what, ours, theirs):
    print(f"{what}: {1e3 * ours:.1f} ms, task by task {1e3 * theirs:.0f} ms: {theirs / ours:.0f}x")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    scoring(device)
    for n_tasks, n_context, width in ((64, 16, 64), (256, 16, 64), (32, 100, 64), (256, 100, 64), (32, 100, 768)):
        sampling(device, n_tasks, n_context, width)


if __name__ == "__main__":
    main()
