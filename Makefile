# Everything one does with this book. `make help` lists it.
#
# The only thing needed beforehand is Python 3.11 or newer with its venv module: every target first
# brings .venv up to date, which takes no time unless requirements.txt or pyproject.toml has changed.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
BIN := .venv/bin
CHAPTERS = $(wildcard book/*.ipynb book/*/*.ipynb)
REPORTS := _build/test-reports

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

.PHONY: environment
environment:  ## bring .venv up to date
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no command '$(PYTHON)'. Name a Python 3.11 or newer:  make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@"$(PYTHON)" scripts/environment.py

# A build that stopped half-way, or with warnings, has already remembered the pages that it had read, and
# would not warn about them again. So what it remembers is kept only if the whole build succeeded.
# The results of executed chapters are kept in any case.
.PHONY: book
book: environment  ## execute the chapters and build the book, warnings being errors
	@if [ -e _build/.unfinished ]; then rm -rf _build/.doctrees; fi
	@mkdir -p _build
	@touch _build/.unfinished
	$(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet
	@rm _build/.unfinished
	@echo "The book is built. Open  file://$(CURDIR)/_build/html/index.html"

.PHONY: book-fresh
book-fresh:  ## build the book after forgetting every earlier result
	rm -rf _build
	@$(MAKE) --no-print-directory book

.PHONY: lab
lab: environment  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab book

.PHONY: notebooks
notebooks: environment  ## execute the chapters and store them in canonical form
	$(BIN)/python scripts/notebooks.py execute $(CHAPTERS)

.PHONY: benchmark
benchmark: environment  ## measure eoslib beside other tools
	@[ -d _build/benchmark-peers ] || $(BIN)/python benchmarks/install_peers.py
	$(BIN)/python -m benchmarks.run

.PHONY: format
format: environment  ## format the code, the notebooks' included
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/notebooks.py canonical $(CHAPTERS)

.PHONY: test
test: check-style check-types check-notebooks test-library test-notebooks test-book  ## run every check and test
	@$(BIN)/python scripts/summarise_tests.py $(REPORTS)

# One run of pytest whose results count in the summary. If it fails, the summary comes before the failure.
define pytest
@mkdir -p $(REPORTS)
$(1) $(BIN)/python -m pytest --junit-xml=$(REPORTS)/$@.xml $(2) || { \
  $(BIN)/python scripts/summarise_tests.py $(REPORTS); exit 1; }
endef

.PHONY: check-style
check-style: environment
	@rm -rf $(REPORTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: check-types
check-types: environment
	$(BIN)/mypy

.PHONY: check-notebooks
check-notebooks: environment
	$(BIN)/python scripts/notebooks.py verify $(CHAPTERS)

# Two processes with one thread each do not get in each other's way.
.PHONY: test-library
test-library: environment  ## run the tests of the library and of the tools
	$(call pytest,OMP_NUM_THREADS=1,-n 2 --dist loadfile)

# Two notebooks at a time, each whole in one process, because its cells need each other, and with one
# thread each, as in the build of the book.
.PHONY: test-notebooks
test-notebooks: environment  ## execute the chapters and compare what their check cells print
	$(call pytest,OMP_NUM_THREADS=1,-n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with=scripts/nbval.cfg $(CHAPTERS))

# Two browsers at a time, each with whole files of tests. (One browser leaves a core idle half of the time.)
.PHONY: test-book
test-book: book  ## build the book, inspect it and try it in a browser
	$(call pytest,,-n 2 --dist loadfile -m "built or browser or lab" tests/built tests/browser)

.PHONY: clean
clean:  ## remove what was built, but not .venv
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis eoslib.egg-info
