import math

import pytest

from natwise import registry
from natwise.registry import Claim, card, cards

CARD = """
title = "A method"
summary = "What it answers."
exports = ["Method"]
extras = []
[paper]
title = "On methods"
authors = ["A. Author"]
year = 2020
bibtex = "@article{author, title = {On methods}, journal = {Methods, quarterly}, year = 2020}"
[[claim]]
id = "works"
source = "Sec. 1"
metric = "accuracy"
expect = ">= 0.9"
published = "0.91"
scale = ["ci", "small"]
minutes = 0.1
"""


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        (">= 0.95", [0.95, 1, math.inf], [0.9499, -math.inf]),
        ("<=178.0", [178, -1], [178.1]),
        ("> 0", [1e-300], [0, -1]),
        ("< -1e-3", [-1], [-1e-3, 0]),
        ("1.286 +- 0.001", [1.2855, 1.2865], [1.288, -1.286]),
        (" 1 +- 1e-3 ", [1.0], [1.01]),
    ],
)
def test_claim_holds(expect, good, bad):
    claim = Claim("c", "", "m", expect, "", ("ci",), {"ci": 1})
    assert all(claim.holds(value) for value in good)
    assert not any(claim.holds(value) for value in [*bad, math.nan])


@pytest.mark.parametrize("expect", ["", "0.9", "== 1", "1 ± 2", ">= x", "> 1 or < 0"])
def test_claim_without_condition_is_refused(expect):
    with pytest.raises(ValueError, match="claim c: expect must be like"):
        Claim("c", "", "m", expect, "", ("ci",), {"ci": 1}).holds(1.0)


def _write(folder, content):
    path = folder / "structure" / "method" / "card.toml"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    return path


def test_card_is_read(tmp_path):
    entry = registry._read_card(_write(tmp_path, CARD))
    assert (entry.key, entry.room, entry.state) == ("structure.method", "structure", "ready")
    assert entry.venue == "Methods, quarterly"
    assert entry.claims[0].minutes == {"ci": 0.1, "small": 0.1}
    assert entry.claims[0].scale == ("ci", "small")
    plain = entry.to_dict()
    assert plain["claims"][0]["id"] == "works"
    assert "folder" not in plain


def test_state_names_the_missing_extras(tmp_path, monkeypatch):
    entry = registry._read_card(_write(tmp_path, CARD.replace("extras = []", 'extras = ["lm", "clinical"]')))
    assert entry.state == "ready"
    monkeypatch.setattr(registry, "EXTRAS", {"lm": "transformers", "clinical": "no_such_package"})
    assert entry.state == "needs clinical"
    assert entry.to_dict()["state"] == "needs clinical"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (CARD.replace('title = "A method"', ""), "is not a complete card: 'title'"),
        (CARD.replace("[paper]", "[journal]"), "is not a complete card: 'paper'"),
        (CARD.replace('expect = ">= 0.9"', ""), "is not a complete card: .*expect"),
        (CARD + "colour = 1\n", "is not a complete card: .*colour"),
        ("title = ", "is not valid TOML"),
    ],
)
def test_incomplete_card_is_refused_by_name(tmp_path, content, text):
    with pytest.raises(ValueError, match=f"card.toml {text}"):
        registry._read_card(_write(tmp_path, content))


def test_all_cards():
    keys = [entry.key for entry in cards()]
    assert len(set(keys)) == len(keys)
    assert {entry.room for entry in cards()} == set(registry.ROOMS)
    for entry in cards():
        assert entry.title
        assert entry.summary.endswith((".", "?"))
        for claim in entry.claims:
            claim.holds(0.0)
            assert set(claim.scale) <= set(registry.SCALES)
            assert set(claim.minutes) == set(claim.scale)
        assert len({claim.id for claim in entry.claims}) == len(entry.claims)
    assert [card(key).key for key in keys] == keys
    with pytest.raises(ValueError, match=rf"there is no method '{keys[0]}x'.*Did you mean '{keys[0]}'"):
        card(f"{keys[0]}x")
