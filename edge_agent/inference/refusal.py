"""Why a model is not taken into use."""


class ModelRefused(Exception):
    """The model cannot be used. `permanent`: trying the same file again is pointless.

    `about_device`: the reason lies with the Edge TPU, or may do so.
    """

    def __init__(self, reason: str, *, permanent: bool, about_device: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.about_device = about_device
