"""The figures of tests/benchmarks/cluster_scaling.py, on a search that is made up."""

from types import SimpleNamespace

import pytest

from tests.benchmarks import cluster_scaling


class Search:
    """Two workers that start at 0 and 2 s; trials of 4 s follow one another after a gap of 1 s."""

    def __init__(self):
        self.clock = 0.0
        self.state = SimpleNamespace(report=lambda *_: True, next_trial=lambda: "a trial", stopping=False)

    def run(self, watched):
        for self.clock in range(0, 60):
            for process, start in ((7, 0), (8, 2)):
                since = self.clock - start
                if since >= 0 and since % 5 == 0:
                    self.state.next_trial()
                elif since > 0 and since % 5 == 4:
                    row = {"metrics": {"began": [self.clock - 4], "ended": [self.clock], "process": [process]}}
                    self.state.report("a trial", [row], False)
            if self.state.stopping:
                return


@pytest.fixture
def search(monkeypatch):
    made = Search()
    monkeypatch.setattr(cluster_scaling.time, "monotonic", lambda: made.clock)
    monkeypatch.setattr(cluster_scaling, "nodes_memory", lambda: [100.0, 50.0])
    return made


def test_efficiency_is_slept_time_in_the_window_over_what_the_workers_had(search):
    watched = cluster_scaling.Watched(search.state, workers=2, window=20.0)
    search.run(watched)
    found = watched.figures()
    # All are busy from 2 on; the last trial is asked at 22, when the first worker has slept from 2 to 4, 5 to 9, 10 to
    # 14, 15 to 19 and 20 to 22 and the second from 2 to 6, 7 to 11, 12 to 16 and 17 to 21
    assert watched.asked[-1] == 22
    assert found["window_s"] == 20
    assert found["efficiency"] == pytest.approx((2 + 4 + 4 + 4 + 2 + 4 * 4) / 2 / 20)
    assert found["trials_a_second"] == pytest.approx(8 / 20)
    assert found["nodes_mb"] == 150
    assert search.state.stopping


def test_a_worker_that_never_ran_is_no_efficiency(search):
    watched = cluster_scaling.Watched(search.state, workers=3, window=20.0)
    search.run(watched)
    with pytest.raises(AssertionError, match="only 2 of 3 workers"):
        watched.figures()
