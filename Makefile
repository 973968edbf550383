PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := $(filter-out benchmarks/naive_%,$(wildcard benchmarks/*.py))

.PHONY: demo test test-all lint format docs bench wheel clean

demo: .venv/.ready  ## Audit the bundled digits with planted wrong labels; the report is audit/report.html
	$(BIN)/natwise audit --demo --out audit

test: .venv/.ready  ## All tests but the slow ones
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-all: .venv/.ready  ## All tests, the slow ones too
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m ""

lint: .venv/.ready  ## Style, format, types, layers, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry .

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.docs  ## HTML pages under docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

bench: .venv/.ready  ## Ratios, measured side by side in one run
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

wheel: .venv/.ready
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf .venv dist docs/_build docs/methods docs/gallery audit runs

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "natwise needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,lm,clinical]'
	touch $@

.venv/.docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@
