"""/metrics: the format, the names that API.md promises, values that agree with each other."""
import random
import shutil
import subprocess
import time
import unittest

import client
from case import CHAT, COMPLETIONS, MODES, SLOW, Case, prompts, together

PROMISED = {
    "requests_running": "gauge", "requests_waiting": "gauge", "requests_total": "counter", "http_responses_total": "counter",
    "prompt_tokens_total": "counter", "cached_prompt_tokens_total": "counter", "prefix_cache_queries_total": "counter",
    "prefix_cache_hits_total": "counter", "generated_tokens_total": "counter",
    "forward_passes_total": "counter", "forward_rows": "histogram", "forward_seconds": "histogram",
    "tokens_per_forward": "histogram", "accepted_length": "histogram", "denoise_passes": "histogram",
    "wasted_rows_total": "counter", "mode_decisions_total": "counter", "mode_switches_total": "counter",
    "preemptions_total": "counter", "kv_pages": "gauge", "kv_usage_ratio": "gauge", "predicted_step_error_ratio": "gauge",
    "time_to_first_token_seconds": "histogram",
    "inter_token_seconds": "histogram", "queue_seconds": "histogram", "request_seconds": "histogram",
    "weights_bytes": "gauge", "memory_bytes": "gauge", "build_info": "gauge",
}


class Prometheus(Case):
    flags = ("--calibration", "auto")  # the error ratio is there only with a cost model

    def setUp(self):
        super().setUp()
        together([lambda m=m: self.text("Count from 3 to 14.", mode=m) for m in MODES])
        answer = self.get("/metrics")
        self.assertRegex(answer.headers["Content-Type"], r"^text/plain; version=0\.0\.4")
        self.page = answer.body.decode("utf-8")

    @unittest.skipUnless(shutil.which("promtool"), "promtool is not installed")
    def test_promtool_finds_nothing(self):
        r = subprocess.run(["promtool", "check", "metrics"], input=self.page.encode(), capture_output=True, timeout=60)
        self.assertEqual((r.returncode, r.stdout + r.stderr), (0, b""))

    def test_promised_names_and_types(self):
        types = dict(line.split()[2:4] for line in self.page.splitlines() if line.startswith("# TYPE "))
        helps = {line.split()[2] for line in self.page.splitlines() if line.startswith("# HELP ")}
        for name, kind in PROMISED.items():
            with self.subTest(name=name):
                self.assertEqual(types.get("trimode_" + name), kind)
                self.assertIn("trimode_" + name, helps)

    def test_histograms_add_up(self):
        m = self.server.metrics()
        for name in [n for n, kind in PROMISED.items() if kind == "histogram"]:
            full = "trimode_" + name
            groups = {}
            for (n, labels), value in m.items():
                rest = tuple(kv for kv in labels if kv[0] != "le")
                if n == full + "_bucket":
                    groups.setdefault(rest, []).append((float(dict(labels)["le"]), value))
            with self.subTest(name=name):
                for rest, buckets in groups.items():
                    buckets.sort()
                    self.assertEqual(buckets[-1][0], float("inf"))
                    counts = [c for _, c in buckets]
                    self.assertEqual(counts, sorted(counts), "buckets are cumulative")
                    self.assertEqual(counts[-1], m[(full + "_count", rest)])
                    self.assertGreaterEqual(m[(full + "_sum", rest)], 0)

    def test_counters_never_fall(self):
        before = self.server.metrics()
        self.text("What is 12 + 30?")
        after = self.server.metrics()
        for key, value in before.items():
            if key[0].endswith(("_total", "_count", "_bucket")):
                self.assertGreaterEqual(after[key], value, key)

    def test_pages_and_weights(self):
        m = self.server.metrics()
        states = {dict(labels)["state"] for (n, labels) in m if n == "trimode_kv_pages"}
        self.assertEqual(states, {"used", "cached", "free"})
        self.assertGreater(self.server.metric("weights_bytes", m), 0)
        # What the backend counts as weights is the checkpoint, but for rounding up.
        weights, file = self.server.metric("memory_bytes", m, category="weights"), self.server.metric("weights_bytes", m, copy="file")
        self.assertLess(abs(weights - file), 0.01 * file)
        self.assertGreater(self.server.metric("memory_bytes", m, category="kv"), 0)
        self.assertEqual(self.server.metric("kv_usage_ratio", m), 0)
        self.assertEqual(self.server.metric("build_info", m), 1)

    def test_names_of_paths_are_few(self):
        # A path that a client made up must not become a label.
        for i in range(20):
            self.get(f"/made/up/{i}")
        self.assertNotIn("/made/up/", self.get("/metrics").body.decode())

    def test_names_of_models_are_not_the_clients(self):
        self.post("/v1/chat/completions", self.chat_body("Hi", model="made-up-model"))
        self.assertNotIn("made-up-model", self.get("/metrics").body.decode())


