# What a contributor types. `./n` and CI need none of it.

BIN := .venv/bin

.PHONY: check fix test test-gpu soak bench image install

check: install ## everything a change must pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	PYTHONPATH=. $(BIN)/lint-imports
	./n test

fix: install ## format, and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test:
	./n test

test-gpu: ## the tests that need a GPU, and only those
	./n test -m "gpu or multigpu or sm90 or sm100"

soak: ## fuzz, load, whole-suite renders: hours
	./n test -m soak

bench: install ## what the operations cost; rows of a GPU go to bench/results/
	./n bench kernels
	./n bench loss
	./n bench transport
	./n bench step
	$(BIN)/pytest bench/test_prep.py bench/test_reference.py bench/test_widgets.py --benchmark-enable

image:
	$(MAKE) -C docker train

install: ## returns at once when nothing has changed
	@sh scripts/install.sh .venv test
