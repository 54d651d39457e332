"""Sixty-four clients at once in every mode: each gets the answer it would get alone, and nothing is left behind."""
from case import MODES, SLOW, Case, prompts, together

CLIENTS = 64


class Load(Case):
    def works(self):
        out = []
        for i, prompt in enumerate(prompts(20)):
            fields = {"mode": MODES[i % 3], "temperature": (0, 0.8)[i // 3 % 2], "seed": i, "max_tokens": (24, 40, 64)[i % 3]}
            if fields["mode"] != "ar":
                fields["block_length"] = (4, 8, 16, 32)[i % 4]
            out.append((prompt, fields))
        out.append(("Count from 3 to 14.", {"mode": "auto", "max_tokens": 64}))
        return out

    def test_answers_under_load_are_the_answers_alone(self):
        works = self.works()
        alone = [self.text(p, **f) for p, f in works]

        def one(i):
            prompt, fields = works[i % len(works)]
            return self.stream(prompt, **fields).text if i % 2 else self.text(prompt, **fields)

        got = together([lambda i=i: one(i) for i in range(CLIENTS)], CLIENTS)
        for i, text in enumerate(got):
            with self.subTest(client=i, work=works[i % len(works)]):
                self.assertEqual(text, alone[i % len(works)])
        self.server.wait_idle(1)
        m = self.server.metrics()
        self.assertEqual(self.server.metric("kv_pages", m, state="used"), 0)
        self.assertEqual(self.server.metric("requests_running", m), 0)

    def test_several_waves(self):
        expected = self.text("Count from 3 to 14.", mode="ar")
        for _ in range(3):
            texts = together([lambda i=i: self.text("Count from 3 to 14.", mode=MODES[i % 2 * 2]) for i in range(CLIENTS)], CLIENTS)
            self.assertEqual(set(texts), {expected})
            self.server.wait_idle(1)

    def test_more_than_the_sequences_wait_their_turn(self):
        # n multiplies: 8 clients x 8 choices x short prompts, more than fit at once.
        rs = together([lambda: self.ask("What is 12 + 30?", n=8, max_tokens=12, ignore_eos=True) for _ in range(8)])
        for r in rs:
            self.assertEqual(len({c["message"]["content"] for c in r["choices"]}), 1)
            self.assertEqual(r["usage"]["completion_tokens"], 96)

    def test_metrics_answer_quickly_under_load(self):
        import threading
        import time
        done = threading.Event()
        slow = []

        def scrape():
            while not done.is_set():
                start = time.monotonic()
                self.server.metrics()
                slow.append(time.monotonic() - start)
                time.sleep(0.05)

        t = threading.Thread(target=scrape)
        t.start()
        try:
            together([lambda i=i: self.text("What is trimode?", mode=MODES[i % 3], max_tokens=64) for i in range(32)], 32)
        finally:
            done.set()
            t.join()
        slow.sort()
        self.assertLess(slow[len(slow) // 2], 0.1 * SLOW)  # scrapers call data older than 200 ms stale
