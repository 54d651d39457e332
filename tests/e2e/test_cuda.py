"""The CUDA backend behind the real server. Kernels, graphs and host code are those of a GPU; the device is emulated
(tests/kernels/cuda/host_module.c), so a pass takes tens of milliseconds and requests are kept small."""
import contextlib
import json
import math
import os
import re
import subprocess
import threading
import time
import unittest

import client
from case import CHAT, MODES, SLOW, Case, shared_server, together
from server import BINARY, BUILD, MODEL, Server

MODULE = os.path.join(BUILD, "tests", "kernels", "cuda", "trimode-cuda-host.so")
REAL_MODULE = os.path.join(BUILD, "kernels", "cuda", "trimode-cuda.so")
needs_module = unittest.skipUnless(os.path.exists(MODULE), f"no {MODULE}: the build has no tests")

MIB = 1 << 20
RESERVE = 256 * MIB  # what the backend leaves alone beside a 50th of the device
QUESTION, ANSWER = "50 + 86", "50 + 86 = 136"
LONG = "Sort these words: " + ", ".join((["wolf", "cat", "horse", "bear", "lamp", "river", "apple", "door"] * 3)[:22])


def cuda_flags(backend="cuda", sequences=1, rows=64, module=MODULE):
    return ("--backend", backend, "--cuda-module", module, "--max-sequences", str(sequences), "--max-step-rows", str(rows))


def trimode(command, *args, **env):
    """Runs a command that ends by itself; generate does not warm up, so it is the cheapest way to a text."""
    args = [BINARY, command, *(["--port", "0"] if command == "serve" else []), "--model", MODEL, *args]
    r = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, timeout=60 * SLOW, env={**os.environ, **env})
    r.out, r.err = r.stdout.decode(), r.stderr.decode()
    return r


