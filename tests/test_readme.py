"""What the README says is true: its table, its example, its commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.S | re.M)  # language and content
COMMANDS = [
    line.split("#")[0].strip() for kind, block in BLOCKS if not kind for line in block.splitlines() if line.strip()
]


def test_table_of_methods():
    done = subprocess.run([sys.executable, ROOT / "docs/method_table.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_example(capsys):
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists() or (ROOT / f"{target}.md").exists(), target


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "make test"])
def test_commands(command, tmp_path):
    """Every command but `make test`, which is what runs this."""
    where = ROOT if command.startswith("make") else tmp_path
    program, *arguments = shlex.split(command)
    program = str(Path(sys.executable).parent / program) if program == "natwise" else program
    done = subprocess.run([program, *arguments], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
