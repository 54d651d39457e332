#!/usr/bin/env python3
"""Same prompts, every mode, one process: see check_modes.sh. Python's standard library only.

Modes are measured round-robin, several rounds; a figure is the median of the rounds with their range. Two servers run
through the whole of it, one with the draft adapter and one started with --adapter none; only one of them works at a time.
"""
import argparse
import http.client
import json
import os
import re
import statistics
import sys
import threading
import time

from served import NANO, ROOT, Server, load_prompts


def ask(conn, prompt, mode, max_tokens, temperature, seed):
    body = {"messages": [{"role": "user", "content": prompt}], "mode": mode, "max_tokens": max_tokens,
            "temperature": temperature, "seed": seed}
    conn.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    r = conn.getresponse()
    data = r.read()
    if r.status != 200:
        raise RuntimeError(f"{mode}: {r.status} {data[:300]!r}")
    a = json.loads(data)
    return {"text": a["choices"][0]["message"]["content"], "tokens": a["usage"]["completion_tokens"],
            "passes": a["trimode"]["forward_passes"], "drafted": a["trimode"].get("drafted_tokens", 0),
            "accepted": a["trimode"].get("accepted_tokens", 0)}


def run(server, mode, prompts, clients, max_tokens, temperature=0):
    """Every prompt once, by that many clients; returns (answers in order, seconds)."""
    answers, wrong = [None] * len(prompts), []
    work, lock = iter(range(len(prompts))), threading.Lock()
    start_line = threading.Barrier(clients + 1)

    def client():
        conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        conn.connect()
        start_line.wait()
        try:
            while True:
                with lock:
                    i = next(work, None)
                if i is None:
                    return
                answers[i] = ask(conn, prompts[i][0], mode, max_tokens, temperature, 1000 + i)
        except (OSError, RuntimeError, http.client.HTTPException) as e:
            wrong.append(e)
        finally:
            conn.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for t in threads:
        t.start()
    start_line.wait()
    start = time.monotonic()
    for t in threads:
        t.join()
    seconds = time.monotonic() - start
    if wrong:
        sys.exit(f"check_modes: {wrong[0]}\n{server.text()[-2000:]}")
    return answers, seconds


def file_sizes(model):
    """Bytes of the checkpoint's tensor files, the adapter's included."""
    return {os.path.relpath(os.path.join(d, f), model): os.path.getsize(os.path.join(d, f))
            for d, _, files in os.walk(model) for f in files if f.endswith(".safetensors")}


def memory(server, model):
    """(resident bytes of the mapped tensor files, anonymous resident bytes, all resident bytes) of the server's process."""
    mapped = anonymous = total = 0
    path = ""
    with open(f"/proc/{server.process.pid}/smaps", encoding="utf-8") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                path = line.split(None, 5)[5].strip() if len(line.split(None, 5)) == 6 else ""
            elif line.startswith("Rss:"):
                rss = int(line.split()[1]) * 1024
                total += rss
                if path.endswith(".safetensors") and path.startswith(os.path.realpath(model)):
                    mapped += rss
            elif line.startswith("Anonymous:"):
                anonymous += int(line.split()[1]) * 1024
    return mapped, anonymous, total


def weights_metric(server):
    out = {}
    for line in server.get("/metrics")[1].splitlines():
        m = re.match(r"trimode_weights_bytes\{(.*)\} (\S+)", line) or re.match(r"trimode_weights_bytes() (\S+)", line)
        if m:
            out[m.group(1)] = float(m.group(2))
    return out


