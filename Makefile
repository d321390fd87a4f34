# Two commands for a stranger: `make run` (the study) and `make lab` (the course). `make test` checks everything.
PYTHON ?= python3
# On a laptop without a GPU: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu (a smaller torch)
TORCH_INDEX ?=
PROFILE ?= class
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lab notebooks lint clean

run: $(VENV)/installed
	$(BIN)/uftlab run --profile $(PROFILE)

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

lab: $(VENV)/installed
	$(BIN)/uftlab lab

notebooks: $(VENV)/installed
	$(BIN)/uftlab notebooks --profile smoke

# torch goes first and alone, so that the index of its CPU wheels (when given) serves nothing else
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$(shell sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build results
