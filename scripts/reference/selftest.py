"""Self-test of the reference: python3 scripts/reference/selftest.py   (NumPy and the standard library; a C compiler if there is one)"""
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import decode  # noqa: E402
from checkpoint import write_checkpoint  # noqa: E402
from choose import Params, choose, gumbel, gumbel_row, philox  # noqa: E402
from model import Model, bf16_to_f32, f32_to_bf16, read_safetensors  # noqa: E402
from tiny_models import TINY_MODELS  # noqa: E402

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def setUpModule():
    global folder, models, exact
    folder = tempfile.TemporaryDirectory()
    for name, arguments in TINY_MODELS.items():
        write_checkpoint(os.path.join(folder.name, name), **arguments)
    models = {name: Model(os.path.join(folder.name, name)) for name in TINY_MODELS}
    # float64 for the equalities between modes: rounding differs with the number of rows in NumPy's products.
    exact = {name: Model(os.path.join(folder.name, name), np.float64) for name in TINY_MODELS}


def tearDownModule():
    folder.cleanup()


class Noise(unittest.TestCase):
    def test_philox_known_answer(self):  # Random123's kat_vectors, philox4x32 10, all zero
        self.assertEqual([f"{int(w):08x}" for w in philox(0, 0, 0)], ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"])

    def test_distribution(self):
        g = np.concatenate([gumbel_row(1, p, 4096) for p in range(50)]).astype(np.float64)
        self.assertAlmostEqual(g.mean(), 0.5772, delta=0.01)
        self.assertAlmostEqual(g.std(), np.pi / 6 ** 0.5, delta=0.01)

    def test_extremes_are_finite_and_right(self):
        for word in (0, 1, 1000, 1 << 31, 0xFFFFFFFE, 0xFFFFFFFF):
            v = min(np.float64((word + 0.5) / 2 ** 32), 1 - 2 ** -24)
            self.assertAlmostEqual(float(gumbel(np.uint32(word))), -np.log(-np.log1p(-v)), delta=2e-5)

    def test_depends_on_seed_position_token_only(self):
        self.assertTrue((gumbel_row(5, 9, 1000)[:384] == gumbel_row(5, 9, 384)).all())
        self.assertFalse((gumbel_row(5, 9, 384) == gumbel_row(6, 9, 384)).all())
        self.assertFalse((gumbel_row(5, 9, 384) == gumbel_row(5, 10, 384)).all())

    @unittest.skipUnless(shutil.which("cc"), "no C compiler")
    def test_same_bits_as_noise_h(self):
        with tempfile.TemporaryDirectory() as d:
            source, library = os.path.join(d, "n.c"), os.path.join(d, "n.so")
            with open(source, "w", encoding="utf-8") as f:
                f.write('#include "noise.h"\nvoid row(uint64_t s, uint64_t p, uint32_t n, float *g) { uint32_t w[4];'
                        "for (uint32_t t = 0; t < n; t++) { krn_philox(s, p, t / 4, w); g[t] = krn_gumbel(w[t % 4]); } }\n")
            subprocess.run(["cc", "-O2", "-std=c11", "-ffp-contract=off", "-shared", "-fPIC", "-I", os.path.join(ROOT, "kernels"), source,
                            "-o", library], check=True)
            row = ctypes.CDLL(library).row
            row.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
            for seed, position in ((0, 0), (1, 2), (2 ** 64 - 1, 2 ** 40 + 3), (1234567890123, 77)):
                g = np.empty(200001, np.float32)
                row(seed, position, len(g), g.ctypes.data)
                self.assertTrue((g.view(np.uint32) == gumbel_row(seed, position, len(g)).view(np.uint32)).all())


class Choosing(unittest.TestCase):
    def setUp(self):
        self.x = np.random.default_rng(0).standard_normal(384).astype(np.float32) * 2

    def test_lowest_id_wins_a_tie_and_the_mask_id_never_does(self):
        x = self.x.copy()
        x[[50, 100, 200]] = 20
        self.assertEqual(choose(x, 1, Params(), banned=50).token, 100)
        self.assertEqual(choose(x, 1, Params(), banned=100).token, 50)
        self.assertAlmostEqual(choose(x, 1, Params(), banned=100).confidence, 0.5, delta=1e-3)  # the banned one is left out

    def test_draws_follow_the_distribution(self):
        x, n = self.x[:8], 4000
        p = np.exp(x / 0.8) / np.exp(x / 0.8).sum()
        counts = np.bincount([choose(x, i, Params(temperature=0.8, seed=3)).token for i in range(n)], minlength=8)
        self.assertLess(np.abs(counts / n - p).max(), 0.03)

    def test_cuts(self):
        order = np.argsort(-self.x)
        for i in range(100):
            self.assertIn(choose(self.x, i, Params(temperature=2.0, top_k=3)).token, order[:3])
            self.assertEqual(choose(self.x, i, Params(temperature=2.0, top_p=1e-6)).token, order[0])
            self.assertEqual(choose(self.x, i, Params(temperature=2.0, min_p=1.0)).token, order[0])

    def test_penalties_and_bias(self):
        best = int(self.x.argmax())
        self.assertNotEqual(choose(self.x, 1, Params(repetition_penalty=9.0), prompt=[best]).token, best)
        self.assertEqual(choose(self.x, 1, Params(frequency_penalty=9.0), prompt=[best]).token, best)  # output only
        self.assertNotEqual(choose(self.x, 1, Params(frequency_penalty=2.0), output=[best] * 9).token, best)
        self.assertNotEqual(choose(self.x, 1, Params(bias={best: -100})).token, best)
        self.assertEqual(choose(self.x, 1, Params(bias={7: 50})).token, 7)


class Forward(unittest.TestCase):
    def test_pieces_equal_the_whole(self):
        rng = np.random.default_rng(1)
        for name, model in exact.items():
            tokens = rng.integers(128, 384, 40)
            whole, cache = model.forward(tokens, model.new_cache()), model.new_cache()
            parts = np.concatenate([model.forward(p, cache) for p in np.split(tokens, [1, 8, 10, 33])])
            self.assertLess(np.abs(whole - parts).max(), 1e-10, name)

    def test_kv_rule(self):
        """A block pass leaves no trace; sealing gives the KV of one causal pass; block KV differs from it above layer 0 only."""
        rng = np.random.default_rng(2)
        for name, model in exact.items():
            tokens, mask = rng.integers(128, 384, 20), model.config.mask_id
            cache = model.new_cache()
            model.forward(tokens[:12], cache)
            model.forward([tokens[12]] + [mask] * 7, cache, "block", keep=False, adapter=model.has_adapter)
            self.assertEqual(cache.length, 12)
            model.forward(tokens[12:], cache)
            whole = model.new_cache()
            model.forward(tokens, whole)
            for a, b in zip(cache.k + cache.v, whole.k + whole.v):
                self.assertLess(np.abs(a - b).max(), 1e-10, name)

    def test_block_rows_see_each_other_and_causal_rows_do_not_look_ahead(self):
        for name, model in exact.items():
            a, b = np.arange(200, 210), np.arange(200, 210)
            b[-1] = 300
            same = [np.abs(model.forward(a, model.new_cache(), m, keep=False) - model.forward(b, model.new_cache(), m, keep=False))[0].max()
                    for m in ("causal", "block")]
            self.assertEqual(same[0], 0, name)
            self.assertGreater(same[1], 1e-6, name)

    def test_adapter_off_is_the_plain_model(self):
        plain = Model(os.path.join(folder.name, "wide_q"), np.float64, adapter=False)
        block = [200] + [100] * 3
        off, on = [exact["wide_q"].forward(block, plain.new_cache(), "block", keep=False, adapter=a) for a in (False, True)]
        self.assertTrue((off == plain.forward(block, plain.new_cache(), "block", keep=False)).all())
        self.assertGreater(np.abs(on - off).max(), 0.05)

    def test_query_scale_and_yarn_matter(self):
        model = exact["yarn"]
        self.assertEqual(float(model._query_scale(np.array([15]))[0, 0, 0]), 1.0)
        self.assertAlmostEqual(float(model._query_scale(np.array([16]))[0, 0, 0]), 1 + 0.1 * np.log(2))
        self.assertEqual(model.attention_factor, 1.0)
        self.assertNotEqual(exact["yarn_attention"].attention_factor, 1.0)
        c = model.config
        plain = 1.0 / c.rope["rope_theta"] ** (np.arange(0, c.head_dim, 2) / c.head_dim)
        ratio = model.inv_freq / plain
        self.assertAlmostEqual(ratio.max(), 1, places=6)
        self.assertAlmostEqual(ratio.min(), 1 / c.rope["factor"], places=6)
        self.assertTrue(((ratio > 0.26) & (ratio < 0.99)).any())

    def test_bf16(self):
        x = np.array([1.0, 1 + 2 ** -8, 1 + 3 * 2 ** -8, -3.1415927], np.float32)
        self.assertEqual(bf16_to_f32(f32_to_bf16(x)).tolist(), [1.0, 1.0, 1 + 2 ** -6, -3.140625])
        path = os.path.join(folder.name, "wide_q", "model.safetensors")
        self.assertEqual(read_safetensors(path)["encoder.norm.weight"].shape, (24,))


class Decoding(unittest.TestCase):
    PARAMS = [Params(), Params(temperature=0.7, seed=1), Params(temperature=1.3, seed=2, top_k=50, top_p=0.95),
              Params(temperature=1.0, seed=3, frequency_penalty=0.5, repetition_penalty=1.2, bias={140: 12, 150: 11, 11: 8}),
              Params(bias={140: 13, 150: 10.5})]

    def prompts(self):
        rng = np.random.default_rng(3)
        return [rng.integers(128, 384, n).tolist() for n in (1, 9, 17)]

    def test_self_speculation_is_ar(self):
        accepted = 0
        for name, model in exact.items():
            for prompt in self.prompts():
                for params in self.PARAMS:
                    a = decode.ar(model, prompt, 21, params)
                    self.assertEqual(a.passes, len(a.tokens) - 1)
                    for block in (4, 8, 32):
                        s = decode.self_speculation(model, prompt, 21, params, block)
                        self.assertEqual((s.tokens, s.finish), (a.tokens, a.finish), (name, block, params))
                        self.assertEqual(sum(s.cycles), len(s.tokens) - 1)
                        accepted += s.accepted
        self.assertGreater(accepted, 500)

    def test_diffusion_limits_and_counts(self):
        model = exact["wide_q"]
        for prompt in self.prompts():
            for params in self.PARAMS:
                for n in (1, 2, 8, 9, 10, 17):
                    r = decode.diffusion(model, prompt, n, params, 8, 0.5)
                    self.assertTrue(len(r.tokens) == n or r.tokens[-1] in model.config.eos)
                    self.assertNotIn(model.config.mask_id, r.tokens)
                    self.assertTrue(all(t not in model.config.eos for t in r.tokens[:-1]))
                r = decode.diffusion(model, prompt, 16, Params(), 8, steps=3)
                self.assertEqual([len(c) for c in r.commits[:3]], [3, 2, 2])

    def test_leftmost_and_low_thresholds(self):
        model = exact["three_heads"]
        r = decode.diffusion(model, self.prompts()[1], 16, Params(bias={11: -100}), 8, policy="leftmost")
        self.assertEqual((r.denoise_passes, r.passes), (14, 15))  # two blocks of 7 masks and one seal
        r = decode.diffusion(model, self.prompts()[1], 16, Params(bias={11: -100}), 8, threshold=0.0)
        self.assertEqual((r.denoise_passes, r.passes), (2, 3))

    def test_context_end(self):
        model = exact["one_layer_f32"]  # 48 positions
        prompt = self.prompts()[2]
        for loop in (decode.ar, decode.self_speculation, decode.diffusion):
            r = loop(model, prompt, 100, Params(bias={11: -100}))
            self.assertEqual((len(r.tokens), r.finish), (48 - 17, "length"), loop.__name__)


if __name__ == "__main__":
    result = unittest.main(verbosity=1, exit=False).result
    bad = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - bad} passed, {bad} failed")
    sys.exit(bad > 0)
