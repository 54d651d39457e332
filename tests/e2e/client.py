"""HTTP for the tests: one-shot requests, strict SSE streams, raw sockets. Standard library only."""
import http.client
import json
import socket
import struct
import time

HOST = "127.0.0.1"


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"<{self.status} {self.body[:500]!r}>"


def encode(body):
    return body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()


def request(port, method, path, body=None, headers=None, timeout=60):
    """One request on one connection; body: bytes, or anything that JSON can say."""
    conn = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        head = {"Connection": "close"}
        if body is not None:
            head["Content-Type"] = "application/json"
        head.update(headers or {})
        conn.request(method, path, encode(body), head)
        r = conn.getresponse()
        return Answer(r.status, r.headers, r.read())
    finally:
        conn.close()


# ---- raw sockets ----


def connect(port, timeout=30, receive_buffer=None):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    s.settimeout(timeout)
    s.connect((HOST, port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def post_bytes(path, body, headers=()):
    """The bytes of a POST, for sockets that are used by hand."""
    data = encode(body)
    head = [f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*head, *headers, "", ""]).encode() + data


def reset(s):
    """Closes with an RST."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def read_all(s):
    """What the peer sends until it closes, resets or says nothing for the socket's timeout."""
    out = b""
    try:
        while True:
            piece = s.recv(65536)
            if not piece:
                break
            out += piece
    except OSError:
        pass
    return out


# ---- streams ----


class BrokenStream(Exception):
    """The body ended without its closing chunk, or is not the chunked coding."""


class Stream:
    """A POST whose answer comes as server-sent events; strict about the chunked coding and the event framing."""

    def __init__(self, port, path, body, headers=(), timeout=60, receive_buffer=None):
        self.socket = connect(port, timeout, receive_buffer)
        self.socket.sendall(post_bytes(path, body, headers))
        self.file = self.socket.makefile("rb")
        line = self.file.readline()
        if not line.startswith(b"HTTP/1.1 "):
            raise BrokenStream(f"no status line: {line!r}")
        self.status = int(line.split()[1])
        self.headers = http.client.parse_headers(self.file)
        self.times = []  # when each chunk came

    def chunks(self):
        """Payloads of the HTTP chunks; ends after the closing chunk."""
        while True:
            line = self.file.readline()
            if not line.endswith(b"\r\n"):
                raise BrokenStream(f"the stream ended without its closing chunk ({line!r})")
            size = int(line, 16)
            data = self.file.read(size)
            if len(data) != size or self.file.read(2) != b"\r\n":
                raise BrokenStream("a chunk was cut")
            if size == 0:
                return
            self.times.append(time.monotonic())
            yield data

    def events(self):
        """The text of each `data:` event; comments are skipped, anything else is an error."""
        pending = b""
        for data in self.chunks():
            pending += data
            while b"\n\n" in pending:
                event, pending = pending.split(b"\n\n", 1)
                if event.startswith(b":"):
                    continue
                if not event.startswith(b"data: ") or b"\n" in event:
                    raise BrokenStream(f"not an event: {event!r}")
                yield event[6:].decode("utf-8")  # strict
        if pending:
            raise BrokenStream(f"half an event at the end: {pending!r}")

    def body(self):
        """The whole body of an answer that is no stream (an error)."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self.chunks())
        return self.file.read(int(self.headers.get("Content-Length", "0")))

    def close(self):
        self.file.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Result:
    """A stream read to its end: text, finish reason and token counts by choice."""

    def __init__(self):
        self.texts, self.finish, self.pieces, self.chunks = {}, {}, [], []
        self.usage = self.trimode = None

    @property
    def text(self):
        return self.texts.get(0, "")


def collect(events, chat=True, include_usage=False):
    """Reads a stream to [DONE] and checks what every OpenAI stream promises (ecosystem.md 1.4)."""
    out, done = Result(), False
    same = None
    for event in events:
        assert not done, f"an event after [DONE]: {event!r}"
        if event == "[DONE]":
            done = True
            continue
        chunk = json.loads(event)
        assert "error" not in chunk, chunk
        out.chunks.append(chunk)
        assert chunk["object"] == ("chat.completion.chunk" if chat else "text_completion"), chunk
        same = same or (chunk["id"], chunk["created"], chunk["model"])
        assert same == (chunk["id"], chunk["created"], chunk["model"]), chunk
        assert out.usage is None, f"a chunk after the usage chunk: {chunk}"
        assert isinstance(chunk["choices"], list), chunk
        if not chunk["choices"]:
            assert include_usage, f"a usage chunk that nobody asked for: {chunk}"
            out.usage, out.trimode = chunk["usage"], chunk.get("trimode")
            continue
        assert chunk.get("usage") is None, chunk
        assert not include_usage or "usage" in chunk, f"no usage: null: {chunk}"
        for choice in chunk["choices"]:
            i = choice["index"]
            assert i not in out.finish, f"a chunk after the finish of choice {i}: {chunk}"
            if chat:
                assert i in out.texts or choice["delta"].get("role") == "assistant", f"no role first: {chunk}"
                piece = choice["delta"].get("content") or ""
            else:
                piece = choice["text"]
            piece.encode("utf-8")  # a lone surrogate would be half a character
            out.texts[i] = out.texts.get(i, "") + piece
            if piece:
                out.pieces.append(piece)
            if choice["finish_reason"] is not None:
                out.finish[i] = choice["finish_reason"]
    assert done, "no [DONE]"
    assert out.texts.keys() == out.finish.keys(), f"choices without a finish: {out.texts.keys()} {out.finish}"
    assert not include_usage or out.usage, "no usage chunk"
    return out
