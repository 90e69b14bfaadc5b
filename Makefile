PYTHON ?= python3
# Not .venv, which may be yours.
VENV := .venv-make
BIN := $(VENV)/bin
# Silences Material's notice about MkDocs 2.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test lint site clean
.NOTPARALLEL:

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
	$(BIN)/mkdocs build --strict --quiet

# The documentation as a web site, in site/.
site: $(VENV)/.test
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo_output site

# One virtual environment; a stamp for each set of extras that is installed in it.
$(VENV)/.demo: EXTRAS := train,demo
$(VENV)/.test: EXTRAS := test
$(VENV)/.demo $(VENV)/.test: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
	  "Python %d.%d is not supported; use 3.11 to 3.13: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@
