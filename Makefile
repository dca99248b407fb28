# Targets: setup demo test test-quick test-slurm test-te mcore test-mcore test-mcore-quick check bench test-gpu bench-gpu gpu-kit clean. Each brings up what it needs.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
# Hundreds of processes start in the tests: none compiles the package's files again. Empty is unset for Python.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: FORCE setup demo test test-quick test-slurm test-te mcore test-mcore test-mcore-quick check format bench test-gpu bench-gpu gpu-kit clean
FORCE:

# One stamp for the installed packages, one for the compiled kernel: both are no-ops when nothing changed.
# .torch holds the wish for a torch, and is touched only when the wish changes.
$(VENV)/.torch: FORCE
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/.packages: setup.py pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel pybind11
	$(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

$(VENV)/.kernel: $(VENV)/.packages $(wildcard csrc/*)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@

setup: $(VENV)/.kernel

demo: setup
	$(BIN)/python examples/toy_cpu/run_demo.py

# Two files side by side, the long ones first: while ranks wait for each other, for a kill or for a time-out, another file has the cores.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 -m "not gpu" \
	  tests/integration tests/distributed tests/numerics tests/unit

# What a developer runs between edits: at most three minutes on two cores.
test-quick: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and not slow" tests/numerics tests/unit

# A real Slurm of two nodes, and hosts in network namespaces, on this machine; what is missing is said and skipped. Two files side
# by side, the longest first (pytest sorts what a folder holds): while jobs wait for Slurm's timers, and hosts for a cable, the others have
# the cores.
test-slurm: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs --durations 20 -m slurm \
	  tests/slurm/test_training_jobs.py $(filter-out %/test_training_jobs.py,$(wildcard tests/slurm/test_*.py))

# Training with Transformer Engine's and flash-attn's own Python, whose CUDA kernels are computed on the CPU. Downloads about 1.5
# GB of pinned wheels once, into ~/.cache/megatron_huatuo or MEGATRON_HUATUO_TE; what cannot be had is said and skipped.
test-te: setup
	$(BIN)/python -m tests.te_on_host.environment
	$(BIN)/python -m pytest -rs --durations 20 -m te tests/te_on_host

# Another megatron-core lies in a folder of its own: .venv keeps the one of constraints.txt. Its metadata may ask for a newer
# Python than .venv's; its Python files run on 3.11 all the same, and the compiled helper of its datasets is not used.
# Releases from 0.19 on import triton, which builds of torch for CPUs leave out.
MCORE ?= 0.19.2
MCORE_PYTHON ?= 3.12
MCORE_HOME := $(CURDIR)/build/mcore-$(MCORE)
PIP_TO_MCORE := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile --no-deps --target $(MCORE_HOME).part

mcore: $(MCORE_HOME)

$(MCORE_HOME): | $(VENV)/.packages
	rm -rf $(MCORE_HOME) $(MCORE_HOME).part
	$(PIP_TO_MCORE) --only-binary=:all: --ignore-requires-python --python-version $(MCORE_PYTHON) megatron-core==$(MCORE) || { \
	  echo "cannot fetch megatron-core $(MCORE) for Python $(MCORE_PYTHON): need a network or an index that has it (above: what pip" \
	    "says). Choose another with MCORE=VERSION MCORE_PYTHON=VERSION." >&2; exit 1; }
	$(BIN)/python -c "import triton" 2> /dev/null || $(PIP_TO_MCORE) triton
	mv $(MCORE_HOME).part $(MCORE_HOME)

# Without NO_VCS_VERSION megatron-core takes this repository's commit for its own, as it lies within.
WITH_MCORE := NO_VCS_VERSION=1 PYTHONPATH=$(CURDIR):$(MCORE_HOME) $(BIN)/python
CHECK_MCORE := $(WITH_MCORE) -W ignore -c "import megatron.core as core; assert core.__version__ == '$(MCORE)', core.__version__"

# The tests of all that stands on megatron-core, against release $(MCORE).
test-mcore: setup $(MCORE_HOME)
	$(CHECK_MCORE)
	$(WITH_MCORE) -m pytest -n 2 --dist loadfile -m "not gpu" tests/unit/models tests/unit/parallel tests/unit/checkpoint
	$(WITH_MCORE) -m pytest --durations 20 -m "not gpu" tests/distributed

# A part of it, at most five minutes: tensor parallelism, pipelines, overlap, and checkpoints that change the layout or the release.
test-mcore-quick: setup $(MCORE_HOME)
	$(CHECK_MCORE)
	$(WITH_MCORE) -m pytest --durations 5 -k "core_versions or overlapped or (TP2 and PP2)" \
	  tests/distributed/test_core_versions.py tests/distributed/test_layouts.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/*.cu tests/cuda_on_host/*.h
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m benchmarks.kernel_budget

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*.h csrc/*.cpp csrc/*.cu tests/cuda_on_host/*.h

bench: setup
	mkdir -p runs/bench
	for name in blend unify index loader convert train start save; do \
	  $(BIN)/python tools/benchmark.py $$name --json runs/bench/$$name.json || exit 1; done

# One folder of at most 60 MB for a bare machine with a GPU, torch and no network: copy it there and start its run.sh.
KIT_PYTHON ?= 3.12
gpu-kit: setup
	$(BIN)/python -m benchmarks.gpu_kit --python_version $(KIT_PYTHON)

# The GPU targets use $(PYTHON) as it is and install nothing, not even this package.
test-gpu bench-gpu: export PYTHONPATH := $(CURDIR):$(PYTHONPATH)

test-gpu:
	$(PYTHON) setup.py -q build_ext --inplace
	$(PYTHON) -m pytest -m gpu tests/gpu

bench-gpu:
	$(PYTHON) setup.py -q build_ext --inplace
	mkdir -p runs/bench
	$(PYTHON) tools/benchmark.py blend --device cuda --json runs/bench/blend-gpu.json
	$(PYTHON) tools/benchmark.py train --device cuda --size 7b-cut --ranks 1 --json runs/bench/train-gpu.json

clean:
	rm -rf build runs $(VENV)/.kernel megatron_huatuo/_C*.so
