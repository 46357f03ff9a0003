# Set up and prove the project:
#   make demo    train a small DETR on built-in pictures, evaluate it, draw it (SHORT=--short: half as long)
#   make demo-panoptic  the same with masks: things and stuff, pixel by pixel (SHORT=--short: on fewer pictures)
#   make test    the tests, two at a time
#   make benchmark AGAINST=PATH  measure beside a checkout of the published code (15 minutes on idle cores);
#                without a path beside transformers
#   make slow    the tests that take long or need what `make demo` trained
#   make test-lowest  some of the tests, with the lowest versions that requirements.txt allows, in .venv-lowest
#   make lint    style and types
#   make clean   remove what the above made, the environment too
# PYTHON=python3.12 make test  builds the environment with another interpreter.

PYTHON ?= python3
AGAINST ?= hf
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/ready
READY_TO_TEST := $(VENV)/ready_to_test
LOWEST := .venv-lowest
# The lowest versions are made for these, not for the newest Pythons.
LOWEST_PYTHON ?= $(shell for p in python3.10 python3.11; do $$p -c "" 2>/dev/null && echo $$p && break; done)
# What draws, exports, converts and stores: that is where versions differ.
LOWEST_TESTS := tests/util/test_checkpoint_file.py tests/util/test_checkpoint_safetensors.py \
	tests/util/test_plot_utils.py tests/inference/test_drawing.py tests/test_export.py \
	tests/models/test_timm_backbone.py tests/tools/test_convert_hf.py tests/run/test_tensorboard.py \
	tests/datasets/test_transforms.py tests/datasets/test_coco_eval.py tests/test_reference.py

.PHONY: demo demo-panoptic test test-lowest slow benchmark lint clean install install-dev

install: $(READY)
install-dev: $(READY_TO_TEST)

# What training and the demos need. The stamp is written last: an interrupted installation is taken up again.
$(READY): requirements.txt
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is several GB the first time)"
	@$(INSTALL) -r requirements.txt
	@touch $@

# What tests, lint and benchmarks need beside it.
$(READY_TO_TEST): $(READY) $(wildcard requirements-*.txt)
	@echo "installing what the tests need"
	@$(INSTALL) -r requirements-dev.txt
	@$(INSTALL) --no-deps panopticapi-lite==0.2.0
	@touch $@

$(LOWEST)/ready: requirements-lowest.txt
	@echo "installing the lowest versions into $(LOWEST)"
	@rm -rf $(LOWEST) && $(LOWEST_PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-lowest.txt
	@touch $@

demo: $(READY)
	$(RUN) -m tools.demo $(SHORT)

demo-panoptic: $(READY)
	$(RUN) -m tools.demo --panoptic $(SHORT)

test: $(READY_TO_TEST)
	$(RUN) -m pytest -m "not slow" -n 2 --dist worksteal

test-lowest: $(LOWEST)/ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" -n 2 --dist worksteal $(LOWEST_TESTS)

# Those of one file stay together, in their order: many share what takes long to make.
slow: $(READY_TO_TEST)
	$(RUN) -m pytest -m slow -n 2 --dist loadscope

benchmark: $(READY_TO_TEST)
	$(RUN) -m benchmarks.compare --against $(AGAINST) --json benchmark.json --markdown benchmark.md --plot benchmark.png

lint: $(READY_TO_TEST)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

clean:
	rm -rf $(VENV) $(LOWEST) demo demo-panoptic data/shapes data/shapes_varied .pytest_cache .mypy_cache .ruff_cache .hypothesis
