"""The command line: help, versions, settings and their errors, generate and chat without a server."""
import os
import subprocess
import tempfile
import unittest

from case import MODES, SLOW
from server import BINARY, MODEL


def run(*args, stdin=b"", env=None):
    return subprocess.run([BINARY, *args], input=stdin, capture_output=True, timeout=60 * SLOW, env={**os.environ, **(env or {})})


class Cli(unittest.TestCase):
    def ok(self, *args, **kw):
        r = run(*args, **kw)
        self.assertEqual(r.returncode, 0, f"trimode {args}: {r.stderr.decode()}")
        return r.stdout.decode("utf-8")

    def bad(self, *args, words=(), **kw):
        """Exit status 2, nothing on stdout, one sentence with these words."""
        r = run(*args, **kw)
        text = r.stderr.decode()
        self.assertEqual(r.returncode, 2, f"trimode {args}: {text}")
        self.assertEqual(r.stdout, b"")
        for w in words:
            self.assertIn(w, text)
        self.assertLessEqual(text.count("\n"), 3, text)

    def test_version_and_help(self):
        self.assertRegex(self.ok("--version"), r"\d+\.\d+\.\d+")
        text = self.ok("--help")
        for command in ("serve", "generate", "chat", "calibrate"):
            self.assertIn(command, text)
            self.assertIn("--model", self.ok(command, "--help"))
        for flag in ("--port", "--mode", "--block-length", "--adapter", "--drain-timeout", "--max-queue", "--print-config"):
            self.assertIn(flag, self.ok("serve", "--help"))

    def test_bad_flags_exit_2(self):
        self.assertEqual(run().returncode, 2)
        self.bad("fly", words=["fly"])
        self.bad("serve", "--wings", "2", words=["wings"])
        self.bad("serve", "--port", "99999", words=["port", "99999", "65535"])
        self.bad("serve", "--port", "http", words=["port", "http"])
        self.bad("serve", "--port", words=["port"])
        self.bad("serve", "--block-length", "5", words=["block", "5", "4, 8, 16, 32"])
        self.bad("serve", "--threshold", "1.5", words=["threshold", "1.5"])
        self.bad("serve", "--threshold", "nan", words=["threshold", "nan"])
        self.bad("serve", "--mode", "quick", words=["mode", "quick", "self_speculation"])
        self.bad("serve", "--page-size", "0", words=["page", "0"])
        self.bad("serve", "--kv-memory", "12 parsecs", words=["kv", "12 parsecs"])
        self.bad("serve", "--max-body", "-1", words=["max", "-1"])
        self.bad("serve", "extra", words=["extra"])

    def test_bad_environment_exits_2(self):
        self.bad("serve", "--print-config", env={"TRIMODE_PORT": "x"}, words=["TRIMODE_PORT", "x"])
        self.bad("serve", "--print-config", env={"TRIMODE_PROT": "80"}, words=["TRIMODE_PROT"])

    def test_model_that_is_not_there(self):
        r = run("serve", "--model", "/nowhere/at/all", "--port", "0")
        self.assertNotEqual(r.returncode, 0)
        self.assertIn("/nowhere/at/all", r.stderr.decode())

    def test_print_config_and_precedence(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
            f.write("port: 1111\nblock_length: 8\nthreshold: 0.5\n")
            f.flush()
            text = self.ok("serve", "--print-config", "--config", f.name, "--port", "3333",
                           env={"TRIMODE_PORT": "2222", "TRIMODE_BLOCK_LENGTH": "16"})
            lines = {line.split(":")[0].strip(): line for line in text.splitlines() if ":" in line}
            self.assertIn("3333", lines["port"])
            self.assertIn("flag", lines["port"])
            self.assertIn("16", lines["block_length"])
            self.assertIn("environment", lines["block_length"])
            self.assertIn("0.5", lines["threshold"])
            self.assertIn("config file", lines["threshold"])
            self.assertIn("default", lines["host"])
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
            f.write(text)  # what is printed can be read again
            f.flush()
            again = self.ok("serve", "--print-config", "--config", f.name)
            self.assertIn("3333", again)

    def test_bad_config_files_exit_2(self):
        for text, word in (("prot: 80\n", "prot"), ("port: 99999\n", "99999"), ("port: [1, 2]\n", "port"), ("- port\n", ""),
                           ("port: 1\nport: 2\n", "port"), ("port: &x 1\n", ""), ("port: 80\n  bad: [\n", "")):
            with self.subTest(text=text), tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
                f.write(text)
                f.flush()
                self.bad("serve", "--print-config", "--config", f.name, words=[word])
        self.bad("serve", "--config", "/nowhere.yaml", words=["/nowhere.yaml"])

    def test_generate(self):
        args = ("generate", "--model", MODEL, "--temperature", "0", "--max-tokens", "40")
        texts = {m: self.ok(*args, "--mode", m, "What is trimode?") for m in MODES}
        self.assertTrue(texts["ar"].strip())
        self.assertEqual(texts["ar"], texts["self_speculation"])
        r = run(*args, "--stats", "--mode", "self_speculation", "What is trimode?")
        self.assertEqual(r.stdout.decode(), texts["ar"], "the numbers belong on stderr")
        self.assertRegex(r.stderr.decode(), r"(?i)pass")

    def test_generate_with_a_full_pipe_closed(self):
        command = f"'{BINARY}' generate --model '{MODEL}' --max-tokens 60 'Count from 3 to 14.' | head -c 1"
        r = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60 * SLOW)
        self.assertEqual(len(r.stdout), 1)
        self.assertNotIn(b"Sanitizer", r.stderr)

    def test_chat_from_a_pipe(self):
        out = self.ok("chat", "--model", MODEL, "--temperature", "0", "--max-tokens", "40",
                      stdin="What is 12 + 30?\nRepeat: 你好 😀\n".encode())
        one = self.ok("generate", "--model", MODEL, "--temperature", "0", "--max-tokens", "40", "What is 12 + 30?").strip()
        self.assertIn(one, out)

    def test_generate_bad_input(self):
        self.bad("generate", "--mode", "quick", "x", words=["quick"])
        r = run("generate", "--model", MODEL, "--max-tokens", "4", b"\xff\xfe")
        self.assertNotEqual(r.returncode, 0)
        self.assertTrue(r.stderr)
        self.assertNotIn(b"Sanitizer", r.stderr)
