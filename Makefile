# `make test` and `make demo` each work as the only command on a machine with Python 3.10+ and a package registry.

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: serverless secrets demo test check bench conformance faults packs clean

demo: $(VENV)/base.stamp
	$(BIN)/yggdrasill demo --out out

# Two processes even on more cores: many tests start servers, which compute with several threads.
test: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: $(VENV)/dev.stamp .link/yggdrasill
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --package yggdrasill --exclude '(^|/)tests/'
	$(BIN)/mypy tests

# Thousands of hostile requests, and long sequences of kills, lost answers and broken connections; takes an hour or more.
faults: $(VENV)/dev.stamp .link/yggdrasill
	$(BIN)/pytest tests -m faults --timeout 0

# Needs a real ComfyUI, in ~/comfy or where COMFYUI_PATH and COMFYUI_PYTHON say, and chromium. Fails where one is missing.
# For another version than the one of docs/conformance.md: make conformance COMFYUI_PATH=... COMFYUI_PYTHON=... REPORT=out/conformance.md
REPORT ?= docs/conformance.md
conformance: export YGGDRASILL_NO_SKIP = 1
conformance: $(VENV)/browser.stamp .link/yggdrasill
	$(PYTHON) -c "import os; os.makedirs(os.path.dirname('$(REPORT)') or '.', exist_ok=True)"
	$(BIN)/pytest tests/comfy/conformance -m "" --conformance-report $(REPORT) --versions-report docs/compatibility.md
	$(BIN)/pytest tests/comfy --ignore=tests/comfy/conformance --ignore=tests/comfy/packs -m "not browser" --numprocesses 2 --dist loadfile
	$(BIN)/pytest tests/comfy --ignore=tests/comfy/conformance --ignore=tests/comfy/packs -m browser
	$(BIN)/pytest tests/gateway/test_page.py -m browser

# Needs a real ComfyUI as above, and checkouts of node packs in ~/comfy/packs or COMFYUI_PACKS. COMFYUI_PACKS_PYTHON runs them.
packs: $(VENV)/dev.stamp .link/yggdrasill
	$(BIN)/pytest tests/comfy/packs -m "" --packs-report docs/compatibility.md

# The suite with planted secrets in its environment; fails if one is in a report of a test or a file that it left behind.
secrets: $(VENV)/dev.stamp .link/yggdrasill
	$(BIN)/pytest --scan-secrets --numprocesses 2 --dist loadfile

# An environment with the RunPod SDK, emulators of object stores and comfy-sdk, for the tests that need them.
serverless:
	$(PYTHON) -m venv .venv-serverless
	.venv-serverless/bin/python -m pip install --quiet --disable-pip-version-check -e ".[runpod,gcs,stores]" "moto[server]" gcp-storage-emulator "comfy-sdk>=0.5"

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks

$(VENV)/python.stamp:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python 3.10 or later is needed, this is ' + sys.version.split()[0] + '; name another one: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -c "open('$@', 'w').close()"

$(VENV)/base.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e .
	$(PYTHON) -c "open('$@', 'w').close()"

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e ".[dev]"
	$(PYTHON) -c "open('$@', 'w').close()"

$(VENV)/browser.stamp: $(VENV)/dev.stamp
	$(PIP) -c constraints.txt -e ".[dev,browser]"
	$(PYTHON) -c "open('$@', 'w').close()"

$(VENV)/bench.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt constraints-bench.txt
	$(PIP) -c constraints.txt -c constraints-bench.txt -e ".[bench]"
	$(PYTHON) -c "open('$@', 'w').close()"

# The checkout under the name of the package, whatever its folder is called: mypy reads it there.
.link/yggdrasill:
	$(PYTHON) -c "import os; os.makedirs('.link', exist_ok=True); os.symlink('..', '.link/yggdrasill', target_is_directory=True)"

clean:
	$(PYTHON) -c "import shutil; [shutil.rmtree(folder, ignore_errors=True) for folder in ('$(VENV)', 'out', 'build', 'dist', 'yggdrasill.egg-info', '.mypy_cache', '.ruff_cache', '.pytest_cache', '.hypothesis')]"
	$(PYTHON) -c "import os; os.path.lexists('.link/yggdrasill') and os.remove('.link/yggdrasill')"
