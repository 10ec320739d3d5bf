# The doors of the project. `make` prints them. Each sets up what it needs and no more; on a machine that is set up
# that costs a few milliseconds: dpkg is asked, and stamps in .venv are compared with the locks.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

export PYTHON ?= python3
VENV := .venv/bin/python

help: ## print this
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

install: debian-install .venv/cachefs.stamp ## set up .venv with the cachefs command (Debian packages too, as root)
	@echo "Ready: .venv/bin/cachefs --help"

demo: debian-install .venv/cachefs.stamp ## show it at work: a swarm, a mount and a first read, all on this machine
	@$(VENV) tools/demo.py

test: debian-test .venv/dev.stamp ## run the tests; ARGS="-k name" goes to pytest
	@$(VENV) -m pytest -n 3 --dist loadfile $(ARGS)

check: debian-install .venv/dev.stamp ## lint, format, types and layers
	@$(VENV) -m ruff check --quiet
	@$(VENV) -m ruff format --check --quiet
	@$(VENV) -m mypy --no-error-summary
	@.venv/bin/lint-imports --no-logo >.venv/imports.log || { cat .venv/imports.log; exit 1; }

bench: debian-test .venv/dev.stamp ## measure; docs/ has the last results
	@$(VENV) tools/bench.py

lock: debian-install .venv/lock.stamp ## write locks/ anew; UPGRADE=1 takes the newest versions
	@tools/lock $(if $(UPGRADE),--upgrade)

clean: ## remove .venv and everything the tools leave behind
	@rm -rf .venv build cachefs.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find cachefs tests tools -name __pycache__ -prune -exec rm -rf {} +

debian-install debian-test:
	@tools/setup-debian $(@:debian-%=%)

python-version:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or \
		sys.exit("cachefs needs Python 3.11 or newer, and $(PYTHON) is " + v + ". Name another: make PYTHON=python3.12")'

.venv/runtime.stamp: locks/build.txt locks/runtime.txt tools/setup-venv
.venv/cachefs.stamp: .venv/runtime.stamp pyproject.toml
.venv/dev.stamp: .venv/cachefs.stamp locks/dev.txt
.venv/lock.stamp: .venv/runtime.stamp locks/lock.txt

.venv/%.stamp:
	@tools/setup-venv $*
	@touch $@

# An environment that was moved, lost its Python or was interrupted looks finished and is not: it is made anew.
ifneq ($(file <.venv/identity),$(CURDIR) $(shell $(VENV) -V 2>/dev/null))
.venv/runtime.stamp: FORCE
debian-install debian-test: python-version
endif

FORCE:

.PHONY: help install demo test check bench lock clean debian-install debian-test python-version FORCE
