"""/metrics: the format, the names that API.md promises, values that agree with each other."""
import shutil
import subprocess
import unittest

from case import MODES, Case, together

PROMISED = {
    "requests_running": "gauge", "requests_waiting": "gauge", "requests_total": "counter", "http_responses_total": "counter",
    "prompt_tokens_total": "counter", "generated_tokens_total": "counter",
    "forward_passes_total": "counter", "forward_rows": "histogram", "forward_seconds": "histogram",
    "tokens_per_forward": "histogram", "accepted_length": "histogram", "denoise_passes": "histogram",
    "wasted_rows_total": "counter", "mode_decisions_total": "counter", "mode_switches_total": "counter",
    "kv_pages": "gauge", "kv_usage_ratio": "gauge", "time_to_first_token_seconds": "histogram",
    "inter_token_seconds": "histogram", "queue_seconds": "histogram", "request_seconds": "histogram",
    "weights_bytes": "gauge", "memory_bytes": "gauge", "build_info": "gauge",
}


class Prometheus(Case):
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
        self.assertIn("used", states)
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
