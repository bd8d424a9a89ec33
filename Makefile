# `make demo` and `make test` set up .venv by themselves; nothing else is needed beforehand but Python.
PYTHON ?= python3
BIN := .venv/bin
# Held-out problems that `make demo` decodes with each sampler.
PROBLEMS ?= 200
# Quiets the tokenizers library where a test starts a process.
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test lint types contract docs pytest bench minimum mutants clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt setuptools torch
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/dllm-sampling generate --gen-length 64 --unmasking confidence_threshold --cache dual \
	  "Mia has 27 pens. Mia buys 5. Mia loses 8. Mia finds 9. How many pens?"
	$(BIN)/dllm-sampling compare word_problems --limit $(PROBLEMS) --output results/demo

test: lint types contract docs pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types and the import contract are checked on the built wheel, from outside the checkout: from inside,
# `strategies` and `caches` would be seen as folders and not as parts of the package.
.venv/wheel/ok: .venv/ready $(shell find dllm_sampling strategies caches -name '*.py')
	rm -rf .venv/wheel build
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w .venv/wheel .
	rm -rf build
	$(BIN)/python -m pip install -q --no-deps --target .venv/wheel/site .venv/wheel/*.whl
	test -f .venv/wheel/site/dllm_sampling/strategies/unmasking/factor.py
	test -f .venv/wheel/site/dllm_sampling/caches/dual.py
	touch $@

types: .venv/wheel/ok
	cd .venv/wheel && MYPYPATH=site ../bin/mypy --config-file ../../pyproject.toml -p dllm_sampling -v 2>.log \
	  || (grep -v LOG .log; exit 1)
	grep -q 'dllm_sampling.strategies.unmasking.factor' .venv/wheel/.log  # it was among what was checked

contract: .venv/wheel/ok
	cd .venv/wheel && PYTHONPATH=site ../bin/lint-imports --config ../../pyproject.toml --no-cache

# What a CPU can, in under ten minutes; the published code is compared where PUBLISHED and PUBLISHED_PYTHON say.
bench: .venv/ready
	$(BIN)/python benchmarks/step_cost.py --threads 1
	$(BIN)/python benchmarks/step_cost.py --threads 2
	$(BIN)/python benchmarks/generation.py --gen-length 128 --repeats 2
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/fast_paths.py
	$(BIN)/python benchmarks/headline.py --prompt 256 --gen-length 256 --threads 1 --repeats 2
	$(BIN)/python benchmarks/against_published.py --gen-length 128 --sharpness 16 --repeats 2 \
	  $(if $(PUBLISHED),--checkout $(PUBLISHED) --python $(PUBLISHED_PYTHON))

# The site, into site/; a broken link or name is an error.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

# The tests that touch dependencies, with the lowest versions that are allowed (torch: that of constraints.txt).
.venv/min/ready: pyproject.toml constraints-min.txt
	$(PYTHON) -m venv .venv/min
	.venv/min/bin/python -m pip install -q -c constraints-min.txt 'setuptools>=77' torch
	.venv/min/bin/python -m pip install -q -c constraints-min.txt --no-build-isolation -e . pytest hypothesis jsonschema
	touch $@

minimum: .venv/min/ready
	.venv/min/bin/python -m pytest tests/test_backbones.py tests/test_golden.py tests/test_engine.py \
	  tests/test_cli.py tests/test_config.py tests/test_plugins.py

pytest: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Small deliberate faults, and whether the tests notice them: a fixed sample of each module's, in about half an
# hour on two cores. MUTANTS="factor.py --all" tries every fault of one module. Not part of `test`.
MUTANTS ?= --jobs 2
.venv/mutation: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[mutation]'
	touch $@

mutants: .venv/mutation
	$(BIN)/python tests/mutants.py $(MUTANTS)

clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
