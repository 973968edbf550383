"""Slow, plain references: each window encodes its own documents, one window at a time; nested MIL by loops."""

import numpy as np
import torch


def naive_logits(model, dataset, units):
    """Return the logits of a hierarchical attention LSTM, every document read again for every window."""
    logits = []
    for window in dataset.windows:
        days, present = [], []
        for day in window:
            if day:
                vectors = []
                for document in day:
                    words = torch.as_tensor(units[document])[None]
                    states, _ = model.word_lstm(model.embedding(words))
                    vectors.append(model.word_attention(states, torch.ones_like(words, dtype=torch.bool))[0])
                pooled, _ = model.document_attention(
                    torch.stack(vectors, dim=1), torch.ones(1, len(day), dtype=torch.bool)
                )
            else:
                pooled = model.empty_day[None]
            number = torch.log1p(torch.tensor([[float(len(day))]]))
            days.append(torch.cat([pooled, number], dim=1) if model.counts else pooled)
            present.append(bool(day))
        logits.append(model.read_days(torch.stack(days, dim=1), torch.tensor([present]))[0])
    return torch.cat(logits)


def naive_nmil(w, X, y, cosines, beta=3.0, gamma=0.5, margin=0.5, threshold=0.5):
    """Return the objective of nested multi-instance learning, document by document."""
    total = 0.0
    for bag, label, cosine in zip(X, y, cosines, strict=True):
        p = [[1 / (1 + np.exp(-w @ x)) for x in day] for day in bag]
        days = [np.mean(day) for day in p]
        event = np.mean(days)
        total -= beta * np.log(event if label else 1 - event)
        for j in range(len(bag)):
            if j:
                total += gamma / len(bag) * cosine[j] * (days[j] - days[j - 1]) ** 2
            hinge = [max(0, margin - np.sign(q - threshold) * (w @ x)) for q, x in zip(p[j], bag[j], strict=True)]
            total += gamma / len(bag) * np.mean(hinge)
    return total / len(X)
