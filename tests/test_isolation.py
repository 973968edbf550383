"""The program alone: no network, no home directory, a working directory into which nobody can write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parent.parent / "src/natwise"
GUARD = """
import socket, sys
def refused(*arguments, **options):
    raise OSError("a connection was asked for")
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refused)
socket.getaddrinfo = socket.create_connection = refused
"""


def _own_network():
    """Say whether this process may start another without any network."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def alone(code, *arguments, home):
    """Run Python code in /proc, where not even root can write, with a bare environment and no way out."""
    environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", GUARD + code, *map(str, arguments)]
    done = subprocess.run(
        ["unshare", "-rn", *command] if _own_network() else command,
        cwd="/proc" if os.path.exists("/proc/self") else None,
        env=environment | ({} if home is None else {"HOME": home}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_guard_guards():
    code = """
import urllib.request
try:
    urllib.request.urlopen("http://localhost:1")
except OSError as error:
    print(error)
"""
    assert "a connection was asked for" in alone(code, home=None)


@pytest.mark.parametrize("home", [pytest.param(None, marks=pytest.mark.slow, id="none"), "/proc/nobody"])
def test_a_claim_is_measured_and_its_gallery_written(tmp_path, home):
    code = "from natwise.cli import main; main()"
    arguments = ["reproduce", "structure.linear_corex", "--claim", "modular-recovery", "--out", tmp_path / "runs"]
    assert "holds" in alone(code, *arguments, home=home)
    assert "modular-recovery" in (tmp_path / "runs/RESULTS.md").read_text("utf-8")
    assert (tmp_path / "runs/index.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_table_is_audited(tmp_path):
    code = "from natwise.cli import main; main()"
    alone(code, "audit", "--demo", "--minutes", "0.1", "--out", tmp_path / "audit", home="/proc/nobody")
    assert (tmp_path / "audit/report.html").stat().st_size > 10_000


def test_a_language_model_is_converted_saved_and_loaded_without_asking_a_hub(tmp_path):
    """The example of the page; the library that loads models would ask for names that it does not find on disk."""
    page = (PAGES / "lm/relaxed_recursive/page.md").read_text("utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert "weights" in alone(
        "import tempfile; tempfile.tempdir = sys.argv[1]\n" + example, tmp_path, home="/proc/nobody"
    )
