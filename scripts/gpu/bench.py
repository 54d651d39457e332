#!/usr/bin/env python3
"""Passes and throughput of a random checkpoint of a published shape, each number beside its limit.

    scripts/gpu/bench.py 8b        (gpu.sh runs it; with GPU_REHEARSE=1 a tiny shape and few tokens)

Limit of a pass = (bytes of the weights it reads + bytes of KV it reads) / read bandwidth measured in the same run. Limit of n AR clients =
n / limit of the n-row pass at the mean context (prompt + half of the output); prefill is in the measured rate and not in the limit.
"""
import json
import os
import shutil
import subprocess
import sys
import time

import clients
import common as c
import make_model

SHAPE = sys.argv[1] if len(sys.argv) > 1 else "8b"
EMULATED = c.REHEARSE and c.BACKEND == "cuda"  # thousands of times slower than a CPU
DRAWN = "tiny" if EMULATED else "small" if c.REHEARSE else SHAPE
PROMPT, TOKENS = (8, 6) if EMULATED else (32, 48) if c.REHEARSE else (128, 1024)
COUNTS = (1, 2) if EMULATED else (1, 4, 8) if c.REHEARSE else (1, 32, 64, 128, 256)
BLOCK = 32
# What others reach, from the issue: share of the limit at H100's nominal bandwidth, 8B shapes.
VLLM = {1: "145.7", 32: "3910", 64: "6597", 128: "10301", 256: "13567"} if SHAPE == "8b" else {}
VLLM_FP8 = "214" if SHAPE == "8b" else "-"


def bench_forward(model, rows, contexts, kinds, *flags):
    """(what opening said, [pass, ...]) of `trimode bench forward --json`."""
    cmd = [os.path.join(c.BIN, "trimode"), "bench", "forward", "--model", model, "--backend", c.BACKEND, "--rows", ",".join(map(str, rows)),
           "--context", ",".join(map(str, contexts)), "--kind", ",".join(kinds), "--block-length", str(BLOCK), "--json",
           *(["--runs", "2"] if EMULATED else []), *flags]
    c.say(" ".join(cmd[1:]))
    run = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, timeout=max(10, c.time_left()))
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    c.expect(run.returncode == 0 and lines, f"bench forward ended with {run.returncode}")
    opened = next((x["open"] for x in lines if "open" in x), {})
    return opened, [x["pass"] for x in lines if "pass" in x]


def one(passes, kind, rows, context):
    return next((p for p in passes if (p["kind"], p["rows"], p["context"]) == (kind, rows, context)), None)


def limit_ms(p):
    return (p["weight_bytes"] + p["kv_bytes"]) / c.limits()["read_gbps"] / 1e6


def pass_table(title, passes):
    t = c.Table(title, "pass", "rows", "seq", "context", "ms alone", "min - max", "ms in a queue", "host us", "GB read", "GB/s", "limit ms",
                "share")
    for p in passes:
        gb = (p["weight_bytes"] + p["kv_bytes"]) / 1e9
        t.row(p["kind"] + (" + adapter" if p["adapter"] else ""), str(p["rows"]), str(p["segments"]), str(p["context"]), f"{p['median_ms']:.3f}",
              f"{p['min_ms']:.3f} - {p['max_ms']:.3f}", f"{p['queued_ms']:.3f}", f"{p['host_us']:.0f}", f"{gb:.3f}",
              f"{gb / p['queued_ms'] * 1e3:.0f}", f"{limit_ms(p):.3f}", c.percent(limit_ms(p) / p["queued_ms"]))
    return t


def derived(passes, context):
    """The issue's ratios, from passes at one context."""
    ar, block, draft, verify = (one(passes, k, r, context) for k, r in (("ar", 1), ("denoise", BLOCK), ("draft", BLOCK), ("verify", BLOCK)))
    t = c.Table(f"{SHAPE}, ratios at context {context}", "what", "measured", "limit", "target", "met")
    if not ar:
        return
    base = ar["queued_ms"]

    def ratio(name, parts, target):
        if all(parts):
            got, bound = sum(p["queued_ms"] for p in parts) / base, sum(limit_ms(p) for p in parts) / limit_ms(ar)
            t.row(name, f"{got:.3f} x", f"{bound:.3f} x", f"<= {target} x", c.verdict(got <= target))
            return got
        return None

    ratio(f"{BLOCK}-row block pass, all logits / 1-row pass", (block,), 1.12)
    cycle = ratio("draft (adapter on) + verify / 1-row pass", (draft, verify), 2.25)
    for accepted in (6.8, 8.7, 12):
        if cycle:
            t.row(f"self-speculation at {accepted:g} tokens a cycle / AR", f"{accepted / cycle:.2f} x", f"{accepted / 2:.2f} x",
                  f">= {accepted / 2.25:.1f} x", c.verdict(accepted / cycle >= accepted / 2.25))
    host = max(p["host_us"] for p in passes)
    t.row("host time of a step, the longest", f"{host:.0f} us", "-", "< 60 us", c.verdict(host < 60))
    t.note("by ms in a queue, which is how the engine runs passes")


def loading(opened, title):
    t = c.Table(title, "what", "measured", "limit", "target", "met")
    rate = opened["file_bytes"] / opened["weights_seconds"] / 1e9 if opened["weights_seconds"] else 0
    t.row(f"loading {opened['file_bytes'] / 1e9:.2f} GB from the file cache", f"{rate:.2f} GB/s", f"{c.limits()['host_gbps']:.1f} GB/s",
          ">= 2 GB/s", c.verdict(rate >= 2))
    copies = opened["weights_bytes"] / opened["file_bytes"]
    t.row("resident weights / tensors in the files", f"{copies:.4f}", "1 (bf16)", "within 1 %", "-" if opened["weights_type"] != "bf16" else
          "yes" if abs(copies - 1) < 0.01 else "NO")
    for name, size in opened.get("memory", {}).items():
        t.row(f"memory: {name}", f"{size / 2**20:.1f} MiB", "", "", "")
    t.row("memory: all of them", f"{sum(opened.get('memory', {}).values()) / 2**20:.1f} MiB", "", "", "")


