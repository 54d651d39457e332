"""`trimode bench serve`: its numbers are those of the server's own counters, and a server that misbehaves is caught."""
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from case import MODES, SLOW, Case, prompts
from server import BINARY

TIMES = ("ttft_ms", "itl_ms", "e2e_ms")
KEYS = {"clients", "mode", "requests", "errors", "tok_s", "tokens_per_forward", "mode_share", *TIMES}


def bench(port, *flags):
    """(exit status, one object a level, stderr)"""
    r = subprocess.run([BINARY, "bench", "serve", "--url", f"http://127.0.0.1:{port}", "--json", *flags], capture_output=True,
                       timeout=240 * SLOW, stdin=subprocess.DEVNULL, text=True)
    assert "Sanitizer" not in r.stderr, r.stderr
    return r.returncode, [json.loads(line) for line in r.stdout.splitlines()], r.stderr


class BenchServe(Case):
    def levels(self, *flags):
        status, levels, err = bench(self.port, *flags)
        self.assertEqual((status, err), (0, ""))
        for level in levels:
            self.assertLessEqual(KEYS, level.keys())
            self.assertEqual(level["errors"], 0)
            self.assertGreater(level["tok_s"], 0)
            for name in TIMES:
                self.assertLessEqual(level[name]["p50"], level[name]["p90"])
                self.assertLessEqual(level[name]["p90"], level[name]["p99"])
            self.assertLess(level["ttft_ms"]["p50"], level["e2e_ms"]["p50"])
            self.assertAlmostEqual(sum(level["mode_share"].values()), 1, places=3)
            self.assertAlmostEqual(level["tok_s"], level["output_tokens"] / level["seconds"], delta=0.01 * level["tok_s"])
        return levels

    def counters(self):
        m = self.server.metrics()
        return {"requests": self.server.metric("requests_total", m) or 0, "prompt": self.server.metric("prompt_tokens_total", m) or 0,
                **{mode: self.server.metric("generated_tokens_total", m, mode=mode) or 0 for mode in MODES}}

    def test_every_mode_agrees_with_the_servers_counters(self):
        for mode in ("auto", *MODES):
            with self.subTest(mode=mode):
                before = self.counters()
                levels = self.levels("--clients", "1,4", "--requests", "12", "--mode", mode, "--prompt-tokens", "40",
                                     "--output-tokens", "16", "--block-length", "8", "--seed", "5")
                self.server.wait_idle()
                grown = {k: v - before[k] for k, v in self.counters().items()}
                self.assertEqual([level["clients"] for level in levels], [1, 4])
                self.assertEqual({level["mode"] for level in levels}, {mode})
                self.assertEqual(grown["requests"], sum(level["requests"] for level in levels))
                self.assertEqual(grown["prompt"], 2 * 12 * 40)
                self.assertEqual([level["output_tokens"] for level in levels], [12 * 16] * 2)
                for m in MODES:
                    told = sum(level["mode_share"].get(m, 0) * level["output_tokens"] for level in levels)
                    self.assertAlmostEqual(grown[m], told, delta=1)
                if mode != "auto":
                    self.assertEqual(levels[0]["mode_share"], {mode: 1})

    def test_datasets_end_when_they_like(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
            for prompt in prompts(6):
                f.write(json.dumps({"messages": [{"role": "user", "content": prompt}]}) + "\n")
            f.write(json.dumps({"prompt": "Once", "max_tokens": 3}) + "\n")
            f.flush()
            flags = ("--dataset", f.name, "--clients", "2", "--requests", "14", "--temperature", "0", "--block-length", "8")
            ar, = self.levels(*flags, "--mode", "ar")
            spec, = self.levels(*flags, "--mode", "self_speculation")
        self.assertEqual(ar["output_tokens"], spec["output_tokens"])  # the same text
        self.assertLess(ar["output_tokens"], 14 * 64)
        self.assertGreater(spec["tokens_per_forward"], ar["tokens_per_forward"])

    def test_open_loop(self):
        level, = self.levels("--rate", "40", "--requests", "20", "--output-tokens", "4", "--prompt-tokens", "8")
        self.assertEqual((level["clients"], level["rate"], level["requests"]), (None, 40, 20))
        self.assertGreater(level["seconds"], 0.1)

    def test_a_hundred_clients(self):
        level, = self.levels("--clients", "100", "--requests", "200", "--output-tokens", "4", "--prompt-tokens", "8", "--mode", "ar")
        self.assertEqual(level["requests"], 200)

    def test_a_refused_request_is_an_error(self):
        status, (level,), err = bench(self.port, "--clients", "2", "--requests", "4", "--prompt-tokens", str(self.max_context() + 1))
        self.assertEqual((status, level["errors"], level["output_tokens"]), (1, 4, 0))
        self.assertIn("4 x status 400: ", err)

    def test_help_names_every_flag(self):
        for command, flags in (("serve", ("url", "clients", "rate", "mode", "prompt-tokens", "output-tokens", "dataset", "requests",
                                          "json", "seed", "vocab")), ("forward", ("rows", "context", "kind", "runs", "json"))):
            r = subprocess.run([BINARY, "bench", command, "--help"], capture_output=True, text=True, timeout=20 * SLOW)
            self.assertEqual(r.returncode, 0)
            for flag in flags:
                self.assertIn(f"--{flag} ", r.stdout)
        self.assertEqual(subprocess.run([BINARY, "bench", "fly"], capture_output=True, timeout=20 * SLOW).returncode, 2)


# ---- a server that misbehaves ---------------------------------------------------------------------------------------


def event(choices, **fields):
    return b"data: " + json.dumps({"id": "s", "object": "text_completion", "choices": choices, **fields}).encode() + b"\n\n"


def chunks(*events):
    return b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in events)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKENS = [event([{"index": 0, "text": "x", "finish_reason": None if i < 2 else "length", "token_ids": [i]}]) for i in range(3)]
