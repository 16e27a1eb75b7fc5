# Every target makes .venv itself when it is missing or the project's requirements changed; the
# quickstart installs what a user needs, the others what a developer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEVELOPMENT := $(VENV)/.ready-for-development

.PHONY: quickstart test explore check bench clean

quickstart: $(READY)
	$(BIN)/python examples/quickstart.py

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The property tests with new examples every time.
explore: $(DEVELOPMENT)
	SORL_EXPLORE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m hypothesis

check: $(DEVELOPMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(DEVELOPMENT)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

$(READY): EXTRAS := tensorboard
$(DEVELOPMENT): EXTRAS := dev
$(READY) $(DEVELOPMENT): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $(READY) $@
