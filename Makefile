# The commands of a checkout; `make help` lists them. What they set up lies in .venv (see scripts/setup_env.py).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With REPRISE_SYSTEM_PACKAGES some of the tools are the machine's own, hence by name and not by path.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
CHOSEN := $(if $(filter command environment,$(origin PYTHON)),--python-was-chosen)
CPP_BUILDS := release address thread
LINTED := runtime buffer cl_models scenarios train report backbone cpp_loader benchmarks sweeps main sweep

# horovodrun pipes its workers' output; this lets rank 0 draw its progress bar on the terminal all the same.
ON_TERMINAL = if [ -t 2 ]; then export REPRISE_TERMINAL="$$(tty <&2)"; fi;

export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test ctest $(CPP_BUILDS:%=ctest-%) $(CPP_BUILDS:%=cbuild-%) bench baselines lint clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv, install the pinned packages, build Horovod and the C++ engine (PYTHON=python3.11 chooses the Python)
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) is not on the PATH: make setup PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) scripts/setup_env.py $(CHOSEN)

demo: setup  ## two Horovod workers learn handwritten digits, without rehearsal and with it
	@$(ON_TERMINAL) $(IN_VENV) horovodrun --gloo -np 2 $(BIN)/python main.py --config demo-vanilla
	@$(ON_TERMINAL) $(IN_VENV) horovodrun --gloo -np 2 $(BIN)/python main.py --config demo-er
	@$(BIN)/python -m reprise.report results/demo-vanilla results/demo-er
	@echo "Pictures:"; ls results/demo-vanilla/*.png results/demo-er/*.png

test: setup ctest  ## every test that needs no GPU
	@# Most tests keep one core busy; only jobs of several ranks need all of them.
	$(IN_VENV) OMP_NUM_THREADS=1 timeout 900 pytest -n 2 --dist loadfile tests/unit tests/integration
	$(IN_VENV) OMP_NUM_THREADS=1 timeout 600 pytest -n 2 --dist loadfile tests/contract
	$(IN_VENV) timeout 1800 pytest tests/parallel

ctest: setup  ## the C++ tests: as released, under address and undefined, and under thread sanitizer
	@$(MAKE) --no-print-directory -j2 --output-sync=target ALL_IN_TURN=1 $(CPP_BUILDS:%=ctest-%)

# Tests wait more than they compute: four run at a time, and one build compiles, and steps back, while the tests of the
# one before run.
$(CPP_BUILDS:%=cbuild-%): cbuild-%: setup
	@$(IN_VENV) timeout 600 cmake --preset $* --no-warn-unused-cli -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" >/dev/null
	@# ninja would take part in make's job server, whose pipes are not handed on.
	@$(IN_VENV) MAKEFLAGS= timeout 900 nice cmake --build --preset $*

$(CPP_BUILDS:%=ctest-%): ctest-%: cbuild-%
	@echo "C++ tests: $*"
	@$(IN_VENV) timeout 600 ctest --preset $*

ifdef ALL_IN_TURN
cbuild-address: | cbuild-release
cbuild-thread: | cbuild-address
ctest-address: | ctest-release
ctest-thread: | ctest-address
endif

bench: setup  ## the buffer against the memory limit and those of its peers that are installed (ARGS="--workload cifar")
	@$(BIN)/python benchmarks/buffer.py $(ARGS)

baselines: setup  ## a strategy between its two baselines, with a picture (ARGS="--np 2 -- --config demo-er")
	@$(IN_VENV) $(BIN)/python benchmarks/baselines.py $(ARGS)

lint: setup  ## style, format, types, C++ format
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	@# mypy has to see the checkout under its import name, whatever the folder is called.
	@mkdir -p build/typed && ln -sfn "$(CURDIR)" build/typed/reprise
	$(IN_VENV) MYPYPATH=build/typed mypy $(LINTED:%=-p reprise.%)
	$(IN_VENV) clang-format --dry-run --Werror $$(find cpp_loader -name '*.cc' -o -name '*.h')

clean:  ## remove builds and caches
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment and the built wheels too
	rm -rf $(VENV) .wheels .setup.lock
