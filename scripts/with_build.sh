#!/usr/bin/env bash
# Brings build/trimode up to date (installing what is missing) and runs a Python script of this folder; builds nothing when the script
# is given another build or only asked for help.  usage: scripts/with_build.sh SCRIPT.py [arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
*" --build "* | *" --build="* | *" --help "* | *" -h "*) ;;
*)
    if [ ! -x build/trimode ] || ! command -v ninja >/dev/null; then
        scripts/setup.sh
    fi
    [ -f build/build.ninja ] || meson setup build -Dtests=false >/dev/null
    ninja -C build --quiet trimode
    ;;
esac
exec python3 "scripts/$1" "${@:2}"
