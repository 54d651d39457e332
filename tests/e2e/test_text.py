"""Text that crosses block and chunk borders: characters of several bytes, stop strings."""
from case import FOREIGN, MODES, SLOW, Case, bounded


def stops_of(text):
    """Strings from the middle of a known answer, of several lengths and places."""
    n = len(text)
    places = [n // 4, n // 3, n // 2, (2 * n) // 3]
    for at in places:
        for size in (1, 2, 3, 7, 19):
            stop = text[at:at + size]
            if len(stop) == size and stop.strip():
                yield stop


class Utf8(Case):
    def check_same(self, prompt, **fields):
        whole = self.ask(prompt, **fields)
        stream = self.stream(prompt, **fields)
        text = whole["choices"][0]["message"]["content"]
        self.assertEqual(stream.text, text)
        self.assertEqual(stream.finish[0], whole["choices"][0]["finish_reason"])
        return text, stream.pieces

    def test_characters_across_blocks(self):
        for mode in MODES:
            for b in (4, 8):
                for prompt in bounded(FOREIGN, 3 * SLOW):
                    with self.subTest(mode=mode, block_length=b, prompt=prompt):
                        fields = {} if mode == "ar" else {"block_length": b}
                        text, _ = self.check_same(prompt, mode=mode, max_tokens=96, **fields)
                        self.assertTrue(text)

    def test_bytes_forced_by_a_bias(self):
        # The bytes of characters that are no tokens of their own; mixed by the sampler they are often invalid.
        ids = set()
        for rare in ("\U00013000", "\u1780", "\u07c0", "\U0001f980"):
            ids |= set(self.post("/tokenize", {"prompt": rare, "add_special_tokens": False}).json["tokens"])
        bias = {str(i): 100 for i in ids}
        foreign = 0
        for mode in MODES:
            for seed in range(4):
                with self.subTest(mode=mode, seed=seed):
                    fields = {} if mode == "ar" else {"block_length": 4}
                    text, pieces = self.check_same("Say something.", mode=mode, seed=seed, temperature=1.5, max_tokens=60,
                                                   ignore_eos=True, logit_bias=bias, **fields)
                    foreign += sum(ord(c) > 127 for c in text)
                    self.assertTrue(all(pieces))
        self.assertGreater(foreign, 20, "the bias forced no bytes")

    def test_one_character_forced_in_order(self):
        # The four bytes of one character, each allowed once by a penalty: the order is the sampler's, the text must be whole.
        ids = self.post("/tokenize", {"prompt": "\U00013000", "add_special_tokens": False}).json["tokens"]
        for n in range(1, 9):
            with self.subTest(max_tokens=n):
                self.check_same("Hi", mode="ar", max_tokens=n, ignore_eos=True, logit_bias={str(ids[0]): 100})


class StopStrings(Case):
    PROMPTS = ("What is trimode?", "Tell a story about a fox named Mia in the forest.", FOREIGN[0])

    def check(self, prompt, stop, expected, **fields):
        for streamed in (False, True):
            with self.subTest(prompt=prompt, stop=stop, stream=streamed, **fields):
                if streamed:
                    r = self.stream(prompt, stop=stop, **fields)
                    text, finish = r.text, r.finish[0]
                else:
                    r = self.ask(prompt, stop=stop, **fields)
                    text, finish = r["choices"][0]["message"]["content"], r["choices"][0]["finish_reason"]
                self.assertEqual((text, finish), (expected, "stop"))

    def test_stop_in_the_middle_of_a_known_answer(self):
        for mode in MODES:
            for prompt in self.PROMPTS:
                fields = {"mode": mode, "max_tokens": 80, **({} if mode == "ar" else {"block_length": 8})}
                text = self.text(prompt, **fields)
                for stop in bounded(stops_of(text), 1.5 * SLOW, least=3):
                    self.check(prompt, [stop], text[:text.index(stop)], **fields)

    def test_stop_as_a_plain_string_and_in_a_list(self):
        text = self.text("What is trimode?", mode="ar")
        stop = text[len(text) // 2:][:5]
        self.check("What is trimode?", stop, text[:text.index(stop)], mode="ar")
        self.check("What is trimode?", ["never in it \u2603", stop], text[:text.index(stop)], mode="self_speculation")

    def test_the_earliest_of_several_stops_wins(self):
        text = self.text("What is trimode?", mode="ar")
        late, early = text[2 * len(text) // 3:][:6], text[len(text) // 3:][:6]
        for mode in ("ar", "self_speculation"):
            self.check("What is trimode?", [late, early], text[:min(text.index(late), text.index(early))], mode=mode)

    def test_half_a_stop_string_at_the_end_is_text(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                text = self.text("What is 12 + 30?", mode=mode)
                stop = text[-3:] + "\u2603"  # its beginning is held back and must come out at the end
                self.assertEqual(self.text("What is 12 + 30?", mode=mode, stop=[stop]), text)
                self.assertEqual(self.stream("What is 12 + 30?", mode=mode, stop=[stop]).text, text)

    def test_no_piece_of_a_stop_string_is_sent(self):
        text = self.text("What is trimode?", mode="ar", max_tokens=80)
        stop = text[len(text) // 2:][:12]
        for mode in ("ar", "self_speculation"):
            r = self.stream("What is trimode?", mode=mode, max_tokens=80, stop=[stop])
            self.assertEqual("".join(r.pieces), text[:text.index(stop)])

    def test_stop_with_several_choices(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                fields = {"mode": mode, "n": 3, "seed": 9, "temperature": 0.8, "max_tokens": 48}
                prompt = "Tell a story about a fox named Mia in the forest."
                texts = [c["message"]["content"] for c in self.ask(prompt, **fields)["choices"]]
                stop = texts[0][len(texts[0]) // 2:][:4]
                expected = {i: t[:t.index(stop)] if stop in t else t for i, t in enumerate(texts)}
                whole = {c["index"]: c["message"]["content"] for c in self.ask(prompt, stop=[stop], **fields)["choices"]}
                self.assertEqual(whole, expected)
                self.assertEqual(self.stream(prompt, stop=[stop], **fields).texts, expected)

    def test_the_model_stops_at_its_own_end(self):
        for mode in MODES:
            with self.subTest(mode=mode):
                r = self.ask("What is 12 + 30?", mode=mode, max_tokens=100)
                self.assertEqual(r["choices"][0]["finish_reason"], "stop")
                self.assertNotIn("<|im_end|>", r["choices"][0]["message"]["content"])
