# Everything runs in .venv, made from requirements.lock; nothing outside this folder is touched.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint audit up bench pictures clean lock

RUN := .venv/bin
# The environment is this folder's own: compiled modules in it save seconds at every later start.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

setup: .venv/.ready ## make .venv and install the lock

.venv/.ready: requirements.lock pyproject.toml infra/setup.sh
	@sh infra/setup.sh

demo: setup ## one night on this machine: train, judge and register a small model's adapter
	@$(RUN)/nightowl run deployments/recipes/demo.yaml

test: setup ## run the tests
	@$(RUN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup ## ruff, mypy, import-linter
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/mypy
	@$(RUN)/lint-imports --no-cache

audit: setup ## known vulnerabilities of what the lock installs, as far as the package index tells
	@$(RUN)/python infra/audit.py

up: setup ## the whole stack on this machine, until Ctrl-C: Prefect, MLflow, workers, deployments
	@$(RUN)/nightowl up

bench: setup ## measure speed and memory, as ratios
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(RUN)/python $$file || exit 1; done

pictures: setup ## remake the README's pictures from this home's first demo night
	@$(RUN)/python infra/pictures.py

lock: setup ## resolve the dependencies anew into requirements.lock
	@$(RUN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --quiet -o requirements.lock

clean: ## remove the environment and everything that nights on this machine have made
	rm -rf .venv .nightowl .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache nightowl.egg-info
