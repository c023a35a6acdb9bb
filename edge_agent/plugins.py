"""Finds plugins by entry point.

A distribution offers a plugin in its metadata; finding one reads that metadata and imports nothing. What is wrong
with a plugin is told by name and distribution, so that somebody can remove or update it.
"""

import difflib
import pkgutil
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

SOURCES = "edge_agent.sources"


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
    return {name: _describe(points[0]) for name, points in _points(group).items()}


def find(group: str, name: str) -> Plugin:
    """Return the installed plugin `name` of `group`, without importing it. Raises PluginError."""
    points = _points(group)
    if name not in points:
        raise PluginError(_not_found(name, list(points)))
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


def _points(group: str) -> dict[str, list[EntryPoint]]:
    points: dict[str, list[EntryPoint]] = defaultdict(list)
    for point in entry_points(group=group):
        points[point.name].append(point)
    return dict(sorted(points.items()))


def _describe(point: EntryPoint) -> Plugin:
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
    reference = "".join(point.value.partition("[")[0].split())  # the metadata allows for spaces and for [extras]
    return Plugin(point.name, reference, distribution)


def _not_found(name: str, installed: list[str]) -> str:
    near = difflib.get_close_matches(name, installed, n=1)
    if near:
        return f"no such plugin (did you mean '{near[0]}'?)"
    return f"no such plugin; installed are: {', '.join(installed) or 'none'}"
