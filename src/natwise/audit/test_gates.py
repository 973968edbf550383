"""Gates: conditions are checked before the work, and fail when they hold or cannot be judged."""

import numpy as np
import pytest

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
