"""The fault tests of the queue in the numbers that make a claim: 100 kills, 20 power cuts, large files."""

from pathlib import Path

import pytest

from tests.telemetry import loopdisk
from tests.telemetry.powercuts import check_power_cuts
from tests.telemetry.test_queue_kill import check_kills

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

WHERE = pytest.mark.parametrize("with_runtime", [True, False], ids=["runtime directory", "state directory"])


@WHERE
def test_a_hundred_kills_lose_nothing(tmp_path: Path, with_runtime: bool) -> None:
    assert check_kills(tmp_path, 100, with_runtime=with_runtime) > 10_000


@WHERE
def test_twenty_power_cuts_cost_a_commit_interval_each_at_most(tmp_path: Path, with_runtime: bool) -> None:
    if reason := loopdisk.why_not():
        pytest.skip(reason)
    check_power_cuts(tmp_path, 20, with_runtime=with_runtime)
