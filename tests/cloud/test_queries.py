"""The queries of config/cloud: they say what is so, of events that devices have made."""

import asyncio
import datetime
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from sqlglot import exp

from edge_agent.records import Latency, Score
from edge_agent.settings.publish import Publish
from tests.cloud.fleet import EPOCH, Fleet
from tests.cloud.subscription import Columns
from tests.cloud.warehouse import Warehouse

ROOT = Path(__file__).parents[2]
QUERIES = sorted((ROOT / "config/cloud/queries").glob("*.sql"))
NORMAL, FAILURE = Score("normal", 0.75, 0), Score("failure", 0.9375, 1)
DAYS = 10
NOW = datetime.datetime.fromtimestamp(EPOCH / 1000, datetime.UTC) + datetime.timedelta(days=DAYS)
MINUTE, DAY = 60_000, 1440

Tell = Callable[[Callable[[Fleet], Awaitable[None]]], dict[str, bytes]]


def at(minutes_ago: float) -> int:
    """Return a time in milliseconds since 1970."""
    return EPOCH + int((DAYS * DAY - minutes_ago) * MINUTE)


def when(minutes_ago: float) -> datetime.datetime:
    """Return the same as the warehouse does."""
    return datetime.datetime.fromtimestamp(at(minutes_ago) / 1000, datetime.UTC).replace(tzinfo=None)


def query(name: str) -> str:
    return (ROOT / f"config/cloud/queries/{name}.sql").read_text(encoding="utf-8")


@pytest.fixture
def warehouse(columns: Columns, tmp_path: Path) -> Iterator[Warehouse]:
    found = Warehouse(columns, NOW, tmp_path)
    yield found
    found.close()


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """A function that lets devices do something and returns their events, in order, by a short id: edge-001/7."""

    def told(story: Callable[[Fleet], Awaitable[None]]) -> dict[str, bytes]:
        async def run() -> dict[str, bytes]:
            fleet = Fleet(tmp_path)
            await story(fleet)
            return await fleet.events()

        events = asyncio.run(run())
        return {re.sub(r"/\d+/0*", "/", name): events[name] for name in sorted(events)}

    return told


