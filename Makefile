PYTHON ?= python3
BIN := .venv/bin

.PHONY: install sweep test bench lint docs wheel
install: .venv/installed

.venv/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

sweep: install  ## the main job: search, confirm and compare the MLP-ensemble study
	$(BIN)/distune sweep mlp-ensemble

test: install
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

bench: install  ## minutes: the slow acceptance tests and the side-by-side figures of the README
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m tests.benchmarks.sweep_speed --json
	$(BIN)/python -m tests.benchmarks.image_throughput --json
	$(BIN)/python -m tests.benchmarks.table_memory --json
	$(BIN)/python -m tests.benchmarks.trial_overhead --trials 2000 --repeats 3 --json
	$(BIN)/python -m tests.benchmarks.cluster_scaling --json
	$(BIN)/python -m tests.benchmarks.cluster_scaling --workers 64 --trials 10000 --repeats 1 --json
	$(BIN)/python -m tests.benchmarks.rebuild --trials 10000 --json
	$(BIN)/python -m tests.benchmarks.report_size --trials 10000 --json
	$(BIN)/python -m tests.benchmarks.search_quality --repeats 50 --json
	$(BIN)/python -m tests.benchmarks.calibration --sweeps 1000 --json
	$(BIN)/python -m tests.benchmarks.wandb_overhead --repeats 3 --json
	$(BIN)/python -m tests.chaos.kill_and_resume --kills 20 --json
	$(BIN)/python -m tests.chaos.kill_the_export --kills 10 --json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  ## build/site/index.html; a warning is an error
	$(BIN)/python -m docs.build

wheel: install  ## dist/*.whl, installed beside nothing of this folder and tried out
	$(BIN)/python -m tests.wheel
