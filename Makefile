# Every target does its whole set-up: a virtual environment in .venv, torch first, then the pinned rest.
# On a GPU machine, or to choose torch's index: make demo TORCH="torch==2.11.0 --index-url ..."  (see README)
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
READY := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
MEGATRON := .megatron
MEGATRON_READY := $(MEGATRON)/0.15.3/.ready $(MEGATRON)/0.16.1/.ready $(MEGATRON)/transformer-engine-2.9.0/.ready
NEMO_VENV := .venv-nemo
NEMO_READY := $(NEMO_VENV)/.ready-$(shell cksum < requirements-nemo.lock | cut -d' ' -f1)
BRIDGE_VENV := .venv-bridge
BRIDGE_READY := $(BRIDGE_VENV)/.ready-$(shell cat requirements-nemo.lock requirements-bridge.lock | cksum | cut -d' ' -f1)
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready-$(shell cksum < requirements-vllm.lock | cut -d' ' -f1)
PYTEST_WORKERS ?= 2

export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

.PHONY: demo test lint format setup megatron slurm-cluster nemo-env bridge-env vllm-env lock clean

# One thread: a second one saves a model this small no time and costs CPU.
demo: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/reasonforge run recipes/distill-grpo-qwen2-tiny.yaml

test: setup megatron
	$(VENV)/bin/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup --durations=25 --durations-min=10

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vulture
	shellcheck .ci/run

# A real Slurm on this machine, until Ctrl-C (root; Debian's slurm-wlm slurmdbd mariadb-server munge).
slurm-cluster: setup
	@PYTHONPATH=tests $(VENV)/bin/python -m slurm_cluster

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(READY)

# torch goes first and alone: any other order lets a dependency pull a CUDA build onto a CPU machine.
$(READY):
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(TORCH)
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.ready-*
	touch $@

# The megatron-core versions that checkpoints are loaded into by the tests, each in a directory of its own: they run in
# the environment above, which stays as it is. Of Transformer Engine its Python alone, whose recipes need no CUDA.
megatron: $(MEGATRON_READY)

$(MEGATRON)/transformer-engine-%/.ready: | $(READY)
	rm -rf $(@D)
	$(VENV)/bin/pip install --quiet --no-deps --no-compile --target $(@D) transformer-engine==$*
	touch $@

$(MEGATRON)/%/.ready: | $(READY)
	rm -rf $(@D)
	$(VENV)/bin/pip install --quiet --no-deps --target $(@D) megatron-core==$*
	touch $@

# An environment of torch and exactly what a lock file names; nothing is compiled before it is imported.
define locked-environment
$(PYTHON) -m venv $(@D)
$(@D)/bin/pip install --quiet --no-compile $(TORCH)
$(@D)/bin/pip install --quiet --no-compile --no-deps --requirement $(1)
rm -f $(@D)/.ready-*
touch $@
endef

# The real NeMo 2 on the CPU, for the tests that convert to it and back.
nemo-env: $(NEMO_READY)

$(NEMO_READY):
	$(call locked-environment,requirements-nemo.lock)

# The real Megatron-Bridge on the CPU, for the tests that train with it. It has a megatron-core of its own; all else that
# it needs is NeMo's environment's, whose packages come after its own.
bridge-env: $(BRIDGE_READY)

$(BRIDGE_READY): | $(NEMO_READY)
	rm -rf $(BRIDGE_VENV)
	$(NEMO_VENV)/bin/python -m venv --without-pip $(BRIDGE_VENV)
	$(NEMO_VENV)/bin/pip install --quiet --no-compile --no-deps --requirement requirements-bridge.lock \
		--target $(BRIDGE_VENV)/lib/python3*/site-packages
	ls -d $(CURDIR)/$(NEMO_VENV)/lib/python3*/site-packages > nemo.pth
	mv nemo.pth $(BRIDGE_VENV)/lib/python3*/site-packages/
	touch $@

# The real vLLM on the CPU, for the tests that sample with it.
vllm-env: $(VLLM_READY)

$(VLLM_READY):
	$(call locked-environment,requirements-vllm.lock)

# Resolve pyproject.toml anew, in a fresh environment, into requirements.lock (torch is left to TORCH above).
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet $(TORCH)
	.venv-lock/bin/pip install --quiet "setuptools>=77" ".[local,fast,dev]"
	.venv-lock/bin/pip freeze --all --exclude pip --exclude reasonforge --exclude torch > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) $(MEGATRON) $(NEMO_VENV) $(BRIDGE_VENV) $(VLLM_VENV) build *.egg-info