def first_difference(a, b):
    i = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"at character {i}: {a[max(0, i - 10):i + 20]!r} / {b[max(0, i - 10):i + 20]!r}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("--model", default=NANO)
    p.add_argument("--clients", default="1,8,32", help="comma list")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--max-tokens", type=int, default=128)
    p.add_argument("--block-length", help="of the servers (default: theirs)")
    args = p.parse_args()
    counts = [int(c) for c in args.clients.split(",")]
    binary = os.path.join(args.build, "trimode")
    # Every round repeats the prompts; what earlier rounds left in the cache would be measured in place of the modes.
    extra = ["--prefix-cache=false", *(["--block-length", args.block_length] if args.block_length else [])]

    has_adapter = os.path.isdir(os.path.join(args.model, "linear_spec_lora"))
    servers = {"adapter": Server(binary, args.model, *extra), "none": Server(binary, args.model, "--adapter", "none", *extra)}
    lines = [("ar", "adapter", "ar"), ("diffusion", "adapter", "diffusion"),
             ("self_speculation", "adapter", "self_speculation" + (" + adapter" if has_adapter else "")),
             ("self_speculation", "none", "self_speculation, no adapter"), ("diffusion", "none", "diffusion, no adapter")]
    bad = 0
    try:
        # ---- texts ----
        prompts = load_prompts(2 * max(counts) if max(counts) > 16 else 32)
        first = {name: run(servers[s], mode, prompts, min(8, max(counts)), args.max_tokens)[0] for mode, s, name in lines}
        print(f"model {args.model}, {len(prompts)} prompts, at most {args.max_tokens} tokens, {os.cpu_count()} CPUs\n")
        for i in range(min(4, len(prompts))):
            print(f"prompt: {prompts[i][0]!r}")
            for _, _, name in lines[:3]:
                a = first[name][i]
                print(f"  {name:<28} {a['tokens']:>3} tokens {a['passes']:>3} passes  {a['text'][:110]!r}")
        print()

        # ---- speed, interleaved ----
        speed, share, passes = {}, {}, {}
        ar = [a["text"] for a in first["ar"]]
        compared = different = 0

        def compare(name, mode, answers, where, reference):
            nonlocal compared, different
            if mode == "diffusion":
                return
            for i, a in enumerate(answers):
                compared += 1
                if a["text"] != reference[i]:
                    different += 1
                    if different <= 5:
                        print(f"DIFFERENT {name}, {where}, prompt {prompts[i][0]!r} {first_difference(reference[i], a['text'])}")

        for mode, s, name in lines:
            compare(name, mode, first[name], "first run", ar)
        for k in range(args.rounds):
            for c in counts:
                mine = prompts[:max(8, 2 * c)]
                order = lines[k % len(lines):] + lines[:k % len(lines)]
                for mode, s, name in order:
                    answers, seconds = run(servers[s], mode, mine, c, args.max_tokens)
                    tokens = sum(a["tokens"] for a in answers)
                    speed.setdefault((name, c), []).append(tokens / seconds)
                    passes[name, c] = tokens / max(1, sum(a["passes"] for a in answers))
                    drafted = sum(a["drafted"] for a in answers)
                    share[name, c] = sum(a["accepted"] for a in answers) / drafted if drafted else None
                    compare(name, mode, answers, f"{c} clients", ar)

        # ---- sampled text, for the promise at any temperature ----
        for temperature in (0.8, 1.3):
            sampled = {name: run(servers[s], mode, prompts[:24], 8, args.max_tokens, temperature)[0]
                       for mode, s, name in lines if mode != "diffusion"}
            reference = [a["text"] for a in sampled["ar"]]
            for mode, s, name in lines:
                if mode != "diffusion":
                    compare(name, mode, sampled[name], f"temperature {temperature}", reference)

        print(f"{'mode':<30} {'clients':>7} {'tokens/pass':>11} {'accepted':>9} {'tok/s median':>13} {'range':>15} {'of ar':>7}")
        for c in counts:
            base = statistics.median(speed["ar", c])
            for _, _, name in lines:
                v = speed[name, c]
                accepted = f"{100 * share[name, c]:.0f} %" if share[name, c] is not None else "-"
                print(f"{name:<30} {c:>7} {passes[name, c]:>11.2f} {accepted:>9} {statistics.median(v):>13.0f} "
                      f"{f'{min(v):.0f} - {max(v):.0f}':>15} {statistics.median(v) / base:>6.2f}x")
        if prompts[0][1] is not None:
            exact = {name: sum(a["text"].strip() == p[1].strip() for a, p in zip(first[name], prompts)) for _, _, name in lines}
            print("\nexactly the expected answer, of " + str(len(prompts)) + ": " +
                  ", ".join(f"{name} {exact[name]}" for _, _, name in lines))
        print(f"\nself-speculation against ar, byte for byte: {compared} answers compared, {different} different")
        bad |= different > 0

        # ---- weights, while all three modes run ----
        threads = [threading.Thread(target=run, args=(servers["adapter"], mode, prompts[:16], 4, args.max_tokens))
                   for mode in ("ar", "diffusion", "self_speculation")]
        for t in threads:
            t.start()
        time.sleep(0.2)
        mapped, anonymous, total = memory(servers["adapter"], args.model)
        counted = weights_metric(servers["adapter"])
        for t in threads:
            t.join()
        files = file_sizes(args.model)
        mib = lambda b: f"{b / 2**20:10.2f} MiB"  # noqa: E731
        print(f"\nweights, while three modes run in process {servers['adapter'].process.pid}")
        for name, size in files.items():
            print(f"  file {name:<44} {mib(size)}")
        for labels, size in counted.items():
            print(f"  {('weights_bytes{' + labels + '}'):<49} {mib(size)}")
        print(f"  {'mapped tensor files, resident (smaps)':<49} {mib(mapped)}")
        print(f"  {'anonymous memory, resident (KV, buffers, heap)':<49} {mib(anonymous)}")
        print(f"  {'whole process, resident':<49} {mib(total)}")
        resident = sum(v for labels, v in counted.items() if "file" not in labels)
        ratio = resident / sum(files.values())
        print(f"  one copy: resident weights_bytes / bytes of the files = {ratio:.3f}")
        if not resident or ratio > 1.05:
            print("  MORE THAN ONE COPY of the weights is resident, or weights_bytes is missing")
            bad = 1
    finally:
        for s in servers.values():
            s.stop()
    print("\n" + ("FAILED" if bad else "ok"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
