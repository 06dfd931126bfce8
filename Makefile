# `make demo` and `make test` do all the set-up themselves; a stamp in the environment keeps the next call from
# installing again until pyproject.toml or constraints.txt changes.
#
#   VENV=DIR         the virtual environment, made if it is not there
#   PYTHON=PROGRAM   what makes it (3.11 or newer)
#   PIP_FLAGS=...    more options for pip, e.g. an index with CPU builds of torch
#   PYTEST_FLAGS=... more options for pytest

VENV ?= .venv
PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=

# Editable, so that the stamp stays true while the code changes. Every install is held by the same tested versions.
INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo rows test test-fast test-oldest quality style docs build smoke clean

help:
	@echo "make demo | rows | test | test-fast | test-oldest | quality | style | docs | build | smoke | clean"

demo: $(VENV)/.installed-demo
	$(VENV)/bin/hf-adaptive-lr finetune --task text --overwrite
	$(VENV)/bin/hf-adaptive-lr finetune --task image --overwrite

rows: demo
	$(VENV)/bin/python -m hf_adaptive_lr.bench.studies.overhead
	$(VENV)/bin/python -m hf_adaptive_lr.bench.studies.cards runs/text/results.json runs/image/results.json
	cp runs/text/curves.png model_cards/demo_text.png

# One process per core, each with one thread; a process that is done takes tests from another one.
# PYTEST_FLAGS="-n 0" runs them one after the other, in this process.
PYTEST = $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(VENV)/.installed-demo-test
	$(PYTEST) $(PYTEST_FLAGS)

# Without whole trainings, several processes, the Hub and the benchmark (tests/tiers.py).
test-fast: $(VENV)/.installed-demo-test
	$(PYTEST) -m core $(PYTEST_FLAGS)

# What touches transformers, accelerate, datasets and the Hub, with the oldest versions that pyproject.toml allows.
# datasets 4.0 leaves the CSV files that it reads open, which is no fault of ours.
TEST_OLDEST = tests/test_integrations.py tests/test_trainer.py tests/test_resume.py tests/test_anytime.py \
	tests/test_layer_groups.py tests/test_guard_callback.py tests/test_finetune.py tests/test_hub.py
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -W "ignore:unclosed file:ResourceWarning" \
		-W ignore::pytest.PytestUnraisableExceptionWarning $(PYTEST_FLAGS) $(TEST_OLDEST)

quality: $(VENV)/.installed-demo-test-quality
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo

style: $(VENV)/.installed-demo-test-quality
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Guides, measured pages and API reference, as static pages in build/docs; what cannot be shown is an error. Every
# module is imported, so all that they import is installed.
docs: $(VENV)/.installed-demo-test-docs
	rm -rf build/docs
	$(VENV)/bin/python -W error .ci/docs.py build/docs

# A source distribution, and a wheel made from it.
build: $(VENV)/.installed-build
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist .

# That wheel, in an environment that has nothing but what it asks for.
smoke:
	$(PYTHON) -m venv --clear $(VENV)-smoke
	$(VENV)-smoke/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt dist/*.whl
	$(VENV)-smoke/bin/python -W error .ci/smoke.py
	$(VENV)-smoke/bin/hf-adaptive-lr list

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find hf_adaptive_lr tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Quality needs the other extras too: mypy reads the types of the packages that the code imports.
$(VENV)/.installed-demo: EXTRAS = demo
$(VENV)/.installed-demo-test: EXTRAS = demo,test
$(VENV)/.installed-demo-test-quality: EXTRAS = demo,test,quality
$(VENV)/.installed-demo-test-docs: EXTRAS = demo,test,docs
$(VENV)/.installed-demo $(VENV)/.installed-demo-test $(VENV)/.installed-demo-test-quality \
		$(VENV)/.installed-demo-test-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e ".[$(EXTRAS)]"
	touch $@

$(VENV)-oldest/.installed: pyproject.toml .ci/oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c .ci/oldest.txt \
		-e ".[demo]" pytest pytest-timeout peft scikit-learn optuna tensorboard scipy
	touch $@

$(VENV)/.installed-build: constraints.txt | $(VENV)/bin/python
	$(INSTALL) build
	touch $@
