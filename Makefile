# Two commands do everything: `make rehearse` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APPROVE ?=
CONTAINERS ?=
ENV ?=
TO ?=
YES ?=
ON ?=
QUICK ?=
SEED ?=
MINUTES ?=
# The CDK says on every start that the oldest supported Node is near its end; say it once, in the README.
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION := 20
# Many containers set it. Here hundreds of processes would each compile anew what they import: MLflow in 4 s, the CDK in 4 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv node lint synth cfn-lint unit compliance check test drills first-drills other-drills rehearsal-tests mariadb browser fuzz bench soak image containers audit rehearse down releases rollback restore client lock rds-ca

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

venv: $(VENV)/.complete ## Create .venv from requirements.lock, hashes checked

node: node_modules/.package-lock.json ## Install the pinned CDK CLI from package-lock.json

# uv installs the list in seconds; it is itself on the list, so the first step takes it from there with its hashes.
$(VENV)/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; found " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11")'
	@rm -rf $(VENV)
	@echo "Installing Python packages from requirements.lock into $(VENV)"
	@if command -v uv >/dev/null; then uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); uv=uv; \
	else $(PYTHON) -m venv $(VENV); \
	  awk '/^[a-z]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.lock; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock; uv=$(BIN)/uv; fi; \
	$$uv pip sync --quiet --require-hashes --python $(BIN)/python requirements.lock
	@touch $@

node_modules/.package-lock.json: package-lock.json
	@command -v npm >/dev/null || { echo "npm is needed for the CDK CLI: install Node 22 or 24"; exit 1; }
	@echo "Installing the CDK CLI from package-lock.json"
	@npm ci --silent --no-audit --no-fund
	@touch $@

synth: venv node ## Write the cloud assembly to cdk.out/; an unacknowledged cdk-nag finding fails it
	@rm -rf cdk.out
	@echo "Synthesizing pipeline_app.py"
	@node_modules/.bin/cdk synth --quiet

lint: venv
	@echo "Linting and checking types"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

cfn-lint: synth
	@echo "Linting the templates"
	@$(BIN)/cfn-lint --non-zero-exit-code error

unit: synth
	@ASSEMBLY=cdk.out $(BIN)/python -m pytest tests/unit -q

compliance: synth ## Write anew what docs/compliance.md counts
	@UPDATE_COMPLIANCE=1 ASSEMBLY=cdk.out $(BIN)/python -m pytest tests/unit/test_compliance.py -q

# Two at a time: the type check takes as long as everything else together.
check: venv node ## What the pipeline's Build stage runs: lint, types, synth, cdk-nag, cfn-lint, unit tests
	@$(MAKE) --no-print-directory -j2 lint unit cfn-lint

# What each drill measured is in .drills.jsonl. They wait more than they compute: the tests of the rehearsal, the first drills
# and all the others go side by side on two cores.
DRILLING = ASSEMBLY=cdk.out DRILL_FIGURES=$(CURDIR)/.drills.jsonl $(BIN)/python -m pytest
FIRST_DRILLS := tests/drills/test_bad_releases.py tests/drills/test_mysql.py

test: check ## All tests: check, rehearsal, drills (about an hour); what needs a missing program is skipped
	@rm -f .drills.jsonl
	@$(MAKE) --no-print-directory -j3 first-drills other-drills rehearsal-tests

drills: venv synth ## The drills alone: what is broken on purpose, in the pipeline, a service, the image
	@rm -f .drills.jsonl
	@$(MAKE) --no-print-directory -j2 first-drills other-drills

first-drills: # bad releases of every kind, in every environment; MySQL
	@$(DRILLING) $(FIRST_DRILLS)

rehearsal-tests:
	@$(DRILLING) tests/matrix tests/rehearsal

other-drills:
	@$(DRILLING) tests/drills $(FIRST_DRILLS:%=--ignore=%)

mariadb: venv synth ## The image's migrations and a rehearsed environment on a real MariaDB, which pip does not give
	@$(BIN)/python -c 'import sys; from rehearsal import mariadb; it = mariadb.missing(); sys.exit(f"{it} is missing: {mariadb.INSTALL}" if it else 0)'
	@ASSEMBLY=cdk.out $(BIN)/python -m pytest tests/rehearsal tests/drills -m mariadb

