#!/usr/bin/env python3
"""Part `model`: whole models on the backend under test. gpu.sh runs it. Four things:

  * every generation of the reference vectors (tests/vectors, NumPy in float32) again, in all modes. Activations are bf16 on a GPU, so a near
    tie may fall the other way: where a greedy AR or self-speculation text leaves the reference's, the CPU in f32 must find the two tokens
    within NEAR nats of each other. Sampled and diffusion texts are counted.
  * the engine's own test of whole models (tests/engine/test_cuda.c), on this device.
  * AR = self-speculation byte for byte, --deterministic, greedy and sampled, with the adapter and without, 1 and 8 requests at a time.
  * the share of accepted drafts beside the CPU's, and lower without the adapter: the recorded draft passes contain it.
"""
import concurrent.futures
import glob
import http.client
import json
import os
import re
import subprocess

import common as c  # first: it says where the others are
import check_modes

NEAR = 0.1
PROMPTS = 12 if c.REHEARSE else 40
TOKENS = 96


def post(server, path, body):
    conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        conn.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        r = conn.getresponse()
        data = r.read()
        if r.status != 200:
            raise RuntimeError(f"{r.status} {data[:300]!r}")
        return json.loads(data)
    finally:
        conn.close()


def generate(server, ids, **fields):
    """(token ids, what trimode says)."""
    a = post(server, "/v1/completions", {"prompt": ids, "return_token_ids": True, **fields})
    return a["choices"][0]["token_ids"], a["trimode"]


def together(work, n):
    """The results of n jobs at a time, in order."""
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        return list(pool.map(lambda f: f(), work))


# ---- the reference's generations ----


def fields_of(case, params, context=1 << 30):
    """A case of the vectors as a request; HTTP refuses more tokens than the context has room for."""
    s = {k: v for k, v in params[case["params"]].items() if k != "bias"}
    s.setdefault("temperature", 0)
    if params[case["params"]].get("bias"):
        s["logit_bias"] = {str(t): b for t, b in params[case["params"]]["bias"]}
    s.update(mode=case["mode"], max_tokens=min(case["max_tokens"], context - len(case["prompt"])))
    for key, name in (("block_length", "block_length"), ("steps", "steps"), ("policy", "commit_policy")):
        if case.get(key) is not None:
            s[name] = case[key]
    if case["mode"] == "diffusion" and not case.get("steps") and case.get("policy") in (None, "confidence"):
        s["threshold"] = case["threshold"]
    if case.get("steps") and "commit_policy" not in s:
        s["commit_policy"] = "schedule"
    return s


def logprob(server, ids, token):
    """Of one next token: a bias makes it the choice, and log-probabilities are those before any bias."""
    a = post(server, "/v1/completions", {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "mode": "ar", "return_token_ids": True,
                                         "logit_bias": {str(token): 100}})["choices"][0]
    return a["logprobs"]["token_logprobs"][0] if a["token_ids"] == [token] else None


def gap(cpu, case, got, want):
    """(position, nats between the two tokens there) of the first difference."""
    p = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    if p >= len(got) or p >= len(want):
        return p, None  # one of them ended: an end token, which has no log-probability of its own here
    prefix = case["prompt"] + want[:p]
    a, b = logprob(cpu, prefix, want[p]), logprob(cpu, prefix, got[p])
    return p, None if a is None or b is None else abs(a - b)


def against_vectors(path, table):
    with open(path, encoding="utf-8") as f:
        file = json.load(f)
    folder = os.path.normpath(os.path.join(os.path.dirname(path), file["model"]))
    name = os.path.basename(path)[:-5]
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        context = json.load(f)["max_position_embeddings"]
    server, cpu = c.serve(folder, *deterministic()), c.serve(folder, "--backend", "cpu")
    try:
        results = together([lambda case=case: generate(server, case["prompt"], **fields_of(case, file["params"], context))
                            for case in file["cases"]], 8)
        for mode in ("ar", "self_speculation", "diffusion"):
            n = same = near = 0
            worst = 0.0
            for case, (got, info) in zip(file["cases"], results):
                if case["mode"] != mode:
                    continue
                n += 1
                want = case["expect"]["tokens"]
                want = want[:-1] if case["expect"]["finish"] == "stop" else want
                if got == want:
                    same += 1
                    continue
                greedy = case["params"] == "greedy"
                if mode == "diffusion" or not greedy:
                    continue
                p, nats = gap(cpu, case, got, want)
                worst = max(worst, nats or 0)
                near += nats is not None and nats < NEAR
                c.expect(nats is None or nats < NEAR, f"{name} {case['name']}: token {p} differs where f32 finds {nats} nats between the two")
            table.row(name, mode, str(n), str(same), str(near), f"{worst:.4f}" if worst else None)
            c.expect(c.BACKEND != "cpu" or same == n, f"{name} {mode}: {same} of {n} on the CPU")
    finally:
        server.stop()
        cpu.stop()


