#!/usr/bin/env python3
"""Every fixed mode against auto at many loads, interleaved, and a step of the load: see check_router.sh. Standard library only.

A point is one load in one mode: `trimode bench serve` with so many clients in a closed loop, every stream verified. A round measures
every point once: the loads in random order, and at each load the modes in random order right after each other, so that what else the
machine does meets them alike. Ratios are taken within a round, and their median over the rounds counts. All points of a load are given
the same requests, all modes run on one server (what auto knows of acceptance, the fixed modes' requests have taught it too; the step
has a server of its own); the prefix cache is off, so that a repeated prompt is computed again.

Promised, one line each, exit status 1 when one is broken:
  every load   auto is at least 0.95 of the best fixed mode; those count whose text is AR's, diffusion is only shown beside them
  1 client     auto is at least 1.5 of ar (bundled model; for a random one, whose drafts are never right, ar itself is the best)
  64 clients   auto is at least ar, as far as the rounds can tell: the median ratio plus two standard errors reaches 1, and 0.95 alone
  a step       from 1 to 64 clients and back: the modes have their steady share of the tokens within one second (router_step.py)
Only a machine with nothing else to do gives numbers worth keeping; the page tells its load average.
"""
import argparse
import datetime
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import router_chart
import router_step
from served import NANO, ROOT, Server, all_prompts

MODELS = {
    # passes of a tenth of a millisecond; every held-out prompt once a point, whatever the load
    "nano": {"clients": [1, 2, 4, 8, 16, 32, 64], "rounds": 9, "most_rows": None, "least_gain": 1.5, "window_s": 0.2, "quick_requests": 24},
    # passes of ten milliseconds and more; a point is one prompt a client, and blocks of more rows than that would take minutes
    "random": {"clients": [1, 4, 16, 64], "rounds": 3, "most_rows": 256, "least_gain": None, "window_s": 0.5, "quick_requests": 2},
}
RANDOM = {"prompt-tokens": 16, "output-tokens": 32}
NO_END = 100_000_000
LONG_ANSWERS = "story,email,trimode,times_table,table,to_json"
SAMPLE = "Tell a story about a fox named Mia in the forest."
AUTO = ("auto", None)
PHASES_S, QUICK_PHASES_S = (3, 5, 5), (1, 1.2, 1.2)
BOUND, AT_LEAST_AR, SETTLE_S = 0.95, 1.0, 1.0


def name_of(mode):
    return mode[0] if mode[1] is None else f"{mode[0]} {mode[1]}"


def crowd(n):
    return f"{n} client" if n == 1 else f"{n} clients"


def fixed_modes(args):
    blocks = [8] if args.quick else [4, 8, 16, 32, 64] if args.all else [4, 8, 16, 32]
    return [("ar", None), *(("self_speculation", b) for b in blocks), ("diffusion", 8)]


# ---- the load -------------------------------------------------------------------------------------------------------


