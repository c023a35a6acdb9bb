"""Leaves secrets out of what goes into a bug report: `redact.py LIBRARY FILE`.

Copies the standard input, and then shows the settings in FILE. LIBRARY is the directory with the package edge_agent,
whose rules on what looks like a secret are used.

A password may look like any word, so of the settings only the values of the names that are listed here are shown, and
switches. Of all others the report tells that they are set.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from edge_agent.service.redaction import MASK, redact_text
from edge_agent.settings.showing import looks_secret, show

# Settings whose values are choices, measures, or names that are in every event anyway.
PLAIN = {
    "actions.cooldown",
    "actions.name",
    "actions.timeout",
    "actions.when.above",
    "actions.when.below",
    "actions.when.hold",
    "actions.when.hysteresis",
    "actions.when.label",
    "actions.when.max_count",
    "actions.when.min_confidence",
    "actions.when.min_count",
    "device.id",
    "inference.accelerator",
    "inference.deadline",
    "inference.device",
    "inference.fit",
    "inference.image_mean",
    "inference.image_std",
    "inference.iou_threshold",
    "inference.labels",
    "inference.limits.high",
    "inference.limits.low",
    "inference.resize",
    "inference.runtime",
    "inference.task",
    "inference.threshold",
    "inference.top_k",
    "log.format",
    "log.level",
    "model.download.bandwidth",
    "model.download.window",
    "model.hold",
    "model.name",
    "model.pin",
    "model.poll_interval",
    "model.trial.max_clipped",
    "model.trial.max_failed",
    "model.trial.max_latency",
    "model.trial.max_shift",
    "model.trial.samples",
    "model.trial.time",
    "source.channels",
    "source.failure",
    "source.format",
    "source.height",
    "source.live",
    "source.mode",
    "source.normal",
    "source.plugin",
    "source.rate",
    "source.repeat",
    "source.restart",
    "source.rtsp_transport",
    "source.seed",
    "source.step",
    "source.timeout",
    "source.values",
    "source.warning",
    "source.watch",
    "source.width",
    "source.window",
    "telemetry.bandwidth",
    "telemetry.daily_budget",
    "telemetry.health_interval",
    "telemetry.linger",
    "telemetry.publish",
    "telemetry.queue.commit_interval",
    "telemetry.queue.commit_size",
    "telemetry.queue.max_age",
    "telemetry.queue.max_size",
    "telemetry.queue.reserve",
    "telemetry.raw_data",
    "telemetry.raw_data.daily_budget",
    "telemetry.raw_data.max_confidence",
    "telemetry.raw_data.max_margin",
    "telemetry.raw_data.min_clipped",
    "telemetry.raw_data.one_in",
    "telemetry.raw_data.values",
}
# The same of tables whose names the administrator or a driver chooses.
PLAIN_TABLES = {"device.labels", "inference.device_options", "telemetry.publish"}
# Of these, what could carry a password is cut off.
ADDRESSES = {"model.cpu_url", "model.url", "telemetry.raw_data.images", "telemetry.sink"}


def main(file: str) -> int:
    """Print all of it, or nothing; returns the exit status."""
    copied = clean(sys.stdin.buffer.read().decode(errors="replace"))
    shown_settings = "".join(f"{line}\n" for line in settings(Path(file)))
    sys.stdout.buffer.write((copied + shown_settings).encode())
    return 0


def settings(path: Path) -> Iterator[str]:
    """Yield a line for each setting that the file gives, or the reason why it cannot be read."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        yield f"not TOML: {place(error)}"
    except UnicodeDecodeError:
        yield "cannot be read: not UTF-8"
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
    else:
        yield from list(table(document, "")) or ["nothing is set"]


def place(error: tomllib.TOMLDecodeError) -> str:
    """Return where a fault is. What it is may quote the file."""
    found = re.search(r"\(at [a-z0-9 ,]*\)$", str(error))
    return found[0] if found else "(at an unknown place)"


def table(values: dict[str, Any], name: str) -> Iterator[str]:
    """Yield the settings of a table and of those below it."""
    for key, value in values.items():
        inner = f"{name}.{key}" if name else key
        match value:
            case dict():
                yield from table(value, inner)
            case [dict(), *_]:
                for item in value:
                    yield from table(item, inner) if isinstance(item, dict) else [f"{inner}: not a table"]
            case _:
                yield clean(f"{inner} = {shown(value, inner)}")


def shown(value: object, name: str) -> str:
    """Return a value as the report may show it."""
    if name in ADDRESSES and isinstance(value, str):
        return show(re.sub(r"[?#].*", "?…", value, flags=re.DOTALL), name)
    if isinstance(value, bool) or name in PLAIN or name.rpartition(".")[0] in PLAIN_TABLES:
        return show(value, name)
    return f"(a {type(value).__name__}, not shown)"


def clean(text: str) -> str:
    """Return a text without what looks like a secret."""
    return re.sub(r"\S+", lambda word: MASK if looks_secret(word[0]) else word[0], redact_text(text))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[2:]))
