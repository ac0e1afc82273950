# Each target installs what it needs into .venv the first time, and nothing after that.

PYTHON ?= python3
ALGO ?= trpo
TASK ?= CartPole-v1
SEED ?= 0

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
TASKS := .venv-tasks/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -c constraints-tasks.txt
OLDEST := .venv-oldest/bin/python -m pip install -qq --disable-pip-version-check -c constraints-oldest.txt

.DEFAULT_GOAL := help
.PHONY: help train format lint type test test-fast test-slow test-tasks test-machines mutation
.PHONY: bench bench-optimizers bench-compare compare docs clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' Makefile

train: .venv/.rl ## train TRPO on CartPole-v1; ALGO=, TASK=, STEPS=, SEED= and ARGS= choose otherwise
	@$(BIN)/rl-plugins train $(ALGO) $(TASK) --seed $(SEED) $(if $(STEPS),--total-steps $(STEPS)) $(ARGS)

format: .venv/.dev ## format the code, sort imports, mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: .venv/.dev ## style, layout and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: .venv/.dev ## mypy over both packages, the tests and the benchmarks
	$(BIN)/mypy

test: lint type ## lint, type, and every test that is not slow: what a change must pass
	$(BIN)/pytest --numprocesses=2 --dist=loadfile

# A tenth of the examples, and the end at the first failure.
test-fast: .venv/.dev ## the tests of FILE= with few examples, while you work
	HYPOTHESIS_PROFILE=fast $(BIN)/pytest --quiet --exitfirst $(or $(FILE),tests/natgrad/test_natural_step.py)

# Five minutes a row. The row `oldest` makes an environment of its own: torch of that day is gigabytes.
test-machines: .venv/.dev ## the tests as other machines would run them; ROW= and TESTS= choose
	$(BIN)/python bench/machines.py $(ROW) $(if $(TESTS),--tests $(TESTS))

test-slow: .venv/.dev ## the tests that take minutes
	$(BIN)/pytest -m slow

test-tasks: .venv-tasks/.dev ## tasks and trackers of other packages, in an environment of their own
	.venv-tasks/bin/pytest -m tasks tests/tasks

# An hour on one core.
mutation: .venv/.mutation ## mutation tests: which injected errors do tests catch?
	rm -rf mutants
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=mutation $(BIN)/mutmut run
	$(BIN)/python bench/mutation.py
	$(BIN)/python bench/tables.py

bench: .venv/.bench ## speed and honesty beside the peers
	$(BIN)/pytest bench --override-ini=addopts= --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=name \
		--benchmark-json=bench/results/primitives.json
	$(BIN)/python bench/solver_honesty.py
	$(BIN)/python bench/accounts.py
	$(BIN)/python bench/matrix.py
	$(BIN)/python bench/cg_overhead.py
	$(BIN)/python bench/curvature.py --threads 1
	$(BIN)/python bench/curvature.py --threads 2
	$(BIN)/python bench/trpo_throughput.py
	$(BIN)/python bench/verdicts.py
	$(BIN)/python bench/tables.py

# Some hours on one core: every optimizer gets its whole budget on every problem and seed.
bench-optimizers: .venv/.bench ## every optimizer on every problem, for its whole budget
	$(BIN)/python bench/more_garbow_hillstrom.py
	$(BIN)/python bench/poisson.py
	$(BIN)/python bench/adam_grid.py --task digits
	$(BIN)/python bench/adam_grid.py --task curves --budget 60
	$(BIN)/python bench/autoencoders.py
	$(BIN)/python bench/classification.py
	$(BIN)/python bench/plots.py
	$(BIN)/python bench/tables.py

bench-compare: .venv/.dev ## pytest-benchmark of this tree and of REV=, in turn
	$(BIN)/python bench/compare_speed.py --base $(REV)

compare: .venv/.dev ## this tree and REV= on fixed inputs: the same numbers, bit for bit?
	$(BIN)/python bench/compare_revisions.py --base $(REV)

docs: .venv/.dev ## the site, into site/
	$(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

clean: ## remove what the targets made
	rm -rf .venv .venv-oldest .venv-tasks .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis site mutants

.venv/.created:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.rl: pyproject.toml constraints.txt | .venv/.created
	@echo "installing into .venv, once: torch, gymnasium, MuJoCo and what they need"
	$(INSTALL) --editable '.[rl]'
	@touch $@

.venv/.dev: .venv/.rl
	@echo "installing into .venv, once: what checks and tests need"
	$(INSTALL) --editable '.[rl,testing,dev]'
	@touch $@

.venv/.bench: .venv/.dev
	@echo "installing into .venv, once: the peers that the benchmarks run against"
	$(INSTALL) --editable '.[rl,testing,dev,bench]'
	@touch $@

.venv/.mutation: .venv/.bench
	@echo "installing into .venv, once: mutmut"
	$(INSTALL) --editable '.[rl,testing,dev,bench,mutation]'
	@touch $@

# Box2D of that day has no wheel for every Python: SWIG builds it, found only outside pip's isolation.
.venv-oldest/.dev: pyproject.toml constraints-oldest.txt
	@echo "installing into .venv-oldest, once: the oldest versions that pyproject.toml allows"
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST) setuptools swig
	PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" $(OLDEST) --no-build-isolation box2d-py
	$(OLDEST) --editable '.[rl,testing,dev]'
	@touch $@

# Third-party tasks bring packages, such as two of the name pygame, that .venv should not depend on.
.venv-tasks/.dev: pyproject.toml constraints.txt constraints-tasks.txt
	@echo "installing into .venv-tasks, once: the tasks and trackers that the tests train on"
	$(PYTHON) -m venv .venv-tasks
	$(TASKS) --editable '.[rl,testing,dev,tasks]'
	@touch $@
