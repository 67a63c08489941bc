# Two commands do everything: `make try` shows seven kinds of files answered, `make test` runs the default test suite.
# Both set the project up first; run again, they start at once. Another Python: `make try PYTHON=/path/to/python3.11`.
export PYTHON
# Compiled modules are kept, whatever the environment says: the many processes of the tests would each compile thousands.
export PYTHONDONTWRITEBYTECODE :=
BIN := .venv/bin
FLOORS := core kernels data tokenizers backbone heads polysense training apps
# The strict editable install links file by file: it is renewed when a file came or went (not when one changed).
FILES := $(shell find $(FLOORS) -type f ! -path '*/__pycache__/*' ! -name '.*' | LC_ALL=C sort | cksum)
ifneq ($(FILES),$(shell cat .venv/.linked 2>/dev/null))
.PHONY: .venv/.linked
endif
# A checkout that was moved or copied is set up anew: scripts and links hold absolute paths.
ifneq ($(shell pwd -P),$(shell cat .venv/.home 2>/dev/null))
.PHONY: .venv/.installed
endif

.PHONY: try test test-ui bench style lock clean

try: .venv/.linked
	@$(BIN)/polysense try --out outputs/try

test: .venv/.linked
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q

# The demo in a headless browser; what every tab looked like is in outputs/screens. One case: make test-ui ONLY="-k phone"
test-ui: .venv/.linked
	@sh scripts/browser.sh
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -m ui tests/ui $(ONLY)

# Minutes; leave the machine alone meanwhile. One case: make bench ONLY="--only padded"
bench: .venv/.linked
	@$(BIN)/polysense bench --out outputs/bench $(ONLY)

style: .venv/.linked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build && ../$(BIN)/mypy --config-file ../pyproject.toml
	cd build && ../$(BIN)/lint-imports --config ../pyproject.toml

.venv/.installed: requirements.lock
	@sh scripts/setup.sh

.venv/.linked: .venv/.installed pyproject.toml
	@sh scripts/link.sh "$(FILES)"

# Pins every dependency: names, versions and hashes, no addresses.
lock: .venv/.installed
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate -q -o requirements.lock

clean:
	rm -rf .venv build outputs *.egg-info
