# Two commands: `make demo` does the main job on the bundled detector and serves it, `make test` runs every check.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
# For mypy alone, beside the environment: inside it an `import tensorrt` would find the stubs and nothing else.
STUBS  := tensorrt-stubs==10.13.0.35.1
BIN    := $(VENV)/bin

.PHONY: demo test install lint clean

demo: install
	$(BIN)/redline init --demo demo --force --confirm 2000
	$(BIN)/redline run demo/detector.toml
	@sh tools/demo_service.sh "$(BIN)/redline" demo/detector.toml

# What measures nothing runs in several processes, then what measures or serves, alone. The linters run beside the tests, and speak
# after them if something is wrong.
ALONE := tests/cpu/pipeline/test_pipeline_run.py $(addprefix tests/triton/,pipeline release)
test: install
	@mkdir -p build; $(MAKE) -s lint >build/lint.log 2>&1 & lint=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(addprefix --ignore=,$(ALONE)); tests=$$?; \
	$(BIN)/python -m pytest $(ALONE) || tests=1; \
	wait $$lint || { cat build/lint.log; exit 1; }; exit $$tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_size.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml tools/make_venv.sh src/redline/serve/environment.py
	PYTHON="$(PYTHON)" sh tools/make_venv.sh "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[torch,ort,triton,plan,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$(VENV)/stubs" "$(STUBS)"
	$(BIN)/python tools/mend_stubs.py "$(VENV)/stubs" >/dev/null
	$(BIN)/redline serve --install
	touch $@

clean:
	rm -rf $(VENV) demo runs build
