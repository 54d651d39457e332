#!/usr/bin/env bash
# Part `sanitize`: compute-sanitizer's memcheck and racecheck over the kernel checks and over all three modes of a tiny model. gpu.sh runs it.
# A machine without compute-sanitizer, or whose device it refuses, is said and is no failure. A rehearsal runs the commands without it.
set -uo pipefail
model=$GPU_ROOT/tests/vectors/models/wide_q
tool=$(command -v compute-sanitizer ||
    find /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer /opt/nvidia -name compute-sanitizer -type f 2>/dev/null | head -1)
checks=$GPU_BIN/checkkern_cuda_gpu
if [ "$GPU_REHEARSE" = 1 ]; then
    tool="" checks=$GPU_BIN/checkkern_cuda
    [ -x "$checks" ] || checks=true # this build has no emulation
elif [ -z "$tool" ]; then
    echo "sanitize: skipped: compute-sanitizer is not on this machine"
    exit 0
fi

# run NAME SECONDS TOOL COMMAND...: prints a line; 0 clean, 1 found something, 3 the device was refused.
run() {
    local name=$1 seconds=$2 kind=$3 log=$GPU_OUT/sanitize-$1-$3.log status errors start=$SECONDS
    shift 3
    if [ -n "$tool" ]; then
        timeout "$seconds" "$tool" --tool "$kind" --error-exitcode 99 --print-limit 20 "$@" >"$log" 2>&1
    else
        timeout "$seconds" "$@" >"$log" 2>&1
    fi
    status=$?
    if grep -qE 'Device not supported|not supported on this|error 999' "$log"; then
        echo "sanitize: skipped: compute-sanitizer refuses this device"
        return 3
    fi
    errors=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -1 | sed 's/^=* *//')
    printf '%-10s %-18s exit %-4d %4d s  %s\n' "$kind" "$name" "$status" $((SECONDS - start)) "${errors:-no summary}"
    # A program stopped by the clock was clean as far as it came when no error was printed.
    if [ "$status" -eq 124 ]; then
        ! grep -qE '^=+ (Invalid|Error|Race|Uninit)' "$log"
        return
    fi
    [ "$status" -eq 0 ] || { grep -E '^=+' "$log" | head -20; return 1; }
}

failed=0
for kind in memcheck racecheck; do
    for mode in ar diffusion self_speculation; do
        run "model-$mode" 30 "$kind" "$GPU_BIN/trimode" generate --backend "$GPU_BACKEND" --model "$model" --raw --max-tokens 24 --max-context 96 \
            --temperature 0 --mode "$mode" "abc abc"
        case $? in 3) exit 0 ;; 1) failed=1 ;; esac
    done
    for kernels in rows pack rope linear attention select ranks; do
        run "kernels-$kernels" 40 "$kind" "$checks" "$kernels"
        case $? in 3) exit 0 ;; 1) failed=1 ;; esac
    done
done
exit $failed
