# make demo         tunes the demo study within a budget of 0.3 and exports best.json
# make test         all tests but the soak
# make test-cluster the services of docker/compose.yaml as processes, and a study through them (PostgreSQL is needed)
# make check        format, lint, types, import rules, quick tests, known vulnerabilities
# make audit        what is known of the installed packages' vulnerabilities (asks a public database)
# make fix          what `check` can repair by itself
# make docs         the documentation as a site, in site/
# make demo-model   builds the demo's model and videos again (about four hours on two cores; resumable)
# make soak         the long tests
# make bench        time and memory of the demo run, and its peers at the same FLOPs
# make bench-search whole searches over the tabulated demo, by strategy (half an hour or more)
# make bench-gpu    where a GPU is at hand: the tests that need one, then the published 7B shapes in bfloat16
# make bench-speed  a trial, a prefill and their memory against the unpruned model; attention backends. Another
#                   machine: make bench-speed SPEED="--shape 7b --frames 32 --device cuda" BATCH=8
# make clean        removes what was built, not what was measured

.DELETE_ON_ERROR:
.PHONY: demo test test-cluster audit check fix docs demo-model soak bench bench-search bench-speed bench-gpu clean

# First interpreter that runs and is new enough; a name on PATH alone may be a shim without a Python behind it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
CLUSTER_STAMP := .venv/.cluster-installed

demo: $(STAMP)
	$(BIN)/tuner run --study demo --budget 0.3
	$(BIN)/tuner export --study demo --output best.json

# Two processes; the tests of a file stay together, because they share fixtures.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m quick
	$(MAKE) --no-print-directory audit

# Only a finding is a failure: without a network, nothing is known and nothing fails.
audit: $(STAMP)
	$(BIN)/python -m tests.audit

test-cluster: $(CLUSTER_STAMP)
	$(BIN)/python -m pytest -q --timeout=0 tests/cluster/topology.py

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --quiet --strict

demo-model: $(STAMP)
	$(BIN)/python -m studies.demo.build

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout=0

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks.run
	$(BIN)/tuner compare --study demo --budget 0.3

bench-search: $(STAMP)
	$(BIN)/python -m tests.benchmarks.search_quality --seeds 10 --out .tuner/search_quality.jsonl

SPEED ?= --shape 0.5b --frames 8
BATCH ?= 1
bench-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -m gpu
	$(MAKE) bench-speed SPEED="--shape 7b --frames 32 --device cuda" BATCH=8
	$(MAKE) bench-speed SPEED="--shape llava-video-7b --frames 64 --device cuda" BATCH=4

bench-speed: $(STAMP)
	$(BIN)/python -m tests.benchmarks.trial $(SPEED)
	$(BIN)/python -m tests.benchmarks.prefill $(SPEED) --batch $(BATCH)
	$(BIN)/python -m tests.benchmarks.memory $(SPEED)
	$(BIN)/python -m tests.benchmarks.backends

# The stamp is written last: an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(CLUSTER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find pipeline tuner dashboards studies tests -name __pycache__ -type d -prune -exec rm -rf {} +
