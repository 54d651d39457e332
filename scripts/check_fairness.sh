#!/usr/bin/env bash
# Does whoever shares a server suffer from the others? One API key with one request at a time beside another with 200 at once, and
# running streams while long prompts arrive: prints both tables; exit 1 when the small key's median latency, or the 99th percentile
# of the time between tokens, is more than twice what it is without.
#   scripts/check_fairness.sh [--rounds 5] [--mode ar] [--model DIR] [--build DIR]
exec "$(dirname "$0")/with_build.sh" check_fairness.py "$@"
