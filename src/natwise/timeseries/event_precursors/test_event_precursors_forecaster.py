"""Datasets and their guards against leaks, the forecaster, precursors, baselines and metrics."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score

from natwise.testing import check_bad_input, check_result, check_resume, same_bits, unchanged
from natwise.timeseries import (
    BagOfWords,
    CountRegression,
    EventDataset,
    EventForecaster,
    NestedMIL,
    Persistence,
    RollingMean,
    compare_forecasts,
    event_metrics,
    planted_precursors,
)

DAYS = pd.date_range("2024-01-01", periods=12)
LABELS = pd.Series([0, 1] * 6, index=DAYS)
TEXTS = [f"text number {number}" for number in range(12)]


def corpus(n_days=120, **options):
    return planted_precursors(n_days, random_state=0, **options)


def halves(data, share=0.7):
    return data.split(data.target_dates[int(len(data) * share)])


def small(**options):
    return EventForecaster(**{"hidden_dim": 6, "max_epochs": 2, "random_state": 0, **options})


# datasets


@pytest.mark.parametrize(("history", "lead"), [(1, 1), (3, 1), (4, 3)])
def test_windows_end_before_the_target(history, lead):
    keep = np.array([0, 0, 1, 2, 4, 5, 5, 7, 8, 9, 10, 11])  # days 3 and 6 have no documents, two have several
    data = EventDataset.from_documents(DAYS[keep], TEXTS, LABELS, history, lead)
    assert len(data) == len(data.windows) == 12 - history - lead + 1
    for window, target, y in zip(data.windows, data.target_dates, data.y, strict=True):
        assert y == LABELS[target]
        end = (target - DAYS[0]).days - lead
        expected = [np.flatnonzero(keep == day).tolist() for day in range(end - history + 1, end + 1)]
        assert window == expected
    known = [LABELS[target - pd.Timedelta(days=lead)] for target in data.target_dates]
    assert data.past_labels[:, -1].tolist() == known


def test_missing_labels_and_hours_of_the_day():
    labels = LABELS.drop(DAYS[[5, 7]]).astype(bool)
    data = EventDataset.from_documents(DAYS + pd.Timedelta(hours=13), TEXTS, labels, 2, 1)
    assert DAYS[5] not in data.target_dates
    assert np.isnan(data.past_labels).any()
    late = EventDataset.from_documents(DAYS[6:], TEXTS[6:], LABELS, 2, 1)  # no documents at first
    assert late.has_documents.tolist() == [False] * 5 + [True] * 5
    zoned = EventDataset.from_documents(
        DAYS.tz_localize("Europe/Berlin"), TEXTS, LABELS.tz_localize("Europe/Berlin"), 2, 1
    )
    assert zoned.windows == EventDataset.from_documents(list(map(str, DAYS)), TEXTS, LABELS, 2, 1).windows
    assert [len(part) for part in zoned.split("2024-01-08")] == [5, 5]


@pytest.mark.parametrize("lead", [1, 3])
def test_a_split_keeps_the_order_of_time_and_unknown_labels_out(lead):
    data = EventDataset.from_documents(DAYS, TEXTS, LABELS, 2, lead)
    cutoff = DAYS[8]
    earlier, later = data.split(cutoff)
    assert later.target_dates.min() == cutoff
    assert (earlier.target_dates <= cutoff - pd.Timedelta(days=lead)).all()  # known when `cutoff` was forecast
    assert len(earlier) + len(later) == len(data) - (lead - 1)
    both = EventDataset.concatenate([earlier, later, data])
    assert np.unique(both.series).tolist() == [0, 1, 2]
    assert both.windows[0] == data.windows[0]
    assert [both.documents[j] for j in both.windows[-1][0]] == [data.documents[j] for j in data.windows[-1][0]]
    check_bad_input(
        data.split,
        [
            ({"shuffle": True}, ValueError, "leaks the future"),
            ({"cutoff": "2024-01-01"}, ValueError, "before"),
            ({"cutoff": "2030-01-01"}, ValueError, "from"),
            ({"cutoff": "soon"}, ValueError, "date"),
            ({"cutoff": 5}, TypeError, "date"),
            ({"cutoff": "2024-01-08 00:00+00:00"}, ValueError, "time zone"),
        ],
        cutoff="2024-01-09",
    )


def test_bad_input_of_a_dataset():
    mixed = [DAYS[0].tz_localize("UTC").to_pydatetime(), *DAYS[1:].to_pydatetime()]
    cases = [
        ({"dates": DAYS[::-1]}, ValueError, "sorted"),
        ({"dates": mixed}, ValueError, "time zone"),
        ({"dates": DAYS.tz_localize("UTC")}, ValueError, "time zone of dates"),
        ({"dates": DAYS[:5]}, ValueError, "same length"),
        ({"dates": np.full(12, "NaT", dtype="M8[D]")}, ValueError, "missing"),
        ({"dates": range(12)}, TypeError, "dates"),
        ({"dates": ["soon"] * 12}, ValueError, "dates"),
        ({"labels": LABELS[::-1]}, ValueError, "sorted"),
        ({"labels": pd.concat([LABELS, LABELS[-1:]])}, ValueError, "twice"),
        ({"labels": LABELS + 1}, ValueError, "0 or 1"),
        ({"labels": LABELS.replace(1, np.nan)}, ValueError, "finite"),
        ({"labels": LABELS.to_numpy()}, TypeError, "Series"),
        ({"labels": LABELS.reset_index(drop=True)}, TypeError, "dates"),
        ({"labels": LABELS[:3]}, ValueError, "reach"),
        ({"lead": 0}, ValueError, ">= 1"),
        ({"lead": 1.0}, TypeError, "integer"),
        ({"history": 0}, ValueError, ">= 1"),
        ({"documents": "one text"}, TypeError, "sequence"),
        ({"documents": [*TEXTS[1:], 3]}, TypeError, "texts throughout"),
        ({"documents": [None] * 12}, TypeError, "got None"),
        ({"documents": np.full((12, 2), np.nan)}, ValueError, "finite"),
        ({"documents": [[1, -1]] * 12}, ValueError, ">= 0"),
        ({"documents": [[]] * 12}, ValueError, "at least one"),
        ({"documents": [np.ones((2, 3))] * 11 + [np.ones((2, 4))]}, ValueError, "one length"),
        ({"documents": [[1, 9]] * 12, "vocab_size": 9}, ValueError, "below vocab_size=9"),
    ]
    check_bad_input(EventDataset.from_documents, cases, dates=DAYS, documents=TEXTS, labels=LABELS, history=3, lead=1)
    data = EventDataset.from_documents(DAYS, TEXTS, LABELS, 3, 1)
    other = EventDataset.from_documents(DAYS, np.eye(12), LABELS, 3, 1)
    check_bad_input(
        EventDataset.concatenate,
        [
            ({"datasets": [data, other]}, ValueError, "same kind"),
            ({"datasets": [1]}, TypeError, "list"),
            ({"datasets": data}, TypeError, "list"),
        ],
    )


# forecaster


def test_planted_precursors_are_found():
    data, planted = planted_precursors(300, vocab_size=30, random_state=0)
    train, test = halves(data)
    model = EventForecaster(12, max_epochs=20, random_state=0).fit(train)
    assert roc_auc_score(test.y, model.predict_proba(test)[:, 1]) >= 0.95
    events = test[test.y == 1]
    for by in ("attention", "occlusion"):
        first = model.precursors(events, top_k=1, by=by)
        assert planted[first["document"]].mean() >= 0.8, by
        words = model.precursors(events, top_k=1, by=by, level="excerpt")
        assert words["text"].str.contains("uprising").mean() >= 0.8, by
    assert (model.predict(test) == test.y).mean() > 0.9


def test_bad_planted_corpora():
    cases = [
        ({"history": 0}, ValueError, ">= 1"),
        ({"n_days": 5}, ValueError, ">= 6"),
        ({"base_rate": 1.0}, ValueError, "< 1"),
        ({"words_per_document": 1}, ValueError, ">= 2"),
    ]
    check_bad_input(planted_precursors, cases)


def test_no_look_ahead():
    """Texts after the last day of a window change nothing, in training as in forecasting."""
    data, _ = corpus()
    train, test = halves(data)
    last = test.dates[max(j for day in test.windows[0] for j in day)]
    documents = [text if date <= last else "changed" for text, date in zip(data.documents, data.dates, strict=True)]
    labels = pd.Series(data.y, index=data.target_dates)
    changed = EventDataset.from_documents(data.dates, documents, labels, data.history, data.lead)
    changed = changed[np.isin(changed.target_dates, test.target_dates)]
    model = small().fit(train)
    assert model.predict_proba(test)[0, 1] == model.predict_proba(changed)[0, 1]
    future = EventDataset.from_documents(
        data.dates, documents, pd.Series(data.y, data.target_dates), data.history, data.lead
    )
    again = small().fit(future[np.isin(future.target_dates, train.target_dates)])
    assert model.encode_.ids == again.encode_.ids


def test_fit_repeats_itself_and_changes_nothing():
    data, _ = corpus()
    train, test = halves(data)
    model = small(n_members=2)
    with unchanged(train, model.get_params()):
        assert model.fit(train) is model
    again = clone(model).fit(train)
    assert same_bits(model.predict_proba(test), again.predict_proba(test))
    assert not same_bits(
        model.predict_proba(test), clone(model).set_params(random_state=1).fit(train).predict_proba(test)
    )
    one = np.concatenate([model.predict_proba(test[[i]]) for i in range(len(test))])
    np.testing.assert_allclose(one, model.predict_proba(test), atol=1e-6)
    with pytest.raises(NotFittedError):
        small().predict_proba(test)


def as_kind(data, kind):
    """Return the same windows with documents of another kind."""
    bag = BagOfWords(20).fit(data.documents)
    documents = {
        "words": [[hash_free(word) for word in text.split()] for text in data.documents],
        "vectors": bag(data.documents),
        "excerpts": [bag(text.split()[:2]) for text in data.documents],
        "text": data.documents,
    }[kind]
    labels = pd.Series(data.y, index=data.target_dates)
    return EventDataset.from_documents(data.dates, documents, labels, data.history, data.lead)


def hash_free(word):
    return int(word.removeprefix("word")) if word != "uprising" else 60


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", {}),
        ("text", {"encoder": "bag_of_words"}),
        ("text", {"encoder": "bag_of_words", "sentences": True}),
        ("text", {"encoder": lambda texts: [[len(text), text.count("uprising")] for text in texts]}),
        ("words", {}),
        ("words", {"encoder": "bag_of_words", "class_weight": None}),
        ("vectors", {"counts": False, "past_labels": True}),
        ("excerpts", {}),
    ],
)
def test_every_kind_of_document(kind, options):
    data = as_kind(corpus()[0], kind)
    train, test = halves(data)
    model = small(**options).fit(train)
    assert np.isfinite(model.predict_proba(test)).all()
    frame = model.precursors(test, top_k=None)
    np.testing.assert_allclose(frame.groupby("instance")["score"].sum(), 1, atol=1e-5)
    assert frame["date"].lt(frame["target_date"]).all()
    windows = test.windows
    assert all(
        any(document in day for day in windows[i]) for i, document in frame[["instance", "document"]].to_numpy()[:, :2]
    )
    if model.models_[0].excerpts:
        parts = model.precursors(test, top_k=None, level="excerpt")
        np.testing.assert_allclose(parts.groupby("instance")["score"].sum(), 1, atol=1e-5)
        assert len(model.precursors(test, top_k=2, level="excerpt", by="occlusion")) <= 2 * len(test)
    else:
        check_bad_input(model.precursors, [({"level": "excerpt"}, ValueError, "single vectors")], dataset=test)


def test_occlusion_is_leaving_out():
    """Against forecasts of datasets from which the document, or the word, was taken away."""
    data, _ = corpus(80)
    model = small().fit(data)
    labels = pd.Series(data.y, index=data.target_dates)

    def forecast(documents, keep):
        parts = EventDataset.from_documents(data.dates[keep], documents, labels, data.history, data.lead)
        return dict(zip(parts.target_dates, model.predict_proba(parts)[:, 1], strict=True))

    everything = np.arange(len(data.documents))
    whole = forecast(data.documents, everything)
    few = data[20:24]
    for _, row in model.precursors(few, top_k=None, by="occlusion").iterrows():
        keep = np.delete(everything, row["document"])
        without = forecast([data.documents[j] for j in keep], keep)
        expected = whole[row["target_date"]] - without[row["target_date"]]
        assert abs(row["score"] - expected) < 1e-6
    for _, row in model.precursors(few, top_k=1, by="occlusion", level="excerpt").iterrows():
        words = data.documents[row["document"]].split()
        texts = list(data.documents)
        texts[row["document"]] = " ".join(np.delete(words, row["excerpt"]))
        assert abs(row["score"] - (whole[row["target_date"]] - forecast(texts, everything)[row["target_date"]])) < 1e-6


def test_documents_are_encoded_once():
    calls = []

    def encoder(texts):
        calls.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    data = EventDataset.from_documents(DAYS, TEXTS, LABELS, 3, 1)
    small(encoder=encoder, validation_fraction=0, max_epochs=5).fit(data)
    assert sorted(calls) == sorted(TEXTS[:11])  # the last day is in no window
    from natwise.timeseries.event_precursors._corpus import Corpus

    windows = Corpus(data, lambda texts: [np.array([1, 2]) for _ in texts], torch.device("cpu")).windows(np.arange(9))
    assert len(windows.units) == len(data.used_documents()) == 11


def test_instances_without_documents_get_the_base_rate():
    documents, dates = TEXTS[:6], DAYS[:6]
    data = EventDataset.from_documents(dates, documents, LABELS, 2, 1)
    model = small(validation_fraction=0).fit(data)
    table = model.forecast(data)
    assert table["no_documents"].tolist() == [False] * 6 + [True] * 4
    np.testing.assert_array_equal(table["probability"][table["no_documents"]], model.base_rate_)
    assert set(model.precursors(data)["instance"]) == set(np.flatnonzero(~table["no_documents"]))
    silent = data[table["no_documents"].to_numpy()]  # no document at all
    for forecaster in (model, CountRegression(min_documents=1).fit(data), NestedMIL(n_iterations=5).fit(data)):
        np.testing.assert_array_equal(forecaster.predict_proba(silent)[:, 1], forecaster.base_rate_)
        np.testing.assert_allclose(forecaster.predict_proba(data)[6:], forecaster.predict_proba(silent))
    assert model.precursors(silent, by="occlusion").empty
    assert model.precursors(silent, level="excerpt").empty


def test_bad_input_of_the_forecaster():
    data, _ = corpus(80)
    flat = data[data.y == 0]
    cases = [
        ({"dataset": [1, 2]}, TypeError, "EventDataset"),
        ({"dataset": flat}, ValueError, "both labels"),
        ({"dataset": data[:1]}, ValueError, "more days"),
        ({"hidden_dim": 0}, ValueError, ">= 1"),
        ({"hidden_dim": 1.5}, TypeError, "integer"),
        ({"encoder": "bert"}, ValueError, "one of"),
        ({"encoder": lambda texts: np.full((len(texts), 2), np.nan)}, ValueError, "finite"),
        ({"encoder": lambda texts: np.ones((3, 2))}, ValueError, "shape"),
        ({"class_weight": "rare"}, ValueError, "one of"),
        ({"counts": 1}, TypeError, "True or False"),
        ({"dropout": 1.5}, ValueError, "<="),
        ({"learning_rate": -1.0}, ValueError, ">= 0"),
        ({"validation_fraction": 1.0}, ValueError, "<= 0.9"),
        ({"device": "abacus"}, ValueError, "like"),
        ({"validation": data}, ValueError, "after the training"),
    ]

    def fit(dataset, validation=None, **options):
        return small(**options).fit(dataset, validation)

    check_bad_input(fit, cases, dataset=data)
    model = small().fit(data)
    other = as_kind(data, "vectors")
    cases = [
        ({"dataset": other}, ValueError, "kind 'text'"),
        ({"dataset": data.windows}, TypeError, "EventDataset"),
        ({"top_k": 0}, ValueError, ">= 1"),
        ({"by": "magic"}, ValueError, "one of"),
        ({"level": "page"}, ValueError, "one of"),
    ]
    check_bad_input(model.precursors, cases, dataset=data)


def test_a_finished_training_is_read_from_its_checkpoints(tmp_path):
    data, _ = corpus()
    model, checkpoint = small(n_members=2), tmp_path / "run"
    first = clone(model).fit(data, checkpoint=checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-1"]
    again = clone(model).fit(data, checkpoint=checkpoint)
    assert same_bits(first.predict_proba(data), again.predict_proba(data))
    assert [history.n_steps for history in first.histories_] == [history.n_steps for history in again.histories_]


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bits(tmp_path):
    job = tmp_path / "job.py"
    job.write_text(
        "import sys, numpy as np\n"
        "from natwise.timeseries import EventForecaster, planted_precursors\n"
        "data, _ = planted_precursors(300, random_state=0)\n"
        "model = EventForecaster(8, max_epochs=20, n_members=3, random_state=0)\n"
        "model.fit(data, checkpoint=sys.argv[1])\n"
        "np.save(sys.argv[1] + '.npy', model.predict_proba(data))\n"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    check_resume([sys.executable, str(job), str(killed)], killed)
    subprocess.run([sys.executable, str(job), str(whole)], check=True)
    assert same_bits(np.load(f"{killed}.npy"), np.load(f"{whole}.npy"))


# baselines and metrics


def test_baselines_against_loops():
    labels = pd.Series([0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1], index=DAYS).drop(DAYS[4])
    data = EventDataset.from_documents(DAYS, TEXTS, labels, 3, 2)
    last, mean = Persistence().fit(data), RollingMean().fit(data)
    for i, target in enumerate(data.target_dates):
        past = [labels.get(target - pd.Timedelta(days=k)) for k in (4, 3, 2)]
        known = [label for label in past if label is not None]
        assert last.predict_proba(data)[i, 1] == known[-1]
        assert abs(mean.predict_proba(data)[i, 1] - np.mean(known)) < 1e-15


@pytest.mark.parametrize("kind", ["text", "words", "vectors", "excerpts"])
def test_logistic_regression_on_counts(kind):
    data = as_kind(corpus(200)[0], kind)
    train, test = halves(data)
    model = CountRegression(min_documents=1).fit(train)
    assert model.C_ in CountRegression().Cs
    assert roc_auc_score(test.y, model.predict_proba(test)[:, 1]) > (0.8 if kind in ("text", "words") else 0.3)
    features = model._features(test)
    assert features.shape[0] == len(test)
    if kind == "text":
        word = model._vectorizer.vocabulary_["uprising"]
        counts = [
            sum(data.documents[j].split().count("uprising") for d in window for j in d) for window in test.windows
        ]
        np.testing.assert_allclose(features[:, [word]].toarray()[:, 0], np.log1p(counts))
    cases = [({"Cs": (0.0,)}, ValueError, "> 0")]
    if kind in ("text", "words"):
        cases.append(({"min_documents": 10**6}, ValueError, "leave a word"))
    check_bad_input(lambda **options: CountRegression(**options).fit(train), cases)


def test_metrics_and_intervals():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=200)
    good, noise = np.clip(0.3 * y + rng.uniform(size=200) * 0.7, 0, 1), rng.uniform(size=200).round(1)
    for score in (good, noise):
        metrics = event_metrics(y, score)
        assert abs(metrics["auc"] - roc_auc_score(y, score)) < 1e-12
        assert metrics["precision"] * metrics["recall"] > 0
    assert event_metrics([1, 1], [0.1, 0.2])["auc"] == 0.5
    dates = pd.date_range("2024-01-01", periods=100).repeat(2)
    result = compare_forecasts(y, {"good": good, "noise": noise, "same": good}, dates, n_resamples=200, random_state=0)
    check_result(result)
    s = result.scalars
    assert s["good_auc_low"] < s["good_auc"] < s["good_auc_high"]
    assert s["good_minus_noise_low"] > 0
    assert s["good_minus_same"] == s["good_minus_same_se"] == 0
    assert 0.5 < s["noise_auc_se"] / 0.041 < 2  # of independent rows
    cases = [
        ({"forecasts": {}}, TypeError, "at least one"),
        ({"forecasts": {"forecasts": good[:5]}}, ValueError, "shape"),
        ({"y": y + 1}, ValueError, "0 or 1"),
        ({"dates": dates[:9]}, ValueError, "same length"),
        ({"dates": ["soon"] * 200}, ValueError, "dates must be dates"),
        ({"dates": [pd.NaT] * 200}, ValueError, "missing"),
        ({"dates": range(200)}, TypeError, "number 0"),
        ({"dates": None}, TypeError, "sequence of dates"),
        ({"level": 1.0}, ValueError, "< 1"),
    ]
    check_bad_input(compare_forecasts, cases, y=y, forecasts={"good": good}, dates=dates)
    check_bad_input(event_metrics, [({"probability": good + 1}, ValueError, "[0, 1]")], y=y)