DONE = b"data: [DONE]\n\n"


def usage(completion):
    return event([], usage={"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion})


GOOD = HEAD + chunks(*TOKENS, usage(3), DONE) + b"0\r\n\r\n"
REFUSED = b'{"error": {"message": "no room"}}'
BAD = {  # answer, what the client must say
    "truncated": (HEAD + chunks(*TOKENS[:2]), "the connection ended in the middle of the answer"),
    "usage": (HEAD + chunks(*TOKENS, usage(4), DONE) + b"0\r\n\r\n", "the usage says 4 completion tokens, the stream had 3 token ids"),
    "order": (HEAD + chunks(TOKENS[2], TOKENS[0], usage(3), DONE) + b"0\r\n\r\n", "a chunk after the finish"),
    "undone": (HEAD + chunks(*TOKENS, usage(3)) + b"0\r\n\r\n", "the stream has no [DONE]"),
    "busy": (b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(REFUSED) + REFUSED, "status 503: no room"),
    "gone": (b"", "the connection ended before an answer"),
    "silent": (None, "no answer within"),
}


class Stub:
    """Answers the model list, and every POST with the same bytes; None: with silence."""

    def __init__(self, answers):
        self.answers, self.posts, self.open = answers, 0, []
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                peer = self.socket.accept()[0]
            except OSError:
                return
            self.open.append(peer)
            threading.Thread(target=self.answer, args=(peer,), daemon=True).start()

    def answer(self, peer):
        file = peer.makefile("rb")
        while True:
            line, length = file.readline(), 0
            if not line:
                break
            for header in iter(file.readline, b"\r\n"):
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            file.read(length)
            if line.startswith(b"GET"):
                models = b'{"data": [{"id": "stub", "vocab_size": 9}]}'
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(models) + models)
                continue
            reply = self.answers[self.posts % len(self.answers)]
            self.posts += 1
            if reply is None:
                time.sleep(60)
                break
            peer.sendall(reply)
            if reply is not GOOD:
                break
        peer.shutdown(socket.SHUT_RDWR)
        peer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        for peer in self.open:
            peer.close()


class BenchMisbehaviour(unittest.TestCase):
    FLAGS = ("--prompt-tokens", "5", "--output-tokens", "3", "--request-timeout", str(1 * SLOW))

    def test_a_good_stub(self):
        with Stub([GOOD]) as stub:
            status, levels, err = bench(stub.port, *self.FLAGS, "--clients", "1,4", "--requests", "20")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual([(level["requests"], level["errors"], level["output_tokens"]) for level in levels], [(20, 0, 60)] * 2)
        self.assertIsNone(levels[0]["tokens_per_forward"])  # this server does not say

    def test_each_fault_is_counted_and_named(self):
        for name, (answer, reason) in BAD.items():
            with self.subTest(fault=name), Stub([answer]) as stub:
                start = time.monotonic()
                status, (level,), err = bench(stub.port, *self.FLAGS, "--clients", "4", "--requests", "8")
                self.assertLess(time.monotonic() - start, 20 * SLOW)
                self.assertEqual((status, level["requests"], level["errors"], level["output_tokens"]), (1, 8, 8, 0))
                (text, n), = level["error_reasons"].items()
                self.assertIn(reason, text)
                self.assertEqual(n, 8)
                self.assertIn(f"trimode: 8 x {text}\n", err)

    def test_faults_among_good_answers(self):
        answers = [GOOD, BAD["truncated"][0], GOOD, BAD["usage"][0], GOOD, BAD["busy"][0]]
        for load in (("--clients", "1"), ("--clients", "5"), ("--rate", "200")):
            with self.subTest(load=load), Stub(answers) as stub:
                status, (level,), _ = bench(stub.port, *self.FLAGS, *load, "--requests", "30")
                self.assertEqual((status, level["requests"], level["errors"], level["output_tokens"]), (1, 30, 15, 45))
                self.assertEqual(sorted(level["error_reasons"].values()), [5, 5, 5])

    def test_nobody_there(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))  # bound and not listening: refused
            status, levels, err = bench(s.getsockname()[1], *self.FLAGS)
        self.assertEqual((status, levels), (1, []))
        self.assertIn("cannot connect", err)


if __name__ == "__main__":
    unittest.main()
