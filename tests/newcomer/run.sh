#!/usr/bin/env bash
# The first hour of a newcomer, with the wheel alone, from an empty folder.
#
#   tests/newcomer/run.sh WHEEL [PYTHON]
#
# WHEEL is installed with its dependencies into a new environment, and nothing else is. The environment is
# created by PYTHON, python3 by default. Set NEWCOMER_ENV to an existing environment to skip the installation
# of the dependencies; the wheel itself is installed again.
set -euo pipefail

wheel=$(realpath "$1")
python=${2:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
environment=${NEWCOMER_ENV:-$work/environment}
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1

if [ ! -x "$environment/bin/python" ]; then
    "$python" -m venv "$environment"
fi
"$environment/bin/python" -m pip install --quiet "$wheel"
"$environment/bin/python" -m pip install --quiet --force-reinstall --no-deps "$wheel"
export PATH="$environment/bin:$PATH"

step() { printf '\n== %s\n' "$*"; }

# Run a command that must fail with one sentence about an error, and print the sentence.
fails() {
    if "$@" > output.txt 2>&1; then
        echo "expected an error: $*"
        exit 1
    fi
    if grep -q Traceback output.txt || ! grep -q '^error\[' output.txt; then
        cat output.txt
        echo "expected one sentence about an error: $*"
        exit 1
    fi
    grep '^error\[' output.txt
}

mkdir "$work/empty"
cd "$work/empty"
# a project of the user that is called src, which must not be imported
mkdir src
echo 'raise SystemExit("the src of the user was imported")' > src/__init__.py

step "help, import, models"
dfine --help > /dev/null
dfine-dinov3 --version
python -m dfine_dinov3 train --help > /dev/null
python -c "import dfine_dinov3; from dfine_dinov3 import Detector; print(dfine_dinov3.__version__, Detector.__name__)"
dfine models | head -3
dfine info dfine_hgnetv2_n_scratch -c configs/dfine/custom/dfine_hgnetv2_n_scratch.yml 2> /dev/null | head -3 || true
dfine completion bash | bash -n

step "demo"
dfine demo --epochs 1 --train-images 24 --val-images 8 --size 64
test -s runs/demo/best.pth
test -s runs/demo/report.html

step "train on data, without weights to start from"
fails dfine train --data runs/demo/data
step "train on data, from scratch"
dfine train --data runs/demo/data --model tiny --epochs 1 --imgsz 64 --name mine -d cpu -u train_dataloader.num_workers=0 val_dataloader.num_workers=0
test -s runs/mine/best.pth

step "evaluate, predict, report"
dfine val runs/mine | tail -3
dfine predict runs/mine runs/demo/data/images --output found --frames 2
test -s found/predictions.json
dfine report runs/mine
python - <<'EOF'
from dfine_dinov3 import Detector

prediction = Detector.from_checkpoint("runs/mine/best.pth").predict("runs/demo/data/images/val_00000.jpg")
print(type(prediction).__name__)
EOF

step "export without its extra"
if python -c "import onnx" 2> /dev/null; then
    dfine export runs/mine
else
    fails dfine export runs/mine
fi

step "serve without its extra"
if python -c "import starlette, uvicorn, python_multipart, prometheus_client" 2> /dev/null; then
    dfine serve runs/mine --port 0 > serve.txt &
    server=$!
    until grep -q "serving on" serve.txt; do
        sleep 0.2
        kill -0 "$server"
    done
    address=$(grep -o "http://[0-9.:]*" serve.txt)
    python -c "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1] + '/health').read())" "$address"
    kill "$server"
    wait "$server"
else
    fails dfine serve runs/mine
fi

step "everything works"
