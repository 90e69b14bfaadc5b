PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# Trains a small SADNet on photographs, evaluates it on others, writes pictures.
demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

# Everything that CI checks.
test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo_output

# One virtual environment; a stamp for each set of extras that is installed in it.
$(VENV)/.demo: EXTRAS := train,demo
$(VENV)/.test: EXTRAS := test
$(VENV)/.demo $(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
