"""The step of check_router.py: one client, then many, then one again, on a server of its own; how soon auto has settled.

What is watched is the share of each mode in the tokens that the server makes: its counters say who made every token, so nothing is
sampled. The steady share of a phase is that of its second half; a phase has settled at the first moment from which nine of ten windows
that begin later have that share within 15 points. In a window without tokens, as when 63 prompts are computed by a large model, the
share of the running requests counts instead, as /status has it; how long no token came is told beside. The list of requests in /status
is no use here: it is made too seldom to show those of a few milliseconds. In the middle of a phase one more request is asked for
what it is told of its mode.
"""
import http.client
import json
import re
import subprocess
import threading
import time

POLL_S, BAND, STEADY = 0.02, 0.15, 0.9
SERIES = re.compile(r'trimode_generated_tokens_total\{mode="(\w+)"\} (\d+)')


class Watch(threading.Thread):
    """Reads the server's numbers every POLL_S until stop(): self.samples is [(time, {mode: tokens so far}, {mode: running}, waiting)]."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.samples, self.ending, self.error = port, [], threading.Event(), None

    def run(self):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            while not self.ending.wait(POLL_S):
                conn.request("GET", "/metrics")
                tokens = {m: int(n) for m, n in SERIES.findall(conn.getresponse().read().decode())}
                now = time.monotonic()
                conn.request("GET", "/status")
                status = json.loads(conn.getresponse().read())
                self.samples.append((now, tokens, status["running"], status["waiting"]))
        except (OSError, ValueError, KeyError, http.client.HTTPException) as e:
            self.error = f"{type(e).__name__}: {e}"
        finally:
            conn.close()

    def stop(self):
        self.ending.set()
        self.join(60)


def shares(counts):
    total = sum(counts.values())
    return {m: n / total for m, n in counts.items() if n}


def made_between(before, after):
    """{mode: tokens} between two samples."""
    return {m: n - before[1].get(m, 0) for m, n in after[1].items()}


def settled(samples, steady, window_s):
    """Seconds from the first sample to the first from which STEADY of all windows are like `steady`; None: never."""
    like, k = [], 0
    for i, first in enumerate(samples):
        while k < len(samples) and samples[k][0] < first[0] + window_s:
            k += 1
        if k == len(samples):
            break
        mix = shares(made_between(first, samples[k]))
        if not mix:
            mix = shares({m: sum(s[2].get(m, 0) for s in samples[i:k + 1]) for m in {m for s in samples[i:k + 1] for m in s[2]}})
        like.append(bool(mix) and all(abs(mix.get(m, 0) - steady.get(m, 0)) <= BAND for m in mix.keys() | steady.keys()))
    right, found = 0, None
    for i in reversed(range(len(like))):
        right += like[i]
        if like[i] and right >= STEADY * (len(like) - i):
            found = i
    return None if found is None else samples[found][0] - samples[0][0]


def silence(samples):
    """The longest time without a new token, in seconds."""
    last, longest = samples[0], 0
    for s in samples[1:]:
        longest = max(longest, s[0] - last[0])
        if sum(made_between(last, s).values()):
            last = s
    return longest


def speed(samples):
    return sum(made_between(samples[0], samples[-1]).values()) / (samples[-1][0] - samples[0][0])


def phase_of(samples, start, end, clients, window_s):
    """What one phase was like: its steady mix, when it settled, tokens a second at once and later, when the load was there."""
    mine = [s for s in samples if start <= s[0] <= end]
    late = [s for s in mine if s[0] >= (start + end) / 2]
    soon = [s for s in mine if s[0] <= start + min(1, (end - start) / 2)]
    if len(late) < 2 or len(soon) < 2:
        return None
    steady = shares(made_between(late[0], late[-1]))
    there = next((s[0] - start for s in mine if 0.9 * clients - 1 <= sum(s[2].values()) + s[3] <= clients), None)
    return {"clients": clients, "settled": settled(mine, steady, window_s), "mix": steady, "there": there,
            "silence": silence(mine), "tok_s": speed(late), "soon_tok_s": speed(soon)}


def measure(port, load, ask, clients, phases_s, window_s):
    """load(clients): the command of a closed loop without end; ask(): one request, returns what it was told. Three phases, or a
    sentence about what went wrong."""
    watch = Watch(port)
    watch.start()
    running, edges, told = [], [time.monotonic()], []

    def begin(n):
        running.append(subprocess.Popen(load(n), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def live_through(seconds, n_running):
        time.sleep(seconds / 2)
        told.append(ask())
        time.sleep(max(0, edges[-1] + seconds - time.monotonic()))
        edges.append(time.monotonic())
        if any(p.poll() is not None for p in running[:n_running]):
            raise OSError("a client ended before its time")

    wrong = None
    try:
        begin(1)
        live_through(phases_s[0], 1)
        begin(clients - 1)
        live_through(phases_s[1], 2)
        running[1].kill()
        live_through(phases_s[2], 1)
    except (OSError, http.client.HTTPException) as e:
        wrong = str(e)
    finally:
        for p in running:
            p.kill()
            p.wait()
        watch.stop()
    if watch.error or wrong:
        return watch.error or wrong
    found = [phase_of(watch.samples, a, b, n, window_s) for a, b, n in zip(edges, edges[1:], (1, clients, 1))]
    if not all(found):
        return "too few samples: the server answers too slowly"
    return [{**phase, "told": t} for phase, t in zip(found, told)]
