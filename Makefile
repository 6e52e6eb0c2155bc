# Every target sets itself up first: studio/bootstrap.py makes .venv and installs the pins, unless
# $(PYTHON) has all packages already. Use another interpreter with: make test PYTHON=...
PYTHON ?= python3
IN_ENV = $(PYTHON) -m studio.bootstrap --dev --
WORKERS ?= 2
ARGS ?=

.PHONY: help setup run test full lint check faults memory fix screenshots readme clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' Makefile

setup:  ## packages, test packages and Chromium
	@$(PYTHON) -m studio.bootstrap --dev
	@$(IN_ENV) tests/browser_setup.py

run:  ## the studio in the browser
	$(PYTHON) app.py $(ARGS)

test: setup lint  ## lint and all tests
	$(IN_ENV) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

full: setup lint  ## the same and the tests of which `make test` runs a sample
	$(IN_ENV) -m pytest -n $(WORKERS) --dist loadfile -m "" $(ARGS)

lint:  ## style and layers
	$(IN_ENV) -m ruff check .
	$(IN_ENV) -m ruff format --check .

check: setup lint  ## lint and the quick tests
	$(IN_ENV) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not browser and not full" $(ARGS)

faults: setup  ## kills, power cuts, disk errors, random histories: measured against wanted
	$(IN_ENV) -m tests.faults $(ARGS)

memory: setup  ## the estimate of memory against tensors, published rows and runs; docs/memory.md
	$(IN_ENV) -m benchmarks.memory $(ARGS)

fix:  ## format
	$(IN_ENV) -m ruff check --fix .
	$(IN_ENV) -m ruff format .

screenshots: setup  ## pictures of the four tabs into docs/images
	$(IN_ENV) -m tests.ui.screenshots $(ARGS)

readme:  ## the table of settings in README.md, from the fields of studio/core/config.py
	$(IN_ENV) docs/settings_table.py --write

clean:  ## caches; never .venv or a workspace
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
