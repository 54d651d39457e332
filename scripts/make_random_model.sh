#!/usr/bin/env bash
# Writes a random model of about 300 M parameters (context 8192, draft adapter, one token a byte), unless it is there: passes as dear
# as a real model's, answers without sense, drafts that are never accepted. Seconds and 0.7 GB; never committed.
#   scripts/make_random_model.sh [DIR, default build/models/random-300m]
set -euo pipefail
dir=$(realpath -m "${1:-$(dirname "$0")/../build/models/random-300m}")
cd "$(dirname "$0")/.."

if [ ! -e "$dir/config.json" ]; then
    python=python3
    if ! $python -c 'import numpy' 2>/dev/null; then
        python=/usr/bin/python3 # Debian's own, where setup.sh --tests puts NumPy
        $python -c 'import numpy' 2>/dev/null || scripts/setup.sh --tests
    fi
    mkdir -p "$(dirname "$dir")"
    part=$(mktemp -d "$dir.XXXXXX") # an unfinished folder never has the name of a whole one
    trap 'rm -rf "$part"' EXIT
    $python scripts/reference/checkpoint.py "$part" --preset 300m
    chmod 755 "$part"
    mv -T "$part" "$dir"
fi
echo "$dir"
