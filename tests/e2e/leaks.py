#!/usr/bin/env python3
"""Kills clients at random and looks whether the server lost anything: scripts/check_leaks.sh, and shortly test_leaks.py.

Rounds of a few seconds: clients of every kind come and go (whole answers, streams, half requests, silent and slow readers, several
choices, timeouts; closed politely or by reset) on a server whose pages are too few for all of them. After each round everything
must be as it was: nothing runs or waits, no page is used, pages add up, every request has been counted once, file descriptors,
threads and resident memory do not grow, and the answers are still the right ones.
"""
import argparse
import concurrent.futures
import os
import random
import socket
import sys
import time

import client
from case import CHAT, COMPLETIONS, MODES, SLOW, prompts
from server import Server

# Pages for one of the longest requests; 24 want them.
FLAGS = ("--max-context", "512", "--kv-memory", "4MiB", "--max-sequences", "24", "--log-level", "warn")
# ASan keeps what is freed; that must not look like a leak. A little of it still finds every use after free of these tests.
ENV = {"ASAN_OPTIONS": ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), "quarantine_size_mb=4:thread_local_quarantine_size_kb=64")))}
MIB = 1 << 20
GROWTH = 8 * MIB  # of resident memory after the first rounds: what allocators keep is bounded, a leak is not
WARM_UP = 2  # rounds
# libmicrohttpd 0.9.75 takes the end of a connection for read when it came together with the beginning of a request, and so learns
# of it only by the server's idle timeout of 75 s. Nothing but the descriptor waits with it.
LINGER = 80


class Leak(AssertionError):
    pass


def expect(what, got, wanted):
    if got != wanted:
        raise Leak(f"{what}: {got}, not {wanted}")


