# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`;
# `make serve-demo` puts the demo's model behind a page.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Python keeps what it has compiled: some forty starts of the tests would each compile torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve-demo test test-all check bench lock clean

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

demo: $(STAMP)
	rm -rf demo
	$(BIN)/detrkit demo --out demo

serve-demo: $(STAMP) demo/bundle
	$(BIN)/detrkit serve demo/bundle

demo/bundle: | demo/run
	$(BIN)/detrkit export demo/run --out demo/bundle

demo/run:
	$(MAKE) demo

# Every core has a process of tests of its own, whose arithmetic then takes no second one.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal -m "slow or not slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Everything, development tools too, pinned with hashes and without any registry's address.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --universal --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements.txt
	$(BIN)/uv pip compile --group pyproject.toml:runtime-only --python-version 3.11 --universal --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements-runtime.txt
	for needs in onnxruntime openvino; do $(BIN)/uv pip compile --group pyproject.toml:serve-$$needs --python-version 3.11 \
		--universal --generate-hashes --no-emit-index-url --no-header --quiet \
		--output-file src/detrkit/deployment/requirements-$$needs.txt || exit 1; done

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
