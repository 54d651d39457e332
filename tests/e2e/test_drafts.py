"""Blocks as they fill: text that is sent while the rest of its block is masked, and `stream_draft`."""
import importlib.util
import json
import unittest

import client
from case import CHAT, COMPLETIONS, MODES, SLOW, Case

PROMPT = "Count from 3 to 14."
# The seed and one block, revealed from the left a few positions a pass: what is finished and what is masked is certain.
ONE_BLOCK = {"mode": "diffusion", "block_length": 32, "max_tokens": 32, "ignore_eos": True, "commit_policy": "leftmost",
             "steps": 8}


class Drafts(Case):
    def events(self, path, body):
        with client.Stream(self.port, path, {**body, "stream": True}, timeout=60 * SLOW) as s:
            self.assertEqual(s.status, 200)
            events = list(s.events())
        self.assertEqual(events[-1], "[DONE]")
        return [json.loads(e) for e in events[:-1]]

    def read(self, path, body):
        """The ordinary stream (checked like any other) and the drafts."""
        chat, events = path == CHAT, self.events(path, body)
        drafts = [e for e in events if e["object"] == "trimode.draft"]
        rest = [json.dumps(e) for e in events if e["object"] != "trimode.draft"] + ["[DONE]"]
        return client.collect(rest, chat=chat, include_usage="stream_options" in body), drafts, events

    def test_the_left_of_a_block_is_sent_while_the_rest_is_masked(self):
        whole = self.ask(PROMPT, **ONE_BLOCK)
        self.assertEqual(whole["trimode"]["blocks"], 1)
        self.assertEqual(whole["trimode"]["denoise_passes"], 8)
        stream = self.stream(PROMPT, **ONE_BLOCK)
        self.assertEqual(stream.text, whole["choices"][0]["message"]["content"])
        # One event for the seed of the prompt; each pass makes at least three tokens final.
        self.assertGreaterEqual(len(stream.pieces), 1 + 2)
        self.assertGreaterEqual(len([p for p in stream.pieces if p.strip()]), 4, stream.pieces)

    def test_text_comes_before_the_block_is_full(self):
        for fields in ({}, {"commit_policy": "confidence"}, {"commit_policy": "confidence", "steps": None}):
            with self.subTest(**fields):
                body = {**self.chat_body(PROMPT, stream_draft=True), **ONE_BLOCK, **fields}
                result, drafts, events = self.read(CHAT, {k: v for k, v in body.items() if v is not None})
                # A piece of text, a draft with masks right of it, and more text in the same block.
                texts = [i for i, e in enumerate(events) if e["object"] != "trimode.draft" and e["choices"]
                         and e["choices"][0]["delta"].get("content")]
                masks = [i for i, e in enumerate(events) if e["object"] == "trimode.draft" and e["from_token"] > 1
                         and any("masked" in p for p in e["pieces"])]
                self.assertTrue(masks, drafts)
                self.assertTrue(any(i < masks[0] for i in texts) and any(i > masks[0] for i in texts), events)

    def test_drafts_tell_of_the_block_and_change_nothing(self):
        for path in (CHAT, COMPLETIONS):
            for mode in MODES:
                body = {"model": "nano", "temperature": 0, "max_tokens": 60, "mode": mode, "block_length": 16,
                        "ignore_eos": True, "stream_options": {"include_usage": True}}
                if path == CHAT:
                    body["messages"] = [{"role": "user", "content": PROMPT}]
                else:
                    body["prompt"] = "Count: 1, 2, 3,"
                with self.subTest(path=path, mode=mode):
                    plain, none, _ = self.read(path, body)
                    got, drafts, events = self.read(path, {**body, "stream_draft": True})
                    self.assertEqual(none, [], "drafts that nobody asked for")
                    self.assertEqual((got.text, got.finish, got.usage), (plain.text, plain.finish, plain.usage))
                    for key in ("mode", "forward_passes", "blocks", "drafted_tokens", "accepted_tokens"):
                        self.assertEqual(got.trimode[key], plain.trimode[key], key)
                    if mode == "ar":
                        self.assertEqual(drafts, [])
                        continue
                    # One for each pass that drafts, but for the pass that brings the end; a cycle of one row drafts nothing.
                    passes = got.trimode["denoise_passes" if mode == "diffusion" else "blocks"]
                    self.assertIn(len(drafts), (passes, passes - 1))
                    for d in drafts:
                        self.assertEqual((d["choices"], d["index"], d["mode"]), ([], 0, mode))
                        self.assertFalse(d.keys() & {"usage", "finish_reason", "trimode"}, d)
                        self.assertLessEqual(d["from_token"] + d["n_tokens"], 60)
                        self.assertEqual(d["text"], "".join(p.get("text", "░" * p.get("masked", 0)) for p in d["pieces"]))
                    if mode == "diffusion":
                        self.assertTrue(any(p.get("masked") for d in drafts for p in d["pieces"]))
                    else:
                        self.assertFalse(any(p.get("masked") for d in drafts for p in d["pieces"]))
                        self.assertTrue(all(d["n_tokens"] > 0 for d in drafts))

    def test_only_streams_have_drafts(self):
        for path, body in ((CHAT, self.chat_body(PROMPT)), (COMPLETIONS, {"model": "nano", "prompt": "a"})):
            with self.subTest(path=path):
                self.assert_error(self.post(path, {**body, "stream_draft": True}), 400, param="stream_draft")
                self.assert_error(self.post(path, {**body, "stream": True, "stream_draft": "yes"}), 400,
                                  param="stream_draft")
                self.assertEqual(self.post(path, {**body, "stream_draft": False, "max_tokens": 1}).status, 200)

    @unittest.skipUnless(importlib.util.find_spec("openai"), "the openai package is not installed")
    def test_the_official_client_reads_past_drafts_it_asked_for(self):
        import openai
        fields = {"mode": "diffusion", "block_length": 16}  # ends by itself: the client's helper refuses a cut answer
        with openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0) as c:
            def run(**extra):
                return list(c.chat.completions.create(
                    model="nano", temperature=0, max_tokens=200, stream=True, extra_body={**fields, **extra},
                    messages=[{"role": "user", "content": PROMPT}]))

            def text(chunks):
                return "".join(x.delta.content or "" for chunk in chunks for x in chunk.choices)

            plain, told = run(), run(stream_draft=True)
            self.assertEqual({chunk.object for chunk in plain}, {"chat.completion.chunk"})
            self.assertEqual({chunk.object for chunk in told}, {"chat.completion.chunk", "trimode.draft"})
            self.assertEqual(text(told), text(plain))
            self.assertTrue(all(chunk.usage is None for chunk in told))
            with c.chat.completions.stream(model="nano", temperature=0, max_tokens=200,
                                           extra_body={**fields, "stream_draft": True},
                                           messages=[{"role": "user", "content": PROMPT}]) as s:
                self.assertEqual(s.get_final_completion().choices[0].message.content, text(plain))
