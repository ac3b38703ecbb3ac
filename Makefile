# Everything a newcomer or CI does. Each step leaves a stamp in .venv and is skipped when what it depends on has not changed.
#   make run ARGS="--data-dir /tmp/a"   make test ARGS="tests/unit -k config"   make bench ARGS=...

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find anvil -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.proto' -o -name '*.h' -o \( -name '*.c' -path '*/kernels/*' \))

.PHONY: run cluster test storm drill build lint asan bench bench-gate release-check docker docker-verify clean lock dev
.DEFAULT_GOAL := build

run: build
	@exec $(BIN)/anvil server $(ARGS)

build: $(VENV)/built

# Six nodes on this machine, for trying out what a cluster does; ARGS="--nodes 8 --drives 2". See docs/CLUSTER.md.
cluster: build
	@exec $(BIN)/python tools/cluster.py run $(ARGS)

test: dev
	@exec $(BIN)/python -m pytest $(ARGS)

# Random faults on six nodes under load, ten minutes unless told otherwise: ARGS="--seed 7 --seconds 600 --nodes 6".
storm: dev
	@exec $(BIN)/python -m tests.cluster.storm $(ARGS)

# Back up three nodes under load, destroy everything, make four from the backup, compare; likewise with Compose: some minutes (docs/BACKUP.md).
drill: dev
	@exec $(BIN)/python -m pytest -n 0 tests/cluster/test_drill.py tests/cluster/test_guide_restore.py tests/cluster/test_lost_region.py tests/integration/backup -m slow $(ARGS)

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --concise --ignore-missing-stub --ignore-disjoint-bases --allowlist tools/stubtest-allow.txt --ignore-unused-allowlist $$($(BIN)/python tools/extensions.py)
	$(BIN)/python -m pytest -n 0 tests/tidy

# The unit tests of the extensions under AddressSanitizer, in a copy of the tree; ARGS names other tests.
asan: dev
	@tools/asan.sh $(abspath $(BIN)/python) $(ARGS)

# All benchmarks, their gates and the report (half an hour on a machine that does nothing else); with ARGS=small only what has that in its name.
bench: dev
	@exec $(BIN)/python -m bench.run $(ARGS)

# The gates that hold on a busy machine too (bench/gates.toml), in two minutes.
bench-gate: dev
	@exec $(BIN)/python -m bench.gate

# What a release needs beyond a change: everything that CI has, the slow tests, all benchmarks with their gates, and the image.
release-check: dev
	.ci/run
	$(BIN)/python -m pytest -n 0 -m slow tests
	$(BIN)/python -m bench.run
	$(BIN)/python tools/docker_verify.py

# The container image, with docker, podman or buildah.
docker:
	@tools/docker-build.sh $(ARGS)

# Builds the image without a container engine and runs it (Debian, root, about ten minutes). ARGS="--work DIR" keeps what is built for the next time.
docker-verify: dev
	@exec $(BIN)/python tools/docker_verify.py $(ARGS)

dev: build $(VENV)/dev

$(VENV)/python: tools/system-packages.sh
	@tools/system-packages.sh $(PYTHON)
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/deps: $(VENV)/python pyproject.toml requirements.lock tools/requirements.py
	@$(BIN)/python tools/requirements.py > $(VENV)/requirements.txt
	@echo "Installing the Python packages into $(VENV)"
	@$(BIN)/pip --disable-pip-version-check install -q -c requirements.lock -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/dev: $(VENV)/deps tools/test-packages.sh
	@tools/test-packages.sh
	@$(BIN)/python tools/requirements.py dev > $(VENV)/requirements.txt
	@echo "Installing the Python packages for tests into $(VENV)"
	@$(BIN)/pip --disable-pip-version-check install -q -c requirements.lock -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/built: $(VENV)/deps $(SOURCES)
	@echo "Compiling the extensions"
	@$(BIN)/pip --disable-pip-version-check install -q --no-build-isolation --no-deps -e .
	@touch $@

# Renews requirements.lock: the newest versions that pyproject.toml allows, in a fresh environment. Review the difference, run the tests.
lock: $(VENV)/python
	@rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	@$(BIN)/python tools/requirements.py dev > $(VENV)/requirements.txt
	@$(VENV)-lock/bin/pip --disable-pip-version-check install -q -r $(VENV)/requirements.txt
	@{ echo "# Exact versions for CI and for make; renewed by make lock."; $(VENV)-lock/bin/pip freeze --all | grep -v '^pip=='; } > requirements.lock
	@rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
	find anvil \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +
	rm -f anvil/api/grpc/proto/*_pb2*.py* anvil/peers/proto/*_pb2*.py*
	find anvil -name '*.pyx' | sed 's/\.pyx$$/.c/' | xargs -r rm -f
