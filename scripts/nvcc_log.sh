#!/bin/sh
# Runs a compiler and keeps what it says: ptxas's table of registers and spills, which scripts/check_cuda.sh reads, is
# only printed while compiling. Everything else is shown as well.
# usage: scripts/nvcc_log.sh LOG NVCC [ARGUMENTS]
log=$1
shift
"$@" >"$log" 2>&1
rc=$?
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' "$log" >&2
exit "$rc"
