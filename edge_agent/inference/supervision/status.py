"""What is known of the worker: for the operator, and for who works with its results."""

from dataclasses import dataclass

from edge_agent.inference.protocol import Figures
from edge_agent.records import LoadReport, ModelFile, Result


@dataclass(frozen=True)
class ResultBatch:
    """Results of one model, with what the agent knows of it. Counts are since the previous batch."""

    results: list[Result]
    model: ModelFile
    report: LoadReport
    dropped: int
    failed: int
    failure: str


@dataclass
class WorkerStatus:
    """What the operator is shown of the worker. Counts are since the start of the agent.

    `failure` is why no sample can be worked on at the moment, `waiting` why the model in use cannot run; both are empty
    when all is well. `report` tells how the model in use was loaded. `over_budget`, `unkept` and `unkept_reason` are
    those of `edge_agent.inference.protocol.Figures`.
    """

    state: str = "stopped"
    runtime: str = ""
    source: str = "waiting for a model"
    deaths: int = 0
    last_death: str = ""
    samples: int = 0
    dropped: int = 0
    failed: int = 0
    skipped: int = 0
    set_aside: int = 0
    clipped: int = 0
    failure: str = ""
    waiting: str = ""
    report: LoadReport | None = None
    over_budget: int = 0
    unkept: int = 0
    unkept_reason: str = ""

    def add(self, figures: Figures) -> None:
        """Add what the worker has counted."""
        self.clipped += figures.clipped
        self.over_budget += figures.over_budget
        self.unkept += figures.unkept
        self.unkept_reason = figures.unkept_reason or self.unkept_reason
