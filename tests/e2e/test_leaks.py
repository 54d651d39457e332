"""Clients killed at random for some seconds; scripts/check_leaks.sh does it for minutes."""
import unittest

import leaks
from case import SLOW
from server import Server


class Leaks(unittest.TestCase):
    def test_killed_clients_leave_nothing_behind(self):
        with Server(*leaks.FLAGS, env=leaks.ENV) as server:
            storm = leaks.Storm(server, seed=7)
            # A storm that killed nobody in the middle, or left pages enough for all, proves nothing.
            def met():
                m = server.metrics()
                return (server.metric("requests_total", m, finish_reason="cancelled") and
                        server.metric("preemptions_total", m) and server.metric("prefix_cache_hits_total", m))

            while storm.rounds <= leaks.WARM_UP or (storm.rounds < 10 and not met()):
                storm.round(1.5 * min(SLOW, 2))
            self.assertTrue(met())
