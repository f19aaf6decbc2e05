# make demo   sets everything up, exports the shipped tiny model and segments a picture
# make test   sets everything up and runs the whole suite; make test-full adds full-size checks
# make test-one FILE=tests/runtime/test_bundle.py
#             runs one file soon after a clone: few packages, nothing is built, no PyTorch
# make test-one FILE=tests/model/test_modules.py EXTRAS="test export"
#             the same with PyTorch, for files that import it
# make docs   builds the site of docs/ in build/site; a warning or a broken link is an error
# Other targets: setup native lint format bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ORT_LOWEST := 1.20.1
# Files side by side, each whole, since most of a test's work is done by one core; WORKERS=0 runs
# one after the other. A library that is not there is a failure here, no reason to skip.
WORKERS ?= 2
PYTEST := TFANET_REQUIRE_NATIVE=1 $(BIN)/python -m pytest --durations=10 --numprocesses $(WORKERS) \
  --dist loadfile

.PHONY: demo test test-full test-one setup native ort-lowest lint format docs bench clean

demo: setup native
	$(BIN)/python examples/demo.py --output demo

test: setup native ort-lowest
	$(MAKE) --no-print-directory lint
	$(PYTEST) -m "not full"

test-full: setup native ort-lowest
	$(PYTEST)

# A virtual environment for each choice of extras of setup.cfg, beside that of `make setup`. Tests
# of what `make native` builds are skipped there, with that reason. FILE may be several files.
EXTRAS ?= test
empty :=
LIGHT := build/venv-$(subst $(empty) ,-,$(strip $(EXTRAS)))

test-one: $(LIGHT)/.ready
	@test -n "$(FILE)" || { echo "name a file: make test-one FILE=tests/runtime/test_bundle.py"; exit 2; }
	$(LIGHT)/bin/python -m pytest $(FILE)

$(LIGHT)/.ready: setup.cfg constraints.txt tools/requirements.py
	$(PYTHON) -m venv $(LIGHT)
	$(PYTHON) tools/requirements.py $(EXTRAS) > $(LIGHT)/requirements.txt
	$(LIGHT)/bin/python -m pip install --quiet --constraint constraints.txt --requirement $(LIGHT)/requirements.txt
	touch $@

setup: $(VENV)/.ready

# The libraries are left to `make native`, which builds no more than what has changed.
$(VENV)/.ready: setup.cfg setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --config-settings=cmake.define.TFANET_LIBRARIES=OFF --editable ".[dev]"
	touch $@

native: setup
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release -DTFANET_WERROR=ON --log-level=NOTICE
	cmake --build build/native --parallel
	cmake --install build/native --prefix . > build/native.log

# The oldest ONNX Runtime that our operator library must load in, beside the newest one.
ort-lowest: build/ort-lowest/$(ORT_LOWEST)

build/ort-lowest/$(ORT_LOWEST): | setup
	$(BIN)/python -m pip install --quiet --no-deps --target build/ort-lowest onnxruntime==$(ORT_LOWEST)
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tfanet
	git ls-files '*.c' '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.c' '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

# The variable silences what MkDocs's theme says about other programs.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup native
	$(BIN)/python benchmarks/selective_scan.py
	$(BIN)/python benchmarks/end_to_end.py

clean:
	rm -rf build plugins/lib runtime/lib demo .pytest_cache .mypy_cache .ruff_cache
