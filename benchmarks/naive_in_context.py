"""Plain versions for benchmarks/in_context.py: a sampler that draws task by task, and scoring query by query."""

import numpy as np
import torch


class NaiveSampler:
    """Contexts and balanced queries of one data set, drawn task by task, as a data loader's worker would."""

    def __init__(self, X, y, attribute, n_context, shares=(0.45, 0.05, 0.05, 0.45)):
        self.X, self.n, self.shares = X, n_context, shares
        self.samples = [(x, int(a), int(b)) for x, a, b in zip(X, y, attribute, strict=True)]
        self.groups = [[i for i, (_, a, b) in enumerate(self.samples) if 2 * a + b == g] for g in range(4)]

    def __call__(self, n_tasks, rng):
        """Return features, labels and attributes of the examples and of the queries, as tensors."""
        tasks = self.tasks(n_tasks, rng)
        return {
            f"{name}{end}": torch.from_numpy(np.stack([np.stack([s[i] for s in task[part]]) for task in tasks]))
            for part, end in enumerate(("", "_query"))
            for i, name in enumerate(("X", "y", "attribute"))
        }

    def tasks(self, n_tasks, rng):
        """Return examples and queries of every task, each a list of (x, label, attribute)."""
        return [self.task(rng) for _ in range(n_tasks)]

    def task(self, rng):
        """Return the examples and the queries of a task."""
        context = self.draw(rng, self.shares, taken=set(), replace=False)
        queries = self.draw(rng, (0.25,) * 4, taken=set(context), replace=True)
        return [[self.samples[i] for i in part] for part in (context, queries)]

    def draw(self, rng, shares, taken, replace):
        """Return rows with the given shares of the groups, in random order."""
        counts = [int(self.n * share) for share in shares]
        while sum(counts) < self.n:
            counts[rng.choice(4, p=shares)] += 1
        chosen = []
        for group, count in zip(self.groups, counts, strict=True):
            left = [i for i in group if i not in taken]
            chosen += list(rng.choice(left, size=count, replace=replace))
        rng.shuffle(chosen)
        return chosen


def tokens_task_by_task(tasks, class_tokens, group_tokens, rng):
    """Return the sequences of tokens of all tasks, each with its features permuted."""
    sequences = []
    for context, queries in tasks:
        order, sequence = rng.permutation(len(context[0][0])), []
        for (x, y, attribute), (query, _, _) in zip(context, queries, strict=True):
            triple = [x[order], class_tokens[y] + group_tokens[attribute], query[order]]
            for kind, token in enumerate(triple):
                sequence.append(np.concatenate([np.eye(3, dtype=np.float32)[kind], token]))
        sequences.append(np.stack(sequence))
    return torch.from_numpy(np.stack(sequences))


def score_query_by_query(transformer, context, queries):
    """Return the logits of the queries, each behind a context that is run anew."""
    place = torch.tensor([len(context)])
    with torch.no_grad():
        return torch.cat([transformer(torch.cat([context, query[None]]), place) for query in queries])


def waterbirds_like(n=4795, width=768, seed=0):
    """Return embeddings with the groups of Waterbirds' training set."""
    rng = np.random.default_rng(seed)
    group = rng.choice(4, size=n, p=[0.7295, 0.03837, 0.01173, 0.2204])
    return rng.normal(size=(n, width)).astype(np.float32), group // 2, group % 2