class Load:
    """What the clients of one model ask."""

    def __init__(self, args, model, server):
        self.args, self.server, self.random = args, server, model == "random"
        self.flags, self.file = ["--temperature", "0", "--seed", str(args.seed)], None
        if self.random:
            self.flags += [x for k, v in RANDOM.items() for x in (f"--{k}", str(v))]
            self.words = f"{RANDOM['prompt-tokens']} random tokens in, {RANDOM['output-tokens']} out"
            self.sample = "/v1/completions", {"prompt": list(range(200, 200 + RANDOM["prompt-tokens"])), "ignore_eos": True, "max_tokens": 8}
            return
        prompts = all_prompts(args.tasks)
        self.file = tempfile.NamedTemporaryFile("w", prefix="trimode-check-", suffix=".jsonl", encoding="utf-8")
        for text, _ in prompts:
            self.file.write(json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 256}) + "\n")
        self.file.flush()
        self.flags += ["--dataset", self.file.name]
        self.n_prompts = len(prompts)
        self.words = f"the {len(prompts)} chats of scripts/train/heldout.jsonl{' of these tasks' if args.tasks else ''} in turn"
        self.sample = "/v1/chat/completions", {"messages": [{"role": "user", "content": SAMPLE}], "max_tokens": 256}

    def command(self, clients, requests, mode):
        return [self.args.binary, "bench", "serve", "--url", f"http://127.0.0.1:{self.server.port}", "--json", *self.flags, "--clients",
                str(clients), "--requests", str(requests), "--mode", mode[0],
                *(["--block-length", str(mode[1])] if mode[1] else [])]  # auto is never given one

    def requests(self, clients, quick):
        if quick:
            return max(clients, quick)
        return max(clients, 4) if self.random else max(self.n_prompts, 2 * clients)

    def ask(self):
        """What the server says of one request of its own choosing: the `trimode` object of the answer."""
        path, body = self.sample
        status, answer = self.server.post(path, {**body, "temperature": 0, "mode": "auto"})
        if status != 200:
            raise OSError(f"{path}: {status} {answer[:300]}")
        return json.loads(answer)["trimode"]

    def point(self, clients, requests, mode):
        r = subprocess.run(self.command(clients, requests, mode), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode:
            sys.exit(f"check_router: {name_of(mode)} with {crowd(clients)}: {r.stderr.strip() or r.returncode}\n{self.server.text()[-2000:]}")
        return json.loads(r.stdout)


# ---- measuring ------------------------------------------------------------------------------------------------------


def measure(args, load, settings, points):
    """{(clients, mode): [the level of each round]}"""
    levels, rng, done, start = {p: [] for p in points}, random.Random(args.seed), 0, time.monotonic()
    loads = sorted({c for c, _ in points})
    for mode in dict.fromkeys(m for _, m in points):  # untimed: memory that nobody has touched yet
        load.point(loads[0], load.requests(loads[0], settings["quick_requests"]), mode)
    for k in range(settings["rounds"]):
        for c in rng.sample(loads, len(loads)):
            modes = [m for n, m in points if n == c]
            for mode in rng.sample(modes, len(modes)):
                if sys.stderr.isatty():
                    print(f"\r\033[Kround {k + 1}/{settings['rounds']}  {done}/{settings['rounds'] * len(points)} points, "
                          f"{time.monotonic() - start:.0f} s  {crowd(c)}, {name_of(mode)}", end="", file=sys.stderr, flush=True)
                levels[c, mode].append(load.point(c, load.requests(c, settings["quick"]), mode))
                done += 1
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return levels


class Results:
    """The measured levels, and what is asked of them."""

    def __init__(self, levels):
        self.levels = levels
        self.clients = sorted({c for c, _ in levels})
        self.modes = list(dict.fromkeys(m for _, m in levels))

    def speed(self, c, mode):
        return statistics.median(v["tok_s"] for v in self.levels[c, mode])

    def ratios(self, c, mode):
        """auto / mode, round by round."""
        return [a["tok_s"] / m["tok_s"] for a, m in zip(self.levels[c, AUTO], self.levels[c, mode])]

    def ratio(self, c, mode):
        return statistics.median(self.ratios(c, mode))

    def lossless(self, c):
        return [m for m in self.modes if m[0] in ("ar", "self_speculation") and (c, m) in self.levels]

    def best(self, c):
        return min(self.lossless(c), key=lambda m: self.ratio(c, m))

    def error(self, c, mode):
        """Two standard errors of the median ratio, from the spread of the rounds."""
        values = self.ratios(c, mode)
        return 2 * 1.2533 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0

    def shares(self, c):
        """{mode: share of auto's tokens}"""
        total = sum(v["output_tokens"] for v in self.levels[c, AUTO])
        mix = {}
        for v in self.levels[c, AUTO]:
            for mode, s in v["mode_share"].items():
                mix[mode] = mix.get(mode, 0) + s * v["output_tokens"] / total
        return mix

    def spread(self):
        """(median, worst) over the points of (max - min) / median of the rounds."""
        found = []
        for values in self.levels.values():
            v = [x["tok_s"] for x in values]
            found.append((max(v) - min(v)) / statistics.median(v))
        return statistics.median(found), max(found)


# ---- what is promised -----------------------------------------------------------------------------------------------


class Verdicts:
    """One line a promise. In a quick run the numbers mean nothing: only what does not depend on speed is judged."""

    def __init__(self, quick):
        self.quick, self.lines, self.failed = quick, [], 0

    def judge(self, right, text, speed=True):
        word = "seen" if speed and self.quick else "ok  " if right else "FAIL"
        self.failed += word == "FAIL"
        self.lines.append(f"{word} {text}")


def judge_loads(verdicts, results, least_gain):
    for c in results.clients:
        best = results.best(c)
        r, ratio = results.ratios(c, best), results.ratio(c, best)
        verdicts.judge(ratio >= BOUND, f"{crowd(c)}: auto {rate(results.speed(c, AUTO))} tok/s is {ratio:.3f} of {name_of(best)}, the best fixed "
                       f"mode ({rate(results.speed(c, best))} tok/s); at least {BOUND} (rounds {min(r):.3f} to {max(r):.3f})")
    if 1 in results.clients and least_gain:
        ratio = results.ratio(1, ("ar", None))
        verdicts.judge(ratio >= least_gain, f"1 client: auto is {ratio:.3f} of ar; at least {least_gain}")
    if 64 in results.clients:
        ratio, error = results.ratio(64, ("ar", None)), results.error(64, ("ar", None))
        verdicts.judge(ratio + error >= AT_LEAST_AR and ratio >= BOUND, f"64 clients: auto is {ratio:.3f} of ar, give or take {error:.3f} (two "
                       f"standard errors of the rounds); at least {AT_LEAST_AR:.0f} within that, and {BOUND} in any case")
    for c in results.clients:
        counts = {v["output_tokens"] for m in [*results.lossless(c), AUTO] for v in results.levels[c, m]}
        if len(counts) > 1:
            verdicts.judge(False, f"{crowd(c)}: lossless modes wrote different numbers of tokens: {sorted(counts)}", speed=False)


def mix_words(mix):
    return ", ".join(f"{k} {100 * v:.0f} %" for k, v in sorted(mix.items(), key=lambda x: -x[1]) if v >= 0.005)


def judge_step(verdicts, phases):
    if isinstance(phases, str):
        verdicts.judge(False, f"step of the load: {phases}", speed=False)
        return
    for before, after in zip(phases, phases[1:]):
        s = after["settled"]
        verdicts.judge(s is not None and s < SETTLE_S, f"step from {before['clients']} to {crowd(after['clients'])}: auto "
                       f"{'never settled' if s is None else f'settled after {s:.2f} s'}; less than {SETTLE_S:.0f} s "
                       f"({mix_words(before['mix'])} -> {mix_words(after['mix'])})")


# ---- printing -------------------------------------------------------------------------------------------------------


def rate(tok_s):
    return f"{tok_s:.0f}" if tok_s >= 100 else f"{tok_s:.1f}"


def table(results):
    head = ["clients", *map(name_of, results.modes), "auto / best", "best", "auto / ar", "auto's tokens by"]
    rows = [head, ["---:" if h not in ("best", "auto's tokens by") else "---" for h in head]]
    for c in results.clients:
        best = results.best(c)
        rows.append([str(c), *(rate(results.speed(c, m)) if (c, m) in results.levels else "-" for m in results.modes),
                     f"{results.ratio(c, best):.2f}", name_of(best), f"{results.ratio(c, ('ar', None)):.2f}", mix_words(results.shares(c))])
    return ["| " + " | ".join(r) + " |" for r in rows]


def step_table(phases):
    rows = ["| phase | load there after | settled after | longest without a token | first second, tok/s | steady, tok/s | tokens by | what a request was told |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"]
    for k, p in enumerate(phases):
        seconds = ["-" if v is None or k == 0 else f"{v:.2f} s" for v in (p["there"], p["settled"])]
        rows.append(f"| {crowd(p['clients'])} | {seconds[0]} | {seconds[1]} | {p['silence']:.2f} s | {rate(p['soon_tok_s'])} | {rate(p['tok_s'])} | "
                    f"{mix_words(p['mix'])} | {name_of((p['told']['mode'], p['told'].get('block_length')))}: {p['told']['reason']} |")
    return rows


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown CPU")
    return f"{model}, {os.cpu_count()} CPUs"


def commit():
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False).stdout.strip()
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def page(args, model, load, settings, backend, results, phases, verdicts, left_out, busy):
    median, worst = results.spread()
    numbers = [v["requests"] for values in results.levels.values() for v in values]
    tokens = statistics.median(v["output_tokens"] for values in results.levels.values() for v in values)
    lines = [f"# Every mode and auto, by load: {model}", "",
             f"{datetime.date.today()}, {machine()}, {backend}; commit {args.commit}; load average before {busy:.2f}", "",
             f"    scripts/check_router.sh {shlex.join(sys.argv[1:])}".rstrip(), "",
             f"Tokens a second of all clients together, median of {settings['rounds']} interleaved rounds; a point's rounds lie {100 * median:.0f} % "
             f"apart (median of the points), {100 * worst:.0f} % at most. Closed loop, {load.words}, "
             f"{min(numbers)} to {max(numbers)} requests and {round(tokens)} tokens a point; temperature 0, prefix cache off. "
             "Ratios are medians of the rounds' ratios; `best` is the fixed mode with AR's text that auto beats least.", "",
             *table(results), ""]
    if left_out:
        lines += [f"Left out (more than {settings['most_rows']} rows of blocks at once; --all measures them): {', '.join(left_out)}.", ""]
    lines += [f"![tokens a second by load](router-{model}.svg)", ""]
    if not isinstance(phases, str):
        lines += [f"A step of the load on a fresh server, nothing asked of it but auto. Settled: the first moment from which the modes have their "
                  f"steady share of the tokens in nine of ten windows of {settings['window_s']} s.", "", *step_table(phases), ""]
    return "\n".join(lines + ["    " + v for v in verdicts.lines]) + "\n"


