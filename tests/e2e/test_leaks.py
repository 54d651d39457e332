"""Clients killed at random for some seconds; scripts/check_leaks.sh does it for minutes."""
import unittest

import leaks
from case import SLOW
from server import Server


class Leaks(unittest.TestCase):
    def test_killed_clients_leave_nothing_behind(self):
        with Server(*leaks.FLAGS, env=leaks.ENV) as server:
            storm = leaks.Storm(server, seed=7)
            for _ in range(leaks.WARM_UP + 1):
                storm.round(1.5 * min(SLOW, 2))
            m = server.metrics()
            # A storm that killed nobody in the middle, or left pages enough for all, proves nothing.
            self.assertGreater(server.metric("requests_total", m, finish_reason="cancelled"), 0)
            self.assertGreater(server.metric("preemptions_total", m), 0)
            self.assertGreater(server.metric("prefix_cache_hits_total", m), 0)
