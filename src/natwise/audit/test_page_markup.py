"""What a parser sees on the audit's page of a hostile table: text stays text, and nothing points outside."""

from html.parser import HTMLParser

import numpy as np
import pytest

from natwise import audit
from natwise.datasets.tables import make_table
from natwise.report import audit_page
from natwise.result import Result

ATTACK = '"\'><script src=//evil.example></script><a href="javascript:x" onclick=x>{{7*7}}</style>'
VOID = {"meta", "img", "br"}
INACTIVE = {"script", "iframe", "object", "embed", "link", "form", "input", "base", "audio", "video"}


class Reader(HTMLParser):
    """Collects elements, attributes and whether every one is closed in order."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.open = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def read():
    rng = np.random.default_rng(0)
    images = np.clip(rng.standard_normal((60, 3, 3)) * 30 + 100, 0, 255)
    labels = np.where(images[:, 0, 0] > 100, ATTACK, "=cmd()")
    group = np.where(images[:, 1, 1] > 100, ATTACK, "b")
    table = make_table(
        images, labels, ids=[f"{ATTACK}{i}" for i in range(60)], group=group, name=ATTACK, texts=[ATTACK] * 60
    )
    reader = Reader()
    reader.feed(audit.run(table, minutes=0.05, verbose=0).html())
    return reader


def test_no_element_acts(read):
    assert not read.names & INACTIVE
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert read.open == []


def test_nothing_points_outside(read):
    for tag, name, value in read.attributes:
        if name in ("href", "xlink:href"):
            assert value.startswith("data:image/png;base64," if tag == "image" else "#"), (tag, value)
        if name in ("src", "srcset", "data", "action", "poster", "background"):
            assert value.startswith("data:image/png;base64,"), (tag, value)
        if name == "style":
            assert "url(" not in value.replace("url(#", "")
            assert "expression" not in value


def answer(question, sentences, **params):
    return Result(f"audit/{question}", params={"summary": sentences, **params})


def test_the_summary_has_the_five_lines_that_matter_in_the_order_of_the_page():
    issues = answer("label_issues", ["labels.", "model."])
    card = answer("data_card", ["card."], trouble=False)
    rows, more, trust = (answer(q, [f"{q}."]) for q in ("sample_information", "data_requirements", "certificate"))
    plain = audit_page.summary([issues, card, rows, more, trust])
    assert plain == ("labels.", "model.", "card.", "data_requirements.", "certificate.")
    groups, time = answer("shortcuts", ["groups."]), answer("change_points", ["time."], changes=[{}])
    trouble = answer("data_card", ["duplicates."], trouble=True)
    urgent = audit_page.lines([issues, trouble, rows, time, groups, more, trust])
    assert [line.sentence for line in urgent] == ["labels.", "duplicates.", "time.", "groups.", "data_requirements."]
    assert [line.topic for line in urgent] == ["Labels", "Data", "Time", "Groups", "More data"]
    unanswered = Result("audit/data_requirements", params={"unanswered": "no time"})
    assert audit_page.summary([issues, unanswered]) == ("labels.", "model.")
