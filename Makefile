# The one place for the commands that people, the pre-commit hook and CI run.

PYTHON ?= python3
# NVIDIA's images pin every package of theirs there, which a lock with other versions can only fail on.
unexport PIP_CONSTRAINT
BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:  # `make check` runs its parts in the order written, cheapest first
.PHONY: help venv train test coverage lint types layers check aot docs slow slow-tests soak gpu simulated-gpu clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

venv: .venv/.run  ## make .venv with everything a run needs

# Each stamp is written last, so an install that was cut off is done again.
.venv/.run: requirements/lock.txt setup.py pyproject.toml
	@requirements/environment.sh $(PYTHON)
	$(BIN)/python -m pip install --quiet -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/.run requirements/dev.txt
	$(BIN)/python -m pip install --quiet -r requirements/dev.txt
	@touch $@

.venv/.docs: .venv/.dev requirements/docs.txt
	$(BIN)/python -m pip install --quiet -r requirements/docs.txt
	@touch $@

# The script writes this stamp itself, once FFCV and DALI are both there: until then every call tries again.
.venv/.loaders: .venv/.dev requirements/ffcv.txt requirements/dali.txt
	@requirements/loaders.sh $(BIN)/python $@

.venv/.loggers: .venv/.dev requirements/loggers.txt
	$(BIN)/python -m pip install --quiet -r requirements/loggers.txt
	@touch $@

FIRST := runs/first/digits-arat-fast runs/first/digits-at-fast

# What was interrupted goes on: a run that is there is resumed.
train: .venv/.run  ## train AR-AT and plain AT on the digits, evaluate and compare both
	set -e; for run in $(FIRST); do \
		if [ -d $$run ]; then set -- --resume $$run; else set -- $${run##*/} --out $$run; fi; \
		$(BIN)/python -m fastarat train "$$@" --no-report; \
		$(BIN)/python -m fastarat eval $$run --attack autoattack --num-images 100; \
	done
	$(BIN)/python -m fastarat report $(FIRST) --out runs/first/report.html
	$(BIN)/python -m fastarat compare $(FIRST)

TESTS := $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal

test: .venv/.loaders  ## run the CPU tests
	$(TESTS)

coverage: .venv/.loaders  ## run the CPU tests and count the lines that they reach, which takes a third longer
	$(TESTS) --cov --cov-report=term

lint: .venv/.dev  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.loaders  ## check the types
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: .venv/.dev  ## check that imports point one way
	$(BIN)/python -m pytest -q tests/test_layers.py

check: lint types layers coverage  ## what every change has to pass

aot: .venv/.run  ## compile every Triton kernel for sm_80, sm_90 and sm_100 (no GPU needed); fail on a spill
	PYTHONPATH=kernels TRITON_CACHE_DIR=$(or $(TRITON_CACHE_DIR),$(CURDIR)/.venv/triton) \
		$(BIN)/python -m fastarat_kernels.aot --arch 80 90 100

docs: .venv/.docs  ## make a site of README, docs/ and their like, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

slow-tests: .venv/.loaders .venv/.loggers  ## run the tests that take longer than a check should
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

slow: slow-tests simulated-gpu  ## run those, and the GPU's paths on a simulated one

soak: .venv/.run  ## kill short trainings 1,000 times, resume them, count the bits lost (KILLS=20 for less)
	$(BIN)/python -m bench.soak --kills $(or $(KILLS),1000)

gpu: .venv/.loaders  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

SIMULATED := build/simulated-gpu
$(SIMULATED)/.made: tests/simulated_gpu/environment.sh tests/simulated_gpu/build.py $(wildcard tests/simulated_gpu/library/*)
	@PYTHON=$(PYTHON) tests/simulated_gpu/environment.sh $(SIMULATED)
	@touch $@

simulated-gpu: $(SIMULATED)/.made  ## run the GPU's paths on a CPU: launches and captures real, then values true
	SIMGPU_VALUES=0 tests/simulated_gpu/run python -m pytest tests/simulated_gpu -p no:cacheprovider
	SIMGPU_VALUES=1 tests/simulated_gpu/run python -m pytest tests/simulated_gpu tests/gpu -p no:cacheprovider

clean:  ## remove what this file made; runs/ and data/ stay
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .coverage .coverage.*
	find bench fastarat kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
