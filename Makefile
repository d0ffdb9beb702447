# `make demo` and `make test` each do all the set-up a fresh machine needs.
PYTHON ?= python3
ROUNDS ?= 1
BIN := .venv/bin
READY := .venv/.ready
READY_DEMO := .venv/.ready-demo

.PHONY: setup demo demo-soft docs test test-long lint bench bench-similar clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,data,docs,embed,gguf,report,serve,tune]'
	touch $@

# What running a recipe needs, and none of the tools of those who change llmrec.
$(READY_DEMO): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf,report]'
	touch $@

demo: $(READY_DEMO)
	$(BIN)/llmrec fetch model smollm2-135m-instruct
	$(BIN)/llmrec fetch data ml-100k
	$(BIN)/llmrec run recipes/demo.yaml

demo-soft: $(READY_DEMO)
	$(BIN)/llmrec fetch model smollm2-135m-instruct
	$(BIN)/llmrec fetch data ml-100k
	$(BIN)/llmrec run recipes/soft_ml100k.yaml

test: $(READY)
	$(BIN)/llmrec fetch model smollm2-135m-instruct
	$(BIN)/ruff check llmrec tests tools
	$(BIN)/ruff format --check llmrec tests tools
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

# The long figures of results/reliability.md; ROUNDS=0.1 takes a tenth of the rounds.
test-long: $(READY)
	ROUNDS=$(ROUNDS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long --numprocesses 2 tests

# The site of docs/ and results/, into site/.
docs: $(READY)
	$(BIN)/python tools/reference.py
	$(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check --fix llmrec tests tools
	$(BIN)/ruff format llmrec tests tools
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tools/bench/all.py --out results/bench-cpu.md

bench-similar: $(READY)
	$(BIN)/python tools/bench/retrieval.py --out results/retrieval-bench.md

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist
