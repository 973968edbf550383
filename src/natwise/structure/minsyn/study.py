"""Re-measures what is claimed for minimal synergy: letters in images of words, and exact values of synergy.

The images show three-letter words; each of the three positions takes one of eight letters. Words of the dictionary are
fitted, the other strings are held out. The letters of a word depend on one another: can a method find them
without being told? *Purity* is the share of the squared weight of a factor that lies on one position, averaged over
factors; *letter correlation* is the largest |correlation| of a letter's indicator with a factor on held-out strings,
averaged over the 24 letters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from natwise.core.io import load_npz
from natwise.core.random import Streams
from natwise.datasets import local
from natwise.result import Result
from natwise.structure.minsyn import synergy
from natwise.structure.minsyn._estimator import MinSyn
from natwise.study import Found, Setting, Study

WORDS = "images/words3_glyphs.npz"
N_POSITIONS, N_LETTERS = 3, 8
N_FACTORS = N_POSITIONS * N_LETTERS
SHOWN = 6


def figure(claim: str, result: Result) -> Figure:
    """Draw the result of `claim`."""
    return _draw_measures(result) if claim == "synergy-values" else _draw_factors(result)


class Strings:
    """Images of three-letter strings: those that are fitted, those held out, and the letters of these.

    Parameters
    ----------
    glyphs : ndarray of shape (n_positions, n_letters, height, width)
        An image in [0, 1] of every letter of every position.
    train, test : ndarray of shape (n_strings, n_positions)
        Number of the letter at each position.
    """

    def __init__(self, glyphs: np.ndarray, train: np.ndarray, test: np.ndarray):
        self.shape = (glyphs.shape[2], N_POSITIONS * glyphs.shape[3])
        self.train, self.test = (
            np.concatenate([glyphs[k, letters[:, k]] for k in range(N_POSITIONS)], axis=2).reshape(len(letters), -1)
            for letters in (train, test)
        )
        self.test_letters = (test[:, :, None] == np.arange(N_LETTERS)).reshape(len(test), -1).astype(float)

    def purity(self, weights: np.ndarray) -> float:
        """Return the share of the squared weight (m, p) on the strongest position, averaged over factors."""
        by_position = (weights.reshape(len(weights), self.shape[0], N_POSITIONS, -1) ** 2).sum((1, 3))
        return float((by_position.max(1) / by_position.sum(1)).mean())

    def letter_correlation(self, factors: np.ndarray) -> float:
        """Return the best |correlation| of each letter with a factor (n, m) on the held-out strings, averaged."""
        Z = factors - factors.mean(0)
        letters = self.test_letters - self.test_letters.mean(0)
        norms = np.outer(np.linalg.norm(letters, axis=0), np.linalg.norm(Z, axis=0))
        return float((np.abs(letters.T @ Z) / np.maximum(norms, 1e-12)).max(1).mean())


def load_strings(path: Path) -> Strings:
    """Return the words: 206 of the dictionary to fit, 306 other strings held out."""
    data = load_npz(path)
    codes = {(k, letter): j for k in range(N_POSITIONS) for j, letter in enumerate(data["letters"][k])}
    train, test = (
        np.array([[codes[k, letter] for k, letter in enumerate(word)] for word in data[name]])
        for name in ("train", "test")
    )
    alphabet = np.array([[ord(letter) - ord("a") for letter in row] for row in data["letters"]])
    return Strings(data["glyphs"][alphabet] / 255.0, train, test)


def synthetic_strings(seed: int, *, side: int = 8, n_train: int = 206) -> Strings:
    """Return strings of a made-up language: random glyphs, and the strings with the most frequent pairs of letters."""
    streams = Streams(seed)
    glyphs = (streams.numpy("glyphs").random((N_POSITIONS, N_LETTERS, side, side)) < 0.3).astype(float)
    habit = streams.numpy("pairs").standard_normal((2, N_LETTERS, N_LETTERS))
    strings = np.stack(np.meshgrid(*[np.arange(N_LETTERS)] * N_POSITIONS, indexing="ij"), -1).reshape(-1, N_POSITIONS)
    order = np.argsort(-habit[0][strings[:, 0], strings[:, 1]] - habit[1][strings[:, 1], strings[:, 2]])
    return Strings(glyphs, strings[order[:n_train]], strings[order[n_train:]])


def _synthetic(setting: Setting) -> Found:
    return _find_letters(synthetic_strings(setting.seed), setting)


def _words(setting: Setting, **options: Any) -> Found:
    return _find_letters_of_words(local.find(WORDS, setting.data_dir), setting, **options)


@lru_cache(maxsize=1)  # two claims read the same fits
def _find_letters_of_words(path: Path, setting: Setting, **options: Any) -> Found:
    return _find_letters(load_strings(path), setting, **options)


def _find_letters(
    strings: Strings,
    setting: Setting,
    *,
    likelihood: str = "gaussian",
    pixel_noise: float = 0.0,
    negated: bool = False,
) -> Found:
    """Fit MinSyn and the baselines; binary factors from two random starts ("ci") or six."""
    noise = setting.streams.numpy("pixels")
    train, test = (
        (1 - images if negated else images) + pixel_noise * noise.standard_normal(images.shape)
        for images in (strings.train, strings.test)
    )
    options: dict[str, Any] = {"likelihood": likelihood}
    if likelihood == "bernoulli":
        options |= {"beta": 0.5, "n_init": 2 if setting.scale == "ci" else 6}
    model = MinSyn(N_FACTORS, **options, random_state=setting.seed).fit(train)
    found = {"minsyn": (model.components_, model.transform(test)), **_baselines(train, test, setting.streams)}
    scalars = {f"purity_{name}": strings.purity(weights) for name, (weights, _) in found.items()}
    scalars |= {f"letters_{name}": strings.letter_correlation(factors) for name, (_, factors) in found.items()}
    arrays = {f"weights_{name}": weights[:SHOWN] for name, (weights, _) in found.items()}
    options |= {"image": list(strings.shape), "n_factors": N_FACTORS, "pixel_noise": pixel_noise, "negated": negated}
    return Found(arrays, scalars, options)


def _baselines(train: np.ndarray, test: np.ndarray, streams: Streams) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return weights (m, p) and held-out factors (n, m) of the methods that a user would try first."""
    from sklearn.decomposition import NMF, PCA, FastICA

    from natwise.structure.linear_corex import LinearCorEx

    random: dict[str, Any] = {"random_state": streams.seed("baselines") % 2**31}
    models: dict[str, Any] = {
        "linear_corex": LinearCorEx(N_FACTORS, **random),
        "fast_ica": FastICA(N_FACTORS, max_iter=2000, tol=1e-3, whiten="unit-variance", **random),
        "pca": PCA(N_FACTORS, **random),
        "nmf": NMF(N_FACTORS, init="nndsvda", max_iter=500, **random),
    }
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the baselines: they are measured where they stop
        for name, model in models.items():
            fitted, held_out = (train.clip(0), test.clip(0)) if name == "nmf" else (train, test)
            factors = model.fit(fitted).transform(held_out)
            found[name] = (model.components_, factors)
    return found


