# Each target sets up what it needs: `make demo` and `make test` work in a fresh clone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := requirements.lock
EXTRAS := tensorboard,downstream,examples,omics

.DEFAULT_GOAL := help
.PHONY: help setup setup-browser demo journey test test-fast test-long check tests doctest docs docs-fast audit-poe bench-smoke \
	bench-ablations bench-cells bench-data-path bench-downstream bench-downstream-full bench-fusion bench-mmhvae bench-multivae bench-omics \
	bench-poe bench-recipe bench-synthesis bench-synthesis-full bench-tables bench-uncertainty calibration-gate fuzz \
	gpu kill-test lock mutants reliability test-kernels format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## Create .venv and install mmpoe with everything it needs

# the second way is for a Python without ensurepip, as Debian's is without python3-venv
$(READY): pyproject.toml $(LOCK)
	@echo "Setting up $(VENV): PyTorch and friends are a few GB, this takes some minutes once."
	$(PYTHON) -m venv $(VENV) || ( \
		$(PYTHON) -m pip install --quiet --target $(VENV)/bootstrap virtualenv && \
		PYTHONPATH=$(VENV)/bootstrap $(PYTHON) -m virtualenv $(VENV))
	@if $(BIN)/python .ci/lock.py --fits; then set -e; \
		echo "Installing the versions of $(LOCK), each checked by its SHA-256."; \
		$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCK); \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	else set -e; \
		echo "$(LOCK) is for another platform or Python: installing what pyproject.toml allows."; \
		$(BIN)/python -m pip install --quiet --upgrade pip; \
		$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]" --group dev; \
	fi
	@touch $(READY)

lock:  ## Resolve again what set-up installs, and write requirements.lock; needs .venv
	$(BIN)/python .ci/lock.py --write $(EXTRAS) dev

setup-browser:  ## Install Chromium, which a test of the report needs (Debian, as root or with sudo)
	@if command -v chromium >/dev/null; then echo "Chromium is there."; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	else sudo apt-get update -qq && sudo apt-get install -y -qq chromium; fi

demo: $(READY)  ## Train on phantom patients, synthesise what is missing, write runs/demo/report.html
	$(BIN)/python -m examples.medical_mri_us demo

journey: $(READY)  ## From generated folders of BIDS, BraTS and ultrasound to reports in runs/journey, under 15 minutes
	$(BIN)/python -m examples.medical_mri_us.journey

# the last three run two at a time, and on one thread each: more would get in each other's way
test: check tests  ## Everything the project checks before a change lands
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 --output-sync=target doctest docs bench-smoke

check: $(READY)  ## Format, lint, layers, types, spelling, packages that fit one another
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(BIN)/codespell
	$(BIN)/python -m pip check

tests: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(READY)  ## The tests that take no more than seconds each, under two minutes; for while you work
	MMPOE_HYPOTHESIS=fast $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gate and not long"

test-long: $(READY)  ## The tests that take most of a minute each: several machines, kills, a job of Slurm
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

doctest: $(READY)
	$(BIN)/python -m pytest --doctest-modules -p no:xdist mmpoe examples

docs: $(READY)  ## Build the documentation into docs/_build/html, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

docs-fast: $(READY)  ## Build the documentation without running its code, half a minute
	$(BIN)/python -m sphinx -W --keep-going -q -D nb_execution_mode=off -D suppress_warnings=myst-nb.lexer \
		-b html docs docs/_build/fast

bench-smoke: $(READY)
	$(BIN)/python -m benchmarks.bench_import --smoke
	$(BIN)/python -m benchmarks.bench_poe --smoke
	$(BIN)/python -m benchmarks.bench_multivae --smoke
	$(BIN)/python -m benchmarks.bench_mmhvae --smoke --threads 1
	$(BIN)/python -m benchmarks.bench_cells --smoke
	$(BIN)/python -m benchmarks.bench_recipe --smoke
	$(BIN)/python -m benchmarks.synthesis.costs --smoke
	rm -rf runs/bench-smoke
	$(BIN)/python -m benchmarks.fusion --profile smoke --out runs/bench-smoke/fusion
	$(BIN)/python -m benchmarks.omics --profile smoke --workers 1 --out runs/bench-smoke/omics
	$(BIN)/python -m benchmarks.tables --profile smoke --workers 1 --out runs/bench-smoke/tables
	$(BIN)/python -m benchmarks.synthesis.run --profile smoke --systems unet mhvae --out runs/bench-smoke
	$(BIN)/python -m benchmarks.synthesis.ablations --profile smoke --workers 1 --factors adversary \
		--out runs/bench-smoke/ablations
	$(BIN)/python -m benchmarks.synthesis.uncertainty --profile smoke --workers 1 \
		--out runs/bench-smoke/uncertainty --models runs/bench-smoke

