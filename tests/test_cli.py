"""The command line: exit codes, one-line errors, data on stdout."""

import json
import subprocess
import sys

import pytest

from natwise import cli, registry


def natwise(*arguments, cwd=None):
    command = [sys.executable, "-m", "natwise", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    rows = [f"{i % 7},{i % 3},{'ab'[i % 2]}" for i in range(40)]
    path.write_text("\n".join(["size,colour,kind", *rows]))
    return path


BAD = [
    (["no-such-command"], "no-such-command"),
    (["list", "--room", "lms"], "did you mean 'lm'"),
    (["list", "--bogus"], "--bogus"),
    (["show"], "key"),
    (["show", "structure.linear_corx"], "did you mean 'structure.linear_corex'"),
    (["reproduce"], "--all"),
    (["reproduce", "structure.linear_corex", "--all"], "--all"),
    (["reproduce", "structure.nothing"], "structure.nothing"),
    (["reproduce", "structure.linear_corex", "--claim", "none"], "there is no claim 'none'"),
    (["reproduce", "structure.linear_corex", "--scale", "huge"], "scale must be one of"),
    (["reproduce", "structure.linear_corex", "--seed", "-1"], "seed must be >= 0"),
    (["reproduce", "structure.linear_corex", "--seed", "x"], "--seed"),
    (["reproduce", "structure.linear_corex", "--device", "toaster"], "device must be like"),
    (["reproduce", "structure.linear_corex", "--device", "cuda:99"], "device of this machine"),
    (["reproduce", "structure.linear_corex", "--out", "TABLE"], "cannot be a folder"),
    (["audit"], "--demo"),
    (["audit", "--demo", "--out", "TABLE"], "cannot be a folder"),
    (["audit", "--demo", "--out", "TABLE/below"], "cannot be a folder"),
    (["audit", "TABLE", "--demo"], "--demo"),
    (["audit", "TABLE"], "--label"),
    (["audit", "no-such-file.csv", "--label", "kind"], "no-such-file.csv"),
    (["audit", "TABLE", "--label", "kinds"], "'kind'"),
    (["audit", "TABLE", "--label", "kind", "--minutes", "soon"], "--minutes"),
    (["audit", "TABLE", "--label", "kind", "--minutes", "-1"], "minutes"),
]


@pytest.mark.parametrize(("arguments", "fragment"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_2(arguments, fragment, table, tmp_path):
    done = natwise(*(word.replace("TABLE", str(table)) for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert fragment in done.stderr.lower().replace(" '--", " --")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_said(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "cards", interrupted)
    monkeypatch.setattr(sys, "argv", ["natwise", "list"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "natwise: interrupted; finished results are kept\n"


def test_debug_shows_the_traceback():
    done = natwise("show", "structure.nothing", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_list():
    done = natwise("list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [card.key for card in registry.cards()]
    entries = json.loads(natwise("list", "--json", "--room", "structure").stdout)
    assert {entry["room"] for entry in entries} == {"structure"}
    assert {"key", "title", "summary", "state"} <= set(entries[0])


@pytest.mark.parametrize("card", registry.cards(), ids=lambda card: card.key)
def test_show(card, capsys):
    cli.show(card.key)
    shown = capsys.readouterr().out
    assert card.title in shown
    assert all(claim.id in shown for claim in card.claims)


def test_show_bibtex():
    assert natwise("show", "structure.linear_corex", "--bibtex").stdout.startswith("@")


def test_no_arguments_shows_the_help():
    done = natwise()
    assert done.returncode == 0
    assert "audit" in done.stdout


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
