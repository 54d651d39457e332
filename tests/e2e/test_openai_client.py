"""The official openai package against a running server."""
import asyncio
import os
import tempfile
import unittest

import openai

from case import MODES, SLOW, Case, prompts, shared_server

KEY = "sk-e2e-secret"


def client_for(port, key="none", **kw):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60 * SLOW, **kw)


class OpenAIClient(Case):
    def setUp(self):
        super().setUp()
        self.client = client_for(self.port)
        self.addCleanup(self.client.close)

    def chat(self, prompt, **kw):
        kw = {"model": "nano", "temperature": 0, "max_tokens": 64, **kw}
        return self.client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **kw)

    def test_chat_answer_has_every_field(self):
        r = self.chat("What is 12 + 30?", max_tokens=20)
        self.assertTrue(r.id.startswith("chatcmpl-"))
        self.assertEqual(r.object, "chat.completion")
        self.assertEqual(r.choices[0].index, 0)
        self.assertEqual(r.choices[0].message.role, "assistant")
        self.assertIsInstance(r.choices[0].message.content, str)
        self.assertIn(r.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens)
        self.assertGreater(r.usage.prompt_tokens, 3)
        self.assertGreaterEqual(r.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertTrue(r._request_id)

    def test_stream_gives_the_same_text(self):
        for prompt in prompts(4):
            whole = self.chat(prompt).choices[0].message.content
            chunks = list(self.chat(prompt, stream=True))
            self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), whole)
            self.assertTrue(all(c.usage is None for c in chunks), "usage that nobody asked for")
            self.assertIn(chunks[-1].choices[0].finish_reason, ("stop", "length"))

    def test_include_usage_adds_one_last_chunk(self):
        whole = self.chat("What is trimode?")
        chunks = list(self.chat("What is trimode?", stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(chunks[-1].usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertEqual(sum(c.usage is not None for c in chunks), 1)
        self.assertIn("mode", chunks[-1].trimode)

    def test_completion_text_ids_and_batches(self):
        kw = {"model": "nano", "temperature": 0, "max_tokens": 12}
        one = self.client.completions.create(prompt="Count: 1, 2, 3,", **kw)
        self.assertTrue(one.id.startswith("cmpl-"))
        self.assertEqual(one.object, "text_completion")
        ids = self.post("/tokenize", {"model": "nano", "prompt": "Count: 1, 2, 3,"}).json["tokens"]
        by_ids = self.client.completions.create(prompt=ids, **kw)
        self.assertEqual(by_ids.choices[0].text, one.choices[0].text)
        both = self.client.completions.create(prompt=["Count: 1, 2, 3,", "What is"], n=2, **kw)
        self.assertEqual([c.index for c in both.choices], [0, 1, 2, 3])
        self.assertEqual(both.choices[0].text, one.choices[0].text)
        lists = self.client.completions.create(prompt=[ids, ids], **kw)
        self.assertEqual([c.text for c in lists.choices], [one.choices[0].text] * 2)

    def test_completion_default_is_sixteen_tokens(self):
        r = self.client.completions.create(model="nano", prompt="One, two", extra_body={"ignore_eos": True})
        self.assertEqual((r.usage.completion_tokens, r.choices[0].finish_reason), (16, "length"))

    def test_completion_stream(self):
        kw = {"model": "nano", "prompt": "Count: 1, 2, 3,", "temperature": 0, "max_tokens": 24}
        whole = self.client.completions.create(**kw).choices[0].text
        chunks = list(self.client.completions.create(stream=True, **kw))
        self.assertEqual("".join(c.choices[0].text for c in chunks), whole)
        self.assertIn(chunks[-1].choices[0].finish_reason, ("stop", "length"))

    def test_completion_logprobs_are_columns(self):
        r = self.client.completions.create(model="nano", prompt="Count: 1, 2, 3,", temperature=0, max_tokens=6, logprobs=2,
                                           extra_body={"ignore_eos": True, "mode": "ar"})
        columns = r.choices[0].logprobs
        self.assertEqual(len(columns.tokens), 6)
        self.assertEqual(len(columns.token_logprobs), 6)
        self.assertEqual(len(columns.top_logprobs), 6)
        self.assertEqual(len(columns.text_offset), 6)
        self.assertTrue(all(p <= 0 for p in columns.token_logprobs))

    def test_n_choices_are_reproducible(self):
        kw = {"n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 24}
        for mode in MODES:
            with self.subTest(mode=mode):
                a = [c.message.content for c in self.chat("Tell a story about a fox named Mia in the forest.",
                                                          extra_body={"mode": mode}, **kw).choices]
                b = [c.message.content for c in self.chat("Tell a story about a fox named Mia in the forest.",
                                                          extra_body={"mode": mode}, **kw).choices]
                self.assertEqual(len(a), 3)
                self.assertEqual(a, b)

    def test_n_choices_differ_from_each_other(self):
        r = self.chat("Say something.", n=4, seed=5, temperature=2.0, max_tokens=24, extra_body={"ignore_eos": True})
        self.assertGreater(len({c.message.content for c in r.choices}), 1)
        self.assertEqual(r.usage.completion_tokens, 4 * 24)

    def test_seed_decides_the_text(self):
        ask = lambda seed: self.chat("Say something.", seed=seed, temperature=1.5, max_tokens=24,  # noqa: E731
                                     extra_body={"ignore_eos": True}).choices[0].message.content
        self.assertEqual(ask(7), ask(7))
        self.assertGreater(len({ask(s) for s in range(4)}), 1)
        self.assertEqual(ask(2**63 - 1), ask(2**63 - 1))

    def test_logprobs_are_of_the_tokens(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                r = self.chat("Count from 3 to 14.", max_tokens=16, logprobs=True, top_logprobs=3,
                              extra_body={"mode": mode, "ignore_eos": True})
                items = r.choices[0].logprobs.content
                self.assertEqual(len(items), 16)
                data = b"".join(bytes(i.bytes) for i in items)
                self.assertEqual(data.decode("utf-8", "replace"), r.choices[0].message.content)
                for i in items:
                    self.assertLessEqual(i.logprob, 0)
                    tops = [t.logprob for t in i.top_logprobs]
                    self.assertEqual(len(tops), 3)
                    self.assertEqual(tops, sorted(tops, reverse=True))
                    self.assertAlmostEqual(i.logprob, tops[0], places=5)  # greedy takes the best

    def test_logprobs_of_ar_and_self_speculation_are_equal(self):
        ask = lambda mode: self.chat("What is trimode?", max_tokens=40, logprobs=True, top_logprobs=2,  # noqa: E731
                                     extra_body={"mode": mode}).choices[0].logprobs.content
        self.assertEqual([(i.token, i.logprob) for i in ask("ar")],
                         [(i.token, i.logprob) for i in ask("self_speculation")])

    def test_streamed_logprobs_equal_the_whole_ones(self):
        kw = {"max_tokens": 24, "logprobs": True, "top_logprobs": 2, "extra_body": {"mode": "self_speculation"}}
        whole = self.chat("Count from 3 to 14.", **kw).choices[0].logprobs.content
        parts = []
        for c in self.chat("Count from 3 to 14.", stream=True, **kw):
            if c.choices[0].logprobs is not None:
                parts += c.choices[0].logprobs.content or []
        self.assertEqual([(p.token, p.logprob) for p in parts], [(p.token, p.logprob) for p in whole])

    def test_stop_is_not_in_the_text(self):
        r = self.chat("Count from 3 to 14.", stop=[","])
        self.assertNotIn(",", r.choices[0].message.content)

    def test_modes_and_the_trimode_object(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                r = self.chat("Count from 3 to 14.", extra_body={"mode": mode, "block_length": 8})
                t = r.trimode
                self.assertEqual(t["mode"], mode)
                self.assertTrue(t["reason"])
                self.assertAlmostEqual(t["tokens_per_forward"], r.usage.completion_tokens / t["forward_passes"], delta=0.06)
                self.assertEqual(t["timeline"][0]["from_token"], 0)
                self.assertEqual(t["timeline"][0]["mode"], mode)
                self.assertGreaterEqual(t["total_ms"], t["first_token_ms"])
                self.assertGreaterEqual(t["queue_ms"], 0)
                if mode == "ar":
                    self.assertLessEqual(t["tokens_per_forward"], 1.5)
                else:
                    self.assertEqual(t["block_length"], 8)
                    self.assertGreater(t["blocks"], 0)
                if mode == "self_speculation":
                    self.assertGreaterEqual(t["drafted_tokens"], t["accepted_tokens"])

    def test_models_list_and_retrieve(self):
        models = list(self.client.models.list())
        self.assertEqual(len(models), 1)
        m = self.client.models.retrieve(models[0].id)
        self.assertEqual((m.id, m.object), (models[0].id, "model"))
        self.assertGreater(m.max_model_len, 64)
        self.assertLessEqual(set(MODES), set(m.modes))
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("org/another model")

    def test_errors_are_typed(self):
        with self.assertRaises(openai.NotFoundError) as e:
            self.chat("x", model="gpt-nothing")
        self.assertEqual(e.exception.code, "model_not_found")
        self.assertTrue(e.exception.request_id)
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat("x", temperature=9)
        self.assertEqual(e.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat("x", extra_body={"mode": "quick"})
        self.assertEqual(e.exception.param, "mode")
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat("word " * 20000)
        self.assertEqual(e.exception.code, "context_length_exceeded")
        self.assertIn("maximum context length is", str(e.exception))
        with self.assertRaises(openai.NotFoundError):
            self.client.post("/nothing", body={}, cast_to=object)

    def test_abandoned_stream_ends_the_request(self):
        before = self.server.metric("generated_tokens_total")
        stream = self.chat("Count from 3 to 14.", max_tokens=self.max_context() - 200, stream=True,
                           extra_body={"ignore_eos": True, "mode": "ar"})
        next(iter(stream))
        stream.close()
        self.server.wait_idle(1)
        self.assertLess(self.server.metric("generated_tokens_total") - before, self.max_context() - 200)

    def test_async_client_many_at_once(self):
        async def main():
            async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="x", max_retries=0) as c:
                async def one(i):
                    kw = {"model": "nano", "messages": [{"role": "user", "content": prompts(8)[i % 8]}], "temperature": 0,
                          "max_tokens": 32, "extra_body": {"mode": MODES[i % 3]}}
                    if i % 2:
                        r = await c.chat.completions.create(**kw)
                        return i, r.choices[0].message.content
                    text = ""
                    async for chunk in await c.chat.completions.create(stream=True, **kw):
                        text += chunk.choices[0].delta.content or ""
                    return i, text
                return await asyncio.gather(*[one(i) for i in range(24)])
        by_work = {}
        for i, text in asyncio.run(main()):
            by_work.setdefault((i % 8, i % 3), set()).add(text)
        self.assertTrue(all(len(texts) == 1 for texts in by_work.values()), by_work)


class ApiKeys(unittest.TestCase):
    @classmethod
    def files(cls):
        if not hasattr(cls, "folder"):
            cls.folder = tempfile.TemporaryDirectory(prefix="trimode-e2e-")
            for name, key in (("keys", KEY), ("metrics", "metrics-secret")):
                path = os.path.join(cls.folder.name, name)
                with open(path, "w", encoding="utf-8") as f:
                    f.write(key + "\n")
                os.chmod(path, 0o600)
        return [os.path.join(cls.folder.name, n) for n in ("keys", "metrics")]

    def setUp(self):
        keys, metrics = self.files()
        self.server = shared_server(("--api-key-file", keys))
        self.port = self.server.port

    def test_right_key(self):
        with client_for(self.port, KEY) as c:
            self.assertEqual(c.chat.completions.create(model="nano", max_tokens=2, messages=[
                {"role": "user", "content": "Hi"}]).object, "chat.completion")

    def test_wrong_and_missing_key(self):
        for key in ("sk-wrong", KEY + "x", KEY[:-1]):
            with client_for(self.port, key) as c, self.assertRaises(openai.AuthenticationError) as e:
                c.chat.completions.create(model="nano", messages=[{"role": "user", "content": "Hi"}])
            self.assertEqual(e.exception.code, "invalid_api_key")
        import client
        answer = client.request(self.port, "POST", "/v1/chat/completions", {"messages": []})
        self.assertEqual(answer.status, 401, answer)
        self.assertIn("Bearer", answer.headers.get("WWW-Authenticate", ""))
        self.assertEqual(answer.json["error"]["type"], "invalid_request_error")
        self.assertNotIn(KEY, self.server.log())

    def test_probes_need_no_key(self):
        import client
        for path in ("/health", "/ready", "/metrics"):
            self.assertEqual(client.request(self.port, "GET", path).status, 200, path)

    def test_metrics_key_guards_metrics(self):
        from server import Server
        import client
        s = Server("--metrics-key-file", self.files()[1])
        s.start()
        try:
            self.assertEqual(client.request(s.port, "GET", "/metrics").status, 401)
            self.assertEqual(client.request(s.port, "GET", "/status").status, 401)
            good = {"Authorization": "Bearer metrics-secret"}
            self.assertEqual(client.request(s.port, "GET", "/metrics", headers=good).status, 200)
            self.assertEqual(client.request(s.port, "GET", "/ready").status, 200)
        finally:
            s.stop()
