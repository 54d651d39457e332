#!/usr/bin/env bash
# Makes the Python environment of the training scripts. Neither serving nor testing needs it.
#   scripts/train/setup.sh [folder, default build/train/venv]
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${1:-build/train/venv}
[ -d "$venv" ] || python3 -m venv "$venv"
# The CPU wheels are enough and a tenth of the size of the CUDA ones.
"$venv/bin/pip" install -q numpy tokenizers
"$venv/bin/pip" install -q torch --index-url https://download.pytorch.org/whl/cpu || "$venv/bin/pip" install -q torch
"$venv/bin/python" -c 'import torch, tokenizers; print("torch", torch.__version__, "tokenizers", tokenizers.__version__)'
