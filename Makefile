# mmreason: every target sets up by itself. `make help` lists them.
#
# PROFILE=cpu|gpu  overrides what set-up sees of the machine.   VLLM=0  leaves the engine out.
# TORCH_INDEX_URL  an extra package index for torch, such as PyTorch's CPU wheel index.
# PYTHON           the interpreter to build the environment with (3.11 or newer).
# ARGS             further arguments for pytest or the demo:  make test ARGS="-k answers"
# WORKERS          processes that share the tests (2; with a GPU, which they would fight for, 0: one after another)

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest
# Files stay together, so that what a file's tests share (an engine, a server) is started once.
SHARED_OUT = -n $(or $(WORKERS),$$([ "$$(cat .venv/profile)" = gpu ] && echo 0 || echo 2)) --dist loadfile
EVIDENCE := answers engine_parity grpo_step grpo_vlm warm_start demo_learning demo_vision sandbox endpoint overlap feature_store sft_throughput pretrain_curve scaling_law corpus reft tool_rl distill_memory
LAUNCH = config=cpu; [ "$$(cat .venv/profile)" = gpu ] && config=one_gpu; set -x; \
	$(VENV)/accelerate launch --config_file recipes/accelerate/$$config.yaml

export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help setup test test-quick check format soak evidence demo demo-scratch demo-vision docs browser bubblewrap clean clean-cache

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup:  ## build the environment for this machine (seconds when it is there already)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) .ci/setup.py

test: setup  ## all tests but the soak tests
	$(PYTEST) $(SHARED_OUT) -m "not soak" --durations=15 $(ARGS)

test-quick: setup  ## the tests that start no engine and no process
	$(PYTEST) $(SHARED_OUT) -m "not slow and not soak" $(ARGS)

check: setup  ## lint, format, types, import contracts
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports

format: setup  ## let ruff put lint and format right
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

soak: setup  ## the tests that take hours
	$(PYTEST) -m soak -o timeout=0 --durations=15 $(ARGS)

evidence: setup  ## run the benchmarks behind the claims of the docs; they write benchmarks/results/
	@set -e; for name in $(EVIDENCE); do echo "== benchmarks/$$name.py"; $(VENV)/python benchmarks/$$name.py; done

demo: setup  ## see a small model learn to reason: generated data, no network, no GPU needed
	@$(LAUNCH) recipes/grpo_math.py $(ARGS)

demo-scratch: setup  ## the same, with the small model trained here first instead of the one that is shipped
	@$(LAUNCH) recipes/sft.py
	@$(LAUNCH) recipes/grpo_math.py --config recipes/configs/grpo_math/embedded.yaml \
		--model_name_or_path outputs/warm_start/final --output_dir outputs/demo_scratch $(ARGS)

demo-vision: setup  ## see a small model from scratch learn to see: texts, captions, answers, then GRPO; 15 minutes
	@$(LAUNCH) recipes/pretrain.py --config recipes/configs/pretrain/demo-vision.yaml
	@$(LAUNCH) recipes/pretrain.py --config recipes/configs/pretrain/align-demo-vision.yaml
	@$(LAUNCH) recipes/sft.py --config recipes/configs/sft/demo-vision.yaml
	@$(LAUNCH) recipes/grpo_math.py --config recipes/configs/grpo_math/demo-vision.yaml $(ARGS)

docs: setup  ## build the documentation into site/
	$(VENV)/mkdocs build --strict

browser:  ## install Debian's Chromium, for the tests that open a report, where there is none
	@.ci/browser.sh

bubblewrap:  ## install Debian's bubblewrap, for the tests of that tier of the sandbox, where there is none
	@.ci/bubblewrap.sh

clean:  ## remove this checkout's environment and tool caches
	@$(PYTHON) .ci/setup.py --clean
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build site

clean-cache: clean  ## also remove the shared environments of every checkout
	@$(PYTHON) .ci/setup.py --clean-cache
