"""The guides name what exists."""

import importlib
import re
from pathlib import Path

from natwise import registry

DOCS = Path(__file__).parent.parent / "docs"


def test_names_in_the_guides_exist():
    rooms = "|".join(registry.ROOMS)
    for page in sorted(DOCS.glob("*.md")):
        for room, name in re.findall(rf"natwise\.({rooms})\.([A-Za-z_]+)", page.read_text("utf-8")):
            assert hasattr(importlib.import_module(f"natwise.{room}"), name), f"{page.name}: natwise.{room}.{name}"


def test_every_guide_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text("utf-8").split()
    for page in DOCS.glob("*.md"):
        assert page.stem in [*index, "index"], f"docs/index.md does not lead to {page.name}"
