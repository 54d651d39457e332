#!/usr/bin/env bash
# Every C, C++ and CUDA file is as clang-format leaves it. `scripts/check_format.sh --fix` formats in place.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=(--dry-run -Werror)
[ "${1:-}" = --fix ] && mode=(-i)
git ls-files -co --exclude-standard '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | sort -u | xargs clang-format "${mode[@]}"
