# Two commands do everything: `make try` shows six kinds of files answered, `make test` runs the default test suite.
# Both set the project up first; run again, they start at once.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
BIN := .venv/bin
FLOORS := core kernels data tokenizers backbone heads polysense training apps
# A folder's time changes when a file comes or goes; the strict editable install links files one by one.
FOLDERS := $(shell find $(FLOORS) -type d -not -name __pycache__)

.PHONY: try test style lock clean

try: .venv/.linked
	@$(BIN)/polysense try --out outputs/try

test: .venv/.linked
	@$(BIN)/python -m pytest -q

style: .venv/.linked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build && ../$(BIN)/mypy --config-file ../pyproject.toml
	cd build && ../$(BIN)/lint-imports --config ../pyproject.toml

.venv/.installed: requirements.lock
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

.venv/.linked: .venv/.installed pyproject.toml $(FOLDERS)
	@sh scripts/link.sh

# Pins every dependency: names, versions and hashes, no addresses.
lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate -q -o requirements.lock

clean:
	rm -rf .venv build outputs *.egg-info