# ---- the engine's test ----


def engine_test(table):
    module = os.environ.get("TRIMODE_CUDA_MODULE", os.path.join(c.BIN, "trimode-cuda.so"))
    program = os.path.join(c.BIN, "test_engine_cuda")
    if c.REHEARSE and not (os.path.exists(program) and os.path.exists(module)):
        return
    run = subprocess.run([program], env={**os.environ, "TRIMODE_CUDA_MODULE": module, "CMOCKA_MESSAGE_OUTPUT": "TAP"}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=max(10, c.time_left()))
    c.say(run.stdout)
    ok, bad = (len(re.findall(f"^{word} ", run.stdout, re.M)) for word in ("ok", "not ok"))
    table.row("test_engine_cuda", str(ok + bad), str(bad), str(run.returncode))
    c.expect(run.returncode == 0 and ok > 0, "test_engine_cuda:\n" + "\n".join(re.findall("^(?:not ok|#).*", run.stdout, re.M)[:20]))


# ---- one text in two modes, and drafts ----


def deterministic():
    return ("--deterministic",) if c.BACKEND == "cuda" else ()


def chats(server, mode, prompts, temperature, at_once):
    """[answer of check_modes.ask] in the prompts' order."""
    answers, _ = check_modes.run(server, mode, prompts, at_once, TOKENS, temperature)
    return answers


def two_modes(server, name, table):
    prompts = check_modes.load_prompts(PROMPTS)
    for temperature in (0, 0.8, 1.3):
        for at_once in (1, 8):
            ar = chats(server, "ar", prompts, temperature, at_once)
            ss = chats(server, "self_speculation", prompts, temperature, at_once)
            different = sum(a["text"] != b["text"] for a, b in zip(ar, ss))
            table.row(name, f"{temperature:g}", str(at_once), str(len(prompts)), str(different))
            c.expect(different == 0, f"{name}: {different} texts of self-speculation are not AR's at temperature {temperature}")


def accepted(server, prompts):
    a = chats(server, "self_speculation", prompts, 0, 8)
    return sum(x["accepted"] for x in a) / max(1, sum(x["drafted"] for x in a)), sum(x["tokens"] for x in a) / sum(x["passes"] for x in a)


def main():
    tests = c.Table(f"the engine's tests on {c.BACKEND}", "program", "tests", "failed", "exit")
    vectors = c.Table(f"generations of the reference on {c.BACKEND}", "model", "mode", "cases", "equal", f"near tie (< {NEAR} nats)",
                      "widest gap, nats")
    texts = c.Table("AR = self-speculation, byte for byte", "server", "temperature", "at once", "prompts", "different")
    drafts = c.Table("drafts accepted, nano, greedy", "backend", "adapter", "accepted", "tokens a pass")
    engine_test(tests)
    for path in sorted(glob.glob(os.path.join(c.ROOT, "tests", "vectors", "*.json"))):
        with open(path, encoding="utf-8") as f:
            if '"cases"' in f.read():
                against_vectors(path, vectors)
    shares = {}
    prompts = check_modes.load_prompts(PROMPTS)
    for backend in dict.fromkeys((c.BACKEND, "cpu")):
        for adapter in ("auto", "none"):
            flags = ("--backend", backend, "--adapter", adapter) + (deterministic() if backend == c.BACKEND else ())
            server = c.serve(c.NANO, *flags)
            try:
                shares[backend, adapter], passes = accepted(server, prompts)
                drafts.row(backend, adapter, c.percent(shares[backend, adapter]), f"{passes:.2f}")
                if backend == c.BACKEND:
                    two_modes(server, f"nano, adapter {adapter}", texts)
            finally:
                server.stop()
    for adapter in ("auto", "none"):
        c.expect(abs(shares[c.BACKEND, adapter] - shares["cpu", adapter]) < 0.03,
                 f"adapter {adapter}: another share of drafts is accepted than on the CPU")
    c.expect(shares[c.BACKEND, "auto"] > shares[c.BACKEND, "none"], "the adapter makes no difference to the drafts")
    c.finish()


if __name__ == "__main__":
    main()
