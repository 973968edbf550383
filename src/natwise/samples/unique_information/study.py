"""Re-measurement of the paper's claims: faithfulness, mislabeled and rare samples, summarisation, human label noise.

Scale ``ci`` is for the claims on scikit-learn's digits, ``small`` for those on local data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import nn

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.datasets import local
from natwise.result import Result
from natwise.samples.unique_information._estimator import SampleInformation, relu_network
from natwise.samples.unique_information._patches import patch_features
from natwise.samples.unique_information._retraining import linearization_check
from natwise.study import Found, Setting, Study

MNIST = "images/mnist.npz"
PAPER: dict[str, Any] = {"t": 2000, "lr": 1e-3}  # the paper's full-batch training of its MLP on normalised MNIST


def _exact_linear(setting: Setting) -> Found:
    """Without hidden layer the linearisation is exact: scores must equal those of real retraining."""
    X, y, X_val, _ = _pair(_digits(), setting.streams, (4, 9), 60, 40)
    module = nn.Linear(X.shape[1], 1).double()
    check = linearization_check(
        module, X, y, X_val, t=200, lr=0.01, weight_decay=0.01, n_removals=20, random_state=setting.streams
    )
    return _agreement(check, {"data": "digits 4 against 9", "n": 60})


def _digits_retraining(setting: Setting) -> Found:
    X, y, X_val, _ = _pair(_digits(), setting.streams, (4, 9), 80, 100)
    return _retraining(setting.streams, X, y, X_val, n_removals=16, lr=0.02)


def _mnist_retraining(setting: Setting) -> Found:
    X, y, X_val, _ = _pair(_mnist(setting.data_dir), setting.streams, (4, 9), 80, 350)
    return _retraining(setting.streams, X, y, X_val, n_removals=32, lr=PAPER["lr"])


def _retraining(
    streams: Streams, X: np.ndarray, y: np.ndarray, X_val: np.ndarray, *, n_removals: int, lr: float
) -> Found:
    training: dict[str, Any] = {"t": 300, "lr": lr, "n_removals": n_removals}
    module = relu_network(X.shape[1], 256, 1, streams)
    check = linearization_check(module, X, y, X_val, random_state=streams, **training)
    return _agreement(check, {"hidden": 256, "n": len(X), **training})


def _agreement(check: Result, params: dict[str, Any]) -> Found:
    ours, real = check.arrays["functional_information"], check.arrays["retrained_functional_information"]
    scalars = dict(check.scalars) | {"max_relative_error": np.abs(ours - real).max() / real.max()}
    return Found(check.arrays, scalars, params)


def _digits_flips(setting: Setting) -> Found:
    images, labels = _digits()
    chosen = setting.streams.numpy("rows").permutation(len(labels))[:1000]
    given, flipped = _flip(labels[chosen], 0.1, setting.streams)
    scores = SampleInformation(random_state=setting.streams).fit(images[chosen], given)
    arrays, scalars = _detection(scores, flipped)
    return Found(
        arrays, scalars, {"data": "digits, 10 classes", "flagged": "flipped label", "n": 1000, "flip_rate": 0.1}
    )


def _mnist_flips(setting: Setting) -> Found:
    X, y, X_val, _ = _pair(_mnist(setting.data_dir), setting.streams, (4, 9), 1000, 350)
    given, flipped = _flip(y.astype(int), 0.1, setting.streams)
    scores = SampleInformation(relu_network(784, 1024, 1, setting.streams), **PAPER).fit(X, given.astype(float), X_val)
    arrays, scalars = _detection(scores, flipped)
    params = {"data": "MNIST 4 against 9", "flagged": "flipped label", "n": 1000, "flip_rate": 0.1, "hidden": 1024}
    return Found(arrays, scalars, params | PAPER)


def _mnist_rare(setting: Setting) -> Found:
    """One class is 400 sevens and 20 ones, the other 400 zeros; the mean over five draws of samples and networks."""
    images, labels = _mnist(setting.data_dir)
    ratios, aurocs = [], []
    for repeat in range(5):
        draw = setting.streams.child(repeat)
        shuffled = draw.numpy("rows").permutation(len(labels))
        digits = {digit: shuffled[labels[shuffled] == digit] for digit in (0, 1, 7)}
        train = np.concatenate([digits[7][:400], digits[1][:20], digits[0][:400]])
        rest = np.setdiff1d(shuffled[np.isin(labels[shuffled], (0, 1, 7))], train)
        val = draw.numpy("validation").choice(rest, 500, replace=False)
        module = relu_network(784, 1024, 1, draw)
        y = (labels[train] == 0).astype(float)
        scores = SampleInformation(module, **PAPER).fit(images[train], y, images[val]).functional_information_
        inside, rare = scores[:420], np.arange(420) >= 400
        ratios.append(inside[rare].mean() / inside[~rare].mean())
        aurocs.append(roc_auc_score(rare, inside))
    scalars = {"mean_ratio": np.mean(ratios), "smallest_ratio": np.min(ratios), "auroc": np.mean(aurocs)}
    arrays = {"flagged": rare, "score": inside, "ratios": np.array(ratios)}
    params = {"data": "MNIST {400 sevens, 20 ones} against 400 zeros", "flagged": "rare sub-class", "draws": 5}
    return Found(arrays, scalars, params | PAPER)


def _digits_summary(setting: Setting) -> Found:
    X, y, X_val, more = _pair(_digits(), setting.streams, (8, 3, 5, 9), 300, 150)
    module = relu_network(X.shape[1], 256, 1, setting.streams)
    return _summaries(SampleInformation(module).fit(X, y, X_val), X, y, more, setting.streams)


def _mnist_summary(setting: Setting) -> Found:
    local.find(MNIST, setting.data_dir)  # noted for each claim that reads the shared experiment
    return _mnist_summaries(setting)


@functools.lru_cache(maxsize=1)  # two claims read it
def _mnist_summaries(setting: Setting) -> Found:
    X, y, X_val, more = _pair(_mnist(setting.data_dir), setting.streams, (4, 9), 1000, 350)
    scores = SampleInformation(relu_network(784, 1024, 1, setting.streams), **PAPER).fit(X, y, X_val)
    return _summaries(scores, X, y, more, setting.streams)


def _summaries(
    scores: SampleInformation, X: np.ndarray, y: np.ndarray, test: tuple[np.ndarray, np.ndarray], streams: Streams
) -> Found:
    """Accuracy of the linearised network on unseen data after removing 50, 80 and 90 % of X (n, d)."""
    n, rng = len(X), streams.numpy("random-subset")
    removed = np.array([0.5, 0.8, 0.9])
    order = np.argsort(scores.functional_information_)

    def accuracy(kept: np.ndarray) -> float:
        again = SampleInformation(scores.module, t=scores.t, lr=scores.lr_).fit(X[kept], y[kept], test[0])
        return float(((again.val_predictions_[:, 0] > 0.5) == test[1]).mean())

    rows: list[list[float]] = []
    for share in removed:
        keep = round((1 - share) * n)
        random = [accuracy(rng.choice(n, keep, replace=False)) for _ in range(5)]
        subsets = (scores.summarize(keep), scores.summarize(keep, recompute=False), order[:keep])
        rows.append([accuracy(kept) for kept in subsets] + [float(np.mean(random))])
    table = np.array(rows)
    names = ("iterative", "one_shot", "top_removed", "random")
    scalars = {
        f"{name}_{round(100 * share)}": table[i, j] for i, share in enumerate(removed) for j, name in enumerate(names)
    }
    scalars["gain_over_random"] = table[-1, 0] - table[-1, 3]
    scalars["gain_over_one_shot"] = table[-1, 0] - table[-1, 1]
    scalars["full"] = accuracy(np.arange(n))
    return Found({"removed": removed, "accuracy": table}, scalars, {"n": n, "step": 0.05})


def _digits_adversarial(setting: Setting) -> Found:
    """Perturb a tenth of the training images by the sign of a linear classifier's gradient, labels unchanged."""
    X, y, X_val, _ = _pair(_digits(), setting.streams, (4, 9), 300, 60)
    direction = np.linalg.solve(X.T @ X + len(X) * np.eye(X.shape[1]), X.T @ (2 * y - 1))
    attacked = np.zeros(len(X), dtype=bool)
    attacked[setting.streams.numpy("attacked").choice(len(X), len(X) // 10, replace=False)] = True
    step = 0.3 * np.sign(direction) * X.std()
    X_attacked = np.where(attacked[:, None], X - (2 * y - 1)[:, None] * step, X).astype(np.float32)
    scores = SampleInformation(relu_network(X.shape[1], 512, 1, setting.streams)).fit(X_attacked, y, X_val)
    arrays, scalars = _detection(scores, attacked)
    return Found(
        arrays, scalars, {"data": "digits 4 against 9", "flagged": "perturbed image", "n": 300, "attack": "0.3 std"}
    )


def _human_noise(setting: Setting) -> Found:
    """Real annotators' mistakes on CIFAR-10 images: ours, out-of-fold self-confidence, and both."""
    n = 1500
    features, given, wrong = human_noise_data(n, setting.streams, setting.data_dir)
    confidence = out_of_fold_confidence(features, given, setting.streams)
    scores = SampleInformation(random_state=setting.streams).fit(features, given)
    arrays, scalars = _detection(scores, wrong)
    own = np.eye(10)[given]
    left_out_error = np.square(own - scores.left_out_predictions_).sum(axis=1)
    combined = rankdata(scores.functional_information_) + rankdata(-confidence)
    scalars |= {
        "auroc_confidence": roc_auc_score(wrong, -confidence),
        "auroc_left_out_error": roc_auc_score(wrong, left_out_error),
        "auroc_combined": roc_auc_score(wrong, combined),
    }
    scalars["noise_rate"] = wrong.mean()
    scalars["gain"] = scalars["auroc_combined"] - scalars["auroc_confidence"]
    return Found(arrays, scalars, {"data": "CIFAR-10N worse labels", "flagged": "wrong label", "n": n})


def human_noise_data(n: int, streams: Streams, data_dir: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frozen patch features (n, d) of CIFAR-10 images, labels of one annotator (n,), which are wrong (n,)."""
    images = load_npz(local.find("images/cifar10_train5000.npz", data_dir))["x"][:n]
    labels = load_npz(local.find("images/cifar10n_human_labels_first5000.npz", data_dir))
    given = labels["worse_label"][:n].astype(int)
    return patch_features(images, streams), given, given != labels["clean_label"][:n]


def out_of_fold_confidence(features: np.ndarray, labels: np.ndarray, streams: Streams) -> np.ndarray:
    """Return the probability that a cross-validated logistic regression gives to each given label."""
    return out_of_fold_probabilities(features, labels, streams)[np.arange(len(labels)), labels]


def out_of_fold_probabilities(features: np.ndarray, labels: np.ndarray, streams: Streams) -> np.ndarray:
    """Return five-fold out-of-fold probabilities of an L2 logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
    folds = StratifiedKFold(5, shuffle=True, random_state=streams.seed("folds"))
    return cross_val_predict(model, features, labels, cv=folds, method="predict_proba")


def _detection(scores: SampleInformation, flagged: np.ndarray) -> tuple[dict[str, Any], dict[str, float]]:
    functional, weight = scores.functional_information_, scores.weight_information_
    count = int(flagged.sum())
    found = flagged[np.argsort(-functional)[:count]]
    scalars = {
        "auroc": roc_auc_score(flagged, functional),
        "auroc_weight": roc_auc_score(flagged, weight),
        "precision": float(found.mean()),
        "mean_ratio": functional[flagged].mean() / functional[~flagged].mean(),
    }
    return {"flagged": flagged, "score": functional, "weight_information": weight}, scalars


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images / 8.0 - 1.0, labels


def _mnist(data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    archive = load_npz(local.find(MNIST, data_dir))
    images = archive["x_test"].reshape(-1, 784).astype(np.float32) / 255
    return (images - np.float32(0.1307)) / np.float32(0.3081), archive["y_test"].astype(int)


def _pair(
    data: tuple[np.ndarray, np.ndarray], streams: Streams, classes: tuple[int, ...], n: int, n_val: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return X, y, X_val and (X_test, y_test) of a two-class task: the second half of `classes` is class 1."""
    images, labels = data
    rows = streams.numpy("rows").permutation(np.flatnonzero(np.isin(labels, classes)))
    target = np.isin(labels, classes[len(classes) // 2 :])
    train, val, test = np.split(rows, [n, n + n_val])
    return images[train], target[train].astype(float), images[val], (images[test], target[test])


def _flip(labels: np.ndarray, rate: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    rng, n_classes = streams.numpy("flips"), len(np.unique(labels))
    flipped = rng.random(len(labels)) < rate
    shift = rng.integers(1, n_classes, len(labels))
    return np.where(flipped, (labels + shift) % n_classes, labels), flipped


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "exact-for-linear-models": _exact_linear,
    "digits-retraining": _digits_retraining,
    "digits-mislabeled": _digits_flips,
    "digits-summarization": _digits_summary,
    "digits-adversarial": _digits_adversarial,
    "mnist-retraining": _mnist_retraining,
    "mnist-mislabeled": _mnist_flips,
    "mnist-rare-subclass": _mnist_rare,
    "mnist-summarization": _mnist_summary,
    "mnist-summarization-one-shot": _mnist_summary,
    "human-label-noise": _human_noise,
}
STUDY = Study("samples.unique_information", MEASUREMENTS)
run = STUDY.run


def figure(claim: str, result: Result) -> Figure:
    """Draw the measurement of a claim."""
    drawing = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = drawing.subplots()
    if "flagged" in result.arrays:
        _draw_scores(axes, result)
    elif "accuracy" in result.arrays:
        _draw_summaries(axes, result)
    else:
        _draw_agreement(axes, result)
    return drawing


def _draw_scores(axes: Axes, result: Result) -> None:
    flagged, score = result.arrays["flagged"], result.arrays["score"]
    bins = np.geomspace(max(score.min(), score.max() * 1e-6), score.max(), 30).tolist()
    for mask, label in ((~flagged, "others"), (flagged, result.params["flagged"])):
        share = np.full(mask.sum(), 1 / mask.sum())
        axes.hist(score[mask], bins, weights=share, histtype="stepfilled", alpha=0.6, label=label)
    axes.set(xscale="log", xlabel="functional information (nats)", ylabel="share of samples")
    axes.legend(title=f"AUROC {result.scalars['auroc']:.3f}")


def _draw_summaries(axes: Axes, result: Result) -> None:
    removed = 100 * result.arrays["removed"]
    for accuracy, name in zip(
        result.arrays["accuracy"].T, ("least informative, iterated", "least, at once", "most", "random"), strict=True
    ):
        axes.plot(removed, accuracy, marker="o", label=name)
    axes.axhline(result.scalars["full"], color="grey", linestyle=":", label="all samples")
    axes.set(xlabel="samples removed (%)", ylabel="accuracy of the linearised network")
    axes.legend(title="removed first")


def _draw_agreement(axes: Axes, result: Result) -> None:
    ours, real = result.arrays["functional_information"], result.arrays["retrained_functional_information"]
    axes.scatter(real, ours, s=18)
    ends = [min(real.min(), ours.min()), max(real.max(), ours.max())]
    axes.plot(ends, ends, color="grey", linewidth=0.8)
    axes.set(
        xlabel="real retraining (nats)", ylabel="linearised network (nats)", title="Functional information of a sample"
    )
    axes.ticklabel_format(scilimits=(0, 0))
