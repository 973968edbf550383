"""No file of the package deserialises or evaluates what it did not write."""

import ast
from pathlib import Path

import pytest

import natwise

SOURCES = sorted(p for p in Path(natwise.__file__).parent.rglob("*.py") if not p.name.startswith("test_"))
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "numpy.random.seed", "np.random.seed", "torch.manual_seed", "os.system"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_unsafe(path):
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & FORBIDDEN_MODULES
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path.name}:{call.lineno}"
        assert name not in FORBIDDEN_CALLS, where
        assert options.get("shell", "False") == "False", where
        assert options.get("allow_pickle", "False") == "False", where
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False", where
        if name == "torch.load":
            assert options.get("weights_only") == "True", where
        assert name != "joblib.load", where
        assert name not in ("pd.read_pickle", "pandas.read_pickle"), where
