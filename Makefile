PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test test-slow check bench fuzz servers picture clean

demo: $(READY)
	$(BIN)/itemized-clip demo -o demo-output

test: $(READY)
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy itemized_clip_hf itemized_clip_cli.py

bench: $(READY)
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/text.py
	$(BIN)/python benchmarks/step.py --compare
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/itemize.py --data ../shared/data/reports
	$(BIN)/python benchmarks/sentences.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/claims.py
	$(BIN)/itemized-clip demo -o runs/attribution/0
	$(BIN)/itemized-clip demo -o runs/attribution/1 --seed 1
	$(BIN)/python benchmarks/attribution.py --models runs/attribution/0 runs/attribution/1
	$(BIN)/python benchmarks/calibration.py --model runs/attribution/0/model
	$(BIN)/python benchmarks/review.py --model runs/attribution/0/model
	$(BIN)/python benchmarks/search.py faiss
	$(BIN)/python benchmarks/search.py texts --models runs/attribution/0 runs/attribution/1

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py -o fuzz.jsonl --cases 10000

# The picture of the report in README.md, from what `make demo` wrote.
picture: $(READY)
	$(BIN)/python docs/pictures/make_report.py --demo demo-output

# What tests of pages and DICOM objects need from Debian; without it they are skipped with a reason.
servers:
	apt-get install -y chromium dicom3tools orthanc orthanc-dicomweb

# torch is pinned first and by itself: an unpinned torch would bring gigabytes of GPU libraries to a machine without one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -U pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo-output build *.egg-info
