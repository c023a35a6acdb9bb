"""How important an event is: the more important is sent first and dropped last."""

import enum


class Priority(enum.IntEnum):
    """The smaller the number, the more important."""

    ALARM = 0
    NOTICE = 1
    """Events about models and losses."""
    HEALTH = 2
    RESULT = 3
    """Results and their summaries."""
