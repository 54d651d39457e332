#!/usr/bin/env bash
# No layer includes a header of, or names a symbol of, a layer above it, and every exported symbol carries its layer's prefix.
# usage: scripts/check_layers.sh BUILD_DIR
set -uo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
bad=0

# forbid FOLDER PATTERN WHY [FILES_TO_EXCEPT]
forbid() {
    local hits
    hits=$(git grep -nE --untracked "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" -- "$1" "${@:4}")
    if [ -n "$hits" ]; then
        printf 'layers: %s\n%s\n' "$3" "$hits"
        bad=1
    fi
}

loop='uv\.h|microhttpd\.h'
forbid kernels "engine|server|base/|model/|text/|$loop|cjson" 'kernels/ may not look up'
forbid engine "server|$loop|cuda|cublas|cpu/" 'engine/ may not look at the server, HTTP or a backend'
forbid engine 'cjson' 'only engine/model and engine/text (and the chat front in engine/) know JSON' \
    ':!engine/model' ':!engine/text'
forbid engine 'pcre2' 'only engine/text knows PCRE2' ':!engine/text'
forbid server 'kernels|base/|model/|text/|batch\.h|forward\.h|seq\.h|sched\.h|kv\.h|cuda' 'server/ sees engine.h only'

# symbols ARCHIVES PREFIX: every defined external symbol carries the prefix; undefined ones of ours only from below.
symbols() {
    local prefix=$1 allowed=$2 archive
    shift 2
    for archive in "$@"; do
        nm -g --defined-only "$archive" 2>/dev/null | awk -v p="^$prefix" -v a="$archive" \
            'NF == 3 && $3 !~ p && $3 !~ /^__(asan|ubsan|tsan|odr)/ { print "layers: " a " exports " $3; bad = 1 } END { exit bad }' || bad=1
        nm -u "$archive" 2>/dev/null | awk -v ok="^($allowed)" -v a="$archive" \
            '$1 == "U" && $2 ~ /^(krn|eng|srv)_/ && $2 !~ ok { print "layers: " a " uses " $2; bad = 1 } END { exit bad }' || bad=1
    done
}
mapfile -t kernel_archives < <(find "$build/kernels" -name '*.a')
mapfile -t engine_archives < <(find "$build/engine" -name '*.a')
mapfile -t server_archives < <(find "$build/server" -name '*.a')
if [ ${#kernel_archives[@]} -eq 0 ] || [ ${#engine_archives[@]} -eq 0 ] || [ ${#server_archives[@]} -eq 0 ]; then
    echo "layers: $build holds no archives to look at"
    exit 1
fi
symbols krn_ 'krn_' "${kernel_archives[@]}"
symbols eng_ 'krn_|eng_' "${engine_archives[@]}"
symbols srv_ 'eng_|srv_' "${server_archives[@]}"

[ "$bad" -eq 0 ] && echo 'layers: clean'
exit "$bad"
