"""Label issues beside cleanlab's Datalab, on data whose wrong labels are known: AUROC, average precision, CPU seconds.

    NATWISE_DATA=... PYTHONPATH=<folder with cleanlab and datasets> python benchmarks/cleanlab.py [NAME ...]

cleanlab is no dependency: install it beside this project with
``pip install --target FOLDER --no-deps cleanlab datasets dill multiprocess termcolor xxhash``. Per data set, in one
run:

- ``same probabilities``: both score the labels from one set of out-of-fold probabilities, those of natwise's model;
- ``own defaults``: natwise as in ``natwise audit``; Datalab from the features alone (its nearest neighbours), and from
  the probabilities of its default classifier (logistic regression, five folds).

Wrong labels are planted (10 %: half at random, half from 4 to 9 and the like) except in CIFAR-10N, where they are those
of human labellers. The last lines are the table of docs/audit.md.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from natwise.audit.context import Context, Deadline
from natwise.audit.judging import label_issue_score
from natwise.audit.models import blend, make_folds
from natwise.audit.network import linearise
from natwise.audit.questions import label_issues
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.local import find
from natwise.datasets.tables import make_table

NOISE = 0.10
SECONDS = 3600.0  # the time does not bind

Case = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # name, features, given labels, true labels


def planted(name: str, X: np.ndarray, y: np.ndarray, seed: int = 0) -> Case:
    """Return features (n, ...) with labels (n,), a share `NOISE` of them wrong: half at random, half by a rule."""
    rng = np.random.default_rng(seed)
    k, given = int(y.max()) + 1, y.copy()
    rows = rng.permutation(len(y))[: round(NOISE * len(y))]
    half = len(rows) // 2
    given[rows[:half]] = (y[rows[:half]] + rng.integers(1, k, half)) % k
    given[rows[half:]] = (y[rows[half:]] + k // 2) % k  # one wrong label per class: a systematic mistake
    return name, X, given, y


def cases() -> Iterator[Callable[[], Case]]:
    def digits() -> Case:
        from sklearn.datasets import load_digits

        data = load_digits()
        return planted("digits", data.images, data.target)

    def mnist() -> Case:
        with np.load(find("images/mnist.npz")) as file:
            rows = np.sort(np.random.default_rng(0).permutation(60_000)[:5000])
            return planted("MNIST, 5,000", file["x_train"][rows], file["y_train"][rows].astype(int))

    def fashion() -> Case:
        with np.load(find("images/fashion_mnist_partial.npz")) as file:
            return planted("Fashion-MNIST, 3,615", file["x"], file["y"].astype(int))

    def heart() -> Case:
        with np.load(find("tabular/heart_disease_4hospitals.npz")) as file:
            return planted("heart disease", file["X"], file["y"].astype(int))

    def human(key: str, words: str) -> Callable[[], Case]:
        def load() -> Case:
            with np.load(find("images/cifar10_train5000.npz")) as images:
                X = images["x"]
            with np.load(find("images/cifar10n_human_labels_first5000.npz")) as labels:
                given, true = labels[key].astype(int), labels["clean_label"].astype(int)
            return f"CIFAR-10N, {words}", X, given, true

        return load

    yield from (digits, mnist, fashion, heart)
    yield from (
        human("aggre_label", "aggregated"),
        human("random_label1", "one labeller"),
        human("worse_label", "worst"),
    )


def cpu(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return what the work gives, scores (n,), and the CPU seconds that it takes."""
    start = time.process_time()
    return work(), time.process_time() - start


def ours(context: Context) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the scores (n,) and out-of-fold probabilities (n, k) of `natwise audit`, and the noise that it states."""
    streams = context.streams.child("label_issues")
    answer = label_issues.answer(context, Deadline(SECONDS))
    folds = make_folds(context.table.labels, context.row_hashes, streams.numpy("folds"))
    chosen = {name: context.models[name] for name in answer.params["models"]}
    probabilities = blend(chosen, context.encoded.X, context.labels, context.n_classes, folds, streams)
    noise, low, high = (100 * answer.scalars[f"estimated_noise{end}"] for end in ("", "_low", "_high"))
    stated = "cannot be told" if answer.params["too_much_noise"] else f"{noise:.1f} % ({low:.1f} to {high:.1f})"
    return answer.arrays["label_issue_score"], probabilities, stated


def datalab(labels: np.ndarray, **given: np.ndarray) -> np.ndarray:
    """Return how suspicious (n,) Datalab finds each label (n,): 1 - its label score."""
    from cleanlab import Datalab

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        lab = Datalab({"y": labels}, label_name="y", verbosity=0)
        lab.find_issues(issue_types={"label": {}}, **given)
    return 1 - lab.get_issues("label")["label_score"].to_numpy()


def logistic_probabilities(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return out-of-fold probabilities (n, classes) of the classifier that cleanlab's recipe takes for X (n, p)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cross_val_predict(LogisticRegression(), X, labels, cv=5, method="predict_proba")


def compare(case: Case) -> list[str]:
    name, X, given, true = case
    table = make_table(X, given)
    encoded = encode(table.features, is_image=table.image_shape is not None)
    filled, wrong = np.nan_to_num(encoded.X), given != true

    def audited() -> tuple[np.ndarray, np.ndarray, str]:
        network = linearise(table, encoded.X, Streams(0).child("network"), Deadline(SECONDS))
        return ours(Context(table, encoded, Streams(0).child("audit"), network=network))

    start = time.process_time()
    scores, probabilities, stated = audited()
    seconds = time.process_time() - start
    neighbours, neighbours_seconds = cpu(lambda: datalab(given, features=filled))
    logistic, logistic_seconds = cpu(lambda: datalab(given, pred_probs=logistic_probabilities(filled, given)))
    rows = {
        ("same probabilities", "natwise"): (label_issue_score(probabilities, table.labels), None),
        ("same probabilities", "Datalab"): (datalab(given, pred_probs=probabilities), None),
        ("own defaults", "natwise"): (scores, seconds),
        ("own defaults", "Datalab, features"): (neighbours, neighbours_seconds),
        ("own defaults", "Datalab, logistic regression"): (logistic, logistic_seconds),
    }
    lines = []
    for (setting, method), (values, spent) in rows.items():
        auroc, precision = roc_auc_score(wrong, values), average_precision_score(wrong, values)
        took = "" if spent is None else f"{spent:.1f}"
        lines.append(
            f"| {name} ({wrong.mean():.0%} wrong) | {setting} | {method} | {auroc:.4f} | {precision:.4f} | {took} |"
        )
        print(lines[-1], flush=True)
    print(f"{name}: {wrong.mean():.1%} wrong, natwise states {stated}", flush=True)
    return lines


def main() -> None:
    if find_spec("cleanlab") is None:
        print("cleanlab is not here; the first lines of this file say how to install it beside natwise")
        return
    wanted = sys.argv[1:]
    lines = ["| data | setting | method | AUROC | average precision | CPU s |", "|---|---|---|---|---|---|"]
    for load in cases():
        case = load()
        if not wanted or any(case[0].startswith(name) for name in wanted):
            lines += compare(case)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    sys.path.pop(0)  # this file has the name of the library it measures
    main()
