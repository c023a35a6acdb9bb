"""Finds plugins by entry point.

A distribution offers a plugin in its metadata; finding one reads that metadata and imports nothing. What is wrong
with a plugin is told by name and distribution, so that somebody can remove or update it.
"""

import difflib
import pkgutil
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

SOURCES = "edge_agent.sources"
UNKNOWN = "an unknown distribution"


class PluginError(Exception):
    """The plugin cannot be used; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin as its distribution announces it. `reference` is "module:Class"."""

    name: str
    reference: str
    distribution: str


def available(group: str) -> dict[str, Plugin]:
    """Return the installed plugins of `group` by name, without importing any of them."""
    return {name: _describe(points[0]) for name, points in _points(group)[0].items()}


def find(group: str, name: str) -> Plugin:
    """Return the installed plugin `name` of `group`, without importing it. Raises PluginError."""
    points, damaged = _points(group)
    if name not in points:
        raise PluginError("; ".join((_not_found(name, list(points)), *damaged)))
    if len(points[name]) > 1:
        claims = " and ".join(_describe(point).distribution for point in points[name])
        raise PluginError(f"plugin '{name}' comes from {claims}; uninstall one of them")
    return _describe(points[name][0])


def load(plugin: Plugin) -> type[Any]:
    """Import the plugin and return its class. Raises PluginError."""
    try:
        found = pkgutil.resolve_name(plugin.reference)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"plugin '{plugin.name}' of {plugin.distribution} cannot be imported: {reason}") from error
    if not isinstance(found, type):
        raise PluginError(f"plugin '{plugin.name}' of {plugin.distribution} is no class: {plugin.reference}")
    return found


def _points(group: str) -> tuple[dict[str, list[EntryPoint]], list[str]]:
    """Return the entry points by name; and of each distribution that hides its own, since it is damaged, the reason.

    `importlib.metadata.entry_points` raises for such a one, which then hides those of all others, too.
    """
    points: dict[str, list[EntryPoint]] = defaultdict(list)
    damaged, seen = [], set()
    for distribution in distributions():
        try:
            found = distribution.entry_points.select(group=group)
        except Exception as error:  # noqa: BLE001  damaged in whatever way
            whose = f"{_words(distribution)} in {distribution.locate_file('')}"
            damaged.append(f"what {whose} offers cannot be read ({type(error).__name__}: {error}), so install it again")
            continue
        if not found:
            continue
        # The same one may be found twice, and another version of it later on the path; the first one counts.
        name = re.sub(r"[-_.]+", "-", _name(distribution)).lower()
        if not name or name not in seen:
            seen.add(name)
            for point in found:
                points[point.name].append(point)
    return dict(sorted(points.items())), damaged


def _describe(point: EntryPoint) -> Plugin:
    reference = "".join(point.value.partition("[")[0].split())  # the metadata allows for spaces and for [extras]
    return Plugin(point.name, reference, _words(point.dist) if point.dist else UNKNOWN)


def _words(distribution: Distribution) -> str:
    name = _name(distribution)
    return f"{name} {distribution.version}" if name else UNKNOWN


def _name(distribution: Distribution) -> str:
    with suppress(Exception):  # as above
        return distribution.name or ""
    return ""


def _not_found(name: str, installed: list[str]) -> str:
    near = difflib.get_close_matches(name, installed, n=1)
    if near:
        return f"no such plugin (did you mean '{near[0]}'?)"
    return f"no such plugin; installed are: {', '.join(installed) or 'none'}"