# ---- one model ------------------------------------------------------------------------------------------------------


def check(args, model):
    """Measures, writes the page and the chart, returns the number of broken promises."""
    settings = {**MODELS[model], "quick": 0}
    if args.quick:
        settings.update(clients=[1, 8], rounds=2, quick=settings["quick_requests"])
    elif args.all:
        settings.update(clients=MODELS["nano"]["clients"], most_rows=None)
    settings["rounds"] = args.rounds or settings["rounds"]
    settings["clients"] = sorted({int(c) for c in args.clients.split(",")}) if args.clients else settings["clients"]
    points, left_out = [], []
    for c in settings["clients"]:
        for mode in [*fixed_modes(args), AUTO]:
            too_many = settings["most_rows"] and mode[1] and c * mode[1] > settings["most_rows"]
            (left_out if too_many else points).append((c, mode))
    left_out = [f"{name_of(m)} with {crowd(c)}" for c, m in left_out]

    folder = NANO
    if model == "random":
        folder = os.path.join(ROOT, "build", "models", "random-300m")
        subprocess.run([os.path.join(ROOT, "scripts", "make_random_model.sh"), folder], check=True, stdout=subprocess.DEVNULL)
    name = os.path.basename(folder)
    busy = os.getloadavg()[0]
    verdicts, start = Verdicts(args.quick), time.monotonic()
    flags = ["--prefix-cache=false", *shlex.split(args.serve)]
    print(f"{name}: {settings['rounds']} rounds of {len(points)} points, {', '.join(map(str, settings['clients']))} clients, load average "
          f"{busy:.2f}", flush=True)

    server = Server(args.binary, folder, *flags)
    try:
        load = Load(args, model, server)
        backend = json.loads(server.get("/version")[1])["backend_description"]
        results = Results(measure(args, load, settings, points))
    finally:
        server.stop()
    server = Server(args.binary, folder, *flags)
    try:
        load.server = server
        phases = router_step.measure(server.port, lambda n: load.command(n, NO_END, AUTO), load.ask, min(64, max(settings["clients"])) if args.quick else 64,
                                     QUICK_PHASES_S if args.quick else PHASES_S, settings["window_s"])
    finally:
        server.stop()
    judge_loads(verdicts, results, settings["least_gain"])
    judge_step(verdicts, phases)

    text = page(args, name, load, settings, backend, results, phases, verdicts, left_out, busy)
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.out, f"router-{name}.md"), "w", encoding="utf-8") as f:
        f.write(text)
    chart = router_chart.draw(f"Tokens a second by load: {name}", f"{machine()}, {datetime.date.today()}; median of {settings['rounds']} rounds",
                              {name_of(m): {c: results.speed(c, m) for c in results.clients if (c, m) in results.levels} for m in results.modes},
                              "auto")
    with open(os.path.join(args.out, f"router-{name}.svg"), "w", encoding="utf-8") as f:
        f.write(chart)
    print(f"\n{text}\n{time.monotonic() - start:.0f} s; written to {args.out}/router-{name}.md and .svg\n", flush=True)
    return verdicts.failed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("--out", help="folder of the table and the chart (default: tests/bench, and the build's for --quick)")
    p.add_argument("--models", default="nano,random", help="comma list of nano, random")
    p.add_argument("--clients", help="comma list (default: 1 to 64 for nano, 1,4,16,64 for random)")
    p.add_argument("--rounds", type=int, help="default: 5 for nano, 3 for random")
    p.add_argument("--tasks", default=LONG_ANSWERS, help="comma list of tasks of heldout.jsonl to ask of nano, or all (default: "
                   "%(default)s: answers of 50 tokens; those of all have 24, and most of their time is prompts and HTTP, alike in every mode)")
    p.add_argument("--seed", type=int, default=1, help="of the order and of random prompts")
    p.add_argument("--serve", default="", help="more flags of the server, as one word")
    p.add_argument("--all", action="store_true", help="every load and block length (64 too) for every model; the random model then takes hours")
    p.add_argument("--quick", action="store_true", help="seconds: two loads, few requests; speeds are shown and not judged")
    args = p.parse_args()
    args.binary = os.path.join(args.build, "trimode")
    args.out = os.path.abspath(args.out or (args.build if args.quick else os.path.join(ROOT, "tests", "bench")))
    args.commit = commit()
    args.tasks = args.tasks.split(",") if args.tasks != "all" else []
    if unknown := [t for t in args.tasks if not all_prompts([t])]:
        p.error(f"--tasks cannot be '{unknown[0]}'; allowed: the tasks of scripts/train/heldout.jsonl")
    models = args.models.split(",")
    if unknown := [m for m in models if m not in MODELS]:
        p.error(f"--models cannot be '{unknown[0]}'; allowed: {', '.join(MODELS)}")
    failed = sum(check(args, m) for m in models)
    print(f"{failed} FAILED" if failed else "ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
