"""Why a model is not taken into use."""


class ModelRefused(Exception):
    """The model cannot be used. `permanent`: trying the same file again is pointless."""

    def __init__(self, reason: str, *, permanent: bool) -> None:
        super().__init__(reason)
        self.permanent = permanent
