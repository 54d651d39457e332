"""The types of keys and values on the CPU: each keeps the promises of text, takes its own room, and is named where it shows."""
import contextlib
import os
import subprocess
import unittest

import client
from case import CHAT, MODES, SLOW, Case, bounded, prompts, shared_server, together
from server import BINARY, MODEL, Server

TYPES = ("f32", "bf16", "q8")
TOKEN_BYTES = {"f32": 6144, "bf16": 3072, "q8": 1632}  # nano: 6 layers, 2 kv heads of 64 elements, keys and values


class Kept(Case):
    @contextlib.contextmanager
    def each(self, kv):
        """A server of that type, idle afterwards."""
        with self.subTest(kv_type=kv):
            self.server = shared_server(("--kv-type", kv, "--page-size", "8"))
            self.port = self.server.port
            yield
            self.server.wait_idle(1.5)

    def test_self_speculation_writes_the_text_of_ar(self):
        for kv in TYPES:
            with self.each(kv):
                for k, prompt in enumerate(bounded(prompts(16), 5 * SLOW, least=4)):
                    for temperature in (0, 0.9):
                        fields = {"temperature": temperature, "seed": 70 + k, "max_tokens": 48}
                        jobs = [lambda f={"mode": "ar", **fields}: self.text(prompt, **f)]
                        jobs += [lambda f={"mode": "self_speculation", "block_length": b, **fields}: self.text(prompt, **f)
                                 for b in (4, 8, 32)]
                        ar, *others = together(jobs)
                        self.assertEqual(others, [ar] * 3, (prompt, temperature))

    def test_every_mode_is_the_same_alone_and_in_company(self):
        works = [(p, {"mode": MODES[i % 3], "temperature": 0.7, "seed": i, "max_tokens": 40})
                 for i, p in enumerate(prompts(9))]
        for kv in TYPES:
            with self.each(kv):
                alone = [self.text(p, **f) for p, f in works]
                self.assertEqual(together([lambda p=p, f=f: self.text(p, **f) for p, f in works * 2]), alone * 2)

    def test_a_second_turn_from_the_cache_is_the_text_without_it(self):
        first = "Tell a story about a fox named Mia in the forest."
        for kv in TYPES:
            with self.each(kv):
                for mode in MODES:
                    said = self.text(first, mode=mode, max_tokens=60, ignore_eos=True, cache_salt=mode)
                    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": said},
                                {"role": "user", "content": "What is 12 + 30?"}]
                    body = {**self.chat_body(""), "messages": messages, "mode": mode}
                    hit, miss = (self.post(CHAT, {**body, "cache_salt": salt}).json for salt in (mode, mode + " anew"))
                    self.assertGreater(hit["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
                    self.assertEqual(miss["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
                    self.assertEqual(hit["choices"][0]["message"], miss["choices"][0]["message"])


class Preempted(unittest.TestCase):
    def test_preempted_requests_say_what_they_say_alone(self):
        works = [(p, {"mode": m, "temperature": 0.7, "seed": 5, "max_tokens": 60, "ignore_eos": True})
                 for p in prompts(8) for m in ("ar", "self_speculation")]

        def text(s, prompt, fields):
            r = client.request(s.port, "POST", CHAT, Case.chat_body(prompt, **fields), timeout=60 * SLOW)
            self.assertEqual(r.status, 200, r)
            return r.json["choices"][0]["message"]["content"]

        for kv in TYPES:
            # Room for 256 tokens of all requests together.
            flags = ("--kv-type", kv, "--page-size", "8", "--kv-memory", str(256 * TOKEN_BYTES[kv]))
            with self.subTest(kv_type=kv), Server(*flags) as s:
                alone = [text(s, p, f) for p, f in works]
                before = s.metric("preemptions_total")
                self.assertEqual(together([lambda p=p, f=f: text(s, p, f) for p, f in works]), alone)
                self.assertGreater(s.metric("preemptions_total"), before)


class Named(unittest.TestCase):
    def test_the_same_memory_holds_more_pages(self):
        for kv in ("auto", *TYPES):
            name = "f32" if kv == "auto" else kv
            with self.subTest(kv_type=kv), Server("--kv-type", kv, "--kv-memory", "4MiB", "--page-size", "16") as s:
                pages = client.request(s.port, "GET", "/status").json["kv_pages"]
                self.assertEqual((pages["type"], pages["total"]), (name, (4 << 20) // (16 * TOKEN_BYTES[name])))

    def test_a_type_that_the_cpu_does_not_have(self):
        for kv, code, words in (
                ("fp8", 1, "the cpu backend has no keys and values of type fp8 for this model (it has f32, bf16, q8)"),
                ("int4", 2, "auto|f32|bf16|fp8|q8")):
            with self.subTest(kv_type=kv):
                r = subprocess.run([BINARY, "serve", "--port", "0", "--model", MODEL, "--backend", "cpu", "--kv-type", kv],
                                   stdin=subprocess.DEVNULL, capture_output=True, timeout=60 * SLOW, env=os.environ)
                self.assertEqual(r.returncode, code, r.stderr.decode())
                self.assertIn(words, r.stderr.decode())
