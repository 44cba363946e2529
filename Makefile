PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test

setup: .venv/requirements.txt

.venv/requirements.txt: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"error: Python {v[0]}.{v[1]} is not supported; use 3.10 to 3.12, for example: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	cp requirements.txt $@

demo: setup
	$(BIN)/python tools/demo.py

test: setup
	$(BIN)/python -m pytest
