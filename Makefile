# demo, test, wheelhouse and lint. Each sets up what it needs in .venv. A finished step leaves a file
# in .venv/done, so repeating costs nothing and an interrupted set-up goes on where it was.
PYTHON ?= python3
PYTHON_VERSION ?= 3.12

DONE := .venv/done
# The compiler driver ninja is a program of the virtual environment.
PY := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
CSRC := $(shell find dcn_projects/layers/csrc -type f -name '*.[ch]*')

.PHONY: demo test wheelhouse lint

demo: $(DONE)/packages $(DONE)/operators
	$(PY) tools/make_dataset.py --format coco
	$(PY) demo/run_demo.py

test: $(DONE)/packages $(DONE)/operators
	$(PY) -m pytest tests

wheelhouse: $(DONE)/packages
	$(PY) tools/make_wheelhouse.py --python-version $(PYTHON_VERSION) --output wheelhouse

lint: $(DONE)/lint
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/clang-format --dry-run -Werror $(CSRC)

# Where $(PYTHON) has a torch, as on GPU nodes, it is the one to use: it fits the driver there.
$(DONE)/venv:
	$(PYTHON) -m venv .venv $(shell $(PYTHON) -c "import torch, torchvision" 2> /dev/null \
	    && echo --system-site-packages)
	mkdir -p $(DONE) && touch $@

$(DONE)/torch: $(DONE)/venv
	$(PY) -c "import torch, torchvision" 2> /dev/null || $(PIP) torch==2.11.0 torchvision==0.26.0
	$(PIP) "setuptools>=64" wheel ninja
	touch $@

$(DONE)/operators: $(DONE)/torch setup.py $(CSRC)
	$(PY) setup.py build_ext --inplace
	touch $@

$(DONE)/packages: setup.py tools/install_detectron2.py | $(DONE)/operators
	$(PIP) --no-build-isolation --editable ".[data,test]"
	$(PY) tools/install_detectron2.py
	# opencv-python needs libGL, which containers often lack; the other build draws no windows.
	$(PY) -c "import cv2" || $(PIP) --force-reinstall --no-deps opencv-python-headless
	touch $@

# Other versions format differently.
$(DONE)/lint: $(DONE)/venv
	$(PIP) "ruff==0.17.*" "clang-format==23.*"
	touch $@
