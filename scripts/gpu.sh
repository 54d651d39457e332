#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with nvcc, Python with torch, no network and perhaps none of our libraries: builds, runs the
# parts named (all of them in this order when none is), each within 8 minutes, and prints one table a part. scripts/gpu/README.md says more.
#   scripts/gpu.sh --prepare               on a machine with a network: packs packages and binaries into build-gpu/, below 64 MiB
#   scripts/gpu.sh [--keep] [PART ...]     parts: ops model sanitize formats products torch bench3b bench8b
#   scripts/gpu.sh --rehearse [PART ...]   the same code paths on the CPU backend with tiny models; its numbers mean nothing
# Tables and logs: build-gpu/out, tables also in $OUT when that is set.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export GPU_ROOT=$PWD GPU_REHEARSE=0 GPU_KEEP=0
all=(ops model sanitize formats products torch bench3b bench8b)
limit_s=480

parts=()
for a in "$@"; do
    case $a in
    --prepare) exec scripts/gpu/prepare.sh ;;
    --rehearse) GPU_REHEARSE=1 ;;
    --keep) GPU_KEEP=1 ;;
    -h | --help)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        case " ${all[*]} " in
        *" $a "*) parts+=("$a") ;;
        *)
            echo "gpu: there is no part '$a'; parts: ${all[*]}" >&2
            exit 2
            ;;
        esac
        ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")

# shellcheck source=scripts/gpu/env.sh
. scripts/gpu/env.sh || exit 1
mkdir -p "$GPU_OUT"
gpu_build || exit 1
gpu_describe | tee "$GPU_OUT/machine.txt"

python=${GPU_PYTHON:-python3}
failed=()
for part in "${parts[@]}"; do
    start=$SECONDS
    printf '\n==== %s ====\n' "$part"
    case $part in
    ops | sanitize) command=("scripts/gpu/$part.sh") ;;
    bench3b | bench8b) command=("$python" -u scripts/gpu/bench.py "${part#bench}") ;;
    torch) command=("$python" -u scripts/gpu/torch_bench.py) ;;
    *) command=("$python" -u "scripts/gpu/$part.py") ;;
    esac
    # A part prints its table when it is told to end too.
    timeout -k 20 $((limit_s - 20)) "${command[@]}" 2>"$GPU_OUT/$part.log" | tee "$GPU_OUT/$part.txt"
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        failed+=("$part")
        [ "$status" -eq 124 ] && echo "$part: did not end in time"
        tail -n 25 "$GPU_OUT/$part.log"
    fi
    printf -- '---- %s: exit %d after %d s\n' "$part" "$status" $((SECONDS - start))
    # Eight files come back from a lent machine, so the tables travel as one.
    if [ -n "${OUT:-}" ]; then
        for p in machine "${all[@]}"; do
            [ ! -f "$GPU_OUT/$p.txt" ] || cat "$GPU_OUT/$p.txt"
        done >"$OUT/gpu-table.txt"
        tar -C "$GPU_OUT" -czf "$OUT/gpu-logs.tar.gz" .
    fi
done
echo
if [ ${#failed[@]} -gt 0 ]; then
    echo "gpu: failed: ${failed[*]}"
    exit 1
fi
echo "gpu: ok: ${parts[*]}"