class Sums(Case):
    """Few sequences, rows and pages, so that requests wait, are cut into pieces and are preempted."""

    flags = ("--metrics-names", "both", "--max-sequences", "6", "--max-step-rows", "96", "--page-size", "4")

    def one(self, i):
        """One request of a random kind: ("whole", usage, trimode), or ("left",) when the client left in the middle."""
        dice = random.Random(i)
        path = dice.choice((CHAT, COMPLETIONS))
        body = {"model": "nano", "max_tokens": dice.choice((1, 2, 9, 40, 90)), "mode": dice.choice(("auto", *MODES)),
                "block_length": dice.choice((4, 8, 16, 32)), "temperature": dice.choice((0, 0.8)), "seed": i,
                "ignore_eos": dice.random() < 0.5}
        if path == CHAT:
            body["messages"] = [{"role": "user", "content": dice.choice(prompts(16))}]
        else:
            body["prompt"] = dice.choice(prompts(16)) * dice.choice((1, 12))
        kind = dice.choice(("whole", "stream", "left"))
        if kind == "whole":
            r = self.post(path, body)
            self.assertEqual(r.status, 200, r)
            return kind, r.json["usage"], r.json["trimode"]
        body |= {"stream": True, "stream_draft": dice.random() < 0.5, "stream_options": {"include_usage": True}}
        with client.Stream(self.port, path, body, timeout=60 * SLOW) as s:
            self.assertEqual(s.status, 200)
            if kind == "left":
                return (kind,)
            events = (e for e in s.events() if '"trimode.draft"' not in e)
            r = client.collect(events, chat=path == CHAT, include_usage=True)
            return "whole", r.usage, r.trimode

    def test_families_agree_after_a_random_load_with_cancels(self):
        before = self.server.metrics()
        done = together([lambda i=i: self.one(i) for i in range(90)], workers=24)
        self.server.wait_idle(5)
        end = time.monotonic() + SLOW  # the engine's counters may be ahead of the server's by one hand-over
        while (self.server.metric("requests_total") or 0) < 90 and time.monotonic() < end:
            time.sleep(0.01)
        after = self.server.metrics()

        def grown(name, prefix="trimode_", **labels):
            return sum(v - before.get((n, ls), 0) for (n, ls), v in after.items()
                       if n == prefix + name and labels.items() <= dict(ls).items())

        whole = [r for r in done if r[0] == "whole"]
        self.assertTrue(20 < len(whole) < 90)
        requests = grown("requests_total")
        self.assertEqual(requests, 90)
        self.assertGreater(grown("requests_total", finish_reason="cancelled"), 0)
        for mode in ("auto", *MODES):
            self.assertEqual(grown("request_seconds_count", mode=mode), grown("requests_total", mode=mode), mode)
            self.assertEqual(grown("queue_seconds_count", mode=mode), grown("requests_total", mode=mode), mode)
        # Whoever got a mode was decided, once.
        self.assertEqual(grown("mode_decisions_total"), requests - grown("requests_total", mode="auto"))
        self.assertTrue(len(whole) <= grown("time_to_first_token_seconds_count") <= 90)
        # What clients saw is in the counters; those who left account for the rest.
        tokens = sum(u["completion_tokens"] for _, u, _ in whole)
        self.assertGreaterEqual(grown("generated_tokens_total"), tokens)
        self.assertGreaterEqual(grown("prompt_tokens_total"), sum(u["prompt_tokens"] for _, u, _ in whole))
        for name in ("drafted_tokens", "accepted_tokens"):
            self.assertGreaterEqual(grown(name + "_total"), sum(t[name] for _, _, t in whole))
        self.assertGreaterEqual(grown("forward_passes_total", kind="denoise"), sum(t["denoise_passes"] for _, _, t in whole))
        # Each family against the others.
        self.assertEqual(grown("forward_rows_count"), grown("forward_steps_total"))
        self.assertEqual(grown("forward_seconds_count"), grown("forward_steps_total"))
        self.assertEqual(grown("accepted_length_count"), grown("forward_passes_total", kind="verify"))
        self.assertLessEqual(grown("denoise_passes_sum"), grown("forward_passes_total", kind="denoise"))
        # The other names are the same numbers.
        for theirs, ours in (("request_success_total", "requests_total"), ("prompt_tokens_total", "prompt_tokens_total"),
                             ("generation_tokens_total", "generated_tokens_total"),
                             ("num_preemptions_total", "preemptions_total"),
                             ("spec_decode_num_draft_tokens_total", "drafted_tokens_total"),
                             ("time_to_first_token_seconds_count", "time_to_first_token_seconds_count"),
                             ("inter_token_latency_seconds_count", "inter_token_seconds_count"),
                             ("e2e_request_latency_seconds_count", "request_seconds_count"),
                             ("request_generation_tokens_sum", "generated_tokens_total")):
            self.assertEqual(grown(theirs, "vllm:"), grown(ours), theirs)
