"""Clients of a server over loopback: each sends one prompt of token ids and reads the stream, checking every byte of it.

Clients are spread over processes, so that Python keeps up with tens of thousands of tokens a second; a stream that is not exactly what was
asked for (framing, number of tokens, finish, usage) ends the run with an error.
"""
import collections
import hashlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import threading
import time

PER_PROCESS = 32
BIN_S = 0.01


def prompt_ids(i, n, vocab):
    """The prompt of client i: ordinary tokens, the same in every run."""
    r = random.Random(f"trimode {i}")
    return [r.randrange(128, min(vocab, 131072)) for _ in range(n)]


class Wrong(Exception):
    pass


def lines(sock, timeout):
    """Payloads of the stream's `data:` events, through the chunked coding."""
    sock.settimeout(timeout)
    f = sock.makefile("rb", 1 << 16)
    status = f.readline()
    length = None
    while True:
        h = f.readline()
        if h in (b"\r\n", b""):
            break
        if h.lower().startswith(b"content-length:"):
            length = int(h.split(b":")[1])
    if b" 200 " not in status:
        raise Wrong(f"{status!r} {f.read(length or 200)[:300]!r}")
    pending = b""
    while True:
        size = f.readline()
        if not size.endswith(b"\r\n"):
            raise Wrong("the stream ended without its closing chunk")
        n = int(size, 16)
        data = f.read(n + 2)
        if len(data) != n + 2 or data[-2:] != b"\r\n":
            raise Wrong("a chunk was cut")
        if n == 0:
            break
        pending += data[:-2]
        while True:
            end = pending.find(b"\n\n")
            if end < 0:
                break
            event, pending = pending[:end], pending[end + 2:]
            if event.startswith(b"data: "):
                yield event[6:]
            elif not event.startswith(b":"):
                raise Wrong(f"not an event: {event[:100]!r}")
    if pending:
        raise Wrong("half an event at the end")


def one_stream(port, body, n_prompt, timeout, bins):
    """Sends and reads one request: {first, last, tokens, digest, trimode}."""
    data = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.monotonic()
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) +
                     data)
        ids, finish, usage, trimode, done, first = [], None, None, None, False, None
        for event in lines(sock, timeout):
            now = time.monotonic()
            if done:
                raise Wrong("an event after [DONE]")
            if event == b"[DONE]":
                done = True
                continue
            chunk = json.loads(event)
            if "error" in chunk:
                raise Wrong(str(chunk["error"])[:300])
            for choice in chunk["choices"]:
                if finish is not None:
                    raise Wrong("a chunk after the finish")
                if choice["token_ids"]:
                    first = first or now
                    ids += choice["token_ids"]
                    bins[int(now / BIN_S)] += len(choice["token_ids"])
                finish = choice["finish_reason"]
            usage, trimode = chunk.get("usage") or usage, chunk.get("trimode") or trimode
        if not done or finish != "length" or len(ids) != body["max_tokens"] or usage["completion_tokens"] != len(ids) or \
                usage["prompt_tokens"] != n_prompt:
            raise Wrong(f"done {done}, finish {finish}, {len(ids)} of {body['max_tokens']} tokens, usage {usage}")
        return {"start": start, "first": first, "last": now, "tokens": len(ids), "trimode": trimode,
                "digest": hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]}
    finally:
        sock.close()


def process(port, numbers, fields, n_prompt, vocab, barrier, queue, timeout):
    """The clients `numbers` in one process, a thread each."""
    results, bins, wrong = {}, collections.Counter(), []
    lock = threading.Lock()

    def client(i):
        mine = collections.Counter()
        try:
            body = {"prompt": prompt_ids(i, n_prompt, vocab), "stream": True, "stream_options": {"include_usage": True},
                    "return_token_ids": True, "ignore_eos": True, "temperature": 0, "seed": i, **fields}
            got = one_stream(port, body, n_prompt, timeout, mine)
            with lock:
                results[i] = got
                bins.update(mine)
        except (OSError, Wrong, ValueError, KeyError) as e:
            wrong.append(f"client {i}: {type(e).__name__}: {e}")

    barrier.wait()
    threads = [threading.Thread(target=client, args=(i,)) for i in numbers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    queue.put((results, bins, wrong))


def load(port, n, n_prompt, n_tokens, vocab, timeout=300, **fields):
    """n clients at once, one request each: totals, times and the digest of every client's tokens."""
    most = max(1, (os.cpu_count() or 2) - 2)
    processes = min(most, -(-n // PER_PROCESS))
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(processes + 1), context.Queue()
    fields = {"max_tokens": n_tokens, "mode": "ar", **fields}
    workers = [context.Process(target=process, args=(port, range(k, n, processes), fields, n_prompt, vocab, barrier, queue, timeout),
                               daemon=True) for k in range(processes)]
    for w in workers:
        w.start()
    barrier.wait()
    results, bins, wrong = {}, collections.Counter(), []
    for _ in workers:
        r, b, w = queue.get(timeout=timeout + 30)
        results.update(r)
        bins.update(b)
        wrong += w
    for w in workers:
        w.join(10)
    if wrong:
        raise Wrong("; ".join(wrong[:3]))
    start, end = min(r["start"] for r in results.values()), max(r["last"] for r in results.values())
    tokens = sum(r["tokens"] for r in results.values())
    # The steady part: everybody decodes, nobody has ended.
    steady_from, steady_to = max(r["first"] for r in results.values()), min(r["last"] for r in results.values())
    steady = None
    if steady_to - steady_from > 20 * BIN_S:
        a, b = int(steady_from / BIN_S) + 1, int(steady_to / BIN_S)
        steady = sum(v for k, v in bins.items() if a <= k < b) / ((b - a) * BIN_S)
    return {"clients": n, "seconds": end - start, "tokens": tokens, "rate": tokens / (end - start), "steady": steady,
            "first_ms": 1e3 * statistics.median(r["first"] - r["start"] for r in results.values()),
            "digests": {i: r["digest"] for i, r in results.items()}, "trimode": {i: r["trimode"] for i, r in results.items()}}
