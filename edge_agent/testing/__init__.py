"""What the author of a source needs to test it, without an agent, a cloud or an Edge TPU.

    from edge_agent.testing import check_source

    def test_my_source():
        check_source(Temperature, {"every": "10ms"})

Nothing here needs pytest. What is not as the agent needs it raises AssertionError, and the message says what to change.
`docs/sources.md` has more.
"""

from edge_agent.testing.clock import Clock
from edge_agent.testing.contract import check_source
from edge_agent.testing.reading import collect, make, opened
from edge_agent.testing.worker import WorkerDied, WorkerRun, run_in_worker

__all__ = ["Clock", "WorkerDied", "WorkerRun", "check_source", "collect", "make", "opened", "run_in_worker"]