browser: venv ## The sign-in with a real browser, which pip does not give
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { echo "Chromium and its driver are missing: install them (Debian: apt-get install chromium chromium-driver)"; exit 1; }
	@$(BIN)/python -m pytest tests/rehearsal -m browser

fuzz: venv ## Ten thousand random requests to the image's server by eight clients: two minutes [SEED=words]
	@seed="$(or $(SEED),$(shell date +%F))"; echo "Drawing from the seed $$seed"; \
	FUZZ_CLIENTS=8 FUZZ_SEED="$$seed" $(BIN)/python -m pytest tests/rehearsal/attacks/test_fuzz.py

bench: venv ## Measure this image against stock MLflow, and write docs/performance.md (about 25 minutes) [QUICK=yes: 3 minutes, writes to .bench/]
	@$(if $(QUICK),$(if $(filter-out yes,$(QUICK)),$(error QUICK=$(QUICK): write QUICK=yes, or leave it out)))$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick --to .bench,--to docs)

soak: venv ## Load this image's server for an hour and write docs/soak.md: does it fit into 1 GB? [MINUTES=60]
	@$(BIN)/python -m tests.benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES))

image: venv ## Build the server's image with Docker, Podman or Buildah, whichever is there
	@$(BIN)/python -m operations.image

audit: venv ## The image's locked packages against published advisories; mlflow_image/accepted.toml says what may stay
	@$(BIN)/python -m operations.audit

containers: venv ## Build the image and run it hardened, on PostgreSQL and MariaDB, with the smoke tests
	@$(BIN)/python -m pytest tests/rehearsal -m container

rehearse: venv node ## Take the checked-out commit through the whole pipeline on this machine [APPROVE=yes|no] [CONTAINERS=yes|no]
	@$(BIN)/python -m rehearsal run $(if $(APPROVE),--approve $(APPROVE)) $(if $(CONTAINERS),--containers $(CONTAINERS))

down: venv ## Stop everything that a rehearsal left running
	@$(BIN)/python -m rehearsal down

# ON=rehearsal: the same program, against the rehearsed accounts.
operations = $(if $(ON),$(if $(filter-out rehearsal,$(ON)),$(error ON=$(ON): write ON=rehearsal, or leave it out for AWS),rehearsal operate $(if $(APPROVE),--approve $(APPROVE)) --),operations)

releases: venv ## What each environment runs, ran, and can go back to [ENV=dev|staging|prod] [ON=rehearsal]
	@$(BIN)/python -m $(operations) releases $(if $(ENV),--environment $(ENV))

rollback: venv ## Take an environment back to an earlier release: ENV=prod [TO=commit] [YES=yes] [ON=rehearsal]
	@$(BIN)/python -m $(operations) rollback --environment $(or $(ENV),$(error which environment? make rollback ENV=prod)) $(if $(TO),--to $(TO)) $(if $(filter yes,$(YES)),--yes)

restore: venv ## Prepare the release that restores a database: ENV=prod SNAPSHOT=name [YES=yes] [ON=rehearsal]
	@$(BIN)/python -m $(operations) restore --environment $(or $(ENV),$(error which environment? make restore ENV=prod SNAPSHOT=name)) --snapshot $(or $(SNAPSHOT),$(error which snapshot? make restore ENV=$(ENV) SNAPSHOT=name)) $(if $(filter yes,$(YES)),--yes)

client: venv ## What a client sets to use an environment, ready to paste: ENV=prod
	@$(BIN)/python -m operations client --environment $(or $(ENV),$(error which environment? make client ENV=prod))

lock: venv ## Write the lock files anew from requirements.txt, mlflow_image/requirements.in and package.json
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements.txt -o requirements.lock
	@cd mlflow_image && ../$(BIN)/uv pip compile --quiet --excludes requirements.exclude --universal --python-version 3.11 --generate-hashes --only-binary :all: --no-header requirements.in -o requirements.lock
	@cd mlflow_image/build && ../../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: --no-header tools.in -o tools.lock
	@npm install --package-lock-only --silent

rds-ca: venv node ## Write mlflow_image/rds_ca.pem anew: whom the server believes that it is RDS
	@$(BIN)/python -m operations.rds_ca
