"""Gates: conditions are checked before the work, and fail when they hold or cannot be judged."""

import numpy as np
import pytest

from natwise import cli
from natwise.audit import gates
from natwise.result import Result

COMBINED = Result(
    "audit",
    scalars={"label_issues/estimated_noise": 0.08, "data_card/duplicate_rows": 3, "label_issues/accuracy": 0.9},
    arrays={"label_memory/memorised": np.array([[0.25], [0.2], [0.3]])},
)


@pytest.mark.parametrize(
    ("condition", "failed", "words"),
    [
        ("label_noise>0.05", True, "gate label_noise>0.05: FAILED, it is 0.08"),
        ("label_noise > 10%", False, "passed, it is 0.08"),
        ("accuracy <= 9e-1", True, "it is 0.9"),
        ("duplicate_rows>=4", False, "it is 3"),
        ("memorised > 0.2", True, "it is 0.25"),
        ("test_overlap > 0", True, "was not answered"),
    ],
)
def test_verdicts(condition, failed, words):
    (gate,) = gates.judge([condition], COMBINED)
    assert gate.failed is failed
    assert words in str(gate)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("label_noise", "must look like"),
        ("label_noise = 1", "must look like"),
        ("label_noise > 1.2.3", "must look like"),
        ("label_noise > --1", "must look like"),
        ("", "must look like"),
        (None, "must look like"),
        ("label_nose > 1", "Did you mean 'label_noise'"),
        ("__class__ > 1", "there is no gate"),
    ],
)
def test_bad_conditions(condition, words):
    with pytest.raises(ValueError, match=words):
        gates.check_conditions([condition])


def test_every_gate_names_a_question():
    from natwise.audit import plan

    assert {question for question, _, _ in gates.GATES.values()} <= set(plan.QUESTIONS)


@pytest.mark.parametrize(
    ("gate", "code", "written"), [("accuracy<1.5", 1, True), ("accuracy>1.5", 0, True), ("acuracy>1", 2, False)]
)
def test_the_command_fails_on_a_gate_after_writing_and_on_a_wrong_one_before(
    gate, code, written, tmp_path, monkeypatch, capsys
):
    rows = [f"{i % 7},{i % 2 + 0.1 * (i % 5)},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["size,height,kind", *rows]))
    words = ["natwise", "audit", str(tmp_path / "t.csv"), "--label", "kind", "--minutes", "0.02", "--fail-on", gate]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    files = {path.name for path in (tmp_path / "out").glob("*")}
    assert files == ({"report.html", "audit.csv", "audit.safetensors"} if written else set())
    shown = capsys.readouterr()
    assert ("gate accuracy" in shown.out) == written
    assert len(shown.err.splitlines()) <= 1 or written
