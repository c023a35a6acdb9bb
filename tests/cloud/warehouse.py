"""DuckDB in place of BigQuery: the table of the same schema, and the queries in its dialect, at a time that stands."""

import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import duckdb
import sqlglot
from sqlglot import exp

from tests.cloud.subscription import Columns, row_of

_TYPES = {
    "STRING": "VARCHAR",
    "INTEGER": "BIGINT",
    "FLOAT": "DOUBLE",
    "BOOLEAN": "BOOLEAN",
    "TIMESTAMP": "TIMESTAMP",
    "JSON": "JSON",
}


class Warehouse:
    """The table edge_agent.events. `now` is what CURRENT_TIMESTAMP() says."""

    def __init__(self, columns: Columns, now: datetime.datetime, folder: Path) -> None:
        self.now = now
        self._columns = columns
        self._file = folder / "rows.jsonl"
        self._connection = duckdb.connect(config={"threads": 1})
        fields = ", ".join(_field(column) for column in columns)
        self._connection.execute(f"CREATE SCHEMA edge_agent; CREATE TABLE edge_agent.events ({fields})")
        self._rows: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._connection.close()

    def write(self, event: bytes, minutes_ago: float, *, message_id: str = "", **attributes: str) -> None:
        """Write an event as a BigQuery subscription does."""
        published = self.now - datetime.timedelta(minutes=minutes_ago)
        number = message_id or str(next(self._numbers))
        self._rows.append(row_of(event, self._columns, attributes=attributes, message_id=number, published=published))

    def _flush(self) -> None:
        self._file.write_text("\n".join(map(json.dumps, self._rows)), encoding="utf-8")
        self._rows.clear()
        types = ", ".join(f"'{column['name']}': '{_type(column)}'" for column in self._columns)
        self._connection.execute(
            f"INSERT INTO edge_agent.events BY NAME "  # noqa: S608  all of it is ours
            f"SELECT * FROM read_json('{self._file}', format = 'newline_delimited', columns = {{{types}}})"
        )

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query in the dialect of BigQuery."""
        if self._rows:
            self._flush()
        tree = sqlglot.parse_one(query, read="bigquery").transform(self._stopped)
        answer = self._connection.execute(tree.sql(dialect="duckdb", unsupported_level=sqlglot.ErrorLevel.RAISE))
        names = [each[0] for each in answer.description or []]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def _stopped(self, node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.CurrentTimestamp):
            return exp.cast(exp.Literal.string(self.now.strftime("%Y-%m-%d %H:%M:%S")), "timestamp")
        # DuckDB has no LIMIT in an aggregate.
        if isinstance(node, exp.GroupConcat) and isinstance(node.this, exp.Limit):
            node.set("this", node.this.this)
        return node


def _type(column: dict[str, Any]) -> str:
    if column["type"] == "RECORD":
        name = f"STRUCT({', '.join(map(_field, column['fields']))})"
    else:
        name = _TYPES[column["type"]]
    return f"{name}[]" if column["mode"] == "REPEATED" else name


def _field(column: dict[str, Any]) -> str:
    return f'"{column["name"]}" {_type(column)}'
