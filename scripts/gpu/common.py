"""What the parts share: where things are, tables that are printed even when a part is stopped, the limits, servers and their memory.

Environment (from env.sh): GPU_ROOT, GPU_BIN, GPU_OUT, GPU_MODELS, GPU_BACKEND, GPU_REHEARSE, GPU_KEEP. Standard library only.
"""
import atexit
import json
import os
import signal
import statistics
import subprocess
import sys
import time

ROOT = os.environ.get("GPU_ROOT") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GPU_DIR = os.environ.get("GPU_DIR", os.path.join(ROOT, "build-gpu"))
BIN = os.environ.get("GPU_BIN", os.path.join(GPU_DIR, "bin"))
OUT = os.environ.get("GPU_OUT", os.path.join(GPU_DIR, "out"))
MODELS = os.environ.get("GPU_MODELS", os.path.join(GPU_DIR, "models"))
BACKEND = os.environ.get("GPU_BACKEND", "cuda")
REHEARSE = os.environ.get("GPU_REHEARSE") == "1"
KEEP = os.environ.get("GPU_KEEP") == "1"
NANO = os.path.join(ROOT, "config", "models", "nano")
PART_SECONDS = 420  # a part starts nothing new after this; gpu.sh ends it 40 s later
STARTED = time.monotonic()

sys.path.insert(0, os.path.join(ROOT, "scripts"))
sys.path.insert(0, os.path.join(ROOT, "scripts", "reference"))


def say(*what):
    """Progress: to the part's log."""
    print(f"[{time.monotonic() - STARTED:6.1f} s]", *what, file=sys.stderr, flush=True)


def time_left():
    return PART_SECONDS - (time.monotonic() - STARTED)


class Table:
    """Rows of text under headings, printed when the program ends, however it ends."""

    all = []

    def __init__(self, title, *columns):
        self.title, self.columns, self.rows, self.notes = title, columns, [], []
        Table.all.append(self)

    def row(self, *cells):
        self.rows.append([cell if isinstance(cell, str) else "-" if cell is None else f"{cell:g}" for cell in cells])
        say(self.title.split(":")[0], "|", " | ".join(self.rows[-1]))

    def note(self, text):
        self.notes.append(text)

    def show(self):
        if not self.rows and not self.notes:
            return
        print(f"\n{self.title}")
        widths = [max(len(r[i]) for r in [list(self.columns), *self.rows]) for i in range(len(self.columns))]
        for r in [list(self.columns), *self.rows] if self.rows else []:
            print("  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))).rstrip())
        for text in self.notes:
            print("  " + text)


@atexit.register
def show_tables():
    for t in Table.all:
        t.show()
    sys.stdout.flush()


signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: out of time"))

failures = []


def expect(ok, text):
    """A check that decides the exit status; the text is printed when it fails."""
    if not ok:
        failures.append(text)
        print("FAILED", text, flush=True)
    return ok


def finish():
    sys.exit(1 if failures else 0)


def percent(x):
    return None if x is None else f"{100 * x:.0f} %"


def verdict(ok):
    """Of a target: a share that falls short is a result, not an error of the script."""
    return "-" if ok is None or REHEARSE else "yes" if ok else "NO"


# ---- limits ----


def limits():
    """{read_gbps, copy_gbps, host_gbps, device}: this machine's, measured once a run."""
    path = os.path.join(OUT, "limits.json")
    if os.path.exists(path) and time.time() - os.path.getmtime(path) < 1500:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    if REHEARSE:
        got = processor_limits()
    else:
        got = json.loads(subprocess.run([os.path.join(BIN, "read_limit")], check=True, capture_output=True, text=True, timeout=120).stdout)
    os.makedirs(OUT, exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(got, f)
    return got


def processor_limits():
    """A stand-in for rehearsals: what copying memory on one CPU gives."""
    a = bytearray(64 << 20)
    best = min(timed(lambda: bytes(a)) for _ in range(3))
    rate = 2 * len(a) / best / 1e9
    return {"device": "CPU", "read_gbps": rate, "copy_gbps": rate, "host_gbps": rate, "how": "a copy by one thread"}


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def limits_note(table):
    lim = limits()
    table.note(f"limits measured in this run on {lim['device']}: reads {lim['read_gbps']:.0f} GB/s, copies {lim['copy_gbps']:.0f} GB/s "
               f"(read + written), host to device {lim['host_gbps']:.1f} GB/s ({lim['how']})")


# ---- servers ----


def serve(model, *flags):
    """A running server of ours on the backend under test (check_modes.Server); flags may name another backend."""
    import check_modes
    if "--backend" not in flags:
        flags = ("--backend", BACKEND, *flags)
    say("serve", os.path.basename(model), *flags)
    return check_modes.Server(os.path.join(BIN, "trimode"), model, *flags)


def flag_exists(name, command="serve"):
    """Whether the binary knows a flag."""
    return f"--{name}" in subprocess.run([os.path.join(BIN, "trimode"), *command.split(), "--help"], capture_output=True, text=True).stdout


def device_memory():
    """Bytes in use on the first GPU; None without one."""
    try:
        out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True,
                             timeout=20)
        return int(out.stdout.split()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def median(values):
    return statistics.median(values) if values else None


def packs(weights):
    """Whether the binary and the backend under test take a weights format (the CPU backend takes f32 and bf16)."""
    if BACKEND == "cpu":
        return weights in ("auto", "f32", "bf16")
    out = subprocess.run([os.path.join(BIN, "trimode"), "serve", "--help"], capture_output=True, text=True).stdout
    return f"|{weights}" in out
