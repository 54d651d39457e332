#!/usr/bin/env bash
# Evaluates the bundled model through the real program: exact match and tokens per pass, by task and mode.
#   scripts/train/evaluate.sh [path of the trimode binary, default build/trimode] [options of evaluate.py]
# Two servers run for the time of the test, one of them without the draft adapter. Needs python3, no packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=build/trimode
case ${1:-} in -* | "") ;; *) binary=$1; shift ;; esac
[ -x "$binary" ] || { echo "evaluate.sh: no program at $binary; build first" >&2; exit 2; }
model=${MODEL:-config/models/nano}
logs=$(mktemp -d)
pids=
stop() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$logs"
}
trap stop EXIT
trap 'exit 1' INT TERM

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() { # port, log name, adapter
    "$binary" serve --model "$model" --port "$1" --adapter "$3" >"$logs/$2" 2>&1 &
    pid=$!
    pids="$pids $pid"
    for _ in $(seq 150); do
        if python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$1/ready', timeout=2)" 2>/dev/null; then return 0; fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    echo "evaluate.sh: the server did not become ready:" >&2
    cat "$logs/$2" >&2
    exit 1
}

port=$(free_port)
start "$port" adapter.log auto
plain=$(free_port)
start "$plain" plain.log none
PYTHONDONTWRITEBYTECODE=1 python3 scripts/train/evaluate.py --backend http --url "http://127.0.0.1:$port" \
    --plain-url "http://127.0.0.1:$plain" "$@"
