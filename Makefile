# make train   trains TRPO on CartPole-v1; ALGO=, TASK=, STEPS=, SEED= and ARGS= choose otherwise
# make test    lints, type-checks and tests
# Each installs what it needs into .venv the first time, and nothing after that.
# make test-machines runs the tests as other machines would; ROW= and TESTS= choose among bench/machines.py's rows.

PYTHON ?= python3
ALGO ?= trpo
TASK ?= CartPole-v1
SEED ?= 0

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
OLDEST := .venv-oldest/bin/python -m pip install -qq --disable-pip-version-check -c constraints-oldest.txt

.PHONY: train test test-machines test-slow mutation bench bench-optimizers docs clean

train: .venv/.rl
	@$(BIN)/rl-plugins train $(ALGO) $(TASK) --seed $(SEED) $(if $(STEPS),--total-steps $(STEPS)) $(ARGS)

test: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses=2 --dist=loadfile

# Five minutes a row. The row `oldest` makes an environment of its own: torch of that day is gigabytes.
test-machines: .venv/.dev
	$(BIN)/python bench/machines.py $(ROW) $(if $(TESTS),--tests $(TESTS))

test-slow: .venv/.dev
	$(BIN)/pytest -m slow

# An hour on one core: thousands of small errors put into two packages, and which of them tests see.
mutation: .venv/.mutation
	rm -rf mutants
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=mutation $(BIN)/mutmut run
	$(BIN)/python bench/mutation.py
	$(BIN)/python bench/tables.py

bench: .venv/.bench
	$(BIN)/pytest bench --override-ini=addopts= --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=name \
		--benchmark-json=bench/results/primitives.json
	$(BIN)/python bench/solver_honesty.py
	$(BIN)/python bench/accounts.py
	$(BIN)/python bench/cg_overhead.py
	$(BIN)/python bench/curvature.py --threads 1
	$(BIN)/python bench/curvature.py --threads 2
	$(BIN)/python bench/trpo_throughput.py
	$(BIN)/python bench/verdicts.py
	$(BIN)/python bench/tables.py

# Some hours on one core: every optimizer gets its whole budget on every problem and seed.
bench-optimizers: .venv/.bench
	$(BIN)/python bench/more_garbow_hillstrom.py
	$(BIN)/python bench/poisson.py
	$(BIN)/python bench/adam_grid.py --task digits
	$(BIN)/python bench/adam_grid.py --task curves --budget 60
	$(BIN)/python bench/autoencoders.py
	$(BIN)/python bench/classification.py
	$(BIN)/python bench/plots.py
	$(BIN)/python bench/tables.py

docs: .venv/.dev
	$(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

clean:
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis site mutants

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
