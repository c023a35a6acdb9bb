"""For whom a release is, as it is written on a command line."""

import msgspec

from edge_agent.models.release.manifest import Audience

ALL = 100.0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed of an audience; None stays as it is. `shadow` is a share of samples (0 to 1)."""

    percent: float | None = None
    cohorts: list[dict[str, str]] | None = None
    shadow: float | None = None

    def applied(self, audience: Audience) -> Audience:
        """Return the audience with the change."""
        given = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(audience, **given)


UNCHANGED = Change()


def is_for_all(audience: Audience) -> bool:
    """Say whether every device switches to the release."""
    return audience.percent >= ALL and not audience.halted
