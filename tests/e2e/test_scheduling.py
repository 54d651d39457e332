"""Who comes first when not everyone can run: priorities, keys that share the server, and time limits, waiting and running."""
import os
import tempfile
import threading
import time

import client
from case import CHAT, COMPLETIONS, SLOW, Case, shared_server, together


def wait_waiting(server, n):
    """Until n requests wait."""
    end = time.monotonic() + 10 * SLOW
    while server.metric("requests_waiting") < n:
        if time.monotonic() > end:
            raise AssertionError(f"{server.metric('requests_waiting'):.0f} requests wait, not {n}")
        time.sleep(0.005)


class OneSlot(Case):
    flags = ("--max-sequences", "1")

    def hold(self):
        """Takes the only slot for three long answers; returns a function that waits for the end."""
        body = self.long_body(n=3)
        thread = threading.Thread(target=self.post, args=(CHAT, body))
        thread.start()
        self.server.wait_busy()
        return thread.join

    def test_a_higher_priority_starts_first(self):
        join, waited = self.hold(), {}

        def one(priority):
            waited[priority] = self.ask("Count from 3 to 14.", priority=priority, max_tokens=40)["trimode"]["queue_ms"]

        threads = []
        for priority in (5, 1, -5):
            threads.append(threading.Thread(target=one, args=(priority,)))
            threads[-1].start()
            wait_waiting(self.server, 2 + len(threads))
        for t in threads:
            t.join()
        join()
        self.assertLess(waited[-5], waited[1])  # whoever came last started first
        self.assertLess(waited[1], waited[5])

    def test_priority_on_both_endpoints_and_its_range(self):
        self.assertEqual(self.ask("Hi", priority=-1000, max_tokens=1)["usage"]["completion_tokens"], 1)
        for path, field in ((CHAT, {"messages": [{"role": "user", "content": "Hi"}]}), (COMPLETIONS, {"prompt": "Hi"})):
            answer = self.post(path, {**field, "max_tokens": 1, "priority": 3})
            self.assertEqual((answer.status, answer.headers.get("x-trimode-ignored")), (200, None), answer)
            for bad in (1001, -1001, 0.5, "1", True):
                self.assert_error(self.post(path, {**field, "max_tokens": 1, "priority": bad}), 400, param="priority")

    def test_a_time_limit_ends_who_waits(self):
        join = self.hold()
        start = time.monotonic()
        answer = self.post(CHAT, self.chat_body("Hi", timeout_ms=60, max_tokens=1))
        seconds = time.monotonic() - start
        self.assert_error(answer, 504, "request_timeout")
        self.assertEqual(self.server.metric("requests_running"), 1)  # nobody made room for it
        self.assertGreater(seconds, 0.055)
        join()

    def test_a_time_limit_ends_who_runs(self):
        before = self.server.metric("requests_total", finish_reason="timeout") or 0
        answer = self.post(CHAT, self.long_body(n=20, timeout_ms=100))
        self.assert_error(answer, 504, "request_timeout")
        with client.Stream(self.port, CHAT, self.long_body(n=20, stream=True, timeout_ms=100), timeout=60 * SLOW) as s:
            events = []
            with self.assertRaises(client.BrokenStream):  # an error ends it without the closing chunk
                for event in s.events():
                    events.append(event)
        self.assertIn("request_timeout", events[-1])
        self.server.wait_idle(1)
        self.assertGreaterEqual(self.server.metric("requests_total", finish_reason="timeout"), before + 2)


class TwoKeys(Case):
    folder = None

    def setUp(self):
        if self.folder is None:
            type(self).folder = tempfile.TemporaryDirectory(prefix="trimode-e2e-")
            with open(os.path.join(self.folder.name, "keys"), "w", encoding="utf-8") as f:
                f.write("small\nbig\n")
        self.server = shared_server(("--max-sequences", "2", "--api-key-file", os.path.join(self.folder.name, "keys")))
        self.port = self.server.port

    def one(self, key, max_tokens):
        body = self.chat_body("Count from 3 to 14.", mode="ar", ignore_eos=True, max_tokens=max_tokens)
        answer = self.post(CHAT, body, {"Authorization": f"Bearer {key}"})
        self.assertEqual(answer.status, 200, answer)
        return answer.json["choices"][0]["message"]["content"]

    def test_a_key_with_many_requests_does_not_keep_another_one_waiting(self):
        alone = self.one("small", 40)
        done = []

        def big():
            done.append(self.one("big", 400))

        def small():
            wait_waiting(self.server, 20)
            before = len(done)
            text = self.one("small", 40)
            return text, len(done) - before

        results = together([small] + [big] * 30)
        text, others = results[0]
        self.assertEqual(text, alone)
        self.assertLess(others, 6)  # in turn with the others it would have come after more than twenty
        self.assertEqual(len(set(done)), 1)  # whoever gave way wrote the same in the end
        self.assertEqual(len(done), 30)
        self.assertGreater(self.server.metric("preemptions_total"), 0)
        self.assertIsNotNone(self.server.metric("wasted_rows_total", reason="preempted"))
