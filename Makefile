# Two commands for a stranger: `make run` (the study) and `make lab` (the course). `make test` checks everything, and
# `make check` what can be checked in a minute. What only tests need is installed by these two alone.
PYTHON ?= python3
# On a laptop without a GPU: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu (a smaller torch)
TORCH_INDEX ?=
PROFILE ?= class
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The rooms whose tests are quick: no training, no notebooks, no browser
QUICK := tests/losses/test_losses.py tests/losses/test_rewards.py tests/rows tests/world tests/reports/test_cards.py tests/test_project.py

.PHONY: run lab notebooks test check style pages site licences lock wheel bundle release clean

run: $(VENV)/installed
	$(BIN)/uftlab run --profile $(PROFILE)

lab: $(VENV)/installed
	$(BIN)/uftlab lab

notebooks: $(VENV)/installed
	$(BIN)/uftlab notebooks --profile smoke

test: style
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: style
	$(BIN)/python -m pytest -n 2 --dist loadfile $(QUICK)

style: $(VENV)/tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What is made from the code and the notebooks: cards, the page of the study, the README's tables and pictures
pages: $(VENV)/tests
	$(BIN)/uftlab methods --cards docs/methods
	$(BIN)/uftlab results --page docs/results/study.md
	$(BIN)/uftlab results --figure docs/previews/finding.png
	$(BIN)/uftlab results --study pipelines --page docs/pipelines.md
	$(BIN)/uftlab results --study recent --page docs/recent.md
	$(BIN)/python -m uftlab.reports.questions docs/questions
	$(BIN)/python benchmarks/trl_parity.py --page docs/trl.md
	$(BIN)/python benchmarks/real_runs.py --page docs/results/real.md
	$(BIN)/python benchmarks/doctor.py page
	$(BIN)/python -m uftlab.course.minutes
	$(BIN)/python -m uftlab.course.parameters docs/ci.md
	$(BIN)/python -m uftlab.reports.leaderboard docs/leaderboard.md
	$(BIN)/uftlab export --previews docs/previews --readme README.md --live docs/live.html

# All documentation and the course as pages that need no network: build/site/index.html
site: $(VENV)/installed
	$(BIN)/python benchmarks/documentation.py --out build/site

# What each dependency may be used under, as it says itself: docs/licences.md
licences: $(VENV)/tests
	$(BIN)/python benchmarks/licences.py --write

# requirements.lock: the versions of constraints.txt for every system, with the digest of every file
lock: $(VENV)/tests
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11.2 --constraint constraints.txt \
		--extra test --extra bench --extra real --extra ray --no-annotate --no-emit-index-url \
		pyproject.toml --output-file requirements.lock

wheel: $(VENV)/tests
	$(BIN)/python -m hatchling build --directory build/dist

# Checked, tested and built into build/dist, with digests and the commands that publish; it publishes nothing
release: $(VENV)/tests
	$(BIN)/python benchmarks/release.py check
	UFTLAB_TESTS=all $(MAKE) test
	$(BIN)/python benchmarks/release.py build

# A folder and a zip that install the course with the network off, on machines like this one: docs/workshop/README.md
bundle: $(VENV)/tests
	$(BIN)/uftlab export --out build/pages
	$(BIN)/python benchmarks/bundle.py build/bundle --site build/pages $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# torch goes first and alone, so that the index of its CPU wheels (when given) serves nothing else
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$(shell sed -n 's/^torch==//p' constraints.txt)"
	$(PIP) --constraint constraints.txt --editable ".[lab]"
	touch $@

$(VENV)/tests: $(VENV)/installed
	$(PIP) --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build results
