#!/usr/bin/env python3
"""Part `formats`: what each format of weights and KV costs on the bundled model, as measure_formats prints it: top-1 agreement and perplexity
against f32, and the largest difference of a logit, over held-out conversations. gpu.sh runs it; its table belongs in kernels/cuda/README.md too."""
import os
import re
import subprocess
import sys

import common as c

PAIRS = ["bf16/f32", "f32/f32"] if c.BACKEND == "cpu" else ["bf16/bf16", "bf16/fp8", "fp8/bf16", "fp8/fp8", "q4/bf16", "q4/fp8"]
# Bounds that a kernel at fault would break; the emulation on the host gives figures well inside (kernels/cuda/README.md).
LEAST_TOP1 = {"bf16": 97.0, "fp8": 92.0, "q4": 85.0, "f32": 97.0}


def main():
    cmd = [os.path.join(c.BIN, "measure_formats"), "--backend", c.BACKEND, "--model", c.NANO, *(["--prompts", "2"] if c.REHEARSE else []), *PAIRS]
    if c.REHEARSE and not os.path.exists(cmd[0]):
        print("formats: measure_formats is not in this build")
        return
    c.say(" ".join(cmd[1:]))
    run = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, timeout=max(10, c.time_left()))
    print(run.stdout, end="")
    c.expect(run.returncode == 0, f"measure_formats ended with {run.returncode}")
    for where, weights, kv, top1 in re.findall(r"\|\s*(\w+)\s*\|\s*(\w+)\s*\|\s*(\w+)\s*\|\s*([\d.]+) %", run.stdout):
        c.expect(float(top1) >= LEAST_TOP1[weights], f"{where} {weights} weights, {kv} KV: only {top1} % of the most probable tokens are f32's")
    c.finish()


if __name__ == "__main__":
    main()
