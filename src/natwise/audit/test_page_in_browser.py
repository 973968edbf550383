"""The page in a real browser, where there is one: nothing of the data runs, no request leaves, nothing sticks out."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from natwise import audit
from natwise.datasets.tables import make_table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine"),
]
ATTACK = "<img src=http://example.invalid/x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((80, 4))
    frame = pd.DataFrame(
        hidden[:, [0, 0, 1, 1]] + 0.3 * rng.standard_normal((80, 4)), columns=[ATTACK, "b", "W" * 300, "d"]
    )
    labels = np.where(hidden[:, 0] > 0, ATTACK, "javascript:alert(1)")
    table = make_table(frame, labels, ids=[f"{ATTACK}{i}" for i in range(80)], texts=[ATTACK] * 80, name=ATTACK)
    folder = tmp_path_factory.mktemp("page")
    audit.run(table, minutes=0.5, verbose=0).save(folder)
    return folder / "report.html"


def browse(page, *options):
    quiet = ("--disable-background-networking", "--disable-component-update", "--no-first-run", "--hide-scrollbars")
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", profile, *quiet, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_nothing_runs_and_nothing_is_asked_for(page):
    log = page.parent / "net.json"
    shown = browse(page, f"--log-net-log={log}", "--virtual-time-budget=3000", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", shown, re.DOTALL)[1]
    assert title.startswith("Audit of &lt;img")
    assert "<script" not in shown.lower()
    hosts = set(re.findall(r'"host":"([^"]*)"', log.read_text("utf-8")))
    assert not [host for host in hosts if "example" in host]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_renders_narrow_and_wide_light_and_dark(page, width, dark):
    from matplotlib.image import imread

    picture = page.parent / f"{width}-{dark}.png"
    scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    browse(page, f"--window-size={width},3000", f"--screenshot={picture}", *scheme)
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == width
    edge = pixels[:, -3:]
    assert (edge == edge[0, 0]).all()  # nothing sticks out of the page
    assert (edge.mean() < 0.2) == dark
    assert pixels.std() > 0.05


def test_it_prints(page):
    paper = page.parent / "paper.pdf"
    browse(page, f"--print-to-pdf={paper}")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2
