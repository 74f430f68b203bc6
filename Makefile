# make demo        Shakespeare → shards → training → score → sample → report, in a few minutes on two CPU cores
# make test        install what the tests need and run the quick ones, at most five minutes
# make test-all    all tests
# make lint        ruff and mypy
# make clean-demo  remove what the demo made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OVERRIDES ?=
# Whoever has run all its tests takes half of what another has left, so no core waits for a long file at the end.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal
# Quick tests wait for a fifth of their time, for servers and processes: one more of them than there are cores.
ONE_MORE = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: demo test test-all lint clean-demo
.DELETE_ON_ERROR:

demo: $(VENV)/demo-is-installed
	@echo "[1/6] shards: Shakespeare's plays → demo/plays"
	@$(BIN)/gpt2wds-shard shakespeare --source plays --docs-per-shard 12 --out demo/plays
	@echo "[2/6] shards: 36 multiple-choice examples → demo/choices"
	@$(BIN)/gpt2wds-shard hellaswag --source sample --out demo/choices
	@echo "[3/6] training, configs/demo.toml → demo/run"
	@$(BIN)/gpt2wds-train configs/demo.toml $(DEMO_OVERRIDES)
	@echo "[4/6] scoring the multiple-choice examples"
	@$(BIN)/gpt2wds-eval hellaswag demo/run --data demo/choices
	@echo "[5/6] a sample"
	@$(BIN)/gpt2wds-eval sample demo/run --prompt '**ROMEO**' --tokens 200
	@echo "[6/6] report"
	@$(BIN)/gpt2wds-eval report demo/run

test: $(VENV)/dev-is-installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -n $(ONE_MORE) -m "not slow"

test-all: $(VENV)/dev-is-installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

lint: $(VENV)/dev-is-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean-demo:
	rm -rf demo

# An installation that was cut short is not trusted: the next one starts from an empty environment.
$(VENV)/%-is-installed: pyproject.toml constraints.txt
	@if [ -e $(VENV).installing ] || [ ! -x $(BIN)/pip ]; then rm -rf $(VENV); fi
	@touch $(VENV).installing
	@echo "installing into $(VENV) (a minute or two)"
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@rm $(VENV).installing
	@touch $@
