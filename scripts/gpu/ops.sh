#!/usr/bin/env bash
# Part `ops`: every kernel against the CPU reference on the real driver (checkkern_cuda_gpu; the emulation in a rehearsal). gpu.sh runs it.
set -uo pipefail
bin=$GPU_BIN/checkkern_cuda_gpu
[ "$GPU_REHEARSE" = 0 ] || bin=$GPU_BIN/checkkern_cuda
if [ ! -x "$bin" ]; then
    [ "$GPU_REHEARSE" = 1 ] || { echo "ops: $bin was not built"; exit 1; }
    bin=$GPU_BIN/checkkern
fi
"$bin" >"$GPU_OUT/ops.tap" 2>&1
status=$?
# One line a kernel: the first word of a check's name is what it checks.
awk -v status="$status" '
    /^(not )?ok / {
        bad = $1 == "not"
        name = $0
        sub(/^(not )?ok [0-9]* *-? */, "", name)
        sub(/[ :,(].*/, "", name)
        if (!(name in n)) order[++kinds] = name
        n[name]++; wrong[name] += bad; all++; failed += bad
    }
    END {
        printf "%-28s %8s %8s\n", "checks of", "run", "failed"
        for (i = 1; i <= kinds; i++) printf "%-28s %8d %8d\n", order[i], n[order[i]], wrong[order[i]]
        printf "%-28s %8d %8d   exit %d\n", "all", all, failed, status
        exit failed > 0 || all == 0 || status != 0
    }' "$GPU_OUT/ops.tap"
rc=$?
grep -E '^(not ok|#)' "$GPU_OUT/ops.tap" | grep -vE '^# *(SKIP|pass)' | head -40
exit $rc
