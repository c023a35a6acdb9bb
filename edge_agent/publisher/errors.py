"""What can be wrong with a release."""


class ReleaseError(Exception):
    """The release cannot be made, signed, published or changed; the message says why, and where."""
