"""The wheel alone, in a fresh environment without extras, does the main job."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def test_content(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "natwise/structure/linear_corex/card.toml" in names
    assert "natwise/report/templates/gallery.html.jinja" in names
    assert "natwise/py.typed" in names
    assert not [name for name in names if Path(name).name.startswith(("test_", "golden"))]
    assert wheel.stat().st_size < 2_000_000


def test_wheel_and_source_are_fit_for_the_index(wheel):
    files = sorted(wheel.parent.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)


def test_main_job_in_a_fresh_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python, natwise = tmp_path / "env/bin/python", tmp_path / "env/bin/natwise"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], check=True)
    home = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "no-home"), "HF_HUB_OFFLINE": "1"}

    def run(*arguments):
        return subprocess.run([natwise, *arguments], cwd=tmp_path, env=home, check=True, capture_output=True, text=True)

    assert "structure.linear_corex" in run("list").stdout
    run("audit", "--demo", "--minutes", "0.7", "--out", "audit")
    assert (tmp_path / "audit/report.html").stat().st_size > 10_000
    run("reproduce", "structure.linear_corex", "--claim", "modular-recovery", "--out", "runs")
    assert "modular-recovery" in (tmp_path / "runs/RESULTS.md").read_text("utf-8")
