# Everything that a developer or a visitor runs. `make` alone lists the commands.
#
#   PYTHON       interpreters to make .venv with; the first that is 3.11 or newer is taken
#   TORCH_INDEX  package index to take torch from (https://download.pytorch.org/whl/cpu: no CUDA)
#   PIP_FLAGS    flags of every `pip install`; empty shows its progress
#   SELECT       which tests `make test` runs, as pytest's -m reads it
#   WORKERS      processes that tests run in, up to 2 GB each; a file's tests stay in one

PYTHON ?= python3 python3.11 python3.12 python3.13 python3.14
TORCH_INDEX ?=
PIP_FLAGS ?= --quiet
SELECT ?= not accept
WORKERS ?= 2

MODEL := models/smollm2-135m.yaml
BUNDLE := build/SmolLM2-135M-fp32-tp1-128-1024
VENV := .venv
BIN := $(VENV)/bin
PARALLEL := --numprocesses $(WORKERS) --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_FLAGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check accept format clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

demo: $(VENV)/installed ## install, build a trained chat model, and ask it a question
	$(BIN)/python -m compiler build $(MODEL)
	$(BIN)/python -m compiler run $(BUNDLE) --chat --prompt "What is the capital of France?" --max-tokens 64

test: $(VENV)/installed-test ## run every test, the slow ones and the trained model included
	$(BIN)/python -m pytest $(PARALLEL) -m "$(SELECT)"

check: $(VENV)/installed-dev ## format, lint, types, layering and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not model and not accept and not browser"

accept: $(VENV)/installed-test ## measure what the project claims; figures in build/acceptance.md
	$(BIN)/python -m pytest -m accept

format: $(VENV)/installed-dev ## format the sources and mend what ruff can mend
	$(BIN)/ruff check --fix --show-fixes .
	$(BIN)/ruff format .

clean: ## remove .venv, build and every cache
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each step builds on the one before, so that two of them never install at once.

$(VENV)/created:
	@set -e; \
	is_new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if $(BIN)/python -c "$$is_new_enough" 2>/dev/null; then touch $@; exit 0; fi; \
	found=; \
	for name in $(PYTHON); do \
	    if "$$name" -c "$$is_new_enough" 2>/dev/null; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "graphlower needs Python 3.11 or newer; tried: $(PYTHON)" >&2; \
	    echo "  hint: install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv)," >&2; \
	    echo "        or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	    exit 2; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    version=$$("$$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$found cannot make virtual environments: its venv module is missing" >&2; \
	    echo "  hint: install it (Debian, Ubuntu: apt-get install python$$version-venv)" >&2; \
	    exit 2; \
	fi; \
	echo "making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear $(VENV); \
	touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml
	@echo "installing graphlower into $(VENV): a minute or more the first time"
ifneq ($(TORCH_INDEX),)
	@$(PIP) --no-deps --index-url $(TORCH_INDEX) "$$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
endif
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing what the tests need"
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	@echo "installing the tools that make check runs"
	@$(PIP) --editable '.[dev]'
	@touch $@
