"""What the test files share: one server for all that want the same flags, requests in one line, prompts."""
import atexit
import concurrent.futures
import itertools
import json
import os
import time
import unittest

import client
from server import ROOT, SLOW, Server

MODES = ("ar", "diffusion", "self_speculation")
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

BUILT_IN = [
    "Repeat: apple river 你好 café 😀 lamp", "What is 12 + 30?", "Count from 3 to 14.", "Write the 4 times table up to 6.",
    "Sort these words: wolf, cat, horse, bear", "Reverse this list: key, lamp, door, hat", "What is trimode?",
    "Tell a story about a fox named Mia in the forest.", "Write an email to Anna from Paul about the budget on Monday.",
    "Turn into JSON: Emma is 31 years old and lives in Oslo.", "Make a bullet list: apple, cherry, plum",
    "Write a Python function add of a and b.", "What is the capital of Norway?", "Is 17 even or odd?",
    "Make a table of name and age: Ben 20, Ida 35", "Write in capitals: the small owl sings",
]
# Answers full of sequences of two, three and four bytes.
FOREIGN = [
    "Repeat: 你好 😀 こんにちは 🚀 café", "Repeat this exactly: Привет мир 東京 🎉 안녕", "Say this again: 🌍 🐱 🍎 👍 世界 谢谢",
    "Copy this text: crème brûlée ありがとう 한국 smörgås 猫",
]


def prompts(n):
    """n prompts, the same every time: of the held-out set when there is one, every task in turn."""
    found = []
    path = os.path.join(ROOT, "scripts", "train", "heldout.jsonl")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        by_task = {}
        for line in lines:
            by_task.setdefault(line.get("task", ""), []).append(line["prompt"])
        found = [p for group in itertools.zip_longest(*by_task.values()) for p in group if p]
    return list(itertools.islice(itertools.cycle(FOREIGN[:2] + BUILT_IN[:1] + (found or BUILT_IN)), n))


def bounded(items, seconds, least=2):
    """The items, but no more of them than fit the time (and always the first few)."""
    end = time.monotonic() + seconds
    for i, item in enumerate(items):
        if i >= least and time.monotonic() > end:
            return
        yield item


def together(calls, workers=64):
    """Runs the calls at once and returns their results in order."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return [f.result(timeout=240) for f in [pool.submit(c) for c in calls]]


_servers = {}


def shared_server(flags):
    """A running server with these flags, kept for the next test that wants the same."""
    flags = tuple(flags)
    s = _servers.get(flags)
    if s is None or not s.alive():
        s = _servers[flags] = Server(*flags).start()
    return s


def stop_shared_servers():
    """Stops all; returns what was wrong."""
    wrong = []
    while _servers:
        flags, s = _servers.popitem()
        try:
            s.stop()
        except AssertionError as e:
            wrong.append(f"serve {' '.join(flags)}: {e}")
    return wrong


def _kill_the_rest():
    for s in _servers.values():
        s.kill()


atexit.register(_kill_the_rest)


class Case(unittest.TestCase):
    """Tests against a shared server. After each of them nothing may run and every page must be free."""

    flags = ()
    maxDiff = 4000

    def setUp(self):
        self.server = shared_server(self.flags)
        self.port = self.server.port

    def tearDown(self):
        self.assertTrue(self.server.alive(), f"the server died:\n{self.server.log()[-6000:]}")
        self.server.wait_idle(1.5)

    # ---- requests ----

    def get(self, path, **headers):
        return client.request(self.port, "GET", path, headers=headers, timeout=20 * SLOW)

    def post(self, path, body, headers=None):
        return client.request(self.port, "POST", path, body, headers, timeout=60 * SLOW)

    @staticmethod
    def chat_body(prompt, **fields):
        """A greedy, short chat request; fields replace what stands here."""
        return {"model": "nano", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 64,
                **fields}

    def ask(self, prompt, **fields):
        """A chat completion that must succeed, as parsed JSON."""
        answer = self.post(CHAT, self.chat_body(prompt, **fields))
        self.assertEqual(answer.status, 200, answer)
        return answer.json

    def text(self, prompt, **fields):
        return self.ask(prompt, **fields)["choices"][0]["message"]["content"]

    def stream(self, prompt, **fields):
        """A streamed chat completion read to its end (client.Result)."""
        body = self.chat_body(prompt, stream=True, **fields)
        with client.Stream(self.port, CHAT, body, timeout=60 * SLOW) as s:
            self.assertEqual(s.status, 200)
            usage = (fields.get("stream_options") or {}).get("include_usage", False)
            result = client.collect(s.events(), include_usage=usage)
            result.times = s.times
            return result

    def max_context(self):
        return self.get("/v1/models").json["data"][0]["max_model_len"]

    def long_body(self, **fields):
        """A request that keeps the server busy for seconds: as many tokens as the context holds, one at a time."""
        fields.setdefault("max_tokens", self.max_context() - 200)
        return self.chat_body("Count from 3 to 14.", ignore_eos=True, **{"mode": "ar", **fields})

    @staticmethod
    def counts(usage):
        """The numbers of tokens that depend on the request alone, and not on what the prefix cache happened to hold."""
        return {k: v for k, v in usage.items() if k != "prompt_tokens_details"}

    # ---- checks ----

    def assert_error(self, answer, status, code=Ellipsis, param=Ellipsis, kind=None):
        self.assertEqual(answer.status, status, answer)
        self.assertIn("application/json", answer.headers.get("Content-Type", ""), answer)
        error = answer.json["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"}, answer)
        self.assertIsInstance(error["message"], str)
        self.assertTrue(error["message"])
        self.assertIsInstance(error["type"], str)
        self.assertIsInstance(error["code"], (str, type(None)))
        if code is not Ellipsis:
            self.assertIn(error["code"], code if isinstance(code, tuple) else (code,), answer)
        if param is not Ellipsis:
            self.assertIsInstance(error["param"], (str, type(None)))
            self.assertTrue((error["param"] or "").startswith(param or ""), f"param should name {param}: {answer}")
        if kind is not None:
            self.assertEqual(error["type"], kind, answer)
        self.assertTrue(answer.headers.get("x-request-id"), "an error without x-request-id")

    def assert_alive(self):
        """The server still answers an ordinary request."""
        self.assertTrue(self.server.alive(), f"the server died:\n{self.server.log()[-6000:]}")
        self.assertEqual(self.ask("What is 1 + 1?", max_tokens=1)["usage"]["completion_tokens"], 1)
