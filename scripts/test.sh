#!/usr/bin/env bash
# Builds and runs every test; installs what is missing. The last line says `N passed, N failed`; exit 1 when anything failed.
#   scripts/test.sh          all of it
#   scripts/test.sh quick    without the sanitizer builds
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --tests || exit 1

passed=0 failed=0
logs=build/test-logs
mkdir -p "$logs"

# step NAME COMMAND...: one test that passes when the command does.
step() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$logs/$name.log" 2>&1; then
        passed=$((passed + 1))
        printf 'ok      %-28s %4d s\n' "$name" $((SECONDS - start))
    else
        failed=$((failed + 1))
        printf 'FAILED  %-28s %4d s\n' "$name" $((SECONDS - start))
        tail -n 60 "$logs/$name.log"
    fi
}

# suite NAME COMMAND...: a run that counts its own tests and prints `passed failed` as its last line's numbers.
suite() {
    local name=$1 start=$SECONDS counts p f rc
    shift
    "$@" >"$logs/$name.log" 2>&1
    rc=$?
    counts=$(grep -oE '[0-9]+ passed, [0-9]+ failed' "$logs/$name.log" | tail -1)
    p=$(printf '%s' "$counts" | cut -d' ' -f1)
    f=$(printf '%s' "$counts" | cut -d' ' -f3)
    passed=$((passed + ${p:-0}))
    failed=$((failed + ${f:-0}))
    if [ "$rc" -ne 0 ] && [ "${f:-0}" -eq 0 ]; then
        failed=$((failed + 1)) # it broke off without a count
    fi
    printf '%-7s %-28s %4d s   %s\n' "$([ "$rc" -eq 0 ] && echo ok || echo FAILED)" "$name" $((SECONDS - start)) "$counts"
    [ "$rc" -eq 0 ] || grep -vE '^ok ' "$logs/$name.log" | tail -n 80
}

# meson_suite DIR [meson test arguments]: every test program of a build; counts test functions, not programs.
meson_suite() {
    local dir=$1 rc
    shift
    meson test -C "$dir" --print-errorlogs "$@"
    rc=$?
    scripts/count_tests.py "$dir/meson-logs/testlog.json"
    return $rc
}

# setup DIR [meson options]: configures once.
configure() {
    local dir=$1
    shift
    if [ -f "$dir/build.ninja" ]; then
        meson configure "$dir" -Dtests=true "$@" && ninja -C "$dir"
    else
        meson setup "$dir" "$@" && ninja -C "$dir"
    fi
}

asan_options=detect_leaks=1:abort_on_error=0:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

step build configure build --werror
step layers scripts/check_layers.sh build
step cuda scripts/check_cuda.sh build
step format scripts/check_format.sh
suite unit meson_suite build
suite reference build/venv/bin/python scripts/reference/selftest.py
suite e2e build/venv/bin/python tests/e2e/run.py --build build

if [ "${1:-}" != quick ]; then
    step build-clang env CC=clang bash -c 'set -e; [ -f build-clang/build.ninja ] || meson setup build-clang --werror -Dcuda=disabled; ninja -C build-clang'
    step build-asan configure build-asan --werror -Dcheck_pages=true -Db_sanitize=address,undefined -Db_lundef=false --buildtype=debugoptimized
    ASAN_OPTIONS=$asan_options suite unit-asan meson_suite build-asan -t 6
    ASAN_OPTIONS=$asan_options suite e2e-asan build/venv/bin/python tests/e2e/run.py --build build-asan
    step build-tsan configure build-tsan --werror -Dcheck_pages=true -Db_sanitize=thread -Db_lundef=false --buildtype=debugoptimized
    suite threads-tsan meson_suite build-tsan -t 10 --suite threads
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
