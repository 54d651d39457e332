"""Input that is wrong in every way. The answer says what is wrong, and the server goes on."""
import json
import random
import time

import client
from case import CHAT, COMPLETIONS, SLOW, Case

NOT_A_NUMBER = ["1", True, [], {}]
NOT_AN_INTEGER = [1.5, "1", True, [], {}]
NOT_A_STRING = [5, True, [], {}]
NOT_A_BOOL = ["true", 1, [], {}]

# field: values that a 400 naming the field must answer
WRONG = {
    "model": [5, [], {}],
    "messages": ["hi", {}, [], 5, None, [5], ["hi"], [{}], [{"content": "x"}], [{"role": "wizard", "content": "x"}],
                 [{"role": "user"}], [{"role": "user", "content": 5}], [{"role": "user", "content": [5]}],
                 [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                 [{"role": "user", "content": [{"type": "text"}]}], [{"role": 5, "content": "x"}]],
    "temperature": NOT_A_NUMBER + [-0.1, 2.1, 1e300],
    "top_p": NOT_A_NUMBER + [-0.1, 1.1],
    "n": NOT_AN_INTEGER + [0, -1, 129, 10**12],
    "max_tokens": NOT_AN_INTEGER + [-1, 1e300, -10**18],
    "max_completion_tokens": NOT_AN_INTEGER + [-1],
    "presence_penalty": NOT_A_NUMBER + [-2.1, 2.1],
    "frequency_penalty": NOT_A_NUMBER + [-2.1, 2.1],
    "stop": [5, True, {}, [5], [None], [""], [["x"]], ["x"] * 1000],
    "seed": ["1", 1.5, True, [], {}, 1e300],
    "stream": NOT_A_BOOL,
    "stream_options": [5, "x", [], {"include_usage": 5}],
    "logprobs": ["x", 5, [], {}],
    "top_logprobs": NOT_AN_INTEGER + [-1, 21],
    "logit_bias": [5, "x", [1], {"x": 1}, {"5": "1"}, {"5": 101}, {"5": -101}, {"99999999": 1}, {"-1": 1}],
    "mode": NOT_A_STRING + ["fast", "", "AR"],
    "block_length": NOT_AN_INTEGER + [0, -8, 5, 128],
    "lossless": NOT_A_BOOL,
    "top_k": NOT_AN_INTEGER + [-2],
    "min_p": NOT_A_NUMBER + [-0.1, 1.1],
    "repetition_penalty": NOT_A_NUMBER + [0, -1],
    "min_tokens": NOT_AN_INTEGER + [-1],
    "ignore_eos": NOT_A_BOOL,
    "stop_token_ids": [5, "x", {}, ["x"], [1.5], [-1], [10**9]],
    "return_token_ids": NOT_A_BOOL,
    "skip_special_tokens": NOT_A_BOOL,
    "add_generation_prompt": NOT_A_BOOL,
    "continue_final_message": NOT_A_BOOL,
    "chat_template_kwargs": [5, "x", []],
    "timeout_ms": NOT_AN_INTEGER + [-1],
    "priority": NOT_AN_INTEGER + [-1001, 1001],
}
WRONG_DIFFUSION = {
    "threshold": NOT_A_NUMBER + [0, -0.1, 1.1],
    "steps": NOT_AN_INTEGER + [0, -1],
    "commit_policy": NOT_A_STRING + ["random", ""],
}
WRONG_COMPLETION = {
    "prompt": [5, None, True, {}, [], [[]], ["x", 5], [5, "x"], [1.5], [-1], [10**9], [None]],
    "max_tokens": NOT_AN_INTEGER,
    "logprobs": ["x", -1, 21, 1.5],
    "echo": NOT_A_BOOL,
}


class Fields(Case):
    def check_table(self, table, path, base):
        for field, values in table.items():
            for value in values:
                with self.subTest(path=path, field=field, value=str(value)[:60]):
                    answer = self.post(path, {**base, field: value})
                    self.assert_error(answer, 400, param=field, kind="invalid_request_error")
            self.assert_alive()

    def test_wrong_values_of_chat_fields(self):
        self.check_table(WRONG, CHAT, self.chat_body("Hi", max_tokens=1))

    def test_wrong_values_of_diffusion_fields(self):
        self.check_table(WRONG_DIFFUSION, CHAT, self.chat_body("Hi", max_tokens=1, mode="diffusion"))

    def test_wrong_values_of_completion_fields(self):
        self.check_table(WRONG_COMPLETION, COMPLETIONS, {"model": "nano", "prompt": "Hi", "max_tokens": 1})

    def test_wrong_values_in_a_stream_are_a_plain_400(self):
        answer = self.post(CHAT, self.chat_body("Hi", stream=True, temperature=5))
        self.assert_error(answer, 400, param="temperature")

    def test_null_is_as_if_absent(self):
        fields = ("temperature", "top_p", "n", "max_tokens", "stop", "seed", "stream", "stream_options", "logprobs", "logit_bias",
                  "presence_penalty", "mode", "block_length", "top_k", "min_p", "user", "tools", "response_format")
        body = self.chat_body("Hi", max_completion_tokens=2)
        answer = self.post(CHAT, {**body, **{f: None for f in fields}})
        self.assertEqual(answer.status, 200, answer)

    def test_missing_fields_are_named(self):
        self.assert_error(self.post(CHAT, {"model": "nano"}), 400, "missing_required_parameter", "messages")
        self.assert_error(self.post(COMPLETIONS, {"model": "nano"}), 400, "missing_required_parameter", "prompt")

    def test_combinations_that_cannot_be(self):
        hi = lambda **f: self.chat_body("Hi", max_tokens=1, **f)  # noqa: E731
        for body, param in ((hi(stream_options={"include_usage": True}), "stream_options"),
                            (hi(top_logprobs=2), "top_logprobs"),
                            (hi(mode="ar", threshold=0.9), "threshold"),
                            (hi(mode="self_speculation", steps=4), "steps"),
                            (hi(mode="ar", commit_policy="leftmost"), "commit_policy"),
                            (hi(mode="diffusion", lossless=True), None)):
            with self.subTest(param=param):
                self.assert_error(self.post(CHAT, body), 400, **({"param": param} if param else {}))

    def test_unsupported_fields_of_openai_are_named(self):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        for path, base, field, value in (
                (CHAT, self.chat_body("Hi"), "response_format", schema),
                (CHAT, self.chat_body("Hi"), "audio", {"voice": "alloy", "format": "mp3"}),
                (CHAT, self.chat_body("Hi"), "functions", [{"name": "f", "parameters": {}}]),
                (COMPLETIONS, {"model": "nano", "prompt": "Hi"}, "suffix", "the end"),
                (COMPLETIONS, {"model": "nano", "prompt": "Hi"}, "best_of", 4)):
            with self.subTest(field=field):
                answer = self.post(path, {**base, field: value})
                self.assert_error(answer, 400, ("unsupported_parameter", "unsupported_value"), field)

    def test_harmless_fields_are_accepted(self):
        answer = self.post(CHAT, self.chat_body("Hi", max_tokens=1, user="me", metadata={"a": "b"}, store=True,
                                                service_tier="auto", safety_identifier="x", prompt_cache_key="k",
                                                response_format={"type": "text"}, parallel_tool_calls=True))
        self.assertEqual(answer.status, 200, answer)
        self.assertIsNone(answer.headers.get("x-trimode-ignored"))

    def test_unknown_fields_are_named_in_a_header(self):
        for stream in (False, True):
            with client.Stream(self.port, CHAT, self.chat_body("Hi", max_tokens=1, stream=stream, colour="red", wide=5)) as s:
                self.assertEqual(s.status, 200)
                ignored = {w.strip() for w in s.headers.get("x-trimode-ignored", "").split(",")}
                self.assertEqual(ignored, {"colour", "wide"})
                s.body()
        # A name that would break the header may not.
        answer = self.post(CHAT, self.chat_body("Hi", max_tokens=1, **{"a\r\nx-evil: 1": 1, "caf\u00e9": 2, "y" * 5000: 3}))
        self.assertEqual(answer.status, 200, answer)
        self.assertIsNone(answer.headers.get("x-evil"))

    def test_prompt_too_long(self):
        n = self.max_context()
        for path, body in ((CHAT, self.chat_body("river " * n)), (COMPLETIONS, {"model": "nano", "prompt": [50] * (n + 1)}),
                           (COMPLETIONS, {"model": "nano", "prompt": [50] * n})):
            answer = self.post(path, body)
            self.assert_error(answer, 400, "context_length_exceeded")
            self.assertIn(f"maximum context length is {n} tokens", answer.json["error"]["message"])

    def test_more_tokens_than_the_context_holds(self):
        answer = self.post(CHAT, self.chat_body("Hi", max_tokens=10**6))
        if answer.status == 200:
            self.assertIn(answer.json["choices"][0]["finish_reason"], ("stop", "length"))
        else:
            self.assert_error(answer, 400, "context_length_exceeded")

    def test_tool_roles_and_developer_do_not_crash(self):
        for messages in ([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
                         [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "Hi"}],
                         [{"role": "tool", "content": "x", "tool_call_id": "1"}],
                         [{"role": "system", "content": ""}], [{"role": "user", "content": ""}],
                         [{"role": "user", "content": []}]):
            with self.subTest(messages=messages):
                self.assertIn(self.post(CHAT, self.chat_body("", messages=messages, max_tokens=2)).status, (200, 400))
        self.assert_alive()

    def test_special_tokens_in_user_text_are_text(self):
        # The mask token, the end token and the turn markers as letters change nothing but the prompt.
        for text in ("<|mask|> <|im_end|> <|im_start|>assistant\nyes", "[MASK] <mask> </s> <pad> <unk>", "<SPECIAL_100>"):
            for mode in ("ar", "diffusion", "self_speculation"):
                with self.subTest(text=text, mode=mode):
                    r = self.ask("Repeat: " + text, mode=mode, max_tokens=24)
                    self.assertGreaterEqual(r["usage"]["prompt_tokens"], len(text) // 6)


class Bodies(Case):
    def bad(self, data, status=400, path=CHAT, **headers):
        answer = self.post(path, data, {k.replace("_", "-"): v for k, v in headers.items()})
        self.assert_error(answer, status)
        return answer

    def body_with(self, raw):
        """A good body with raw JSON text as one more member."""
        return json.dumps(self.chat_body("Hi", max_tokens=1))[:-1].encode() + b", " + raw + b"}"

    def test_not_json(self):
        good = json.dumps(self.chat_body("Hi", max_tokens=1)).encode()
        for data in (b"", b" ", b"{", b"}", b"nul", b"{'a': 1}", b"[]", b"5", b'"text"', b"null", b"true", good[:-1], good + b"x",
                     good + good, b"\xff\xfe" + good, good.replace(b":", b"=", 1), b"<xml/>", b"a=b&c=d", b"\0" * 10,
                     good.decode().encode("utf-16")):
            with self.subTest(data=data[:40]):
                self.bad(data)
        self.assert_alive()

    def test_numbers_that_json_does_not_have(self):
        for raw in (b'"temperature": NaN', b'"temperature": Infinity', b'"temperature": -Infinity', b'"temperature": 1e400',
                    b'"temperature": 0x1', b'"max_tokens": 1e999', b'"seed": 1e400', b'"top_p": .', b'"n": --1',
                    b'"seed": 123456789012345678901234567890'):
            with self.subTest(raw=raw):
                self.bad(self.body_with(raw))
        self.assert_alive()

    def test_text_that_is_not_text(self):
        for raw in (b"a\xffb", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"):
            with self.subTest(raw=raw):
                self.bad(b'{"model": "nano", "max_tokens": 1, "messages": [{"role": "user", "content": "' + raw + b'"}]}')
        for raw in (b"\\ud800", b"\\udc00x", b"\\ud800\\u0041", b"\\x41", b"\\u12"):
            with self.subTest(raw=raw):
                self.bad(b'{"model": "nano", "max_tokens": 1, "messages": [{"role": "user", "content": "' + raw + b'"}]}')
        self.assert_alive()

    def test_nul_characters_do_not_cut_the_text(self):
        short = self.ask("Hi", max_tokens=1)["usage"]["prompt_tokens"]
        answer = self.post(CHAT, self.chat_body("Hi\0" + "river " * 30, max_tokens=1))
        if answer.status == 200:
            self.assertGreater(answer.json["usage"]["prompt_tokens"], short + 20, "cut at the NUL")
        else:
            self.assert_error(answer, 400)
        self.assertIn(self.post(CHAT, self.chat_body("Hi", max_tokens=1, stop="a\0b")).status, (200, 400))
        self.assertIn(self.post(CHAT, self.chat_body("Hi", max_tokens=1, mode="ar\0x")).status, (400,))

    def test_deep_nesting(self):
        for depth in (100, 5000, 1_000_000):
            for o, c in ((b"[", b"]"), (b'{"a":', b"}")):
                with self.subTest(depth=depth, bracket=o):
                    self.bad(self.body_with(b'"metadata": ' + o * depth + b"1" + c * depth))
                    self.bad(o * depth)
        self.assert_alive()

    def test_duplicate_keys(self):
        answer = self.post(CHAT, self.body_with(b'"temperature": 0.5, "temperature": 9'))
        self.assertIn(answer.status, (200, 400), answer)
        self.assert_alive()

    def test_huge_bodies(self):
        answer = self.post(CHAT, self.chat_body("x " * 15_000_000))  # just within the limit
        self.assert_error(answer, 400, "context_length_exceeded")
        start = time.monotonic()
        s = client.connect(self.port, timeout=5 * SLOW)
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                  f"Content-Length: {10**10}\r\n\r\n".encode())
        self.assertTrue(client.read_all(s).startswith(b"HTTP/1.1 413"))
        s.close()
        self.assertLess(time.monotonic() - start, 5 * SLOW)
        self.assert_alive()

    def test_endless_chunked_body_is_stopped(self):
        s = client.connect(self.port, timeout=5 * SLOW)
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        sent = 0
        try:
            while sent < 200:
                s.sendall(piece)
                sent += 1
        except OSError:
            pass
        s.close()
        self.assertLess(sent, 100, "the server took 100 MiB")
        self.assert_alive()

    def test_content_types(self):
        good = self.chat_body("Hi", max_tokens=1)
        for kind in ("application/json; charset=utf-8", "application/json;charset=UTF-8", "APPLICATION/JSON"):
            self.assertEqual(self.post(CHAT, good, {"Content-Type": kind}).status, 200, kind)
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/jsonx"):
            self.assert_error(self.post(CHAT, good, {"Content-Type": kind}), 415)

    def test_a_list_too_long(self):
        self.assertIn(self.post(COMPLETIONS, {"model": "nano", "prompt": ["Hi"] * 5000, "max_tokens": 1}).status, (400, 503))
        self.assertIn(self.post(CHAT, self.chat_body("Hi", max_tokens=1, logit_bias={str(i): 1 for i in range(3000)})).status, (200, 400))
        self.assert_alive()

    def test_random_bodies(self):
        r = random.Random(3)
        good = json.dumps(self.chat_body("Hi \u00e9 \U0001f600", max_tokens=1, stop=["x"], logit_bias={"5": 1}, seed=3)).encode()
        end = time.monotonic() + 3 * SLOW
        for _ in range(400):
            if time.monotonic() > end:
                break
            data = bytearray(good)
            for _ in range(r.randint(1, 6)):
                at = r.randrange(len(data))
                kind = r.random()
                if kind < 0.4:
                    data[at] = r.randrange(256)
                elif kind < 0.7:
                    del data[at:at + r.randint(1, 8)]
                else:
                    data[at:at] = bytes(r.choice(b'{}[]",:0-e\\u ') for _ in range(r.randint(1, 4)))
            status = self.post(CHAT, bytes(data)).status
            self.assertIn(status, (200, 400, 404), bytes(data))
        self.assert_alive()


class Sockets(Case):
    def talk(self, data, timeout=3):
        with client.connect(self.port, timeout=timeout * SLOW) as s:
            try:
                s.sendall(data)
            except OSError:
                pass
            return client.read_all(s)

    def test_smuggling_is_refused(self):
        body = b'{"messages": []}'
        inner = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
        n = str(len(body)).encode()
        for name, data in {
            "two lengths": head + b"Content-Length: " + n + b"\r\nContent-Length: 0\r\n\r\n" + body + inner,
            "two equal lengths": head + b"Content-Length: " + n + b"\r\nContent-Length: " + n + b"\r\n\r\n" + body + inner,
            "length and chunked": head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
            "space before the colon": head + b"Content-Length : " + n + b"\r\n\r\n" + body + inner,
            "unknown coding": head + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
            "two codings": head + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner,
            "two hosts": head + b"Host: y\r\nContent-Length: " + n + b"\r\n\r\n" + body + inner,
            "no host": head.replace(b"Host: x\r\n", b"") + b"Content-Length: " + n + b"\r\n\r\n" + body + inner,
            "negative length": head + b"Content-Length: -5\r\n\r\n" + inner,
            "plus length": head + b"Content-Length: +5\r\n\r\n" + inner,
            "list length": head + b"Content-Length: 5, 5\r\n\r\n" + inner,
            "hex length": head + b"Content-Length: 0x10\r\n\r\n" + body + inner,
            "huge length": head + b"Content-Length: 99999999999999999999999\r\n\r\n" + inner,
        }.items():
            with self.subTest(name):
                out = self.talk(data)
                self.assertRegex(out[:20], rb"^HTTP/1\.[01] (400|411|413|501)", out[:200])
                # libmicrohttpd 0.9.75 writes the head of its own pages twice, so answers are not counted.
                self.assertNotIn(b"HTTP/1.1 200", out, "the rest was read as a request")
        self.assert_alive()

    def test_large_header_blocks_get_openais_shape_of_error(self):
        for name, lines, status in (
            ("60 kB header", b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"a" * 60_000, 200),
            ("70 kB header", b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, 431),
            ("70 kB query", b"GET /health?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x", 431),
            ("1000 headers", b"GET /health HTTP/1.1\r\nHost: x" + b"".join(b"\r\nX-%d: " % i + b"y" * 60 for i in range(1000)), 431),
        ):
            with self.subTest(name):
                head, _, body = self.talk(lines + b"\r\n\r\n").partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 %d" % status), head[:200])
                if status == 431:
                    error = json.loads(body)["error"]
                    self.assertEqual((error["type"], error["code"]),
                                     ("invalid_request_error", "request_header_fields_too_large"))
        self.assert_alive()

    def test_garbage(self):
        r = random.Random(9)
        for name, data in {
            "binary": bytes(r.randrange(256) for _ in range(4000)),
            "zeros": bytes(5000),
            "tls hello": bytes.fromhex("16030100dc010000d80303") + bytes(200),
            "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),
            "no version": b"GET /health\r\n\r\n",
            "odd version": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
            "long line": b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            "long header": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 400_000 + b"\r\n\r\n",
            "many headers": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20000)) + b"\r\n",
            "bare newlines": b"\n\n\n\n",
            "chunk size": f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                          "zz\r\n{}\r\n0\r\n\r\n".encode(),
            "chunk size overflow": f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
                                   "\r\n\r\nffffffffffffffffff\r\n{}".encode(),
            "percent": b"GET /%zz%00/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "nul path": b"GET /v1/models/a%00b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        }.items():
            with self.subTest(name):
                out = self.talk(data, timeout=1)
                self.assertFalse(out.startswith(b"HTTP/1.1 200") and name != "many headers", out[:300])
                self.assertNotIn(b"root:", out)
        self.assert_alive()

    def test_sixty_kilobytes_of_headers_are_fine(self):
        head = "".join(f"X-Pad-{i}: {'v' * 1000}\r\n" for i in range(58))
        out = self.talk(f"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n".encode())
        self.assertTrue(out.startswith(b"HTTP/1.1 200"), out[:200])

    def test_truncated_requests(self):
        data = client.post_bytes(CHAT, self.chat_body("Hi", max_tokens=1))
        for cut in range(1, len(data), 17):
            s = client.connect(self.port)
            s.sendall(data[:cut])
            s.close()
        self.assert_alive()

    def test_random_heads(self):
        r = random.Random(4)
        good = client.post_bytes(CHAT, self.chat_body("Hi", max_tokens=1), ["Connection: close"])
        end = time.monotonic() + 4 * SLOW
        while time.monotonic() < end:
            data = bytearray(good)
            for _ in range(r.randint(1, 4)):
                data[r.randrange(150)] = r.randrange(256)
            self.talk(bytes(data), timeout=0.05)
        self.assert_alive()
