#!/usr/bin/env bash
# The CUDA module as it was built: no warning, no spill in a hot kernel, no kernel that needs more registers than before,
# one exported symbol. Nothing to do, and no failure, where nvcc is absent.
# usage: scripts/check_cuda.sh [--update] [BUILD_DIR]
#   --update   writes what was found to kernels/cuda/resources.txt, which is what the next run compares with
set -euo pipefail
cd "$(dirname "$0")/.."
update=
if [ "${1:-}" = --update ]; then
    update=1
    shift
fi
build=${1:-build}
table=kernels/cuda/resources.txt
hot='linear|attend|fold|norm|rope_write|select' # kernels by name: these may never spill
slack=16                           # registers that a change of the compiler may add

if ! command -v nvcc >/dev/null; then
    echo 'cuda: nvcc is not here; the module was not built and nothing is checked'
    exit 0
fi
if [ ! -f "$build/build.ninja" ]; then
    meson setup "$build" --werror -Dcuda=enabled
fi
ninja -C "$build" kernels/cuda/trimode-cuda.so

found=$(mktemp)
trap 'rm -f "$found"' EXIT
bad=0

# One line a kernel and architecture: file, kernel, architecture, registers, bytes spilled (stores and loads).
for log in "$build"/kernels/cuda/*.ptxas.log; do
    if grep -qi 'warning' "$log"; then
        grep -i 'warning' "$log"
        bad=1
    fi
    c++filt <"$log" | awk -v file="$(basename "$log" .ptxas.log)" '
        /Compiling entry function/ {
            split($0, q, "\047"); kernel = q[2]; arch = q[4]
            sub(/^void /, "", kernel); gsub(/\(anonymous namespace\)::/, "", kernel)
            sub(/\(.*$/, "", kernel); gsub(/ /, "", kernel); next
        }
        /bytes stack frame/ && kernel != "" { spills = $5 + $9; next }
        /Used [0-9]+ registers/ && kernel != "" { print file, kernel, arch, $5, spills; kernel = "" }'
done | LC_ALL=C sort >"$found"
[ -s "$found" ] || { echo "cuda: $build has no logs of ptxas"; exit 1; }

if [ -n "$update" ]; then
    {
        echo '# What ptxas gave each kernel: file, kernel, architecture, registers, bytes spilled.'
        echo "# $(nvcc --version | grep -oE 'release [0-9.]+'); written by scripts/check_cuda.sh --update."
        cat "$found"
    } >"$table"
    echo "cuda: $(wc -l <"$found") kernels written to $table"
fi

awk -v hot="$hot" -v slack="$slack" '
    /^#/ { next }
    NR == FNR { registers[$1, $2, $3] = $4; spills[$1, $2, $3] = $5; next }
    $2 ~ hot && $5 > 0 { print "cuda: " $2 " spills " $5 " bytes on " $3; bad = 1 }
    !(($1, $2, $3) in registers) { print "cuda: " $2 " on " $3 " is not in the table (--update writes it)"; bad = 1; next }
    $5 > spills[$1, $2, $3] { print "cuda: " $2 " spills " $5 " bytes on " $3 ", it was " spills[$1, $2, $3]; bad = 1 }
    $4 > registers[$1, $2, $3] + slack { print "cuda: " $2 " needs " $4 " registers on " $3 ", it was " registers[$1, $2, $3]; bad = 1 }
    END { exit bad }' "$table" "$found" || bad=1

exported=$(nm -D --defined-only "$build/kernels/cuda/trimode-cuda.so" | awk '{ print $3 }')
if [ "$exported" != krn_cuda_module_open ]; then
    printf 'cuda: the module exports\n%s\n' "$exported"
    bad=1
fi
[ "$bad" -eq 0 ] && echo "cuda: $(wc -l <"$found") kernels, no warning, no spill in a hot one"
exit "$bad"
