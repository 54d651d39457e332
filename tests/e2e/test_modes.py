"""What the three modes promise: the same text, exact lengths, honest numbers."""
from case import COMPLETIONS, MODES, SLOW, Case, bounded, prompts, together

BLOCKS = (4, 8, 16, 32)


class Modes(Case):
    def test_self_speculation_writes_the_text_of_ar(self):
        for k, prompt in enumerate(bounded(prompts(40), 14 * SLOW, least=8)):
            for temperature in (0, 0.7, 1.3):
                fields = {"temperature": temperature, "seed": 1000 + k, "max_tokens": 64}
                jobs = [lambda f={"mode": "ar", **fields}: self.ask(prompt, **f)]
                jobs += [lambda f={"mode": "self_speculation", "block_length": b, **fields}: self.ask(prompt, **f) for b in BLOCKS]
                ar, *others = together(jobs)
                for b, other in zip(BLOCKS, others):
                    with self.subTest(prompt=prompt, temperature=temperature, block_length=b):
                        self.assertEqual(other["choices"][0]["message"]["content"], ar["choices"][0]["message"]["content"])
                        self.assertEqual(other["choices"][0]["finish_reason"], ar["choices"][0]["finish_reason"])
                        self.assertEqual(self.counts(other["usage"]), self.counts(ar["usage"]))

    def test_self_speculation_equals_ar_with_every_sampler(self):
        samplers = [
            {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}, {"top_k": 20, "top_p": 0.9, "min_p": 0.01},
            {"repetition_penalty": 1.3}, {"frequency_penalty": 0.7}, {"presence_penalty": -0.5},
            {"logit_bias": {"300": 4, "301": -100}}, {"min_tokens": 20}, {"ignore_eos": True},
        ]
        for sampler in samplers:
            fields = {"temperature": 0.9, "seed": 3, "max_tokens": 48, **sampler}
            prompt = "Tell a story about a fox named Mia in the forest."
            with self.subTest(sampler=sampler):
                ar, spec = together([lambda m=m: self.text(prompt, mode=m, **fields) for m in ("ar", "self_speculation")])
                self.assertEqual(spec, ar)

    def test_threshold_one_position_at_a_time_still_ends(self):
        for fields in ({"threshold": 1.0}, {"threshold": 0.01}, {"steps": 1}, {"steps": 4}, {"commit_policy": "leftmost"}):
            with self.subTest(**fields):
                r = self.ask("Count from 3 to 14.", mode="diffusion", block_length=8, max_tokens=21, ignore_eos=True, **fields)
                self.assertEqual(r["usage"]["completion_tokens"], 21)

    def test_fewer_steps_are_fewer_passes(self):
        passes = [self.ask("Count from 3 to 14.", mode="diffusion", block_length=16, max_tokens=48, ignore_eos=True,
                           steps=n)["trimode"]["forward_passes"] for n in (1, 4, 12)]
        self.assertEqual(passes, sorted(passes))
        self.assertLess(passes[0], passes[2])

    def test_blocks_give_more_than_one_token_a_pass(self):
        for mode in ("diffusion", "self_speculation"):
            with self.subTest(mode=mode):
                rs = [self.ask(p, mode=mode, max_tokens=128) for p in bounded(prompts(10), 8 * SLOW, least=4)]
                tokens = sum(r["usage"]["completion_tokens"] for r in rs)
                passes = sum(r["trimode"]["forward_passes"] for r in rs)
                self.assertGreater(tokens / passes, 1.0, "the model drafts badly, or drafts are thrown away")

    def test_max_tokens_is_exact(self):
        for mode in MODES:
            for b in (4, 8, 32):
                for n in sorted({1, 2, b - 1, b, b + 1, 2 * b, 2 * b + 1}):
                    with self.subTest(mode=mode, block_length=b, max_tokens=n):
                        fields = {} if mode == "ar" else {"block_length": b}
                        r = self.ask("Count from 3 to 14.", mode=mode, max_tokens=n, ignore_eos=True, **fields)
                        self.assertEqual(r["usage"]["completion_tokens"], n)
                        self.assertEqual(r["choices"][0]["finish_reason"], "length")

    def test_cut_text_is_the_beginning_of_the_whole(self):
        for mode in MODES:
            whole = self.text("What is trimode?", mode=mode, block_length=8, max_tokens=40, ignore_eos=True) if mode != "ar" \
                else self.text("What is trimode?", mode=mode, max_tokens=40, ignore_eos=True)
            for n in (1, 7, 8, 9, 23):
                with self.subTest(mode=mode, max_tokens=n):
                    fields = {} if mode == "ar" else {"block_length": 8}
                    cut = self.text("What is trimode?", mode=mode, max_tokens=n, ignore_eos=True, **fields)
                    # Half a character at the cut may have become U+FFFD.
                    self.assertTrue(whole.startswith(cut.rstrip("\ufffd")), f"{cut!r} of {whole!r}")

    def test_max_completion_tokens_wins(self):
        r = self.ask("Count from 3 to 14.", max_tokens=20, max_completion_tokens=5, ignore_eos=True)
        self.assertEqual(r["usage"]["completion_tokens"], 5)

    def test_diffusion_is_the_same_alone_and_under_load(self):
        works = [(p, {"mode": "diffusion", "block_length": b, "temperature": t, "seed": 11, "max_tokens": 48})
                 for p, b, t in zip(prompts(8), (4, 8, 16, 32) * 2, (0, 0, 0, 0, 0.7, 0.7, 1.3, 1.3))]
        alone = [self.text(p, **f) for p, f in works]
        noise = [lambda i=i: self.text(prompts(32)[i], mode=MODES[i % 3], max_tokens=40) for i in range(24)]
        got = together([lambda p=p, f=f: self.text(p, **f) for p, f in works] + noise)[:len(works)]
        self.assertEqual(got, alone)

    def test_forced_mode_is_echoed_with_its_block_length(self):
        for mode in MODES[1:]:
            for b in (4, 8, 16, 32, 64):
                with self.subTest(mode=mode, block_length=b):
                    t = self.ask("Count from 3 to 14.", mode=mode, block_length=b, max_tokens=70, ignore_eos=True)["trimode"]
                    self.assertEqual((t["mode"], t["block_length"]), (mode, b))
                    self.assertTrue(t["reason"])
                    self.assertEqual([s["mode"] for s in t["timeline"]], [mode])

    def test_auto_says_why_and_never_diffuses_by_default(self):
        rs = [self.ask("Count from 3 to 14.", mode="auto"), self.ask("Count from 3 to 14."),
              self.ask("Count from 3 to 14.", lossless=True)]
        rs += together([lambda: self.ask("Count from 3 to 14.") for _ in range(32)])
        for r in rs:
            for span in r["trimode"]["timeline"]:
                self.assertIn(span["mode"], ("ar", "self_speculation"))
            self.assertTrue(r["trimode"]["reason"])
            self.assertEqual(r["choices"][0]["message"], rs[0]["choices"][0]["message"])

    def test_self_speculation_drafts_and_accepts(self):
        t = self.ask("What is trimode?", mode="self_speculation", block_length=8)["trimode"]
        self.assertGreater(t["drafted_tokens"], 0)
        self.assertGreaterEqual(t["drafted_tokens"], t["accepted_tokens"])

    def test_stream_ends_with_the_same_numbers(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                whole = self.ask("What is trimode?", mode=mode)
                stream = self.stream("What is trimode?", mode=mode, stream_options={"include_usage": True})
                self.assertEqual(stream.text, whole["choices"][0]["message"]["content"])
                self.assertEqual(stream.usage["completion_tokens"], whole["usage"]["completion_tokens"])
                for key in ("mode", "block_length", "forward_passes", "blocks", "drafted_tokens", "accepted_tokens"):
                    self.assertEqual(stream.trimode[key], whole["trimode"][key], key)

    def test_metrics_are_the_sum_of_the_answers(self):
        before = self.server.metrics()
        rs = together([lambda i=i: self.ask(prompts(12)[i], mode=MODES[i % 3], max_tokens=30) for i in range(12)])
        self.server.wait_idle()
        after = self.server.metrics()

        def grown(name, **labels):
            return (self.server.metric(name, after, **labels) or 0) - (self.server.metric(name, before, **labels) or 0)

        for mode in MODES:
            mine = [r for r in rs if r["trimode"]["mode"] == mode]
            with self.subTest(mode=mode):
                self.assertEqual(grown("generated_tokens_total", mode=mode), sum(r["usage"]["completion_tokens"] for r in mine))
                self.assertEqual(grown("requests_total", mode=mode), len(mine))
                for reason in ("stop", "length"):
                    self.assertEqual(grown("requests_total", mode=mode, finish_reason=reason),
                                     sum(r["choices"][0]["finish_reason"] == reason for r in mine))
                self.assertEqual(grown("mode_decisions_total", mode=mode), len(mine))
                self.assertEqual(grown("request_seconds_count", mode=mode), len(mine))
                self.assertEqual(grown("time_to_first_token_seconds_count", mode=mode), len(mine))
        self.assertEqual(grown("prompt_tokens_total"), sum(r["usage"]["prompt_tokens"] for r in rs))
        passes = sum(grown("forward_passes_total", kind=k) for k in ("ar", "denoise", "seal", "draft", "verify"))
        self.assertEqual(passes, sum(r["trimode"]["forward_passes"] for r in rs))
        self.assertEqual(grown("http_responses_total", path="/v1/chat/completions", code="200"), len(rs))

    def test_completions_take_the_modes_too(self):
        texts = {}
        for mode in MODES:
            r = self.post(COMPLETIONS, {"model": "nano", "prompt": "Count: 1, 2, 3,", "temperature": 0, "max_tokens": 20,
                                        "mode": mode})
            self.assertEqual(r.status, 200, r)
            self.assertEqual(r.json["trimode"]["mode"], mode)
            texts[mode] = r.json["choices"][0]["text"]
        self.assertEqual(texts["ar"], texts["self_speculation"])

    def test_return_token_ids(self):
        r = self.ask("What is trimode?", mode="self_speculation", return_token_ids=True, max_tokens=20, ignore_eos=True)
        ids = r["choices"][0]["token_ids"]
        self.assertEqual(len(ids), 20)
        self.assertEqual(len(r["prompt_token_ids"]), r["usage"]["prompt_tokens"])
        back = self.post("/detokenize", {"tokens": ids}).json["prompt"]
        self.assertTrue(back.startswith(r["choices"][0]["message"]["content"].rstrip("\ufffd")))

    def test_stop_token_ids_end_the_text(self):
        r = self.ask("Count from 3 to 14.", mode="ar", return_token_ids=True, max_tokens=20, ignore_eos=True)
        ids = r["choices"][0]["token_ids"]
        k = next(i for i in range(3, 20) if ids[i] not in ids[:i])
        for mode in ("ar", "self_speculation"):
            with self.subTest(mode=mode):
                cut = self.ask("Count from 3 to 14.", mode=mode, return_token_ids=True, max_tokens=20, ignore_eos=True,
                               stop_token_ids=[ids[k]])
                self.assertEqual(cut["choices"][0]["finish_reason"], "stop")
                self.assertEqual(cut["choices"][0]["token_ids"][:k], ids[:k])
                self.assertLessEqual(len(cut["choices"][0]["token_ids"]), k + 1)

    def test_two_turns(self):
        first = self.text("What is 12 + 30?")
        body = self.chat_body("", messages=[
            {"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is 12 + 30?"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "5 + 5?"}]}])
        rs = [self.post("/v1/chat/completions", {**body, "mode": m}) for m in ("ar", "self_speculation")]
        self.assertEqual([r.status for r in rs], [200, 200], rs)
        self.assertEqual(rs[0].json["choices"], rs[1].json["choices"])

    def test_a_second_turn_comes_from_the_cache_of_its_salt(self):
        system = {"role": "system", "content": "Answer briefly."}
        ask = {"role": "user", "content": "Repeat: apple river lamp door wolf cherry"}
        for one in MODES:
            for two in MODES:
                with self.subTest(first=one, second=two):
                    salt = f"{one} then {two}"
                    first = self.ask("", messages=[system, ask], mode=one, cache_salt=salt)
                    turns = [system, ask, first["choices"][0]["message"], {"role": "user", "content": "And once more?"}]
                    before = self.server.metrics()
                    hit = self.ask("", messages=turns, mode=two, cache_salt=salt)
                    after = self.server.metrics()
                    miss = self.ask("", messages=turns, mode=two, cache_salt=salt + ", another client")
                    cached = hit["usage"]["prompt_tokens_details"]["cached_tokens"]
                    # All of the first prompt but a part of a page.
                    self.assertGreater(cached, first["usage"]["prompt_tokens"] - 16)
                    self.assertEqual(miss["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
                    self.assertEqual(hit["choices"], miss["choices"])
                    for name, grown in (("cached_prompt_tokens_total", cached), ("prefix_cache_hits_total", cached),
                                        ("prefix_cache_queries_total", hit["usage"]["prompt_tokens"])):
                        self.assertEqual(self.server.metric(name, after) - self.server.metric(name, before), grown, name)


class WithoutAdapter(Case):
    flags = ("--adapter", "none")

    def test_text_does_not_depend_on_the_adapter(self):
        from case import shared_server
        other = shared_server(())
        import client
        for prompt in bounded(prompts(8), 6 * SLOW, least=3):
            with self.subTest(prompt=prompt):
                here = self.ask(prompt, mode="self_speculation", block_length=16)
                there = client.request(other.port, "POST", "/v1/chat/completions",
                                       self.chat_body(prompt, mode="self_speculation", block_length=16)).json
                self.assertEqual(here["choices"], there["choices"])


class OtherSizes(Case):
    """Small pages, few rows a pass and few sequences: the same text, only slower."""

    flags = ("--page-size", "4", "--max-step-rows", "64", "--max-sequences", "3", "--threads", "1")

    def test_text_does_not_depend_on_the_sizes(self):
        from case import shared_server
        import client
        works = [(p, m) for p, m in zip(prompts(9), MODES * 3)]
        there = [client.request(shared_server(()).port, "POST", "/v1/chat/completions", self.chat_body(p, mode=m)).json["choices"]
                 for p, m in works]
        here = together([lambda p=p, m=m: self.ask(p, mode=m)["choices"] for p, m in works])
        self.assertEqual(here, there)
