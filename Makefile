# make demo   installs into .venv, runs the demonstration target and prints its report; leaves dist/reuters_x86/
# make test   the checks and the whole test suite
# make check  format, lint and types only
# make canary the demonstration's smoke run, and the tests of edgekd/models, under transformers 5 and without optimum

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# With every runtime that Python (and npm, where it is) installs, and what converts for them: for tests alone, some 2 GB.
TESTED := .venv/installed-runtimes

# Another environment, from the same constraints but for what hangs on the major version of transformers.
CANARY := .venv-canary
CANARY_TRANSFORMERS ?= 5.23.0
FREE := transformers|tokenizers|huggingface_hub|optimum|optimum-onnx

# What benchmarks may do that edgekd may not: they take other packages, and stages' inputs, which have no types.
LOOSE := arg-type assignment attr-defined import-not-found import-untyped no-any-return no-untyped-call return-value \
	type-var var-annotated

.PHONY: demo test check format install canary clean

demo: $(INSTALLED)
	$(BIN)/python targets/reuters_x86.py
	$(BIN)/edgekd report reuters_x86

test: check $(TESTED)
	$(BIN)/python -m pytest -q

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks $(LOOSE:%=--disable-error-code %)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

# torch comes first and by its exact version: an open request would fetch several GB of CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[openvino,dev]'
	touch $@

$(TESTED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[openvino,litert-convert,executorch,mnn,ncnn,dev]'
	if command -v npm > /dev/null; then $(BIN)/edgekd doctor --install ort_web > /dev/null; fi
	touch $@

canary: $(CANARY)/installed
	! $(CANARY)/bin/python -m pip show --quiet optimum 2> /dev/null
	$(CANARY)/bin/python -m pytest -q tests/test_loading.py tests/test_surgery.py tests/test_onnxio_families.py
	rm -rf $(CANARY)/runs
	$(CANARY)/bin/edgekd run reuters_x86 --smoke --store $(CANARY)/runs --out $(CANARY)/dist

$(CANARY)/installed: pyproject.toml constraints.txt
	test -x $(CANARY)/bin/python || $(PYTHON) -m venv $(CANARY)
	grep -vE '^($(FREE))==' constraints.txt > $(CANARY)/constraints.txt
	$(CANARY)/bin/python -m pip install --quiet -c $(CANARY)/constraints.txt torch==2.13.0
	$(CANARY)/bin/python -m pip install --quiet -c $(CANARY)/constraints.txt \
		-e . transformers==$(CANARY_TRANSFORMERS) pytest hypothesis
	touch $@

clean:
	rm -rf .venv .venv-canary runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
