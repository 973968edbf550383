"""The page on reliability is true: all checks are there, and every test it names exists."""

import re
from pathlib import Path

import pytest

from natwise import registry

ROOT = Path(__file__).parent.parent
ROWS = [line for line in (ROOT / "docs/reliability.md").read_text("utf-8").splitlines() if re.match(r"\| \d+ \|", line)]


def test_all_checks_are_there():
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 26))


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[2].strip() for row in ROWS])
def test_the_tests_of_a_row_exist_and_are_marked(row):
    named = re.findall(r"`([\w/.]+\.py)::(test_\w+)`( \(slow\))?", row)
    assert named
    for file, test, slow in named:
        text = (ROOT / file).read_text("utf-8")
        found = re.search(rf"((?:^@.*\n)*)^def {test}\(", text, flags=re.M)
        assert found, f"{file} has no {test}"
        marked = "slow" in found[1] or re.search(r"^pytestmark.*slow", text, flags=re.M)
        assert bool(slow) <= bool(marked), f"{test} is not slow"


@pytest.mark.parametrize("card", registry.cards(), ids=lambda card: card.key)
def test_every_method_has_reference_numbers(card):
    golden = [path.name for path in card.folder.glob("golden*.npz")]
    tests = "".join(path.read_text("utf-8") for path in card.folder.glob("test_*.py"))
    assert golden
    assert all(name in tests for name in golden)
