# `make help` says what there is. Everything happens in $(VENV); make one yourself first to choose Python or the build of torch.
VENV ?= .venv
PYTHON ?= python3
TORCH ?= 2.13.0
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.responserank
UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_FIND_LINKS # uv does not read pip's own
unexport PYTHONDONTWRITEBYTECODE # imports would take three times as long

.DEFAULT_GOAL := help
.PHONY: help setup run test chaos synthetic paper lab bench docs lint lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 12

setup: $(STAMP) ## install everything into $(VENV), once
$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python tests/constraints.py requirements.lock > $(VENV)/constraints.txt
	$(BIN)/uv pip install --python $(BIN)/python -c $(VENV)/constraints.txt -e '.[dev]'
	touch $@

run: setup ## train Bradley-Terry and rr_agree on the offline data, and print both
	$(BIN)/papermill nbs/20_llm_train.ipynb runs/bt.ipynb -p method bt
	$(BIN)/papermill nbs/20_llm_train.ipynb runs/rr_agree.ipynb -p method rr_agree
	$(BIN)/responserank train bt rr_agree

test: setup ## run the notebooks against the exported modules, then pytest
	$(BIN)/python tests/notebooks.py --workers $(WORKERS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

chaos: setup ## ten times as many broken files, and workers, kernels and sweeps that are killed or suspended (slow)
	RESPONSERANK_CHAOS=10 $(BIN)/python -m pytest -q tests/test_mutations.py tests/test_late_workers.py tests/test_sweep_kills.py tests/test_sweep_disk.py tests/test_sweep_shared.py

synthetic: setup ## the synthetic study, and its figures and tables
	$(BIN)/responserank synthetic
	$(BIN)/responserank paper --only "synthetic_*,choice_accuracy*,pearson_distance_correlation*,significance*,number_of_trials*"

paper: setup ## rebuild every figure, table and number of the paper
	$(BIN)/responserank paper

lab: setup ## open the notebooks
	$(BIN)/jupyter lab nbs

bench: setup ## run the benchmarks (slow)
	$(BIN)/uv pip install --python $(BIN)/python -c $(VENV)/constraints.txt -e '.[bench]'
	for notebook in nbs/benchmarks/*.ipynb; do $(BIN)/papermill $$notebook runs/$$(basename $$notebook) || exit 1; done

docs: setup ## render the site into _docs and check it
	$(BIN)/python tests/docs.py

lint: setup ## ruff on notebooks and tests
	$(BIN)/ruff check nbs tests

lock: setup ## resolve requirements.lock anew, with torch $(TORCH)
	echo "torch==$(TORCH)" | UV_FIND_LINKS= $(BIN)/uv pip compile --universal --upgrade --no-header --no-annotate --python-version 3.11 \
		--extra dev --extra rl --extra bench -c - -o requirements.lock pyproject.toml > /dev/null

clean: ## remove what was rendered and cached (runs and $(VENV) stay)
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .coverage*
