#!/usr/bin/env python3
"""Runs the end-to-end tests against a built trimode; ends with `N passed, N failed` (and how many were skipped).

    tests/e2e/run.py                      all of them, build/trimode
    tests/e2e/run.py --build build-asan   another build
    tests/e2e/run.py disconnect stop      tests whose name contains one of the words
"""
import argparse
import importlib.util
import os
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


class Result(unittest.TestResult):
    """One line a test, with its time; failures in full at once."""

    def __init__(self):
        super().__init__()
        self.passed = self.failed = self.n_skipped = 0

    def startTest(self, test):
        super().startTest(test)
        self.started, self.bad, self.reason = time.monotonic(), [], None

    def addFailure(self, test, err):
        self.bad.append(self._exc_info_to_string(err, test))

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.bad.append(f"{subtest._subDescription()}\n{self._exc_info_to_string(err, test)}")

    def addSkip(self, test, reason):
        if not hasattr(self, "reason"):
            self.startTest(test)
        self.reason = reason

    def stopTest(self, test):
        super().stopTest(test)
        name, seconds = test.id(), time.monotonic() - self.started
        if self.bad:
            self.failed += 1
            print(f"FAILED  {name:<80} {seconds:6.1f} s")
            for text in self.bad[:4]:
                print("    " + text.rstrip().replace("\n", "\n    "))
            if len(self.bad) > 4:
                print(f"    ... and {len(self.bad) - 4} more")
        elif self.reason is not None:
            self.n_skipped += 1
            print(f"skip    {name:<80} {self.reason}")
        else:
            self.passed += 1
            print(f"ok      {name:<80} {seconds:6.1f} s")
        sys.stdout.flush()


def flatten(suite):
    for t in suite:
        if isinstance(t, unittest.TestSuite):
            yield from flatten(t)
        else:
            yield t


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="build folder (default: build)")
    parser.add_argument("--model", help="model folder (default: config/models/nano)")
    parser.add_argument("pattern", nargs="*", help="run only tests whose name contains one of these")
    args = parser.parse_args()

    venv = os.path.join(ROOT, "build", "venv", "bin", "python")
    if importlib.util.find_spec("openai") is None and os.path.exists(venv) and sys.executable != venv:
        os.execv(venv, [venv, os.path.abspath(__file__), *sys.argv[1:]])

    os.environ["E2E_BUILD"] = os.path.abspath(args.build)
    if args.model:
        os.environ["E2E_MODEL"] = os.path.abspath(args.model)
    sys.path.insert(0, HERE)
    import case
    import server
    if not os.access(server.BINARY, os.X_OK):
        print(f"no {server.BINARY}: build it first\n0 passed, 1 failed")
        return 1

    tests = list(flatten(unittest.TestLoader().discover(HERE, "test_*.py")))
    if args.pattern:
        # A file that cannot be imported fails whatever was asked for: its tests have no names.
        tests = [t for t in tests if any(p in t.id() for p in args.pattern) or "_FailedTest" in t.id()]
    result, start = Result(), time.monotonic()
    for test in tests:
        test.run(result)
    for wrong in case.stop_shared_servers():
        result.failed += 1
        print(f"FAILED  shared server\n    {wrong}")
    skipped = f" ({result.n_skipped} skipped)" if result.n_skipped else ""
    print(f"{time.monotonic() - start:.0f} s")
    print(f"{result.passed} passed, {result.failed} failed{skipped}")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
