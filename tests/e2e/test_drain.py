"""SIGTERM under load: what runs is finished, what is new is sent away politely, the process ends with status 0."""
import signal
import subprocess
import threading
import time
import unittest

import client
from case import CHAT, SLOW, Case
from server import Server


def body(max_tokens, **fields):
    return Case.chat_body("Count from 3 to 14.", mode="ar", ignore_eos=True, max_tokens=max_tokens, **fields)


class Drain(unittest.TestCase):
    def start(self, *flags):
        s = Server(*flags).start()
        self.addCleanup(s.kill)
        return s

    def term(self, s):
        s.signal(signal.SIGTERM)
        end = time.monotonic() + 3 * SLOW
        while time.monotonic() < end:
            if client.request(s.port, "GET", "/ready", timeout=5 * SLOW).status == 503:
                return
            time.sleep(0.005)
        self.fail("/ready did not change after SIGTERM")

    def many(self, s, count, max_tokens):
        """Starts that many streams and returns (threads, results)."""
        results = [None] * count

        def one(i):
            with client.Stream(s.port, CHAT, body(max_tokens, stream=True), timeout=60 * SLOW) as stream:
                results[i] = client.collect(stream.events())

        threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for t in threads:
            t.start()
        s.wait_busy(count)
        return threads, results

    def test_running_requests_finish_and_new_ones_get_503(self):
        s = self.start("--drain-timeout", str(30 * SLOW))
        threads, results = self.many(s, 8, 600)
        self.term(s)
        for path, b in ((CHAT, body(2)), ("/v1/completions", {"model": "nano", "prompt": "Hi", "max_tokens": 1})):
            answer = client.request(s.port, "POST", path, b, timeout=5 * SLOW)
            self.assertEqual(answer.status, 503, answer)
            self.assertEqual(answer.json["error"]["code"], "server_is_overloaded")
            self.assertTrue(1 <= int(answer.headers["Retry-After"]) <= 60)
        answer = client.request(s.port, "GET", "/ready")
        self.assertEqual(answer.status, 503)
        self.assertIn(b"drain", answer.body.lower())
        self.assertEqual(client.request(s.port, "GET", "/health").status, 200)
        for t in threads:
            t.join(60 * SLOW)
        self.assertTrue(all(r is not None and r.finish[0] == "length" for r in results), "a running stream was cut")
        s.stop(10 * SLOW)

    def test_an_idle_server_stops_at_once(self):
        s = self.start()
        idle = client.connect(s.port)  # a keep-alive connection does not hold it up
        start = time.monotonic()
        s.stop(10)
        self.assertLess(time.monotonic() - start, 2 * SLOW)
        idle.close()

    def test_sigint_is_the_same(self):
        s = self.start()
        s.signal(signal.SIGINT)
        self.assertEqual(s.process.wait(10 * SLOW), 0, s.log())

    def test_drain_timeout_ends_what_still_runs(self):
        s = self.start("--drain-timeout", "1", "--max-sequences", "2")
        context = client.request(s.port, "GET", "/v1/models").json["data"][0]["max_model_len"]
        got = []

        def one():
            try:
                with client.Stream(s.port, CHAT, body(context - 200, stream=True), timeout=60) as stream:
                    got.append([e for e in stream.events()])
            except client.BrokenStream as e:
                got.append(e)

        threads = [threading.Thread(target=one) for _ in range(24)]  # 2 run, 22 wait: far more than a second's work
        for t in threads:
            t.start()
        s.wait_busy(2)
        start = time.monotonic()
        s.signal(signal.SIGTERM)
        code = s.process.wait(20 * SLOW)
        self.assertLess(time.monotonic() - start, 1 + 2 * SLOW)
        self.assertEqual(code, 0, s.log())
        for t in threads:
            t.join(10)
        self.assertEqual(len(got), 24)
        self.assertNotIn("Sanitizer", s.log())

    def test_second_signal_ends_at_once(self):
        s = self.start("--max-sequences", "1")
        context = client.request(s.port, "GET", "/v1/models").json["data"][0]["max_model_len"]
        sockets = []
        for _ in range(16):
            c = client.connect(s.port)
            c.sendall(client.post_bytes(CHAT, body(context - 200, stream=True)))
            sockets.append(c)
        s.wait_busy(1)
        self.term(s)
        self.assertIsNone(s.process.poll(), "nothing was left to drain")
        start = time.monotonic()
        s.signal(signal.SIGTERM)
        try:
            s.process.wait(10 * SLOW)
        except subprocess.TimeoutExpired:
            self.fail("the second signal was ignored")
        self.assertLess(time.monotonic() - start, 1 * SLOW)
        self.assertNotIn("Sanitizer", s.log())
        for c in sockets:
            c.close()

    def test_a_port_in_use_is_one_sentence(self):
        s = self.start()
        from server import BINARY, MODEL
        r = subprocess.run([BINARY, "serve", "--model", MODEL, "--port", str(s.port)], capture_output=True, timeout=30 * SLOW)
        self.assertNotEqual(r.returncode, 0)
        self.assertIn(str(s.port), r.stderr.decode())
        s.stop()
