"""Paths and headers around the completions: probes, models, tokens, request ids, CORS, pipelining."""
import time

import client
from case import CHAT, SLOW, Case
from server import Server


class Http(Case):
    def test_probes_version_status(self):
        for path in ("/health", "/ready", "/version", "/status", "/metrics"):
            with self.subTest(path=path):
                answer = self.get(path)
                self.assertEqual(answer.status, 200, answer)
                self.assertTrue(answer.headers.get("x-request-id"))
        self.assertIn("version", self.get("/version").json)
        self.assertIsInstance(self.get("/status").json, dict)

    def test_status_is_a_live_picture(self):
        bodies = [self.long_body(mode="ar"), self.long_body(mode="self_speculation", block_length=8)]
        streams = [client.Stream(self.port, "/v1/chat/completions", {**b, "stream": True}) for b in bodies]
        try:
            end, seen = time.monotonic() + 10 * SLOW, {}
            while time.monotonic() < end and not {"ar", "self_speculation"} <= seen.keys():
                for r in self.get("/status").json["requests"]:
                    for d in r["decoding"]:
                        if d["tokens"] > 20:
                            self.assertEqual(d["mode"], r["mode"])
                            seen[d["mode"]] = d
            self.assertEqual(set(seen), {"ar", "self_speculation"})
            ar, spec = seen["ar"], seen["self_speculation"]
            self.assertEqual((ar["block_length"], ar["acceptance"], spec["block_length"]), (None, None, 8))
            self.assertTrue(0 <= spec["acceptance"] <= 1)
            for d in (ar, spec):
                self.assertGreater(d["tokens_per_second"], 0)
                self.assertGreater(d["computed_tokens"], d["tokens"])
                self.assertTrue(d["reason"])
        finally:
            for s in streams:
                s.close()
        self.server.wait_idle(1.5)
        end = time.monotonic() + SLOW
        while self.get("/status").json["requests"] and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(self.get("/status").json["requests"], [])

    def test_request_id_of_the_client_comes_back(self):
        self.assertEqual(self.get("/health", **{"x-request-id": "abc-123"}).headers["x-request-id"], "abc-123")
        for bad in ("x" * 129, "tab\there", "caf\xe9"):
            got = self.get("/health", **{"x-request-id": bad}).headers["x-request-id"]
            self.assertTrue(got and got != bad, bad)
        answer = self.post(CHAT, {"messages": 5}, {"x-request-id": "in-an-error"})
        self.assertEqual((answer.status, answer.headers["x-request-id"]), (400, "in-an-error"))

    def test_every_request_has_its_own_id(self):
        ids = {self.get("/health").headers["x-request-id"] for _ in range(20)}
        self.assertEqual(len(ids), 20)

    def test_tokenize_and_back(self):
        for text in ("hello world", "café 你好 😀\n\ttab", "<|im_start|> is text here", " "):
            with self.subTest(text=text):
                r = self.post("/tokenize", {"model": "nano", "prompt": text, "add_special_tokens": False})
                self.assertEqual(r.status, 200, r)
                self.assertEqual(r.json["count"], len(r.json["tokens"]))
                self.assertGreater(r.json["max_model_len"], 0)
                back = self.post("/detokenize", {"model": "nano", "tokens": r.json["tokens"]})
                self.assertEqual(back.json["prompt"], text)
        self.assert_error(self.post("/detokenize", {"tokens": [10**7]}), 400)
        self.assert_error(self.post("/detokenize", {"tokens": "x"}), 400)
        self.assert_error(self.post("/tokenize", {"prompt": 5}), 400)

    def test_tokenize_of_messages_is_the_prompt(self):
        messages = [{"role": "user", "content": "Hi"}]
        tokens = self.post("/tokenize", {"model": "nano", "messages": messages}).json["tokens"]
        self.assertEqual(len(tokens), self.ask("Hi", max_tokens=1)["usage"]["prompt_tokens"])

    def test_pipelined_requests_are_answered_in_order(self):
        body = self.chat_body("Hi", max_tokens=2)
        with client.connect(self.port, timeout=10) as s:
            s.sendall(client.post_bytes(CHAT, body) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" +
                      client.post_bytes(CHAT, body, ["Connection: close"]))
            out = client.read_all(s)
        self.assertEqual(out.count(b"HTTP/1.1 200"), 3, out)
        self.assertEqual(out.count(b'"chat.completion"'), 2, out)

    def test_query_string_is_not_part_of_the_path(self):
        self.assertEqual(self.get("/health?probe=1").status, 200)
        self.assertEqual(self.post(CHAT + "?api-version=1", self.chat_body("Hi", max_tokens=1)).status, 200)

    def test_model_id_is_percent_decoded(self):
        model = self.get("/v1/models").json["data"][0]["id"]
        encoded = "".join(f"%{b:02X}" for b in model.encode())
        self.assertEqual(self.get("/v1/models/" + encoded).json["id"], model)
        self.assert_error(self.get("/v1/models/other/name"), 404, "model_not_found")


class Flags(Case):
    def test_cors_and_served_name(self):
        with Server("--cors-origin", "https://ui.example", "--served-model-name", "org/served") as s:
            answer = client.request(s.port, "OPTIONS", CHAT, headers={
                "Origin": "https://ui.example", "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type,authorization"})
            self.assertIn(answer.status, (200, 204), answer)
            self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "https://ui.example")
            self.assertIn("POST", answer.headers["Access-Control-Allow-Methods"])
            answer = client.request(s.port, "GET", "/v1/models", headers={"Origin": "https://ui.example"})
            self.assertEqual(answer.headers["Access-Control-Allow-Origin"], "https://ui.example")
            self.assertEqual([m["id"] for m in answer.json["data"]], ["org/served"])
            self.assertEqual(client.request(s.port, "GET", "/v1/models/org/served").status, 200)
            answer = client.request(s.port, "POST", CHAT, {**self.chat_body("Hi", max_tokens=1), "model": "org/served"})
            self.assertEqual((answer.status, answer.json["model"]), (200, "org/served"), answer)

    def test_a_full_queue_answers_503_at_once(self):
        with Server("--max-sequences", "1", "--max-queue", "1") as s:
            body = self.long_body(stream=True)
            first = client.Stream(s.port, CHAT, body)
            s.wait_busy(1)
            second = client.connect(s.port)
            second.sendall(client.post_bytes(CHAT, body))
            end = 100
            while s.busy()[1] != 1 and end:
                end -= 1
            answer = client.request(s.port, "POST", CHAT, body, timeout=5)
            self.assert_error(answer, 503, "server_is_overloaded")
            self.assertTrue(1 <= int(answer.headers["Retry-After"]) <= 60, answer.headers)
            first.close()
            second.close()
            s.wait_idle(1)
            answer = client.request(s.port, "POST", CHAT, self.chat_body("Hi", max_tokens=1))
            self.assertEqual(answer.status, 200)