def some(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


# ------------------------------------------------------------------------------------------ each event


def test_duplicates_tell_who_has_made_them(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        for n in range(4):
            device.see(at(60 - n), NORMAL)

    events = tell(story)
    warehouse.write(events["edge-001/1"], 50)
    for minutes in (49, 40):  # the device had no answer and sent it again, under another message
        warehouse.write(events["edge-001/2"], minutes)
    for minutes in (48, 48, 30):
        warehouse.write(events["edge-001/3"], minutes, message_id="77")
    for minutes in (8 * DAY, 8 * DAY):  # longer ago than the query looks
        warehouse.write(events["edge-001/4"], minutes)
    rows = warehouse.ask(query("duplicates"))
    assert some(rows, "event_id", "copies", "sent_again", "written_again", "first_arrival", "last_arrival") == [
        (f"edge-001/{EPOCH}/000000000003", 3, 0, 2, when(48), when(30)),
        (f"edge-001/{EPOCH}/000000000002", 2, 1, 0, when(49), when(40)),
    ]


def test_gaps_are_the_numbers_that_are_not_there(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        for name in ("edge-001", "edge-002"):
            device = await fleet.device(name)
            for n in range(5):
                device.see(at(60 - n), NORMAL)
            device.feel(at(50))
            device.lose(at(40), "source_overrun", 9)

    events = tell(story)
    for name, event in events.items():
        if name not in {"edge-001/3", "edge-001/4", "edge-001/6"}:
            warehouse.write(event, 30)
    warehouse.write(events["edge-001/5"], 30)
    assert [tuple(row.values()) for row in warehouse.ask(query("gaps"))] == [
        ("edge-001", EPOCH, 3, 4, 2, when(59), when(56), True),
        # The health event may still wait on the device: no result that was made later has come.
        ("edge-001", EPOCH, 6, 6, 1, when(56), when(40), False),
    ]


def test_accounts_set_what_is_missing_against_what_was_reported(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        for name in ("edge-001", "edge-002", "edge-003"):
            device = await fleet.device(name)
            for n in range(5):
                device.see(at(60 - n), NORMAL)
            if name == "edge-001":
                device.lose(at(50), "queue_full", 2)
                device.lose(at(49), "source_overrun", 100)  # samples, which had no numbers
            device.see(at(48), NORMAL)

    events = tell(story)
    for name, event in events.items():
        if name not in {"edge-001/2", "edge-001/3", "edge-002/2"}:
            warehouse.write(event, 30)
    warehouse.write(events["edge-001/6"], 20)  # the report itself, twice
    assert [tuple(row.values()) for row in warehouse.ask(query("accounts"))] == [
        ("edge-002", 1, 5, 1, 0, 1),
        ("edge-001", 1, 6, 2, 2, 0),
        ("edge-003", 1, 6, 0, 0, 0),
    ]


def test_accounts_count_the_losses_of_events_and_no_others() -> None:
    page = (ROOT / "docs/events.md").read_text(encoding="utf-8").partition("## Losses")[2]
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    listed = next(sqlglot.parse_one(query("accounts"), read="bigquery").find_all(exp.In))
    counted = {each.name for each in listed.expressions}
    assert {cause for cause, what in told.items() if re.match(r"(the oldest )?events\b", what)} - counted == set()
    assert {cause for cause, what in told.items() if what.startswith("samples")} & counted == set()


def test_losses_are_added_up_by_cause(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        device.lose(at(60), "queue_full", 5)
        device.lose(at(50), "queue_full", 2)
        device.lose(at(40), "damaged", 1)

    for event in tell(story).values():
        warehouse.write(event, 30)
        warehouse.write(event, 20)
    second = datetime.timedelta(seconds=1)
    assert [tuple(row.values()) for row in warehouse.ask(query("losses"))] == [
        ("edge-001", "queue_full", 7, 2, when(60) - second, when(50)),
        ("edge-001", "damaged", 1, 1, when(40) - second, when(40)),
    ]


# ------------------------------------------------------------------------------------------ times


def test_latency_of_inference_per_device_and_version(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        for n in range(201):
            device.see(at(60), NORMAL, inference_ms=n + 1)
        device.see(at(50), NORMAL, version="v2", accelerator="cpu", inference_ms=300)
        other = await fleet.device("edge-002")
        other.see(at(50), NORMAL, inference_ms=4)

    for event in tell(story).values():
        warehouse.write(event, 30)
        warehouse.write(event, 30)
    rows = warehouse.ask(query("inference_latency"))
    facts = some(rows, "device_id", "model_name", "model_version", "accelerator", "results", "max_ms")
    assert facts == [
        ("edge-001", "vibration", "v2", "cpu", 1, 300.0),
        ("edge-001", "vibration", "v1", "edgetpu", 201, 201.0),
        ("edge-002", "vibration", "v1", "edgetpu", 1, 4.0),
    ]
    assert {row["kind"] for row in rows} == {"result"}
    # Both databases estimate quantiles.
    assert [rows[1][name] for name in ("p50_ms", "p95_ms", "p99_ms")] == pytest.approx([101, 191, 199], abs=2)


def test_latency_of_results_that_came_as_summaries(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        device.see(at(200), NORMAL, inference_ms=100)
        device.publish_by(Publish("summary", window=3600.0))
        for minutes_ago, took_ms in ((180, 2.0), (179, 2.0), (178, 2.0), (20, 8.0)):
            device.see(at(minutes_ago), NORMAL, inference_ms=took_ms)
        device.publish_by(Publish("all"))

    for event in tell(story).values():
        warehouse.write(event, 1)
        warehouse.write(event, 1)
    one_by_one, summed_up = warehouse.ask(query("inference_latency"))
    assert (one_by_one["kind"], one_by_one["results"], one_by_one["p50_ms"]) == ("result", 1, 100.0)
    assert (summed_up["kind"], summed_up["results"]) == ("summary", 4)
    assert [summed_up[name] for name in ("p50_ms", "p95_ms", "max_ms")] == pytest.approx([3.5, 8, 8], rel=1 / 16)


def test_latency_of_stages_is_weighted_by_samples(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        device.feel(at(60), Latency("invoke", 10, 2.0, 2.5, 3.0, 12.0), Latency("action", 0, 0.0, 0.0, 0.0, 0.0))
        device.feel(at(50), Latency("invoke", 30, 4.0, 5.0, 9.0, 11.0), Latency("decode", 30, 0.5, 0.5, 0.5, 0.5))

    for event in tell(story).values():
        warehouse.write(event, 30)
    warehouse.write(event, 20)
    assert [tuple(row.values()) for row in warehouse.ask(query("stage_latency"))] == [
        ("edge-001", "invoke", 40, 3.5, 9.0, 12.0),
        ("edge-001", "decode", 30, 0.5, 0.5, 0.5),
    ]


def test_delay_of_delivery(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        late = await fleet.device("edge-001")
        for n in range(101):
            late.see(at(100 - n), NORMAL)
        ahead = await fleet.device("edge-002")
        ahead.see(at(-5), NORMAL)
        ahead.clock.source = "unverified"
        ahead.see(at(60 * DAY), NORMAL)

    for event in tell(story).values():
        warehouse.write(event, 0)
    first, second = warehouse.ask(query("delivery_delay"))
    assert [first[name] for name in ("device_id", "events", "max_s", "ahead")] == ["edge-001", 101, 6000.0, 0]
    assert [first["p50_s"], first["p95_s"]] == pytest.approx([3000, 5700], abs=60)
    assert tuple(second.values()) == ("edge-002", 1, -300.0, -300.0, -300.0, 1)


# ------------------------------------------------------------------------------------------ the fleet


def test_model_versions_across_the_fleet(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        first = await fleet.device("edge-001")
        first.see(at(60), NORMAL)
        first.envelope.put_model(at(50) * 1_000_000, model_name="vibration", model_version="v2", state="committed")
        degraded = await fleet.device("edge-002")
        degraded.see(at(40), NORMAL, accelerator="cpu", degraded="no Edge TPU is plugged in")
        refusing = await fleet.device("edge-003")
        refusing.see(at(30), NORMAL)
        for version in ("v2", "v3"):
            refusing.envelope.put_model(
                at(20) * 1_000_000, model_name="vibration", model_version=version, state="rejected", reason="too big"
            )

    for name, event in tell(story).items():
        warehouse.write(event, {"edge-001": 50, "edge-002": 40, "edge-003": 20}[name[:8]])
    assert [tuple(row.values()) for row in warehouse.ask(query("model_versions"))] == [
        ("vibration", "v1", 2, 1, when(40), "edge-002, edge-003", 0, None),
        ("vibration", "v2", 1, 0, when(50), "edge-001", 1, "too big"),
        ("vibration", "v3", 0, 0, None, None, 1, "too big"),
    ]


def test_silent_devices(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        for name in ("edge-001", "edge-002", "edge-003"):
            device = await fleet.device(name)
            device.see(at(4000), NORMAL)
            device.see(at(20), NORMAL)

    events = tell(story)
    for name in ("edge-001", "edge-002"):
        warehouse.write(events[f"{name}/1"], 3000, label_site="lyon")
    warehouse.write(events["edge-001/2"], 16, label_site="metz")
    warehouse.write(events["edge-003/1"], 3000)
    warehouse.write(events["edge-003/2"], 14.5)
    assert [tuple(row.values()) for row in warehouse.ask(query("silent_devices"))] == [
        ("edge-002", "lyon", when(3000), 3000, when(4000)),
        ("edge-001", "metz", when(16), 16, when(20)),
    ]


def test_alarms(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        device.see(at(60), FAILURE)
        device.envelope.put_device_alarm(at(50) * 1_000_000, action="accelerator", detail="plug the stick out and in")

    for event in tell(story).values():
        warehouse.write(event, 30)
        warehouse.write(event, 20)
    assert [tuple(row.values())[:8] for row in warehouse.ask(query("alarms"))] == [
        (when(50), "edge-001", "accelerator", None, None, None, "plug the stick out and in", None),
        (when(60), "edge-001", "stop", "failure", 0.9375, None, None, "v1"),
    ]


# ------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_says_from_when_on(path: Path, warehouse: Warehouse) -> None:
    """Or BigQuery refuses it: the table asks for a filter on its partitions."""
    tree = sqlglot.parse_one(path.read_text(encoding="utf-8"), read="bigquery")
    scans = [table for table in tree.find_all(exp.Table) if table.name == "events"]
    assert scans
    for scan in scans:
        select = scan.find_ancestor(exp.Select)
        assert select is not None
        since = [each.this.name for each in select.args["where"].find_all(exp.GTE)]
        assert "publish_time" in since
    assert warehouse.ask(path.read_text(encoding="utf-8")) == []


def test_the_queries_on_the_page_are_good(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        device.see(at(20), NORMAL)

    [event] = tell(story).values()
    for minutes in (10, 9):
        warehouse.write(event, minutes)
    page = (ROOT / "docs/cloud.md").read_text(encoding="utf-8")
    [once] = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert some(warehouse.ask(once), "device_id", "publish_time") == [("edge-001", when(10))]


def test_every_query_is_explained_and_tested() -> None:
    page = (ROOT / "docs/cloud.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| \[(\w+)\.sql\]\(\.\./config/cloud/queries/\1\.sql\)", page, re.MULTILINE)
    assert sorted(told) == [path.stem for path in QUERIES]
    tested = set(re.findall(r'query\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert tested == set(told)


# ------------------------------------------------------------------------------------------ of docs/events.md


def test_the_queries_of_the_page_on_events(warehouse: Warehouse, tell: Tell) -> None:
    async def story(fleet: Fleet) -> None:
        device = await fleet.device("edge-001")
        device.publish_by(Publish("change"))
        for minutes_ago, score in ((300, NORMAL), (240, NORMAL), (180, FAILURE), (150, FAILURE), (120, NORMAL)):
            device.see(at(minutes_ago), score)
        device.publish_by(Publish("summary", window=3600.0))
        for minutes_ago, score, took_ms in (
            (100, NORMAL, 2.0),
            (99, FAILURE, 5.0),
            (98, NORMAL, 2.0),
            (1, FAILURE, 9.0),
        ):
            device.see(at(minutes_ago), score, inference_ms=took_ms)
        device.publish_by(Publish("all"))

    for event in tell(story).values():
        warehouse.write(event, 1)
    page = (ROOT / "docs/events.md").read_text(encoding="utf-8")
    states, summaries = re.findall(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    # A row of each interval stands between two changes, and the last row has no end yet.
    assert warehouse.ask(states) == [
        {"device_id": "edge-001", "prediction": "normal", "hours": 2.0},
        {"device_id": "edge-001", "prediction": "failure", "hours": 1.0},
    ]
    [told] = warehouse.ask(summaries)
    assert (told["device_id"], told["results"], told["failures"]) == ("edge-001", 4, 0.5)
    assert told["slowest_ms"] == pytest.approx(9.0, rel=1 / 32)
