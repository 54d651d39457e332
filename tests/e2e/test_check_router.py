"""scripts/check_router.sh: a quick run against the real server, and its judgement on numbers made up for it."""
import io
import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

from server import BUILD, ROOT, SLOW

sys.path.insert(0, os.path.join(ROOT, "scripts"))
import check_router  # noqa: E402
import router_chart  # noqa: E402
import router_step  # noqa: E402

AR, SPEC, DIFFUSION, AUTO = ("ar", None), ("self_speculation", 8), ("diffusion", 8), check_router.AUTO
SVG = "{http://www.w3.org/2000/svg}"


class QuickRun(unittest.TestCase):
    def test_a_quick_run_measures_writes_and_judges(self):
        with tempfile.TemporaryDirectory() as out:
            r = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "check_router.py"), "--quick", "--models", "nano", "--build", BUILD,
                                "--out", out], capture_output=True, text=True, timeout=240 * SLOW, stdin=subprocess.DEVNULL,
                               env={**os.environ, "TRIMODE_CALIBRATION": "off"})
            self.assertEqual((r.returncode, r.stderr), (0, ""), r.stdout)
            with open(os.path.join(out, "router-nano.md"), encoding="utf-8") as f:
                lines = f.read().splitlines()
            chart = ElementTree.parse(os.path.join(out, "router-nano.svg")).getroot()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        head, loads = rows[0], [row for row in rows if row[0] in ("1", "8")]
        self.assertEqual(head[:5], ["clients", "ar", "self_speculation 8", "diffusion 8", "auto"])
        self.assertEqual([row[0] for row in loads], ["1", "8"])
        for row in loads:
            speeds = [float(cell) for cell in row[1:5]]
            self.assertGreater(min(speeds), 0)
            self.assertIn(row[head.index("best")], ("ar", "self_speculation 8"))
            self.assertRegex(row[-1], r"^\w+ \d+ %")
        phases = [row for row in rows if " client" in row[0] and row[0][0].isdigit()]
        self.assertEqual([row[0] for row in phases], ["1 client", "8 clients", "1 client"])
        for row in phases:
            self.assertGreater(float(row[4]), 0)  # tokens a second
            self.assertRegex(row[-1], r"^(ar|self_speculation \d+): .*\w")
        verdicts = [line for line in lines if line.startswith("    seen ")]
        self.assertEqual(len(verdicts), 2 + 1 + 2, lines)  # each load, the gain at one client, both steps
        self.assertEqual(len(chart.findall(f"{SVG}polyline")), 2 * 4)  # a line and a leader to its name each

    def test_a_server_that_does_not_start_ends_the_run(self):
        r = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "check_router.py"), "--quick", "--models", "nano", "--build", BUILD,
                            "--out", "/nonexistent", "--serve=--block-length 5"], capture_output=True, text=True, timeout=60 * SLOW)
        self.assertEqual(r.returncode, 1)
        self.assertIn("the server did not start", r.stderr)


def results(speeds, tokens=100):
    """{mode: [tok/s a round]} as the results of a run with one load each key's number of clients."""
    levels = {(c, mode): [{"tok_s": v, "output_tokens": tokens, "requests": 1, "mode_share": {"ar": 1.0}} for v in values]
              for c, modes in speeds.items() for mode, values in modes.items()}
    return check_router.Results(levels)


def judged(speeds, **more):
    verdicts = check_router.Verdicts(quick=False)
    check_router.judge_loads(verdicts, results(speeds, **more), least_gain=1.5)
    return [line[:4].strip() for line in verdicts.lines], verdicts.failed


class Judgement(unittest.TestCase):
    def test_the_bound_holds_against_the_best_lossless_mode(self):
        fast = {AR: [100, 100, 100], DIFFUSION: [900, 900, 900]}  # diffusion does not count
        self.assertEqual(judged({8: {**fast, SPEC: [200] * 3, AUTO: [191] * 3}}), (["ok"], 0))
        self.assertEqual(judged({8: {**fast, SPEC: [200] * 3, AUTO: [189] * 3}}), (["FAIL"], 1))

    def test_ratios_are_of_one_round(self):
        """A machine that slows down for a whole round changes nothing."""
        self.assertEqual(judged({8: {AR: [1000, 100, 500], SPEC: [10, 1, 5], AUTO: [960, 96, 480]}}), (["ok"], 0))
        self.assertEqual(judged({8: {AR: [1000, 100, 500], SPEC: [10, 1, 5], AUTO: [940, 940, 470]}}), (["FAIL"], 1))

    def test_one_client_gains(self):
        self.assertEqual(judged({1: {AR: [100] * 3, SPEC: [155] * 3, AUTO: [151] * 3}}), (["ok", "ok"], 0))
        self.assertEqual(judged({1: {AR: [100] * 3, SPEC: [150] * 3, AUTO: [149] * 3}}), (["ok", "FAIL"], 1))

    def test_64_clients_are_no_slower_but_for_what_the_rounds_explain(self):
        self.assertEqual(judged({64: {AR: [100] * 3, AUTO: [100] * 3}}), (["ok", "ok"], 0))
        self.assertEqual(judged({64: {AR: [100] * 3, AUTO: [98, 98, 98]}}), (["ok", "FAIL"], 1))
        self.assertEqual(judged({64: {AR: [100] * 3, AUTO: [94, 98, 103]}}), (["ok", "ok"], 0))
        self.assertEqual(judged({64: {AR: [100] * 3, AUTO: [50, 94, 140]}}), (["FAIL", "FAIL"], 2))

    def test_other_texts_are_told(self):
        r = results({8: {AR: [100] * 3, AUTO: [100] * 3}})
        r.levels[8, AUTO][1]["output_tokens"] = 99
        verdicts = check_router.Verdicts(quick=True)
        check_router.judge_loads(verdicts, r, None)
        self.assertEqual(verdicts.failed, 1)
        self.assertIn("[99, 100]", verdicts.lines[-1])


