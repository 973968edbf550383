"""Event precursors side by side: shared documents against windows of their own, and against plain loops."""

import time

import numpy as np
import torch
from naive_event_precursors import naive_logits, naive_nmil

from natwise.timeseries import EventForecaster, nmil_objective, planted_precursors
from natwise.timeseries.event_precursors import study
from natwise.timeseries.event_precursors._corpus import Corpus


def cpu_seconds(work, repeats=1):
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return result, best


def main():
    scalars = study.run("encoding-once", scale="small", seed=0).scalars
    print(
        f"epoch of training, history 10: {scalars['seconds_shared']:.2f} s with shared documents, "
        f"{scalars['seconds_alone']:.2f} s without: {scalars['epoch_ratio']:.1f}x "
        f"({scalars['documents_ratio']:.1f}x fewer documents encoded)"
    )
    data, _ = planted_precursors(120, history=10, documents_per_day=6, words_per_document=20, random_state=0)
    model = EventForecaster(32, max_epochs=1, validation_fraction=0.0, random_state=0).fit(data)
    corpus = Corpus(data, model.encode_, torch.device("cpu"))
    units = dict(zip(corpus.used.tolist(), corpus.units, strict=True))
    with torch.no_grad():
        ours, fast = cpu_seconds(lambda: model.models_[0].read(corpus.windows(np.arange(len(data)))).logit, 3)
        plain, slow = cpu_seconds(lambda: naive_logits(model.models_[0], data, units))
    difference = float((ours - plain).abs().max())
    print(
        f"forecasts of {len(data)} windows: {slow / fast:.0f}x faster than loops, largest difference {difference:.1e}"
    )
    rng = np.random.default_rng(0)
    X = [[rng.normal(size=(8, 100)) for _ in range(10)] for _ in range(100)]
    y, cosines, w = rng.integers(2, size=100), [rng.uniform(size=10) for _ in X], rng.normal(size=100) / 10
    (value, _), fast = cpu_seconds(lambda: nmil_objective(w, X, y, cosines), 3)
    naive, slow = cpu_seconds(lambda: naive_nmil(w, X, y, cosines))
    print(f"nested MIL with gradient: {slow / fast:.0f}x faster than loops for the value, off {abs(value - naive):.0e}")


if __name__ == "__main__":
    main()
