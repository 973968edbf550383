"""The audit as a whole: every answer present, files whole and harmless, time kept, bad input refused."""

import re

import numpy as np
import pandas as pd
import pytest

import natwise
from natwise import audit
from natwise.audit import plan
from natwise.audit.context import Context, Deadline
from natwise.audit.questions import data_card, latent_factors
from natwise.core.random import Streams
from natwise.datasets.encoding import encode
from natwise.datasets.tables import make_table

N = 120
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((N, 2))
X = HIDDEN[:, [0, 0, 0, 1, 1, 1]] + 0.5 * RNG.standard_normal((N, 6))
LABELS = (HIDDEN[:, 0] > 0).astype(int)
SCRIPT = "<script>document.title='run'</script>"


def hostile():
    frame = pd.DataFrame(X, columns=[SCRIPT, "=1+1", "$x^{", "-->", '"quoted"', "M" * 10_000])
    frame["city"] = np.where(HIDDEN[:, 1] > 0, "{{ 7*7 }}", SCRIPT)
    labels = np.where(LABELS, SCRIPT, "=cmd|'/C calc'!A0")
    ids = [f"=HYPERLINK({i})" if i % 2 else f"-{i}" for i in range(N)]
    group = np.where(HIDDEN[:, 1] > 0, "@SUM(A1)", "{{ 7*7 }}")
    time = [SCRIPT if i == 7 else f"2020-{i // 10 + 1:02}-01" for i in range(N)]
    return make_table(frame, labels, ids=ids, group=group, time=time, name=SCRIPT)


@pytest.fixture(scope="module")
def result():
    return audit.run(hostile(), minutes=10, random_state=0)


def test_every_question_is_answered(result):
    assert [answer.kind for answer in result.answers] == [f"audit/{name}" for name in plan.QUESTIONS]
    assert not any("unanswered" in answer.params for answer in result.answers)
    assert 1 <= len(result.summary) <= 5
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in result.summary)


def test_frame_and_ranking(result):
    frame = result.to_frame()
    assert list(frame.columns[:3]) == ["id", "label", "label_issue_score"]
    assert list(frame["id"]) == list(hostile().ids)
    assert result.label_issues()["label_issue_score"].is_monotonic_decreasing


def test_files(result, tmp_path):
    result.save(tmp_path / "new" / "folder")
    files = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {"report.html", "audit.csv", "audit.safetensors"}
    loaded = natwise.Result.load(files["audit.safetensors"])
    assert loaded == result.combined
    table = pd.read_csv(files["audit.csv"], dtype=str)
    assert len(table) == N
    assert not table.stack().str.match(r"^[=+@\t\r]").any()
    assert set(table["id"].str[:2]) <= {"'=", *(f"-{digit}" for digit in range(10))}  # -4 is a number and stays one
    scores = pd.read_csv(files["audit.csv"])["label_issue_score"]
    np.testing.assert_allclose(scores, result.to_frame()["label_issue_score"], rtol=1e-5)


