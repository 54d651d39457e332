"""Clients that read slowly or not at all slow down nobody else and lose nothing."""
import time

import client
from case import CHAT, SLOW, Case


class SlowReader(Case):
    def wide_body(self, **fields):
        """A stream of many bytes a token."""
        fields = {"mode": "ar", "max_tokens": 400, **fields}
        return self.chat_body("Count from 3 to 14.", ignore_eos=True, stream=True, logprobs=True, top_logprobs=20, **fields)

    def test_slow_reader_gets_everything(self):
        expected = self.text("Count from 3 to 14.", mode="ar", ignore_eos=True, max_tokens=400)
        with client.Stream(self.port, CHAT, self.wide_body(), receive_buffer=4096) as s:
            time.sleep(1)
            def slowly():
                for n, event in enumerate(s.events()):
                    if n < 40:
                        time.sleep(0.01)
                    yield event
            result = client.collect(slowly())
        self.assertEqual(result.text, expected)

    def test_one_who_never_reads_blocks_nobody(self):
        deaf = []
        for _ in range(4):
            s = client.connect(self.port, receive_buffer=2048)
            s.sendall(client.post_bytes(CHAT, self.wide_body()))
            deaf.append(s)
        start = time.monotonic()
        for _ in range(3):
            self.assertEqual(self.get("/health").status, 200)
            self.assert_alive()
        self.assertLess(time.monotonic() - start, 10 * SLOW)
        for i, s in enumerate(deaf):
            (client.reset if i % 2 else type(s).close)(s)
        self.server.wait_idle(1.5)

    def test_slow_sender(self):
        data = client.post_bytes(CHAT, self.chat_body("Hi", max_tokens=2), ["Connection: close"])
        with client.connect(self.port) as s:
            for at in range(0, len(data), 7):
                s.sendall(data[at:at + 7])
                time.sleep(0.005)
            self.assertIn(b"200", client.read_all(s)[:20])

    def test_first_event_comes_before_the_last_token(self):
        for mode in ("ar", "self_speculation", "diffusion"):
            with self.subTest(mode=mode), client.Stream(self.port, CHAT, self.wide_body(mode=mode, max_tokens=300)) as s:
                client.collect(s.events())
                self.assertGreater(s.times[-1] - s.times[0], 0.02, "everything came at once")
                self.assertGreater(len(s.times), 5)
