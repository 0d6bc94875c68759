# Every target sets up its environment first. The machine needs only Python 3.11 and a package registry.
#   make quickstart   pre-train, fine-tune, train from scratch and compare on digits, on a CPU, in minutes
#   make test         the test suite
#   make fuzz         malformed configs, images, models, data sets and runs, NUM of each
#   make chaos        cause faults in real runs, and print a table of the results

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# The Python that creates the environment, found before .venv comes first in PATH.
PYTHON ?= python3
PYTHON_FOUND := $(shell command -v $(PYTHON))
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: venv quickstart test chaos fuzz lint typecheck clean
venv: .venv/installed

# The stamp is written last, so that an incomplete installation is repeated.
.venv/installed: requirements.txt setup.cfg pyproject.toml
	@$(PYTHON_FOUND) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 ...")'
	@echo "Installing into .venv, once; this takes a minute or two"
	@# a new pip first: that of Python 3.11 takes three times as long to resolve
	$(PYTHON_FOUND) -m venv --upgrade-deps .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	.venv/bin/python -m pip install --quiet --no-deps -e .
	touch $@

quickstart: venv
	accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/pretrain.py --config configs/pretrain/digits.yaml
	accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/finetune.py --config configs/finetune/digits.yaml --model.init runs/pretrain/digits
	accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch --output_dir runs/finetune/digits-scratch
	accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch --train.layer_decay 1 --output_dir runs/finetune/digits-scratch-flat
	python scripts/compare.py --pretrained runs/finetune/digits --scratch runs/finetune/digits-scratch runs/finetune/digits-scratch-flat --output_dir runs/compare/digits

# COVERAGE=1 make test also prints which lines the tests run in their own processes, not in those that they start.
# Two files are left out: torch.compile does not understand the code with which slipcover counts lines.
COUNTED = -m slipcover --source mae_hf --omit mae_hf/models/layers.py,mae_hf/models/classifier.py --skip-covered
test: venv
	python $(if $(COVERAGE),$(COUNTED)) -m pytest

chaos: venv
	python tests/chaos.py --kills 30

# NUM new examples for each fuzz test
NUM ?= 1000
fuzz: venv
	MAE_HF_FUZZ=$(NUM) python -m pytest -n0 tests/security --hypothesis-show-statistics

lint: venv
	ruff check .
	ruff format --check .

typecheck: venv
	mypy mae_hf benchmarks scripts

# This keeps runs and the cache of decoded images, because they are results.
clean:
	rm -rf .venv .venv-lowest .venv-wheel .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find mae_hf benchmarks scripts tests -name __pycache__ -prune -exec rm -rf {} +