def test_the_page_is_inert_and_self_contained(result):
    page = result.html()
    assert len(page) < 3e6
    assert "<script" not in page.lower()
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href|xlink:href)\s*=\s*["'](?!#|data:)""", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "{{ 7*7 }}" in page
    assert page.count('role="img" aria-label=') >= 3
    assert "&lt;script&gt;" in page
    assert result.html() == page


def test_images_have_thumbnails_and_known_mistakes_are_reported():
    images = np.clip(X[:, :4].reshape(N, 2, 2) * 40 + 100, 0, 255)
    planted = np.zeros(N, dtype=bool)
    planted[:12] = True
    labels = np.where(planted, 1 - LABELS, LABELS)
    result = audit.run(make_table(images, labels, planted=planted), minutes=0.2)
    assert list(result.to_frame().columns[:4]) == ["id", "label", "label_issue_score", "planted"]
    assert result.to_frame()["planted"].sum() == 12
    assert "planted_auroc" in result.answers[0].scalars
    assert result.html().count("data:image/png;base64") >= 30


def test_arrays_and_target():
    result = audit.run(X[:60], LABELS[:60], minutes=0.15, target=0.999)
    assert "audit/change_points" not in [answer.kind for answer in result.answers]  # nobody gave times
    assert result.to_frame()["id"].tolist() == list(range(60))
    assert any("target of 99.9 %" in sentence for sentence in result.summary)
    assert "natwise.audit.run(X, y, minutes=0.15, random_state=0, target=0.999)" in result.html()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((X,), {}, TypeError, "Table alone"),
        ((X, LABELS), {"minutes": 0}, ValueError, "minutes"),
        ((X, LABELS), {"minutes": "ten"}, TypeError, "minutes"),
        ((X, LABELS), {"minutes": float("nan")}, ValueError, "minutes"),
        ((X, LABELS), {"target": 1.5}, ValueError, "target"),
        ((X, LABELS), {"random_state": -1}, ValueError, "random_state"),
        ((X, LABELS), {"verbose": None}, TypeError, "verbose"),
        ((X, np.zeros(N)), {}, ValueError, "one class"),
        ((pd.DataFrame({"a": ["only text"] * N}), LABELS), {}, ValueError, "no usable features"),
    ],
)
def test_bad_input(arguments, options, error, words):
    with pytest.raises(error, match=words):
        audit.run(*arguments, **options)


def context(table):
    return Context(table, encode(table.features), Streams(0))


def test_data_card_counts():
    frame = pd.DataFrame(X[:30], columns=list("abcdef")).assign(fixed=1, gaps=[1.0, np.nan, 2.0] * 10)
    frame = pd.concat([frame, frame[:6]], ignore_index=True)
    labels = np.array(["Yes", "no"] * 15 + ["no", "no"] * 3)
    table = make_table(frame, labels, group=["s"] * 36, test=frame[4:9].assign(a=lambda f: f.a + (f.index == 8)))
    card = data_card.answer(context(table), Deadline(1))
    assert card.scalars["duplicate_rows"] == 6
    assert card.scalars["conflicting_rows"] == 6  # three pairs
    assert card.scalars["test_overlap"] == 4
    assert card.scalars["missing_share"] == pytest.approx(12 / 36 / 8)
    assert card.params["left_out"] == [{"name": "fixed", "kind": "constant"}]
    assert card.params["groups"][0]["rows"] == 36
    assert len(card.params["duplicate_groups"]) == 6


def test_data_card_counts_one_in_the_singular():
    X = np.column_stack([np.arange(60) % 7, np.arange(60) % 11, np.ones(60)]).astype(float)
    X[1] = X[0]
    card = data_card.answer(context(make_table(X, np.arange(60) // 30)), Deadline(1))
    assert card.params["summary"][0].endswith("; 1 row repeats another, 1 column tells nothing about a row.")


def test_data_card_warns_of_classes_that_differ_in_case():
    labels = np.where(LABELS, "cat", np.where(HIDDEN[:, 1] > 0, "Cat ", "dog"))
    card = data_card.answer(context(make_table(X, labels)), Deadline(1))
    assert any("differ only in case" in text for text in card.warnings)


def test_latent_factors_find_the_groups():
    found = latent_factors.answer(context(make_table(X, LABELS)), Deadline(20))
    factor = found.arrays["factor"]
    assert found.scalars["factors"] == 2
    assert len(set(factor[:3])) == len(set(factor[3:])) == 1
    assert factor[0] != factor[5]
    assert found.scalars["total_correlation"] > 5 * found.scalars["total_correlation_shuffled"]
    assert found.scalars["agreement"] == 1.0


def test_latent_factors_need_numbers():
    frame = pd.DataFrame({"a": np.where(LABELS, "u", "v"), "b": X[:, 0]})
    result = audit.run(frame, LABELS, minutes=0.1)
    assert "at least 3 numeric columns" in result.answers[-1].params["unanswered"]
    assert "Not answered." in result.html()