@needs_module
class Cuda(Case):
    flags = (*cuda_flags(sequences=3, rows=96), "--deterministic")

    def test_three_modes_at_once(self):
        jobs = [lambda m=m: self.ask(QUESTION, mode=m) for m in MODES]
        jobs += [lambda m=m: self.stream(QUESTION, mode=m, stream_options={"include_usage": True}) for m in MODES]
        got = together(jobs)
        for mode, whole, stream in zip(MODES, got[:3], got[3:]):
            with self.subTest(mode=mode):
                self.assertEqual(whole["choices"][0]["message"]["content"], ANSWER)
                self.assertEqual(whole["choices"][0]["finish_reason"], "stop")
                self.assertEqual((stream.text, stream.finish[0]), (ANSWER, "stop"))
                self.assertEqual(whole["trimode"]["mode"], mode)
                self.assertEqual(self.counts(stream.usage), self.counts(whole["usage"]))
                self.assertEqual(stream.trimode["forward_passes"], whole["trimode"]["forward_passes"])
        blocks = [r["trimode"]["forward_passes"] for r in got[1:3]]
        self.assertLess(max(blocks), got[0]["trimode"]["forward_passes"], "blocks were not cheaper than tokens one by one")

    def test_self_speculation_writes_the_text_of_ar(self):
        for k, prompt in enumerate(("Repeat: 你好 😀 lamp", "Count from 3 to 14.")):
            for temperature in (0, 0.8):
                fields = {"temperature": temperature, "seed": 40 + k, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
                forms = [{"mode": "ar"}, *({"mode": "self_speculation", "block_length": b} for b in (4, 32))]
                ar, *others = together([lambda f=f: self.ask(prompt, **f, **fields) for f in forms])
                for b, other in zip((4, 32), others):
                    with self.subTest(prompt=prompt, temperature=temperature, block_length=b):
                        self.assertEqual(other["choices"], ar["choices"])
                        self.assertEqual(self.counts(other["usage"]), self.counts(ar["usage"]))

    def test_a_prompt_is_the_same_alone_and_among_others(self):
        """Alone it is rows for the backend's own products, among others for the library's; --deterministic has none."""
        def one(salt):
            return self.ask(LONG, mode="ar", max_tokens=6, logprobs=True, top_logprobs=5, cache_salt=salt)

        alone = one("alone")
        self.assertTrue(64 - 32 <= alone["usage"]["prompt_tokens"] <= 64, alone["usage"])
        with contextlib.ExitStack() as stack:
            for mode in MODES[:2]:
                body = self.long_body(mode=mode, stream=True)
                noise = stack.enter_context(client.Stream(self.port, CHAT, body, timeout=60 * SLOW))
                events = noise.events()
                next(events), next(events)  # it runs
            among = one("among others")
            self.assertEqual(among["choices"], alone["choices"])
            self.assertEqual(among["usage"], alone["usage"], "one of them was not computed whole")

    def test_logprobs(self):
        greedy, drawn = together([lambda t=t: self.ask(QUESTION, mode="self_speculation", temperature=t, seed=5, logprobs=True,
                                                       top_logprobs=4) for t in (0, 0.8)])
        for r in (greedy, drawn):
            content = r["choices"][0]["logprobs"]["content"]
            self.assertEqual("".join(c["token"] for c in content), r["choices"][0]["message"]["content"])
            for c in content:
                top = [t["logprob"] for t in c["top_logprobs"]]
                self.assertEqual((len(top), top), (4, sorted(top, reverse=True)))
                self.assertLessEqual(sum(math.exp(p) for p in top), 1 + 1e-4)
                self.assertLessEqual(c["logprob"], top[0])
        for c in greedy["choices"][0]["logprobs"]["content"]:
            self.assertEqual((c["token"], c["logprob"]), (c["top_logprobs"][0]["token"], c["top_logprobs"][0]["logprob"]))

    def test_logprobs_are_nearly_those_of_the_cpu(self):
        cpu = shared_server(("--backend", "cpu"))
        for prompt in (QUESTION, LONG):
            body = self.chat_body(prompt, mode="ar", max_tokens=12, logprobs=True, top_logprobs=3)
            there = client.request(cpu.port, "POST", CHAT, body, timeout=60 * SLOW).json["choices"][0]
            here = self.post(CHAT, body).json["choices"][0]
            self.assertEqual(here["message"], there["message"])
            for a, b in zip(here["logprobs"]["content"], there["logprobs"]["content"]):
                self.assertLess(abs(a["logprob"] - b["logprob"]), 0.1, (a, b))  # activations are rounded to bf16

    def test_samplers_repeat(self):
        samplers = [
            {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3},
            {"frequency_penalty": 0.7, "presence_penalty": -0.5}, {"logit_bias": {"300": 4, "301": -100}},
        ]
        for sampler in samplers:
            fields = {"temperature": 1.2, "seed": 3, "max_tokens": 10, **sampler}
            with self.subTest(sampler=sampler):
                prompt = "Tell a story about a fox named Mia in the forest."
                jobs = [lambda m=m: self.text(prompt, mode=m, **fields) for m in ("ar", "ar", "self_speculation")]
                first, *others = together(jobs)
                self.assertTrue(first)
                self.assertEqual(others, [first, first])

    def test_samplers_change_what_is_drawn(self):
        fields = {"mode": "ar", "max_tokens": 14, "ignore_eos": True, "return_token_ids": True}

        def ids(**more):
            return self.ask("Repeat: lamp lamp lamp lamp", **{**fields, **more})["choices"][0]["token_ids"]

        hot = {"temperature": 2, "seed": 8}
        changes = [hot, {"repetition_penalty": 5}, {"frequency_penalty": 2}, {"presence_penalty": 2}]
        narrow = [{**hot, "top_k": 1}, {**hot, "top_p": 1e-6}, {**hot, "min_p": 1}]
        plain, forced, *others = together([lambda m=m: ids(**m) for m in [{}, {"logit_bias": {"300": 100}}, *changes, *narrow]])
        self.assertEqual(forced, [300] * 14)
        for more, other in zip(changes + narrow, others):
            with self.subTest(**more):
                (self.assertNotEqual if more in changes else self.assertEqual)(other, plain)

    def test_a_client_that_leaves_frees_its_pages(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                before = self.server.metric("generated_tokens_total")
                s = client.Stream(self.port, CHAT, self.long_body(mode=mode, stream=True), timeout=60 * SLOW)
                events = s.events()
                for _ in range(3):
                    next(events)
                self.assertGreater(self.server.metric("kv_pages", state="used"), 0)
                s.close()
                self.server.wait_idle(2)
                self.assertLess(self.server.metric("generated_tokens_total") - before, self.max_context() - 200)
        self.assert_alive()

    def test_numbers_of_the_device(self):
        m, status = self.server.metrics(), self.get("/status").json
        weights = self.server.metric("weights_bytes", m, copy="resident")
        self.assertLess(abs(self.server.metric("memory_bytes", m, category="weights") - weights), 0.01 * weights)
        self.assertEqual((status["weights"]["type"], status["weights"]["bytes"]), ("bf16", weights))
        self.assertEqual(status["kv_pages"]["type"], "bf16")
        memory = status["memory"]
        self.assertEqual({dict(labels)["category"]: v for (n, labels), v in m.items() if n == "trimode_memory_bytes"},
                         memory["categories"])
        self.assertEqual(memory["total"], 2048 * MIB)
        self.assertEqual(memory["free"], memory["total"] - sum(memory["categories"].values()))
        # Two vectors of 64 bf16 for each of 2 heads and 6 layers a position.
        self.assertEqual(memory["categories"]["kv"], status["kv_pages"]["total"] * 16 * 2 * 64 * 2 * 2 * 6)
        for answer in (status, self.get("/version").json):
            self.assertEqual((answer["backend"], answer["backend_reason"]), ("cuda", None))
            self.assertRegex(answer["backend_description"], "emulated.*compute capability 9.0.*2.0 GiB.*deterministic")


@needs_module
class Opening(unittest.TestCase):
    def test_ready_after_the_warm_up_with_the_memory_that_is_left(self):
        total = 286 * 1000 * 1000
        flags = (*cuda_flags("auto"), "--weights", "fp8", "--kv-type", "fp8")
        with Server(*flags, env={"TRIMODE_TEST_GPU_MEMORY": str(total)}, ready=False) as s:
            reasons, first = set(), None
            while True:
                answer = client.request(s.port, "GET", "/ready", timeout=10 * SLOW)
                if answer.status == 200:
                    break
                self.assertEqual((answer.status, answer.json["status"]), (503, "loading"), s.log())
                reasons.add(answer.json["reason"])
                first = first or client.request(s.port, "POST", CHAT, Case.chat_body(QUESTION), timeout=10 * SLOW)
                self.assertTrue(s.alive(), s.log())
                time.sleep(0.05)
            self.assertGreater(len(reasons), 3, "the warm-up shows no progress")
            self.assertEqual(first.status, 503, first)
            self.assertEqual(client.request(s.port, "GET", "/version").json["backend"], "cuda", "auto did not take it")
            status = client.request(s.port, "GET", "/status").json
            memory, kept = status["memory"], RESERVE + total // 50
            page = 16 * 2 * 6 * 2 * (64 + 4)  # positions, keys and values, layers, heads, elements and a scale
            self.assertEqual((status["weights"]["type"], status["kv_pages"]["type"]), ("fp8", "fp8"))
            self.assertEqual(memory["categories"]["kv"], status["kv_pages"]["total"] * page)
            self.assertLess(memory["categories"]["weights"], 0.6 * status["weights"]["file_bytes"])
            self.assertEqual(memory["total"], total)
            self.assertLess(status["kv_pages"]["total"], 128, "there was room for all that one sequence can use")
            self.assertEqual(status["max_context"], status["kv_pages"]["total"] * 16)
            self.assertTrue(kept <= memory["free"] < kept + page, f"{memory} but {kept} are to be kept, pages have {page}")
            self.assertEqual(s.log().count(" memory: weights "), 1, s.log())
            answer = client.request(s.port, "POST", CHAT, Case.chat_body(QUESTION), timeout=60 * SLOW).json
            self.assertEqual(answer["choices"][0]["message"]["content"], ANSWER)

    def test_a_plan_that_does_not_fit_is_refused_with_its_numbers(self):
        weights = r"the weights need \d+\.\d+ GiB, but 0\.20 of .* 0\.20 GiB are free and 0\.25 are kept back"
        store = r"the KV store needs \d+\.\d+ GiB, but \d+\.\d+ of .* 0\.28 GiB .*weights 0\.01, activations 0\.\d+"
        for memory, words in ((200 * MIB, weights), (290 * MIB, store)):
            with self.subTest(memory=memory):
                r = trimode("generate", *cuda_flags()[:4], QUESTION, TRIMODE_TEST_GPU_MEMORY=str(memory))
                self.assertEqual((r.returncode, r.out), (1, ""), r.err)
                self.assertRegex(r.err, words)
                self.assertEqual(r.err.count("\n"), 1, r.err)
        r = trimode("serve", *cuda_flags(sequences=1024), "--kv-memory", "4GiB")
        self.assertEqual(r.returncode, 1, r.err)
        self.assertRegex(r.err, r"the KV store needs 4\.00 GiB, but 1\.\d\d of the cuda backend's 2\.00 GiB are free")

    def test_narrow_weights_and_keys_answer(self):
        for weights, kv in (("fp8", "fp8"), ("q4", "auto"), ("q4", "fp8"), ("f32", "auto")):
            with self.subTest(weights=weights, kv=kv):
                r = trimode("generate", *cuda_flags()[:4], "--weights", weights, "--kv-type", kv, "--temperature", "0",
                            "--max-tokens", "20", "--mode", "self_speculation", QUESTION)
                if weights == "f32":
                    self.assertEqual((r.returncode, r.out), (1, ""))
                    self.assertIn("does not take", r.err)
                else:
                    self.assertEqual((r.returncode, r.out.strip()), (0, ANSWER), r.err)


class NoModule(unittest.TestCase):
    def modules(self):
        yield "/nonexistent"
        if os.path.exists(MODULE):
            yield os.path.join(MODEL, "config.json")  # no library at all
        if os.path.exists(REAL_MODULE) and not os.path.exists("/dev/nvidiactl"):
            yield REAL_MODULE

    def test_auto_takes_the_cpu_and_says_why(self):
        for module in self.modules():
            with self.subTest(module=module), Server("--backend", "auto", env={"TRIMODE_CUDA_MODULE": module}) as s:
                version = client.request(s.port, "GET", "/version").json
                self.assertEqual(version["backend"], "cpu")
                self.assertTrue(version["backend_reason"])
                lines = [line for line in s.log().splitlines() if "backend cpu: " in line]
                self.assertEqual(len(lines), 1, s.log())
                self.assertIn(version["backend_reason"], lines[0])
                self.assertEqual(client.request(s.port, "GET", "/status").json["backend_reason"], version["backend_reason"])
                if module != REAL_MODULE:
                    self.assertIn(module, version["backend_reason"])

    @unittest.skipIf(os.path.exists("/dev/nvidiactl"), "there is a GPU")
    def test_nobody_pays_for_a_module_that_cannot_work(self):
        # The module brings a library of half a gigabyte along: without a driver it is not even opened.
        r = trimode("generate", QUESTION, "--backend", "auto", "--stats")
        self.assertEqual(r.returncode, 0, r.err)
        self.assertRegex(r.err, "backend cpu: (no NVIDIA driver here|there is no trimode-cuda.so)")

    def test_cuda_does_not_start(self):
        for module in self.modules():
            for command, args in (("serve", ()), ("generate", (QUESTION,))):
                with self.subTest(module=module, command=command):
                    r = trimode(command, "--backend", "cuda", "--cuda-module", module, *args)
                    self.assertEqual(r.returncode, 1, r.err)
                    lines = [line for line in r.err.splitlines() if "listening" not in line]
                    self.assertEqual(len(lines), 1, r.err)
                    self.assertRegex(lines[0], "cannot load the model .*: .")


@needs_module
class LostDevice(unittest.TestCase):
    SENTENCE = "device failure: graph_launch failed on demand"

    def test_requests_end_and_the_server_stops_with_status_1(self):
        # The warm-up launches about 40 passes, the requests want hundreds.
        s = Server(*cuda_flags(sequences=2), "--drain-timeout", "20", env={"TRIMODE_TEST_GPU_FAIL_AT": "70"}).start()
        self.addCleanup(s.kill)
        got, probes = {}, []

        def body(**fields):
            return Case.chat_body("Count from 3 to 14.", mode="ar", ignore_eos=True, max_tokens=500, **fields)

        def stream():
            events = got["stream"] = []
            try:
                with client.Stream(s.port, CHAT, body(stream=True), timeout=60 * SLOW) as answer:
                    for event in answer.events():
                        events.append(event)
                        if '"error"' in event:
                            probes.append(client.request(s.port, "GET", "/ready", timeout=10 * SLOW))
                            probes.append(client.request(s.port, "POST", CHAT, body(), timeout=10 * SLOW))
            except (client.BrokenStream, OSError) as e:
                got["end"] = e

        def whole(name):
            got[name] = client.request(s.port, "POST", CHAT, body(), timeout=60 * SLOW)

        threads = [threading.Thread(target=stream), threading.Thread(target=whole, args=("running",)),
                   threading.Thread(target=whole, args=("waiting",))]
        threads[0].start()
        # Two run at once: the stream must not be the one that waits.
        deadline = time.monotonic() + 60 * SLOW
        while not got.get("stream") and threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        for t in threads[1:]:
            t.start()
        for t in threads:
            t.join(60 * SLOW)
            self.assertFalse(t.is_alive(), "a request hangs")
        self.assertEqual(s.process.wait(20 * SLOW), 1, s.log())
        self.check_stream(got["stream"])
        for name in ("running", "waiting"):
            self.assertEqual(got[name].status, 500, got[name])
            self.assertIn(self.SENTENCE, got[name].json["error"]["message"])
        # The server is there for a moment only, so there may be no probe; but none may say that all is well.
        for probe in probes:
            self.assertEqual(probe.status, 503, probe)
        if probes:
            self.assertEqual(probes[0].json, {"status": "failed", "reason": self.SENTENCE})
        failures = [line for line in s.log().splitlines() if "the cuda backend failed" in line]
        self.assertEqual(len(failures), 1, s.log())
        self.assertIn(self.SENTENCE, failures[0])
        self.assertNotRegex(s.log(), "Sanitizer|runtime error:")

    def check_stream(self, events):
        """Tokens first, then one error object, then nothing."""
        chunks = [json.loads(e) for e in events if e != "[DONE]"]
        self.assertNotIn("[DONE]", events)
        self.assertGreater(len(chunks), 2, "it failed before the first token")
        self.assertEqual(["error" in c for c in chunks], [False] * (len(chunks) - 1) + [True])
        error = chunks[-1]["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertIn(self.SENTENCE, error["message"])
        self.assertEqual(error["type"], "server_error")

    def test_lost_in_the_warm_up(self):
        r = trimode("serve", *cuda_flags(), TRIMODE_TEST_GPU_FAIL_AT="5")
        self.assertEqual(r.returncode, 1, r.err)
        self.assertRegex(r.err, "cannot load the model .*: the first passes failed: " + re.escape(self.SENTENCE))
        self.assertNotRegex(r.err, "Sanitizer|runtime error:")

    def test_lost_in_a_generation(self):
        r = trimode("generate", *cuda_flags()[:4], "--mode", "ar", QUESTION, TRIMODE_TEST_GPU_FAIL_AT="8")
        self.assertEqual(r.returncode, 1, r.err)
        self.assertEqual(r.err, f"trimode: the model failed: {self.SENTENCE}\n")
