"""auto with a cost model through the real server: its text is ar's while requests come and go, and it says what it does.

Which mode it takes depends on how fast this machine is at this moment, so nothing here asks for one: that is what
tests/engine/test_router.c (in simulated time) and scripts/check_router.sh (measured) are for.
"""
import re
import threading
import time

import client
from case import SLOW, Case, prompts, together

# "1 active request: blocks of 16 predicted 11750 tok/s in all against 9813 with ar, 5.9 tokens a block"
REASON = re.compile(r"^\d+ active requests?: .*\d.* tok/s|since blocks of \d+ would yield it only [0-9.]+ tokens each$")
CAUSES = {"requested", "default", "only_mode", "fastest", "poor_drafts", "auto_rows"}


class Router(Case):
    flags = ("--calibration", "auto")

    def test_text_is_that_of_ar_while_the_load_changes(self):
        some = prompts(24)
        alone = [self.text(p, mode="ar", ignore_eos=True) for p in some]
        long_fields = {"max_tokens": 1200, "ignore_eos": True}
        expected = self.text("Count from 3 to 14.", mode="ar", **long_fields)
        long = []
        thread = threading.Thread(target=lambda: long.append(self.stream("Count from 3 to 14.", stream_options={"include_usage": True},
                                                                         **long_fields)))
        thread.start()
        got = together([lambda p=p: self.text(p, ignore_eos=True) for p in some], len(some))
        thread.join(240 * SLOW)
        self.assertEqual(got, alone)
        self.assertEqual(long[0].text, expected)

    def test_the_answer_says_why_with_numbers(self):
        for fields in ({}, {"mode": "auto"}, {"mode": "auto", "block_length": 8}):
            t = self.ask("Count from 3 to 14.", **fields)["trimode"]
            self.assertRegex(t["reason"], REASON)
            self.assertEqual(t["timeline"][-1]["mode"], t["mode"])
            self.assertIn(t["mode"], ("ar", "self_speculation"))
            lengths = [span["block_length"] for span in t["timeline"] if span["mode"] == "self_speculation"]
            self.assertLessEqual(set(lengths), {8} if "block_length" in fields else {4, 8, 16, 32})

    def test_diffusion_only_where_it_is_allowed(self):
        for p in prompts(12):
            self.assertNotEqual(self.ask(p, lossless=True)["trimode"]["mode"], "diffusion")
            self.assertNotEqual(self.ask(p)["trimode"]["mode"], "diffusion")
            self.assertIn(self.ask(p, lossless=False)["trimode"]["mode"], ("ar", "diffusion", "self_speculation"))

    def test_status_shows_predicted_and_real_speed(self):
        streams = [client.Stream(self.port, "/v1/chat/completions", {**self.long_body(mode="auto"), "stream": True}) for _ in range(3)]
        try:
            end, seen = time.monotonic() + 10 * SLOW, []
            while time.monotonic() < end and not seen:
                seen = [d for r in self.get("/status").json["requests"] for d in r["decoding"] if d["tokens"] > 20]
            self.assertTrue(seen)
            for d in seen:
                self.assertGreater(d["predicted_tokens_per_second"], 0)
                self.assertGreater(d["tokens_per_second"], 0)
                self.assertRegex(d["reason"], REASON)
        finally:
            for s in streams:
                s.close()

    def test_decisions_are_counted_by_their_cause(self):
        before = self.server.metrics()
        for fields in ({"mode": "ar"}, {"mode": "diffusion"}, {}, {}):
            self.ask("What is 12 + 30?", **fields)
        self.server.wait_idle(1)
        after = self.server.metrics()

        def grown(**labels):
            name = "mode_decisions_total"
            return (self.server.metric(name, after, **labels) or 0) - (self.server.metric(name, before, **labels) or 0)

        self.assertEqual(grown(mode="ar", reason="requested"), 1)
        self.assertEqual(grown(mode="diffusion", reason="requested"), 1)
        self.assertEqual(grown(reason="fastest") + grown(reason="poor_drafts"), 2)
        self.assertEqual(sum(grown(reason=c) for c in CAUSES), 4)
