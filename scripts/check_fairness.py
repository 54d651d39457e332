#!/usr/bin/env python3
"""Who shares a server does not suffer from the others: see check_fairness.sh. Python's standard library only.

Two questions, each measured in rounds with what is compared taking turns, so that a busy machine disturbs both alike:
keys      one key sends one request at a time; how long do they take while another key does the same, and while it has 200
          under way all the time?
prompts   some streams run; how long do they wait between tokens while nothing else happens, and while long prompts arrive one
          after another; the latter with --prompt-budget as it is and with 0, which is without a bound?
Every load is a `trimode bench serve` of its own, which verifies what it gets.
"""
import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from check_modes import ROOT, Server

ENDLESS = 1_000_000  # requests of a load that is stopped


def fail(text):
    sys.exit(f"check_fairness: {text}")


class Loads:
    """Loads on one server."""

    def __init__(self, binary, server, mode, keys):
        self.binary, self.server, self.mode, self.keys, self.seed = binary, server, mode, keys, 0

    def start(self, key, clients, requests, n_prompt, n_output):
        self.seed += 1  # no prompt comes twice
        return subprocess.Popen(
            [self.binary, "bench", "serve", "--url", f"http://127.0.0.1:{self.server.port}", "--api-key-file", self.keys[key], "--json",
             "--mode", self.mode, "--temperature", "0", "--seed", str(self.seed), "--clients", str(clients), "--requests", str(requests),
             "--prompt-tokens", str(n_prompt), "--output-tokens", str(n_output)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def total(self, name):
        """A counter of /metrics, its labels summed."""
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.server.get("/metrics")[1].splitlines()
                   if re.match(rf"trimode_{name}[ {{]", line))

    def beside(self, other, measured, counter):
        """The result of the load `measured` while `other` (or None) runs, and how much of `counter` the server did a second."""
        background = self.start(*other) if other else None
        try:
            time.sleep(1.5 if other else 0)
            before, start = self.total(counter), time.monotonic()
            process = self.start(*measured)
            out, err = process.communicate(timeout=600)
            rate = (self.total(counter) - before) / (time.monotonic() - start)
            if background and background.poll() is not None:
                fail(f"the load beside ended: {background.communicate()}")
        finally:
            if background:
                background.send_signal(signal.SIGTERM)
                background.communicate()
        if process.returncode:
            fail(f"{out}{err}\n{self.server.text()[-2000:]}")
        return json.loads(out.splitlines()[-1]), rate


def ms(values, key):
    return f"{statistics.median(v[key] for v in values):8.2f}"


def check_keys(args, loads):
    print(f"one key sends one request at a time ({args.prompt_tokens} + {args.output_tokens} tokens), mode {loads.mode}; the other key has")
    shape = (args.prompt_tokens, args.output_tokens)
    got, rates, counts = {}, {}, (1, args.big)
    for _ in range(args.rounds):
        for n in counts:
            result, rate = loads.beside(("big", n, ENDLESS, *shape), ("small", 1, args.requests, *shape), "generated_tokens_total")
            got.setdefault(n, []).append(result["e2e_ms"])
            rates.setdefault(n, []).append(rate)
    for n in counts:
        print(f"  {n:>4} at once   latency p50 {ms(got[n], 'p50')}  p90 {ms(got[n], 'p90')}  p99 {ms(got[n], 'p99')} ms   "
              f"both keys together {statistics.median(rates[n]):6.0f} tokens/s")
    rounds = [b["p50"] / a["p50"] for a, b in zip(*(got[n] for n in counts))]
    return verdict("ratio of the medians", rounds, args.bound)


def check_prompts(args, with_budget, without):
    print(f"\n{args.streams} streams of {args.stream_tokens} tokens, mode {with_budget.mode}; time between tokens alone, and while prompts of "
          f"{args.long} tokens arrive, {args.prompts} at a time")
    streams = ("small", args.streams, args.streams, 16, args.stream_tokens)
    prompts = ("small", args.prompts, ENDLESS, args.long, 1)
    loads = (("with the budget", with_budget), ("without (0)", without))
    alone, beside, rates = {}, {}, {}
    for _ in range(args.rounds):
        for name, load in loads:
            alone.setdefault(name, []).append(load.beside(None, streams, "forward_rows_sum")[0]["itl_ms"])
            result, rate = load.beside(prompts, streams, "forward_rows_sum")
            beside.setdefault(name, []).append(result["itl_ms"])
            rates.setdefault(name, []).append(rate)
    for name, _ in loads:
        a, b = alone[name], beside[name]
        print(f"  {name:<16} alone p50 {ms(a, 'p50')}  p99 {ms(a, 'p99')} ms   with prompts p50 {ms(b, 'p50')}  p99 {ms(b, 'p99')} ms   "
              f"p99 ratio {statistics.median(y['p99'] / x['p99'] for x, y in zip(a, b)):6.2f}   {statistics.median(rates[name]):7.0f} rows/s")
    rounds = [b["p99"] / a["p99"] for a, b in zip(alone["with the budget"], beside["with the budget"])]
    return verdict("p99 ratio with the budget", rounds, args.bound)


def verdict(what, rounds, bound):
    ratio = statistics.median(rounds)
    print(f"  {what} {ratio:.2f} (rounds: {', '.join(f'{r:.2f}' for r in rounds)}); bound {bound:g}   [{'BROKEN' if ratio > bound else 'ok'}]")
    return ratio > bound


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("--model", default=os.path.join(ROOT, "config", "models", "nano"))
    p.add_argument("--mode", default="ar", help="of every request (default: ar, whose tokens come one by one)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--bound", type=float, default=2)
    p.add_argument("--requests", type=int, default=40, help="of the small key in a round")
    p.add_argument("--big", type=int, default=200, help="requests of the big key at once")
    p.add_argument("--prompt-tokens", type=int, default=32)
    p.add_argument("--output-tokens", type=int, default=48)
    p.add_argument("--streams", type=int, default=4)
    p.add_argument("--stream-tokens", type=int, default=1000)
    p.add_argument("--prompts", type=int, default=2, help="long prompts at once")
    p.add_argument("--long", type=int, default=4000, help="their length, at most what the context leaves")
    args = p.parse_args()
    binary = os.path.join(args.build, "trimode")
    servers = []
    with tempfile.TemporaryDirectory(prefix="trimode-check-") as folder:
        keys = {name: os.path.join(folder, name) for name in ("small", "big", "both")}
        for name, path in keys.items():
            with open(path, "w", encoding="utf-8") as f:
                f.write("small\nbig\n" if name == "both" else f"{name}\n")
        try:
            for budget in ([], ["--prompt-budget", "0"]):
                servers.append(Server(binary, args.model, "--api-key-file", keys["both"], *budget))
            conn = http.client.HTTPConnection("127.0.0.1", servers[0].port, timeout=30)
            conn.request("GET", "/v1/models", headers={"Authorization": "Bearer small"})
            context = json.loads(conn.getresponse().read())["data"][0]["max_model_len"]
            conn.close()
            args.long = min(args.long, context - 48)
            loads = [Loads(binary, s, args.mode, keys) for s in servers]
            print(f"model {args.model}, {os.cpu_count()} CPUs, {args.rounds} rounds\n")
            bad = check_keys(args, loads[0])
            bad |= check_prompts(args, *loads)
        finally:
            for s in servers:
                s.stop()
    print("\n" + ("FAILED" if bad else "ok"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