def ar_clients(model, opened, counts, weights, target, others):
    """The client table of one weights format."""
    lim = c.limits()["read_gbps"] * 1e9
    t = c.Table(f"{SHAPE}, {weights} weights, AR over HTTP: {PROMPT} tokens in, {TOKENS} out, streams checked", "clients", "tok/s", "steady tok/s",
                "limit tok/s", "share", "steady share", "target", "met", "first token ms", "same text as alone", "vLLM on H100")
    context = PROMPT + TOKENS / 2
    server = c.serve(model, "--weights", weights, "--max-sequences", str(max(counts)), "--max-context", str(PROMPT + TOKENS + BLOCK))
    seen = {}
    try:
        memory = c.device_memory()
        clients.load(server.port, min(2, max(counts)), PROMPT, 16, opened["n_vocab"])  # the first requests warm what is lazy
        for n in counts:
            if c.time_left() < 30:
                t.note("out of time: the remaining counts were left out")
                break
            try:
                r = clients.load(server.port, n, PROMPT, TOKENS, opened["n_vocab"])
            except clients.Wrong as e:
                c.expect(False, f"{weights}, {n} clients: {e}")
                break
            bound = n / ((opened["step_bytes"] + n * context * opened["kv_token_bytes"]) / lim)
            same = sum(seen.setdefault(i, d) == d for i, d in r["digests"].items())
            steady = r["steady"]
            share = r["rate"] / bound
            goal = target.get(n)
            t.row(str(n), f"{r['rate']:.1f}", f"{steady:.1f}" if steady else None, f"{bound:.1f}", c.percent(share),
                  c.percent(steady / bound) if steady else None, c.percent(goal) if goal else None,
                  c.verdict(share >= goal) if goal else None, f"{r['first_ms']:.1f}", f"{same} of {n}", others.get(n))
            if n == 1:
                speculation(server, opened, r)
        after = c.device_memory()
        if memory and after:
            t.note(f"device memory in use: {memory >> 20} MiB before the first request, {after >> 20} MiB after the last")
            c.expect(after - memory < 32 << 20, f"device memory grew by {(after - memory) >> 20} MiB while serving")
    finally:
        server.stop()


def speculation(server, opened, ar):
    """What a whole draft + verify cycle costs a client, drafts accepted or not (these weights are random: almost none are)."""
    tokens = TOKENS if c.REHEARSE else TOKENS // 8
    r = clients.load(server.port, 1, PROMPT, tokens, opened["n_vocab"], mode="self_speculation", block_length=BLOCK)
    info = r["trimode"][0]
    cycles = max(1, info["blocks"])
    ms = (info["total_ms"] - info["first_token_ms"]) / cycles
    alone = ar["trimode"][0]
    step = (alone["total_ms"] - alone["first_token_ms"]) / alone["forward_passes"]
    t = c.Table(f"{SHAPE}, self-speculation over HTTP, 1 client", "cycles", "ms a cycle", "ms an AR step", "ratio", "target", "met",
                "drafts accepted")
    t.row(str(cycles), f"{ms:.3f}", f"{step:.3f}", f"{ms / step:.3f} x", "<= 2.25 x", c.verdict(ms / step <= 2.25),
          f"{info['accepted_tokens']} of {info['drafted_tokens']}")


def main():
    model = os.path.join(c.MODELS, DRAWN)
    os.makedirs(c.MODELS, exist_ok=True)
    try:
        if not os.path.isdir(model):
            start = time.monotonic()
            size = make_model.write_model(model, DRAWN)
            c.say(f"drew {size / 1e9:.2f} GB in {time.monotonic() - start:.1f} s")
        note = c.Table(f"{SHAPE}: limits")
        c.limits_note(note)
        contexts = (PROMPT, PROMPT + TOKENS)
        opened, passes = bench_forward(model, COUNTS, contexts, ["ar"])
        if opened:
            passes += bench_forward(model, [BLOCK], contexts, ["denoise", "draft", "verify"])[1]
            loading(opened, f"{SHAPE}, bf16: loading and memory")
            pass_table(f"{SHAPE}, bf16 weights: passes in process", passes)
            for context in contexts:
                derived(passes, context)
            ar_clients(model, opened, COUNTS, "bf16", {1: 0.90, **{n: 0.80 for n in COUNTS if n > 1}}, VLLM)
            packed(model)
    finally:
        if not c.KEEP:
            shutil.rmtree(model, ignore_errors=True)
    c.finish()


def packed(model):
    """fp8 weights: passes and one client."""
    if c.time_left() < 60 or not c.packs("fp8"):
        c.Table(f"{SHAPE}, fp8 weights").note("not run: " + ("out of time" if c.packs("fp8") else "this binary has no fp8 weights"))
        return
    opened, passes = bench_forward(model, COUNTS[:2], (PROMPT, PROMPT + TOKENS), ["ar"], "--weights", "fp8")
    if opened:
        pass_table(f"{SHAPE}, fp8 weights: passes in process", passes)
        ar_clients(model, opened, COUNTS[:2], "fp8", {1: 0.85}, {1: VLLM_FP8})


if __name__ == "__main__":
    main()