def made(*parts, start=100.0, every=0.02, per_sample=10, running=()):
    """Samples of a server that makes per_sample tokens a time with the mode that parts, (seconds, mode or None), give in turn."""
    samples, tokens, now = [(start, {}, dict(running), 0)], {}, start
    for seconds, mode in parts:
        for _ in range(round(seconds / every)):
            now += every
            if mode:
                tokens = {**tokens, mode: tokens.get(mode, 0) + per_sample}
            samples.append((now, tokens, dict(running), 0))
    return samples


class Step(unittest.TestCase):
    def settled(self, *parts, steady=None):
        return router_step.settled(made(*parts), steady or {"ar": 1.0}, 0.2)

    def test_a_clean_change_settles_when_it_comes(self):
        self.assertEqual(self.settled((5, "ar")), 0)
        self.assertAlmostEqual(self.settled((0.7, "self_speculation"), (4, "ar")), 0.7, delta=0.05)
        self.assertAlmostEqual(self.settled((1.5, "self_speculation"), (4, "ar")), 1.5, delta=0.05)

    def test_no_tokens_is_not_settled(self):
        self.assertAlmostEqual(self.settled((1, None), (4, "ar")), 0.8, delta=0.05)  # the first window that reaches the tokens
        self.assertIsNone(router_step.settled(made((5, None)), {}, 0.2))

    def test_without_tokens_the_running_requests_count(self):
        for running, seconds in (({"ar": 60, "self_speculation": 4}, 0), ({"ar": 50, "self_speculation": 14}, 0.8)):
            found = router_step.settled(made((1, None), (4, "ar"), running=running), {"ar": 1.0}, 0.2)
            self.assertAlmostEqual(found, seconds, delta=0.05)

    def test_the_longest_silence_is_told(self):
        self.assertAlmostEqual(router_step.silence(made((1, "ar"), (0.7, None), (1, "ar"), (0.3, None))), 0.72, delta=0.001)
        self.assertAlmostEqual(router_step.silence(made((0.5, "ar"), (0.9, None))), 0.9, delta=0.001)

    def test_flapping_does_not_settle(self):
        flapping = [(0.5, "ar"), (0.5, "self_speculation")] * 5
        late = self.settled(*flapping, steady={"ar": 0.5, "self_speculation": 0.5})
        self.assertTrue(late is None or late > 2, late)

    def test_a_mix_of_modes_is_steady(self):
        mix = [(0.02, "ar"), (0.02, "self_speculation")] * 100
        self.assertEqual(self.settled(*mix, steady={"ar": 0.5, "self_speculation": 0.5}), 0)

    def test_one_short_lapse_is_allowed(self):
        self.assertEqual(self.settled((2, "ar"), (0.1, "self_speculation"), (3, "ar")), 0)

    def test_a_phase_is_described(self):
        samples = made((0.5, "self_speculation"), (4.5, "ar"), running={"ar": 1})
        phase = router_step.phase_of(samples, 100, 105, 1, 0.2)
        self.assertEqual(phase["mix"], {"ar": 1.0})
        self.assertAlmostEqual(phase["tok_s"], 500, delta=1)
        self.assertAlmostEqual(phase["settled"], 0.5, delta=0.05)
        self.assertEqual(phase["there"], 0)
        verdicts = check_router.Verdicts(quick=False)
        check_router.judge_step(verdicts, [phase, phase, {**phase, "settled": 1.2}])
        self.assertEqual([line[:4] for line in verdicts.lines], ["ok  ", "FAIL"])
        check_router.judge_step(verdicts, "a client ended before its time")
        self.assertEqual(verdicts.failed, 2)


class Chart(unittest.TestCase):
    def test_names_do_not_meet_and_points_lie_inside(self):
        lines = {f"mode {k}": {1: 100 + k, 64: 5000 + k} for k in range(9)} | {"auto": {1: 99, 64: 5100}, "short <&>": {1: 70}}
        lines |= {f"slow {k}": {1: 100, 64: 60 + k / 10} for k in range(5)}
        root = ElementTree.parse(io.StringIO(router_chart.draw("title <&>", "note", lines, "auto"))).getroot()
        names = {t.text: float(t.get("y")) for t in root.findall(f"{SVG}text") if t.text in lines}
        self.assertEqual(names.keys(), lines.keys())
        heights = sorted(names.values())
        self.assertGreaterEqual(min(b - a for a, b in zip(heights, heights[1:])), router_chart.APART - 0.11)
        for line in root.findall(f"{SVG}polyline"):
            for point in line.get("points").split():
                x, y = map(float, point.split(","))
                self.assertTrue(router_chart.LEFT <= x <= router_chart.WIDTH and router_chart.TOP - 1 <= y <= router_chart.HEIGHT, point)


if __name__ == "__main__":
    unittest.main()
