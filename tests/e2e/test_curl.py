"""curl, as people type it."""
import json
import os
import re
import subprocess

from case import CHAT, ROOT, SLOW, Case

JSON = ["-H", "Content-Type: application/json"]


class Curl(Case):
    def curl(self, *args, stdin=None):
        r = subprocess.run(["curl", "-sS", "--max-time", str(60 * SLOW), *args], input=stdin, capture_output=True, timeout=90 * SLOW)
        self.assertEqual(r.returncode, 0, f"curl {args}: {r.stderr.decode()}")
        return r.stdout.decode("utf-8")

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def test_line_of_the_readme(self):
        command = ("curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
                   "-d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is trimode?\"}]}'")
        readme = os.path.join(ROOT, "README.md")
        if os.path.exists(readme):
            with open(readme, encoding="utf-8") as f:
                blocks = re.findall(r"```(?:sh|bash|console|shell)?\n(.*?)```", f.read(), re.S)
            found = [m.group(0) for b in blocks for m in re.finditer(r"^curl (?:[^'\n]|\\\n|'[^']*')*", b, re.M)]
            command = next((c for c in found if "completions" in c and "stream" not in c), command)
        command = re.sub(r"(localhost|127\.0\.0\.1):8000", f"127.0.0.1:{self.port}", command)
        r = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60 * SLOW)
        self.assertEqual(r.returncode, 0, r.stderr)
        answer = json.loads(r.stdout)
        self.assertIn(answer["object"], ("chat.completion", "text_completion"), command)

    def test_stream_with_no_buffer(self):
        body = json.dumps(self.chat_body("Count from 3 to 14.", stream=True))
        text = self.curl("-N", "-D", "-", self.url(CHAT), *JSON, "-d", body)
        head, events = text.split("\r\n\r\n", 1)
        self.assertRegex(head, r"(?i)content-type: text/event-stream")
        self.assertRegex(head, r"(?i)cache-control: no-cache")
        self.assertRegex(head, r"(?i)x-accel-buffering: no")
        self.assertRegex(head, r"(?i)x-request-id: \S+")
        self.assertTrue(events.startswith("data: {") or events.startswith(":"), events[:100])
        self.assertTrue(events.endswith("data: [DONE]\n\n"), events[-100:])

    def test_big_body_with_expect(self):
        # curl sends Expect: 100-continue for bodies over 1 MiB.
        body = json.dumps(self.chat_body("Hi", max_tokens=2, metadata={"note": "x" * 3_000_000})).encode()
        out = self.curl("-w", "\n%{http_code}", "-H", "Expect: 100-continue", *JSON, "--data-binary", "@-", self.url(CHAT), stdin=body)
        self.assertEqual(out.rsplit("\n", 1)[1], "200", out[:300])

    def test_body_over_the_limit(self):
        body = b'{"messages": "' + b"x" * (34 << 20) + b'"}'
        out = self.curl("-w", "\n%{http_code}", "-H", "Expect: 100-continue", *JSON, "--data-binary", "@-", self.url(CHAT), stdin=body)
        text, code = out.rsplit("\n", 1)
        self.assertEqual(code, "413", out[:300])
        self.assertEqual(json.loads(text)["error"]["code"], "request_too_large")

    def test_chunked_upload(self):
        body = json.dumps(self.chat_body("Hi", max_tokens=2)).encode()
        out = self.curl(*JSON, "-H", "Transfer-Encoding: chunked", "--data-binary", "@-", self.url(CHAT), stdin=body)
        self.assertEqual(json.loads(out)["object"], "chat.completion")

    def test_head(self):
        for path in ("/health", "/ready", "/v1/models"):
            head = self.curl("-I", self.url(path))
            self.assertTrue(head.startswith("HTTP/1.1 200"), f"{path}: {head}")

    def test_wrong_verb(self):
        for verb, path, allow in (("GET", CHAT, "POST"), ("DELETE", CHAT, "POST"), ("POST", "/v1/models", "GET"),
                                  ("PUT", "/health", "GET"), ("POST", "/metrics", "GET")):
            with self.subTest(f"{verb} {path}"):
                out = self.curl("-D", "-", "-X", verb, self.url(path))
                self.assertTrue(out.startswith("HTTP/1.1 405"), out)
                self.assertRegex(out, rf"(?im)^allow: .*{allow}")
                self.assertEqual(json.loads(out.split("\r\n\r\n", 1)[1])["error"]["code"], "method_not_supported")

    def test_options(self):
        out = self.curl("-i", "-X", "OPTIONS", self.url(CHAT))
        self.assertRegex(out, r"^HTTP/1.1 (2\d\d|405)")
        self.assertRegex(out, r"(?im)^allow: .*POST")
        self.assertNotRegex(out, r"(?i)access-control-allow-origin", "CORS is off by default")

    def test_unknown_path_is_named(self):
        for path in ("/v1/v1/chat/completions", "/v1/embeddings", "/nothing", "/v1/chat/completions/", "/"):
            with self.subTest(path=path):
                out = self.curl("-i", *JSON, "-d", "{}", self.url(path))
                self.assertTrue(out.startswith("HTTP/1.1 404"), out)
                error = json.loads(out.split("\r\n\r\n", 1)[1])["error"]
                self.assertEqual(error["type"], "invalid_request_error")
                self.assertIn(path, error["message"])

    def test_data_without_a_content_type_header(self):
        # curl -d calls its body a form; the body decides.
        out = self.curl("-d", json.dumps(self.chat_body("Hi", max_tokens=2)), self.url(CHAT))
        self.assertEqual(json.loads(out)["object"], "chat.completion")
        out = self.curl("-i", "-d", "model=nano&prompt=Hi", self.url(CHAT))
        self.assertTrue(out.startswith("HTTP/1.1 400"), out)
        out = self.curl("-i", "-H", "Content-Type: text/plain", "-d", "{}", self.url(CHAT))
        self.assertTrue(out.startswith("HTTP/1.1 415"), out)
        self.assertIn('"error"', out)

    def test_keep_alive_serves_many(self):
        body = json.dumps(self.chat_body("Hi", max_tokens=2))
        out = self.curl("-w", "|%{num_connects} %{http_code}\n", *JSON, "-d", body, self.url(CHAT), self.url(CHAT), self.url(CHAT))
        self.assertEqual(re.findall(r"\|(\d) (\d+)", out), [("1", "200"), ("0", "200"), ("0", "200")])
