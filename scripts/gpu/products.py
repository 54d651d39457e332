#!/usr/bin/env python3
"""Part `products`: our products at every row count and select, alone, each beside the limit; leaves products.json for the part `torch`."""
import json
import os
import subprocess
import sys

import common as c

SHAPE = "tiny" if c.REHEARSE else "8b"
ROWS = "1,8" if c.REHEARSE else "1,2,4,8,16,32,64,128,256"


def measure(weights):
    cmd = [os.path.join(c.BIN, "bench_products"), "--backend", c.BACKEND, "--shape", SHAPE, "--rows", ROWS, "--weights", weights]
    c.say(" ".join(cmd[1:]))
    run = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, timeout=max(10, c.time_left()))
    c.expect(run.returncode == 0, f"bench_products --weights {weights} ended with {run.returncode}")
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def main():
    c.limits_note(c.Table(f"products, {SHAPE} shapes: limits"))
    lim = c.limits()["read_gbps"] * 1e9
    for weights in ("bf16", "fp8", "q4"):
        if not c.packs(weights):
            continue
        got = measure(weights)
        t = c.Table(f"{SHAPE} shapes, {weights} weights: one op alone, weights from memory", "product", "rows", "us", "limit us", "share", "GB/s",
                    "TFLOP/s", "target", "met")
        for p in got:
            bound = p["bytes"] / lim * 1e6
            select = p["product"] == "select"
            goal = select and p["rows"] == 32
            t.row(p["product"], str(p["rows"]), f"{p['us']:.1f}", f"{bound:.1f}", c.percent(bound / p["us"]), f"{p['bytes'] / p['us'] / 1e3:.0f}",
                  f"{p['flops'] / p['us'] / 1e6:.1f}" if p["flops"] else None, "< 40 us" if goal else None,
                  c.verdict(p["us"] < 40) if goal else None)
        if weights == "bf16":
            with open(os.path.join(c.OUT, "products.json"), "w", encoding="utf-8") as f:
                json.dump({"shape": SHAPE, "products": got}, f)
    c.finish()


if __name__ == "__main__":
    main()
