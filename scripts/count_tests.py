#!/usr/bin/env python3
"""Counts the test functions of a meson run (TAP lines in its JSON log) and prints `N passed, N failed`."""
import json
import re
import sys

passed = failed = 0
with open(sys.argv[1], encoding="utf-8") as log:
    for line in log:
        run = json.loads(line)
        ok = len(re.findall(r"^ok \d+", run.get("stdout", ""), re.M))
        bad = len(re.findall(r"^not ok \d+", run.get("stdout", ""), re.M))
        if run["result"] in ("OK", "EXPECTEDFAIL", "SKIP"):
            passed += max(ok, 1)
        else:
            passed += ok
            failed += max(bad, 1)  # a program that died counts once
print(f"{passed} passed, {failed} failed")
