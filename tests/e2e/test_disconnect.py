"""Clients that leave at every stage. Whatever they asked for is cancelled and every page is free within a second."""
import os
import random
import socket
import time

import client
from case import CHAT, MODES, SLOW, Case, together


class Disconnect(Case):
    def setUp(self):
        super().setUp()
        self.generated = self.server.metric("generated_tokens_total")

    def assert_cancelled(self, within=1.0):
        """Nothing is left, and the long answer was not written to its end."""
        self.server.wait_idle(within)
        self.assertLess(self.server.metric("generated_tokens_total") - self.generated, self.max_context() - 200)
        self.assert_alive()

    def send(self, body):
        s = client.connect(self.port)
        s.sendall(client.post_bytes(CHAT, body))
        return s

    def test_before_the_head_is_complete(self):
        for cut in (1, 10, 60):
            s = client.connect(self.port)
            s.sendall(client.post_bytes(CHAT, self.long_body())[:cut])
            s.close()
        self.assert_alive()

    def test_before_the_body_is_complete(self):
        data = client.post_bytes(CHAT, self.long_body())
        for leave in (socket.socket.close, client.reset):
            s = client.connect(self.port)
            s.sendall(data[:-20])
            time.sleep(0.05)
            leave(s)
        self.assert_cancelled()

    def test_right_after_sending(self):
        for leave in (socket.socket.close, client.reset):
            leave(self.send(self.long_body()))
            leave(self.send(self.long_body(stream=True)))
        time.sleep(0.2)
        self.assert_cancelled()

    def test_in_the_prompt(self):
        body = self.long_body(messages=[{"role": "user", "content": "river lamp " * (self.max_context() // 8)}], max_tokens=64)
        for stream in (False, True):
            s = self.send({**body, "stream": stream})
            time.sleep(0.01)
            s.close()
        time.sleep(0.1)
        self.server.wait_idle(1)
        self.assert_alive()

    def test_in_the_middle_of_a_stream(self):
        for mode in MODES:
            for leave in ("close", "reset"):
                with self.subTest(mode=mode, leave=leave):
                    before = self.server.metric("generated_tokens_total")
                    s = client.Stream(self.port, CHAT, self.long_body(mode=mode, stream=True))
                    events = s.events()
                    for _ in range(4):
                        next(events)
                    if leave == "reset":
                        s.file.close()
                        client.reset(s.socket)
                    else:
                        s.close()
                    self.server.wait_idle(1)
                    self.assertLess(self.server.metric("generated_tokens_total") - before, self.max_context() - 200)
        self.assert_alive()

    def test_waiting_for_a_whole_answer(self):
        for mode in MODES:
            for leave in (socket.socket.close, client.reset):
                with self.subTest(mode=mode, leave=leave.__name__):
                    before = self.server.metric("generated_tokens_total")
                    s = self.send(self.long_body(mode=mode))
                    self.server.wait_busy(1)
                    leave(s)
                    self.server.wait_idle(1)
                    self.assertLess(self.server.metric("generated_tokens_total") - before, self.max_context() - 200)

    def test_one_client_of_several_choices(self):
        s = client.Stream(self.port, CHAT, self.long_body(stream=True, n=4, max_tokens=200))
        next(s.events())
        s.close()
        self.server.wait_idle(1)

    def test_streams_that_were_left_keep_no_descriptor(self):
        # Symptom: left streams kept their descriptors for up to 75 s, as long as some older connection was idle.
        proc = f"/proc/{self.server.process.pid}/fd"
        with client.connect(self.port) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertTrue(idle.recv(9999).startswith(b"HTTP/1.1 200"))
            before = len(os.listdir(proc))
            for i in range(8):
                s = client.Stream(self.port, CHAT, self.long_body(stream=True))
                next(s.events())
                s.file.close()
                (client.reset if i % 2 else socket.socket.close)(s.socket)
            end = time.monotonic() + 2 * SLOW
            while len(os.listdir(proc)) > before and time.monotonic() < end:
                time.sleep(0.01)
            self.assertLessEqual(len(os.listdir(proc)), before)
        self.assert_cancelled()

    def test_half_close(self):
        # Sending no more is not leaving for some, leaving for others (nginx, Envoy); either way nothing hangs.
        s = self.send(self.chat_body("Count from 3 to 14.", max_tokens=8))
        s.shutdown(socket.SHUT_WR)
        s.settimeout(5 * SLOW)
        out = client.read_all(s)
        s.close()
        self.assertTrue(out == b"" or out.startswith(b"HTTP/1.1 "), out)
        self.server.wait_idle(1)
        self.assert_alive()

    def test_idle_connections_do_no_harm(self):
        idle = [client.connect(self.port) for _ in range(100)]
        self.assert_alive()
        for s in idle:
            s.close()
        self.assert_alive()

    def test_storm(self):
        r = random.Random(5)
        plans = [(MODES[i % 3], r.random() < 0.5, r.random() < 0.5, r.random() * 0.3) for i in range(60)]

        def one(mode, stream, hard, wait):
            s = self.send(self.long_body(mode=mode, stream=stream, max_tokens=300))
            time.sleep(wait)
            (client.reset if hard else socket.socket.close)(s)

        self.max_context()
        together([lambda p=p: one(*p) for p in plans], 32)
        self.server.wait_idle(1)
        self.assert_alive()

    def test_others_are_not_disturbed(self):
        expected = self.text("What is trimode?", mode="self_speculation")

        def leaver(i):
            s = self.send(self.long_body(mode=MODES[i % 3], stream=True))
            time.sleep(0.1)
            client.reset(s)

        calls = [lambda: self.text("What is trimode?", mode="self_speculation")] * 8
        got = together([c for i, call in enumerate(calls) for c in (call, lambda i=i: leaver(i))], 32)
        self.assertEqual({t for t in got if t is not None}, {expected})


class DisconnectInTheQueue(Case):
    flags = ("--max-sequences", "1", "--max-queue", "8")

    def test_while_queued(self):
        first = client.Stream(self.port, CHAT, self.long_body(stream=True))
        self.server.wait_busy(1)
        waiting = []
        for i in range(4):
            s = client.connect(self.port)
            s.sendall(client.post_bytes(CHAT, self.long_body(stream=bool(i % 2))))
            waiting.append(s)
        end = time.monotonic() + 3 * SLOW
        while self.server.busy()[1] != 4 and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(self.server.busy()[1], 4, "four requests should wait")
        for i, s in enumerate(waiting):
            (client.reset if i // 2 else socket.socket.close)(s)
        end = time.monotonic() + 1 * SLOW
        while self.server.busy()[1] and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(self.server.busy()[:2], (1, 0), "those who left still wait, or the running one was hit")
        first.close()
        self.server.wait_idle(1)
        self.assert_alive()
