# make demo: see it work. make test: see that it is right. Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# more options for pytest, e.g. make test PYTEST="--fixtures DIR --realdata DIR"
PYTEST ?=
# where make browser puts its pictures
PICTURES ?= docs/img
BENCHMARKS ?= encode evaluation decode search index readers loader training mv_adapter clip_vip alpro moments server fuzz
STAMP := $(VENV)/installed

.PHONY: install demo test browser lint format types bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install
	$(RUN)/clipreel demo

test: install lint
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q -n 2 tests $(PYTEST)

# the page in headless Chromium (apt-get install chromium); writes the pictures of the README
browser: install
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q tests/browser --pictures $(PICTURES) $(PYTEST)

lint: install
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: install
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: install
	$(RUN)/mypy

bench: install
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[bench,int8]'
	for b in $(BENCHMARKS); do $(RUN)/python benchmarks/$$b.py || exit 1; done

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
