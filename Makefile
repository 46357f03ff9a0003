# Set up and prove the project:
#   make demo    train a small DETR on built-in pictures, evaluate it, draw it (6 to 9 minutes on two cores)
#   make demo-panoptic  the same with masks: things and stuff, pixel by pixel (13 minutes)
#   make test    the tests, under 10 minutes on two cores
#   make benchmark AGAINST=PATH  measure beside a checkout of the published code (idle cores, 15 minutes);
#                without a path beside transformers
#   make slow    the tests that take long or need what `make demo` trained
#   make lint    style and types
#   make clean   remove what the above made, the environment too
# PYTHON=python3.12 make test  builds the environment with another interpreter.

PYTHON ?= python3
AGAINST ?= hf
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready

.PHONY: demo demo-panoptic test slow benchmark lint clean install

install: $(READY)

# `ready` is written last: an installation that was interrupted is taken up again.
$(READY): $(wildcard requirements*.txt)
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is several GB the first time)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: $(READY)
	$(RUN) -m tools.demo

demo-panoptic: $(READY)
	$(RUN) -m tools.demo --panoptic

test: $(READY)
	$(RUN) -m pytest -m "not slow"

slow: $(READY)
	$(RUN) -m pytest -m slow

benchmark: $(READY)
	$(RUN) -m benchmarks.compare --against $(AGAINST) --json benchmark.json --plot benchmark.png

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

clean:
	rm -rf $(VENV) demo demo-panoptic data/shapes data/shapes_varied .pytest_cache .mypy_cache .ruff_cache
