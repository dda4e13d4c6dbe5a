# One word per task.  `make demo` and `make test` bring what a fresh machine lacks.
.PHONY: help setup engine demo test lint format bench screenshots clean

help: ## show this
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with everything that is needed
	@dev/setup.sh

demo: setup ## a hub with two people and a project, on http://127.0.0.1:8000
	@dev/with-engine.sh 13 -- .venv/bin/python dev/demo.py

test: setup lint ## the whole suite, on a real Docker Engine
	@dev/browser.sh
	@dev/with-engine.sh 11 12 13 -- .venv/bin/python -m pytest

lint: setup ## style, types, and the direction of imports
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

format: setup ## let ruff put the code in order
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

screenshots: setup ## the pictures in the docs, light and dark
	@dev/browser.sh
	@dev/with-engine.sh 13 -- .venv/bin/python docs/screenshots.py

bench: setup ## launch and retire against DockerSpawner, on an idle machine
	@dev/with-engine.sh 13 -- .venv/bin/python bench/launch.py --rounds 5 --herd

clean: ## remove .venv and every cache of a tool
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
