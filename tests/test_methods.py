"""Every method folder is complete, its card is true, and the public names are the locked ones."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import natwise
from natwise import registry

CARDS = registry.cards()
NAMES = Path(__file__).parent / "public_names.txt"
PAGE_SECTIONS = ("when not", "example", "equation", "cost", "limit", "original")


def each(function):
    return pytest.mark.parametrize("card", CARDS, ids=[card.key for card in CARDS])(function)


def public_names():
    return sorted(f"natwise.{card.room}.{name}" for card in CARDS for name in card.exports)


def test_the_public_names_are_locked():
    """To change them on purpose: write the new list to tests/public_names.txt and say so in the CHANGELOG."""
    assert NAMES.read_text("utf-8").split() == public_names()


def test_rooms_export_what_the_cards_say():
    for room in {card.room for card in CARDS}:
        module = importlib.import_module(f"natwise.{room}")
        assert sorted(module.__all__) == sorted(name for card in CARDS if card.room == room for name in card.exports)
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"natwise.{room}.{name} has no docstring"


def test_there_are_twenty_methods():
    assert len({card.key for card in CARDS}) == 20


@each
def test_folder_is_complete(card):
    for name in ("__init__.py", "study.py", f"test_{card.folder.name}.py", "page.md"):
        assert (card.folder / name).is_file(), f"{card.key} lacks {name}"
    for golden in card.folder.glob("golden*"):
        assert golden.stat().st_size <= 200_000


@each
def test_card_is_true(card):
    assert card.summary.endswith(".")
    assert "\n" not in card.summary
    assert {"title", "authors", "year", "bibtex"} <= set(card.paper)
    assert card.paper["bibtex"].lstrip().startswith("@")
    assert card.claims
    assert len({claim.id for claim in card.claims}) == len(card.claims)
    for claim in card.claims:
        assert set(claim.scale) <= set(registry.SCALES)
        assert set(claim.scale) == set(claim.minutes)
        assert isinstance(claim.holds(0.0), bool)
    assert any("ci" in claim.scale for claim in card.claims)


@each
def test_study_follows_the_contract(card):
    study = importlib.import_module(f"natwise.{card.key}.study")
    assert study.STUDY.key == card.key
    assert set(study.STUDY.measurements) == {claim.id for claim in card.claims}
    assert set(study.STUDY.scales) >= {scale for claim in card.claims for scale in claim.scale}
    assert study.run == study.STUDY.run
    assert list(inspect.signature(study.figure).parameters) == ["claim", "result"]
    with pytest.raises(ValueError, match="no-such-claim"):
        study.run("no-such-claim", scale="ci", seed=0, data_dir=None)


@each
def test_page_has_its_sections(card):
    text = (card.folder / "page.md").read_text("utf-8").lower()
    headings = " ".join(line for line in text.splitlines() if line.startswith("#"))
    for section in PAGE_SECTIONS:
        assert section in headings, f"the page of {card.key} lacks a section on {section!r}"


@each
def test_examples_of_the_page_run(card, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (card.folder / "page.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert blocks, f"the page of {card.key} has no example"
    for block in blocks:
        exec(compile(block, f"{card.key}/page.md", "exec"), {})


def _is_command(function):
    """Say whether typer makes a command of it: its arguments are the options of the command line."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_functions_are_short():
    """The house rule: no function over 70 lines, none over 12 arguments outside estimators, the median at most 15."""
    lengths = []
    for path in Path(natwise.__file__).parent.rglob("*.py"):
        if path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= 70, f"{path.name}: {node.name} has {lengths[-1]} lines"
                if node.name not in ("__init__", "__new__") and not _is_command(node):
                    count = len(node.args.args) + len(node.args.kwonlyargs)
                    assert count <= 12, f"{path.name}: {node.name} has {count} arguments"
    assert sorted(lengths)[len(lengths) // 2] <= 15
