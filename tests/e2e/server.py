"""A trimode process under test: starts it on a free port, waits for /ready, reads its metrics, stops it.

Every server that a test starts is stopped with SIGTERM and must then exit 0, with nothing of a sanitizer in its log.
"""
import os
import re
import signal
import subprocess
import tempfile
import time

import client

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("E2E_BUILD", "build"))
BINARY = os.path.join(BUILD, "trimode")
MODEL = os.environ.get("E2E_MODEL", os.path.join(ROOT, "config", "models", "nano"))

REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "runtime error:", "Assertion `")
SERIES = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')


def sanitized():
    """What the sanitizers slow down, relative to a release build."""
    with open(BINARY, "rb") as f:
        data = f.read()
    return b"__asan_init" in data or b"__tsan_init" in data


SLOW = 6 if os.path.exists(BINARY) and sanitized() else 1


def parse_metrics(text):
    """{(name, ((label, value), ...)): number}; raises ValueError at a line that is not the exposition format."""
    out = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        m = SERIES.match(line)
        if not m:
            raise ValueError(f"not a series: {line!r}")
        labels = m.group(2) or ""
        if LABEL.sub("", labels):
            raise ValueError(f"labels not understood: {line!r}")
        key = (m.group(1), tuple(sorted(LABEL.findall(labels))))
        if key in out:
            raise ValueError(f"series twice: {line!r}")
        out[key] = float(m.group(3))
    return out


class Server:
    """`with Server("--mode", "ar") as s:` or start() / stop()."""

    def __init__(self, *flags, env=None, ready=True):
        # Nothing tested depends on a cost model but what asks for it, and measuring one takes most of a start.
        self.flags, self.env, self.ready = flags, {"TRIMODE_CALIBRATION": "off", **(env or {})}, ready
        self.process = self.port = None
        self.signalled = False

    def start(self):
        self.log_file = tempfile.NamedTemporaryFile(prefix="trimode-e2e-", suffix=".log")
        flags = list(self.flags)
        if "--model" not in flags:
            flags += ["--model", MODEL]
        self.process = subprocess.Popen([BINARY, "serve", "--port", "0", *flags], stdin=subprocess.DEVNULL,
                                        stdout=self.log_file, stderr=self.log_file, env={**os.environ, **self.env})
        deadline = time.monotonic() + 30 * SLOW
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"serve {' '.join(self.flags)} ended with {self.process.returncode}:\n{self.log()}")
            if self.port is None:
                m = re.search(r"https?://[^\s:]+:(\d+)", self.log())
                self.port = int(m.group(1)) if m else None
            if self.port is not None and not self.ready:
                return self
            if self.port is not None:
                try:
                    if client.request(self.port, "GET", "/ready", timeout=5).status == 200:
                        return self
                except OSError:
                    pass
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"serve {' '.join(self.flags)} was not ready in time:\n{self.log()}")

    def stop(self, timeout=40):
        """SIGTERM, exit status 0 and a clean log, or AssertionError."""
        if self.process is None:
            return
        if self.process.poll() is None and not self.signalled:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop within {timeout} s of SIGTERM:\n{self.log()[-4000:]}")
        log, self.process = self.log(), None
        for report in REPORTS:
            assert report not in log, f"the server's log has a report:\n{log[-12000:]}"
        assert code == 0, f"the server ended with {code}:\n{log[-4000:]}"

    def signal(self, number):
        self.signalled = True
        self.process.send_signal(number)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.stop()
        else:
            self.kill()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def log(self):
        with open(self.log_file.name, encoding="utf-8", errors="replace") as f:
            return f.read()

    # ---- numbers ----

    def metrics(self):
        answer = client.request(self.port, "GET", "/metrics", timeout=10 * SLOW)
        assert answer.status == 200, answer
        return parse_metrics(answer.body.decode())

    def metric(self, name, metrics=None, **labels):
        """The sum over the series of that name which carry these labels; None when there is no such series."""
        found = [v for (n, ls), v in (metrics or self.metrics()).items()
                 if n == "trimode_" + name and labels.items() <= dict(ls).items()]
        return sum(found) if found else None

    def busy(self):
        m = self.metrics()
        return (self.metric("requests_running", m), self.metric("requests_waiting", m),
                self.metric("kv_pages", m, state="used"))

    def wait_idle(self, seconds=1.0):
        """Nothing runs, nothing waits, every page is free; returns the seconds it took or raises AssertionError."""
        start = time.monotonic()
        while True:
            busy = self.busy()
            if busy == (0, 0, 0):
                return time.monotonic() - start
            if time.monotonic() - start > seconds * SLOW:
                raise AssertionError(f"after {seconds * SLOW:.0f} s: running, waiting, pages used = {busy}")
            time.sleep(0.02)

    def wait_busy(self, running=1, seconds=5.0):
        """At least that many requests run."""
        end = time.monotonic() + seconds * SLOW
        while time.monotonic() < end:
            if (self.busy()[0] or 0) >= running:
                return
            time.sleep(0.005)
        raise AssertionError(f"{running} running requests were expected: {self.busy()}")
