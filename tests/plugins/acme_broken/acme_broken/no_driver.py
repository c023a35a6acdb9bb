"""Needs a library that nobody has installed."""

from acme_driver import Bus

from edge_agent.sources.base import Source


class Sensor(Source):
    """On the bus."""

    bus = Bus()
