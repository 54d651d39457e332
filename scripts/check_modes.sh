#!/usr/bin/env bash
# Serves one model and asks it the same prompts in every mode, at 1, 8 and 32 clients: prints texts, tokens per pass, tokens per
# second and the resident bytes of the weights; exit 1 when self-speculation writes another text than AR or the weights are there twice.
#   scripts/check_modes.sh [--rounds 3] [--clients 1,8,32] [--model DIR] [--build DIR]
exec "$(dirname "$0")/with_build.sh" check_modes.py "$@"