bench-fusion: $(READY)  ## Compare fusion rules with exact posteriors and on digits, under 25 minutes; write the tables
	$(BIN)/python -m benchmarks.fusion --profile full --write

bench-omics: $(READY)  ## Compare imputers on genuine omics and digits, about an hour; write the tables
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks.omics --profile full --write

bench-tables: $(READY)  ## Compare imputers on tables with holes, about an hour; write the tables
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks.tables --profile full --write

bench-data-path: $(READY)  ## Measure what training and synthesis hold and wait for, minutes; write the tables
	$(BIN)/python -m benchmarks.data_path --write

bench-mmhvae: $(READY)  ## Time the published MMHVAE beside the published way, minutes (OFFICIAL=a checkout of it)
	bash -o pipefail -c "$(BIN)/python -m benchmarks.bench_mmhvae --threads 1 \
		$(if $(OFFICIAL),--official $(OFFICIAL)) | tee benchmarks/results/mmhvae.txt"

bench-cells: $(READY)  ## Time normalisation and depthwise convolution beside PyTorch's, a minute
	bash -o pipefail -c "$(BIN)/python -m benchmarks.bench_cells | tee benchmarks/results/cells.txt"

bench-recipe: $(READY)  ## Compare how long training takes to reach a bound, half an hour
	bash -o pipefail -c "$(BIN)/python -m benchmarks.bench_recipe | tee benchmarks/results/recipe.txt"

bench-multivae: $(READY)  ## Measure side by side with MultiVae, which is installed; write the tables
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benchmarks.bench_multivae --write

calibration-gate: $(READY)  ## Train models, calibrate them, and hold them against exact conditionals
	$(BIN)/python -m pytest -m gate -s tests/imputation/test_calibration_gate.py

bench-poe: $(READY)  ## Time the fused product of experts against PyTorch, minutes
	bash -o pipefail -c "$(BIN)/python -m benchmarks.bench_poe | tee benchmarks/results/poe.txt"

audit-poe: $(READY)  ## Read what NVRTC makes of the fused product of experts for a GPU
	bash -o pipefail -c "$(BIN)/python -m benchmarks.audit_poe | tee benchmarks/results/audit.txt"

bench-ablations: $(READY)  ## Vary the MMHVAE in one thing at a time, under 40 minutes; write the tables
	$(BIN)/python -m benchmarks.synthesis.ablations --profile quick --write

bench-uncertainty: $(READY)  ## Measure how draws of the MMHVAE spread, under 40 minutes; write the tables
	$(BIN)/python -m benchmarks.synthesis.uncertainty --profile quick --write

bench-synthesis: $(READY)  ## Compare seven systems on phantom patients, under 40 minutes; write the tables
	$(BIN)/python -m benchmarks.synthesis.costs --write
	$(BIN)/python -m benchmarks.synthesis.run --profile quick --write

bench-synthesis-full: $(READY)  ## The same with three seeds and twice the training, under two hours
	$(BIN)/python -m benchmarks.synthesis.run --profile full --write

bench-downstream: $(READY)  ## Put the compared systems to use on phantom patients, minutes; write the tables
	$(BIN)/python -m benchmarks.synthesis.run --profile quick
	$(BIN)/python -m benchmarks.downstream.run --profile quick --write

bench-downstream-full: $(READY)  ## The same with three seeds, under two hours; uses the systems of bench-synthesis-full
	$(BIN)/python -m benchmarks.synthesis.run --profile full
	$(BIN)/python -m benchmarks.downstream.run --profile full --write

gpu: $(READY)  ## Check and time everything that needs an NVIDIA GPU, nine minutes; write the tables
	$(BIN)/python -m benchmarks.gpu --out runs/gpu --write

reliability: $(READY)  ## Inject faults, write the table of what happens, minutes
	$(BIN)/python -m benchmarks.reliability --write

mutants: $(READY)  ## Break the code in one place at a time, and print which test finds it, 15 minutes
	$(BIN)/python -m benchmarks.mutants --write

BUDGET := 600

fuzz: $(READY)  ## Change files at random and read them, ten minutes, or BUDGET=60 for a minute
	$(BIN)/python -m benchmarks.fuzz --seconds $(BUDGET)

kill-test: $(READY)  ## Kill runs and subcommands at any moment, and look at what is left, minutes; write the table
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.kill_test --write

test-kernels: $(READY)  ## Everything about the kernels that takes minutes: no GPU needed
	MMPOE_EXHAUSTIVE=1 $(BIN)/python -m pytest -n 2 tests/kernels

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what the targets made, keep .venv
	rm -rf docs/_build runs .pytest_cache .ruff_cache .import_linter_cache
