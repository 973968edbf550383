"""Write the table of methods in README.md from the cards, or check that it is true."""

import sys
from pathlib import Path

from natwise import registry

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- methods: written by `python docs/method_table.py --write` -->", "<!-- end of methods -->"


def table() -> str:
    """Return a Markdown row for every card."""
    rows = ["| method | what it answers | extra |", "|---|---|---|"]
    for card in registry.cards():
        page = f"src/natwise/{card.key.replace('.', '/')}/page.md"
        rows.append(f"| [`{card.key}`]({page}) {card.title} | {card.summary} | {', '.join(card.extras)} |")
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """Return the text of the README with its table made anew."""
    before, rest = readme.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    text = README.read_text("utf-8")
    if sys.argv[1:] == ["--write"]:
        README.write_text(with_table(text), "utf-8")
    elif text != with_table(text):
        sys.exit("README.md: the table of methods is out of date; run python docs/method_table.py --write")
