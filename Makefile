PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Tests marked "alone" watch memory or signals and run one at a time, after the others.
PARALLEL := -n auto --dist loadfile

.PHONY: setup demo web lint quick test test-all

setup: .venv/requirements.txt

.venv/requirements.txt: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 14) else f"error: Python {v[0]}.{v[1]} is not supported; use 3.10 to 3.14, for example: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	cp requirements.txt $@

demo: setup
	$(BIN)/python tools/demo.py

# The pins hold for what the extra brings along, too.
web: .venv/demo
	$(BIN)/python tools/web.py

.venv/demo: .venv/requirements.txt setup.py
	$(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.txt -e ".[demo]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

quick: setup
	$(PYTEST) $(PARALLEL) -m "not medium and not slow and not alone"

test: setup
	$(PYTEST) $(PARALLEL) -m "not slow and not alone"
	$(PYTEST) -m "alone and not slow"

test-all: setup
	$(PYTEST) $(PARALLEL) -m "not alone"
	$(PYTEST) -m "alone"
