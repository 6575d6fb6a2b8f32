# demo, test, kills, test-main, test-plain, sanitize, sanitize-cuda, wheelhouse and lint. Each sets up what
# it needs in .venv. A finished step leaves a file in .venv/done, so repeating costs nothing and an
# interrupted set-up goes on where it was.
PYTHON ?= python3
PYTHON_VERSION ?= 3.12

DONE := .venv/done
# The compiler driver ninja is a program of the virtual environment.
PY := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check
CSRC := $(shell find dcn_projects/layers/csrc -type f -name '*.[ch]*')

# The CPU's operators built with other flags into a copy of the package, and tests of that copy: Python
# imports what is in the current folder before anything else. Left out is what takes gigabytes or runs
# other kernels or processes.
PLAIN := -DDCN_PLAIN
SANITIZE := $(PLAIN) -O1 -g -fno-omit-frame-pointer -fno-wrapv -fno-sanitize-recover=all \
    -fsanitize=address,undefined,float-cast-overflow
BUILD_COPY = FORCE_CUDA=0 DCN_CXXFLAGS="$(2)" $(PY) setup.py build_py --build-lib build/$(1) \
    build_ext --build-lib build/$(1) --build-temp build/$(1)/objects
TEST_COPY = $(CURDIR)/.venv/bin/python -m pytest --import-mode=append $(CURDIR)/tests/layers \
    $(patsubst %,--ignore=$(CURDIR)/tests/layers/test_%.py,fallback onnx imports adding_an_operator \
        private_names_of_torch) \
    -k "not 2_31"

.PHONY: demo test kills test-main test-plain sanitize sanitize-cuda wheelhouse lint

demo: $(DONE)/packages $(DONE)/operators
	$(PY) tools/make_dataset.py --format coco
	$(PY) demo/run_demo.py

test: $(DONE)/packages $(DONE)/operators
	$(PY) -m pytest tests

# Kills a small training at every operation on a file, resumes it, and lets every operation fail.
kills: $(DONE)/packages
	$(PY) -m tests.engine.faulty_disk build/kills 1

# With detectron2's main branch instead of release 0.6, and without what is the same with both: the
# operators, the converters of weights, the checks of files, packages, pages and Ctrl-C.
SAME_WITH_MAIN := $(filter-out %/test_deformable.py,$(wildcard tests/layers/*)) \
    $(wildcard tests/data/test_check_*.py) tests/data/test_pascal_voc.py \
    tests/data/test_mutated_annotations.py \
    $(patsubst %,tests/checkpoint/test_%.py,convert torchvision mmdetection damaged_files read) \
    $(patsubst %,tests/engine/test_%.py,folder_lock output_checkpoints run_errors watched_loader) \
    $(patsubst %,tests/test_%.py,wheel setup docs interrupts whole_files)
test-main: $(DONE)/main
	PYTHONPATH=$(CURDIR)/$(DONE)/main $(PY) -m pytest tests $(addprefix --ignore=,$(SAME_WITH_MAIN))

# The operators without what only some processors and libraries have.
test-plain: $(DONE)/packages
	$(call BUILD_COPY,plain,$(PLAIN))
	cd build/plain && $(TEST_COPY)

# The same code under AddressSanitizer and UndefinedBehaviorSanitizer, which end the process when they
# find something. Their libraries have to be there before Python loads anything else, and pytest must
# not capture what they write.
sanitize: $(DONE)/packages
	$(call BUILD_COPY,sanitize,$(SANITIZE))
	cd build/sanitize && LD_PRELOAD="$(foreach l,asan stdc++,$(shell $(CXX) -print-file-name=lib$(l).so))" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(TEST_COPY) --capture=sys

# On a machine with a GPU; compute-sanitizer comes with the CUDA toolkit. Without PyTorch's cache it
# sees where each tensor ends.
sanitize-cuda: $(DONE)/packages
	for tool in memcheck racecheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	        .venv/bin/python -m pytest tests/layers -m gpu -k "not 2_31" || exit 1; done

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

$(DONE)/packages: setup.py pyproject.toml tools/install_detectron2.py | $(DONE)/operators
	$(PIP) --no-build-isolation --editable ".[data,test]"
	$(PY) tools/install_detectron2.py
	# opencv-python needs libGL, which containers often lack; the other build draws no windows.
	$(PY) -c "import cv2" || $(PIP) --force-reinstall --no-deps opencv-python-headless
	touch $@

# The wheel's compiled code is for one Python and one torch; nothing here needs it.
$(DONE)/main: tests/detectron2-main.txt | $(DONE)/packages
	rm -rf $@
	$(PIP) --requirement tests/detectron2-main.txt --no-deps --target $@ --python-version 3.10 \
	    --only-binary :all:
	rm -rf $@/detectron2/_C* $@/tools

# Other versions format differently.
$(DONE)/lint: $(DONE)/venv
	$(PIP) "ruff==0.17.*" "clang-format==23.*"
	touch $@
