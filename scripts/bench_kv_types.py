#!/usr/bin/env python3
"""Time of an AR pass with each type of keys and values, on the CPU: interleaved rounds of `trimode bench forward`.

    scripts/bench_kv_types.py [--build DIR] [--model DIR] [--types f32,bf16,q8] [--rows 1,32] [--context 1900]
                              [--rounds 5] [--runs 5] [--threads 1]

A figure is the median over the rounds of a process's median pass, with the shortest pass of all; a ratio is the median
over the rounds of that round's ratio to the first type, so that what slows a round down slows both sides of it.
"""
import argparse
import json
import os
import statistics
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def measure(a, kv):
    """Opens one process; returns bytes of a token and {rows: pass}."""
    out = subprocess.run([os.path.join(a.build, "trimode"), "bench", "forward", "--json", "--backend", "cpu", "--model", a.model,
                          "--kind", "ar", "--rows", a.rows, "--context", a.context, "--runs", a.runs, "--threads", a.threads,
                          "--kv-type", kv], check=True, stdout=subprocess.PIPE).stdout.splitlines()
    opened, *passes = map(json.loads, out)
    return opened["open"]["kv_token_bytes"], {p["pass"]["rows"]: p["pass"] for p in passes}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, default in (("build", os.path.join(ROOT, "build")), ("model", os.path.join(ROOT, "config", "models", "nano")),
                          ("types", "f32,bf16,q8"), ("rows", "1,32"), ("context", "1900"), ("runs", "5"), ("threads", "1")):
        p.add_argument("--" + flag, default=default)
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    types = a.types.split(",")
    rounds = []
    for i in range(a.rounds):
        # The other way round every second time: no type always comes first.
        rounds.append({kv: measure(a, kv) for kv in (types if i % 2 == 0 else types[::-1])})
    print(f"context {a.context}, {a.threads} thread(s), {a.rounds} rounds\n")
    print("| KV | bytes a token | rows | KV read | pass | shortest | time beside " + types[0] + " |\n| --- | --- | --- | --- | --- | --- | --- |")
    for rows in map(int, a.rows.split(",")):
        for kv in types:
            got = [r[kv][1][rows] for r in rounds]
            ratio = statistics.median(r[kv][1][rows]["median_ms"] / r[types[0]][1][rows]["median_ms"] for r in rounds)
            print(f"| {kv} | {rounds[0][kv][0]} | {rows} | {got[0]['kv_bytes'] / 1e6:.1f} MB | "
                  f"{statistics.median(g['median_ms'] for g in got):.2f} ms | {min(g['min_ms'] for g in got):.2f} ms | {ratio:.2f} |")


if __name__ == "__main__":
    main()
