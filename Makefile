# make demo   installs into .venv, runs the demonstration target and prints its report; leaves dist/reuters_x86/
# make test   the checks and the whole test suite
# make check  format, lint and types only

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check format install clean

demo: $(INSTALLED)
	$(BIN)/python targets/reuters_x86.py
	$(BIN)/edgekd report reuters_x86

test: check
	$(BIN)/python -m pytest -q

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

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

clean:
	rm -rf .venv runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
