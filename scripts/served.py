"""What the checks of a running server share: the server as a process of their own, and prompts. Python's standard library only."""
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NANO = os.path.join(ROOT, "config", "models", "nano")
BUILT_IN = ["What is trimode?", "What is 12 + 30?", "Count from 3 to 14.", "Write the 4 times table up to 6.",
            "Sort these words: wolf, cat, horse, bear", "Reverse this list: key, lamp, door, hat",
            "Tell a story about a fox named Mia in the forest.", "Write an email to Anna from Paul about the budget on Monday.",
            "Repeat: apple river 你好 café 😀 lamp", "Make a table of name and age: Ben 20, Ida 35",
            "Turn into JSON: Emma is 31 years old and lives in Oslo.", "Write a Python function add of a and b."]


def all_prompts(only=()):
    """[(prompt, right answer or None)] of the held-out set, every task in turn; only: names of tasks."""
    path = os.path.join(ROOT, "scripts", "train", "heldout.jsonl")
    if not os.path.exists(path):
        return [(p, None) for p in BUILT_IN]
    tasks = {}
    with open(path, encoding="utf-8") as f:
        for line in map(json.loads, f):
            if only and line.get("task") not in only:
                continue
            tasks.setdefault(line.get("task", ""), []).append((line["prompt"], line["answer"]))
    return [x for group in itertools.zip_longest(*tasks.values()) for x in group if x]


def load_prompts(n):
    """n of them, from the first again when there are fewer."""
    return list(itertools.islice(itertools.cycle(all_prompts()), n))


class Server:
    """`trimode serve` on a free port, ready when the constructor returns; the program ends if it does not start."""

    def __init__(self, binary, model, *flags):
        self.log = tempfile.NamedTemporaryFile(prefix="trimode-check-", suffix=".log")
        self.process = subprocess.Popen([binary, "serve", "--port", "0", "--model", model, *flags], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        self.port = None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            m = re.search(r"https?://[^\s:]+:(\d+)", self.text())
            if m:
                self.port = int(m.group(1))
                try:
                    if self.get("/ready")[0] == 200:
                        return
                except OSError:
                    pass
            time.sleep(0.05)
        self.process.kill()
        sys.exit(f"{os.path.basename(sys.argv[0])}: the server did not start:\n{self.text()}")

    def text(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def get(self, path):
        return self._request("GET", path)

    def post(self, path, body):
        return self._request("POST", path, json.dumps(body), {"Content-Type": "application/json"})

    def _request(self, *what):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            conn.request(*what)
            r = conn.getresponse()
            return r.status, r.read().decode()
        finally:
            conn.close()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
