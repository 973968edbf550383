"""Importing natwise and listing its methods is cheap and touches nothing heavy."""

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "scipy", "sklearn", "pandas", "matplotlib", "transformers")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code", ["import natwise", "import sys, natwise.cli as c; sys.argv = ['natwise', 'list']; c.main()"]
)
def test_heavy_packages_are_not_imported(code):
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {code}"
    loaded = set(run(code).split())
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["-c", "import natwise"], ["-m", "natwise", "list"]])
def test_cpu_seconds(arguments):
    """An order-of-magnitude guard: the aim is 0.3 CPU seconds, alone on a quiet machine."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    assert spent() - before < 1.5


def test_rooms_load_on_first_use():
    assert run("import sys, natwise; natwise.structure; print('torch' in sys.modules)").strip() == "False"
    assert run("import natwise; print(natwise.Result.__name__)").strip() == "Result"


def test_a_method_folder_is_reached_through_its_room():
    code = "import natwise; print(natwise.shift.failure_modes.__name__, natwise.structure.LinearCorEx.__name__)"
    assert run(code).split() == ["natwise.shift.failure_modes", "LinearCorEx"]