def _synergy_values(setting: Setting) -> Found:
    """Compare the three measures with what follows by hand."""
    bit = np.log(2)
    and_information = np.log(4) - 0.75 * np.log(3)  # the entropy of an AND of fair bits
    and_single = and_information - bit / 2
    cases: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
        "XOR": ({"pmf": _gate(np.bitwise_xor)}, (bit, bit, bit)),
        "AND": ({"pmf": _gate(np.bitwise_and)}, (and_information - 2 * and_single, np.nan, bit / 2)),
        "first of two": ({"pmf": _gate(lambda a, b: a)}, (0.0, 0.0, 0.0)),
        "both bits": ({"pmf": _gate(lambda a, b: 2 * a + b)}, (0.0, 0.0, 0.0)),
        "repeated bit": ({"pmf": np.eye(2)[:, :, None] * np.eye(2)[:, None, :] / 2}, (-bit, 0.0, 0.0)),
        "sum of Gaussians": (
            {"covariance": [[1, 0.6, 0.6], [0.6, 1, 0], [0.6, 0, 1]]},
            (np.log(0.64) - 0.5 * np.log(0.28), np.nan, 0.5 * np.log(0.64 / 0.28)),
        ),
    }
    measures = {"wms": synergy.wms, "ci": synergy.ci, "union": synergy.union}
    measured = np.array([[measure(**given) for measure in measures.values()] for given, _ in cases.values()])
    exact = np.array([values for _, values in cases.values()])
    scalars = {
        f"{name}_{case}": value
        for case, row in zip(cases, measured, strict=True)
        for name, value in zip(measures, row, strict=True)
    }
    scalars["largest_error"] = float(np.nanmax(np.abs(measured - exact)))
    params = {"cases": list(cases), "measures": list(measures)}
    return Found({"measured": measured, "exact": exact}, scalars, params)


def _gate(function: Callable[..., Any]) -> np.ndarray:
    """Return the table of x = function(y1, y2) for fair bits."""
    a, b = np.meshgrid([0, 1], [0, 1], indexing="ij")
    x = function(a, b)
    table = np.zeros((x.max() + 1, 2, 2))
    table[x, a, b] = 0.25
    return table


def _draw_factors(result: Result) -> Figure:
    shape = result.params["image"]
    names = [name.removeprefix("weights_") for name in result.arrays]
    drawing = Figure(figsize=(9, 1.1 * len(names) + 0.6), layout="constrained")
    axes = drawing.subplots(len(names), SHOWN, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, weights in zip(row, result.arrays[f"weights_{name}"], strict=True):
            largest = np.abs(weights).max()
            axis.imshow(weights.reshape(shape), cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        purity, letters = result.scalars[f"purity_{name}"], result.scalars[f"letters_{name}"]
        row[0].set_title(f"{name}: purity {purity:.3f}, letters {letters:.3f}", loc="left", fontsize=9)
    drawing.suptitle(f"Weights of the first {SHOWN} factors (blue negative, red positive)", fontsize=10)
    return drawing


def _draw_measures(result: Result) -> Figure:
    drawing = Figure(figsize=(7.5, 3.8), layout="constrained")
    axis = drawing.add_subplot()
    cases, measures = result.params["cases"], result.params["measures"]
    for k, name in enumerate(measures):
        axis.bar(np.arange(len(cases)) + 0.27 * (k - 1), result.arrays["measured"][:, k], 0.25, label=name)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(np.arange(len(cases)), cases)
    axis.set_ylabel("synergy (nats)")
    axis.legend(title="natwise.structure.synergy")
    return drawing


MEASUREMENTS: dict[str, Callable[[Setting], Found]] = {
    "synergy-values": _synergy_values,
    "synthetic-strings": _synthetic,
    "words-purity": _words,
    "words-ica": _words,
    "words-noise": partial(_words, pixel_noise=0.05),
    "words-negated": partial(_words, negated=True),
    "words-letters": partial(_words, likelihood="bernoulli"),
}
STUDY = Study("structure.minsyn", MEASUREMENTS)
run = STUDY.run
