#!/usr/bin/env bash
# Throughput of every fixed mode and of auto at 1 to 64 clients, interleaved, and how long a step of the load takes to settle: prints a
# table, writes it and a chart to tests/bench/router-*.{md,svg}, exit 1 when auto is not what it promises. About 10 minutes for the
# bundled model and 8 for a random one of 300 M parameters (made on the first run).
#   scripts/check_router.sh [--models nano,random] [--clients 1,2,4] [--rounds 5] [--all] [--quick] [--out DIR] [--build DIR]
exec "$(dirname "$0")/with_build.sh" check_router.py "$@"
