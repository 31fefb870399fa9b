# Each target is a line or two over plain Python or uv, so that all of it can be typed by hand.
PY := .venv/bin/python
QUIET_HUB := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
INPUTS := pyproject.toml constraints.txt tools/setup.sh
# uv does not read pip's settings: wheels that pip would find locally are handed on.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# More arguments for pytest, such as: make test ARGS="-k focus"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: setup demo test check format clean help

setup: .venv/.setup ## make .venv with the megacontext command (again when the pins change)

demo: setup ## the main job on real input: a frozen model works with a memory far larger than its window
	@$(QUIET_HUB) .venv/bin/megacontext demo

test: .venv/.setup-dev ## the whole test suite
	@$(QUIET_HUB) OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(ARGS)

check: .venv/.setup-dev ## style, types, import contracts
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && .venv/bin/lint-imports

format: .venv/.setup-dev ## let ruff mend what it can
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

clean: ## remove the environment and every cache; memories, datasets and runs stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@grep -E '^[a-z]+:.* ## ' Makefile | sed -E 's/^([a-z]+):.* ## (.*)/  make \1\t\2/' | expand -t 16

# The stamps are written last, so an interrupted set-up is simply done again.
.venv/.setup: $(INPUTS)
	@sh tools/setup.sh . && touch .venv/.setup
.venv/.setup-dev: $(INPUTS)
	@sh tools/setup.sh '.[dev,train]' && touch .venv/.setup .venv/.setup-dev
