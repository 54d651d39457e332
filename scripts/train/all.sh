#!/usr/bin/env bash
# Everything from data to evaluation. Each step may be killed and started again; training goes on where it was.
#   PYTHON=build/train/venv/bin/python scripts/train/all.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-build/train/venv/bin/python}
"$python" scripts/train/data.py        # heldout.jsonl, the same bytes every time
"$python" scripts/train/tokenizer.py   # tokenizer and chat template
"$python" scripts/train/train.py       # stage 1 and stage 2
"$python" scripts/train/adapter.py     # draft adapter
"$python" scripts/train/export.py      # config/models/nano/
"$python" scripts/train/evaluate.py --backend torch