class Storm:
    """One server and everything that is known of what it was asked."""

    def __init__(self, server, seed):
        self.server, self.seed = server, seed
        self.random = random.Random(seed)
        self.certain = self.unknown = 0  # generations that were started; those that may have been
        self.kinds = {}
        self.rounds = 0
        self.memory = []  # resident bytes after each round
        self.half_sent = []  # when rounds with how many half requests ended
        self.answers = self.known_answers()
        self.server.wait_idle(3)
        time.sleep(0.3 * SLOW)  # the last connection is still being closed
        self.resting = self.process()  # descriptors and threads of the idle server
        self.base = self.total()
        self.pages = self.server.metric("kv_pages")

    # ---- what is asked ----

    def known_answers(self):
        """[(body, text)]: requests in every mode and their answers, each asked for alone."""
        out = []
        for i, prompt in enumerate(prompts(16)):
            body = {"model": "nano", "messages": [{"role": "user", "content": prompt}], "max_tokens": 48, "seed": i,
                    "temperature": (0, 0.8)[i // 4 % 2], "mode": ("auto", *MODES)[i % 4]}
            if i % 4 > 1:
                body["block_length"] = (4, 8, 16, 32)[i // 4]
            answer = client.request(self.server.port, "POST", CHAT, body, timeout=60 * SLOW)
            assert answer.status == 200, answer
            out.append((body, answer.json["choices"][0]["message"]["content"]))
        return out

    @staticmethod
    def long_body(r, stream):
        """A request that is far from its end when its client leaves; most share a beginning."""
        body = {"model": "nano", "mode": r.choice(("auto", *MODES)), "max_tokens": r.choice((40, 150, 300)), "ignore_eos": True,
                "temperature": r.choice((0, 0.9)), "seed": r.randrange(1000), "n": r.choice((1, 1, 1, 2, 3)),
                "stream": stream, "messages": [{"role": "user", "content": "river lamp " * r.choice((1, 8, 30)) + str(r.randrange(9))}]}
        if r.random() < 0.3:
            body["block_length"] = r.choice((4, 8, 16, 32))
        if r.random() < 0.2:
            body["timeout_ms"] = r.choice((5, 50, 500))
        if r.random() < 0.2:
            body["cache_salt"] = r.choice(("one", "two"))
        if stream:
            body["stream_draft"] = r.random() < 0.3
        return body

    # ---- the clients ----

    @staticmethod
    def leave(r, s):
        """Returns whether the server has certainly read what was sent: a reset overtakes it."""
        hard = r.random() < 0.5
        (client.reset if hard else socket.socket.close)(s)
        return not hard

    def patient(self, r):
        """Stays to the end and gets its answer."""
        body, text = r.choice(self.answers)
        if r.random() < 0.5:
            with client.Stream(self.server.port, CHAT, {**body, "stream": True}, timeout=60 * SLOW) as s:
                got = client.collect(s.events()).text
        else:
            got = client.request(self.server.port, "POST", CHAT, body, timeout=60 * SLOW).json["choices"][0]["message"]["content"]
        if got != text:
            raise Leak(f"{body} was answered {got!r}, not {text!r}")
        return 1, 0

    def half_sender(self, r):
        """Sends a part of its request, waits and leaves: never a generation."""
        data = client.post_bytes(CHAT, self.long_body(r, r.random() < 0.5))
        s = client.connect(self.server.port)
        s.sendall(data[:r.randrange(len(data))])
        time.sleep(r.random() * 0.5)
        self.leave(r, s)
        return 0, 0

    def leaver(self, r):
        """Sends all of it and leaves, at once or while it waits."""
        body = self.long_body(r, r.random() < 0.5)
        s = client.connect(self.server.port)
        s.sendall(client.post_bytes(CHAT, body))
        time.sleep(r.choice((0, 0, r.random() * 0.05, r.random() * 0.5)))
        return (body["n"], 0) if self.leave(r, s) else (0, body["n"])

    def stream_leaver(self, r):
        """Reads some of a stream."""
        body = {**self.long_body(r, True), "timeout_ms": 60000 * SLOW}
        s = client.Stream(self.server.port, CHAT, body, timeout=60 * SLOW)
        for _, _event in zip(range(r.randrange(1, 30)), s.events()):
            pass
        s.file.close()
        self.leave(r, s.socket)
        return body["n"], 0

    def slow_reader(self, r):
        """Reads a few bytes now and then from a stream of many, or nothing at all, and leaves."""
        body = {**self.long_body(r, True), "logprobs": True, "top_logprobs": 20, "timeout_ms": 60000 * SLOW}
        s = client.connect(self.server.port, receive_buffer=2048)
        s.sendall(client.post_bytes(CHAT, body))
        began = False
        for _ in range(r.randrange(4)):
            began = bool(s.recv(256)) or began
            time.sleep(r.random() * 0.2)
        time.sleep(r.random() * 0.5)
        read = self.leave(r, s)
        return (body["n"], 0) if began or read else (0, body["n"])

    def half_closer(self, r):
        """Says that it will send no more and reads what comes."""
        body = self.long_body(r, r.random() < 0.5)
        s = client.connect(self.server.port, timeout=60 * SLOW)
        s.sendall(client.post_bytes(CHAT, body, ["Connection: close"]))
        s.shutdown(socket.SHUT_WR)
        client.read_all(s)
        s.close()
        return body["n"], 0

    def refused(self, r):
        """Asks for what is not allowed."""
        body = {"model": "nano", "prompt": "a", "max_tokens": -1} if r.random() < 0.5 else b"{\"prompt\": "
        status = client.request(self.server.port, "POST", COMPLETIONS, body, timeout=60 * SLOW).status
        expect("status of a bad request", status, 400)
        return 0, 0

    def short_of_time(self, r):
        """Waits for an answer that its own time limit may cut."""
        body = {**self.long_body(r, False), "timeout_ms": r.choice((1, 10, 100))}
        status = client.request(self.server.port, "POST", CHAT, body, timeout=60 * SLOW).status
        if status not in (200, 504):
            raise Leak(f"{body} was answered {status}")
        return body["n"], 0

    def one(self, number):
        r = random.Random(self.seed * 1000003 + number)
        kind = r.choices((self.patient, self.half_sender, self.leaver, self.stream_leaver, self.slow_reader, self.half_closer,
                          self.refused, self.short_of_time), (4, 3, 5, 6, 3, 1, 1, 1))[0]
        try:
            return kind.__name__, *kind(r)
        except (OSError, client.BrokenStream, StopIteration) as e:
            raise Leak(f"{kind.__name__} {number}: {type(e).__name__} {e}") from e

    # ---- a round ----

    def round(self, seconds, clients=32):
        """Clients come and go for that long; then all have left, and the server is looked at."""
        end, first, results = time.monotonic() + seconds, self.random.randrange(1 << 40), []

        def keep_coming(k):
            number = first + k
            while time.monotonic() < end:
                results.append(self.one(number))
                number += clients

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            for f in [pool.submit(keep_coming, k) for k in range(clients)]:
                f.result(timeout=seconds + 120 * SLOW)
        for kind, certain, unknown in results:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
            self.certain += certain
            self.unknown += unknown
        self.half_sent.append((time.monotonic(), sum(kind == "half_sender" for kind, _, _ in results)))
        self.rounds += 1
        self.check()

    def total(self, metrics=None):
        return self.server.metric("requests_total", metrics) or 0

    def check(self):
        """Everything that must be as before."""
        if not self.server.alive():
            raise Leak(f"the server died:\n{self.server.log()[-6000:]}")
        self.server.wait_idle(3)
        m = self.server.metrics()
        self.check_counts(m)
        expect("pages in all", self.server.metric("kv_pages", m), self.pages)
        status = client.request(self.server.port, "GET", "/status", timeout=20 * SLOW).json
        expect("/status: requests", status["requests"], [])
        expect("/status: waiting", status["waiting"], 0)
        expect("/status: running", sum(status["running"].values()), 0)
        expect("/status: pages used", status["kv_pages"]["used"], 0)
        expect("/status: pages cached", status["kv_pages"]["cached"], self.server.metric("kv_pages", m, state="cached"))
        for body, text in self.answers[:4]:  # one in each mode
            got = client.request(self.server.port, "POST", CHAT, body, timeout=60 * SLOW).json["choices"][0]["message"]["content"]
            expect(f"the answer to {body}", got, text)
        self.certain += 4
        self.check_process()

    def check_counts(self, m):
        """Each generation that was started has ended once, in every family that counts it."""
        count = self.total(m) - self.base
        if not self.certain <= count <= self.certain + self.unknown:
            raise Leak(f"requests_total grew by {count:.0f}; {self.certain} to {self.certain + self.unknown} were started")
        for family in ("request_seconds_count", "queue_seconds_count"):
            expect(family, self.server.metric(family, m), self.total(m))
        decided = self.server.metric("mode_decisions_total", m)
        undecided = self.server.metric("requests_total", m, mode="auto") or 0  # ended in the queue
        expect("decisions and those who never got one", decided + undecided, self.total(m))

    def process(self):
        """Descriptors and threads now."""
        proc = f"/proc/{self.server.process.pid}"
        return len(os.listdir(proc + "/fd")), len(os.listdir(proc + "/task"))

    def wait_for_rest(self, seconds, lingering=0):
        """Descriptors and threads are those of the idle server; so many more descriptors may linger."""
        end = time.monotonic() + seconds
        while True:
            (descriptors, threads), (few, same) = self.process(), self.resting
            if descriptors <= few + lingering and threads == same:
                return
            if time.monotonic() > end:
                raise Leak(f"{descriptors} descriptors and {threads} threads, not {few} (and {lingering} of half requests) and {same}")
            time.sleep(0.02)

    def check_process(self):
        """Descriptors and threads are as before; memory has not grown since the first rounds."""
        now = time.monotonic()
        self.wait_for_rest(3 * SLOW, sum(n for when, n in self.half_sent if when > now - LINGER))
        proc = f"/proc/{self.server.process.pid}"
        with open(proc + "/statm", encoding="ascii") as f:
            self.memory.append(int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        growth = self.memory[-1] - self.memory[min(WARM_UP, len(self.memory)) - 1]
        if growth > GROWTH:
            raise Leak(f"resident memory grew by {growth / MIB:.1f} MiB: {[round(b / MIB, 1) for b in self.memory]}")

    def summary(self):
        descriptors, threads = self.process()
        m = self.server.metrics()
        count = {name: self.server.metric(name, m) for name in ("preemptions_total", "prefix_cache_hits_total",
                 "client_disconnects_total", "slow_readers_total")}
        ends = {}
        for (name, labels), value in m.items():
            if name == "trimode_requests_total":
                reason = dict(labels)["finish_reason"]
                ends[reason] = ends.get(reason, 0) + value
        warm = self.memory[min(WARM_UP, len(self.memory)) - 1]
        return (f"{self.rounds} rounds, clients {self.kinds}; generations {self.total(m) - self.base:.0f}, "
                f"certainly started {self.certain}, perhaps {self.unknown} more; ends {ends}; "
                + ", ".join(f"{v:.0f} {k[:-6]}" for k, v in count.items()) +
                f"; resident memory {warm / MIB:.1f} MiB after {min(WARM_UP, self.rounds)} rounds, at most {max(self.memory) / MIB:.1f}, "
                f"at the end {self.memory[-1] / MIB:.1f}; {descriptors} descriptors, {threads} threads")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="about how long (default: 120)")
    parser.add_argument("--round", type=float, default=4, help="seconds of a round (default: 4)")
    parser.add_argument("--clients", type=int, default=32, help="clients at once (default: 32)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    start = shown = time.monotonic()
    try:
        with Server(*FLAGS, env=ENV) as server:
            storm = Storm(server, args.seed)
            while time.monotonic() - start < args.seconds:
                storm.round(args.round, args.clients)
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    print(f"{shown - start:5.0f} s: {sum(storm.kinds.values())} clients, {storm.memory[-1] / MIB:.1f} MiB", flush=True)
            storm.wait_for_rest(LINGER + 10)
            print(storm.summary())
    except AssertionError as e:
        print(f"FAILED after {time.monotonic() - start:.0f} s (seed {args.seed}): {e}")
        return 1
    print(f"no leak in {time.monotonic() - start:.0f} s: no request, page, descriptor, thread or memory was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
