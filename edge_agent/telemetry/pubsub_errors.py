"""What an answer of Google Cloud Pub/Sub means for the events, in one line for the person who must act."""

from collections.abc import Mapping
from dataclasses import dataclass

from edge_agent.telemetry.sinks import SinkError, SinkNeedsPerson, SinkRejected, SinkUnavailable

_LONGEST_DETAIL = 300
_CLOCK = "look at the device's clock too (timedatectl): a wrong one makes good credentials fail"
_KEY = (
    "put the key of a service account that may publish (roles/pubsub.publisher) into "
    "/etc/credstore/edge-agent.google-credentials.json and restart the service, or let GOOGLE_APPLICATION_CREDENTIALS "
    "name it"
)
_GRANT = (
    "allow it: gcloud pubsub topics add-iam-policy-binding {topic} --project={project} "
    "--member={member} --role=roles/pubsub.publisher"
)
_FOR_NOW = {
    "UNAVAILABLE": "Pub/Sub cannot be reached",
    "DEADLINE_EXCEEDED": "Pub/Sub did not answer in time",
    "RESOURCE_EXHAUSTED": "Pub/Sub asks to send less (quota)",
    "CANCELLED": "the request was cancelled",
}
_CONTENT = ("INVALID_ARGUMENT", "OUT_OF_RANGE")


@dataclass(frozen=True, slots=True)
class Target:
    """The topic that events go to. `account` is the e-mail address of the credentials, where it is known."""

    project: str
    topic: str
    account: str = ""

    def __str__(self) -> str:
        return f"pubsub://{self.project}/{self.topic}"


def explain_status(code: str, details: str, target: Target) -> SinkError:
    """Map a gRPC status (its name, and what the server said) to what is to be done about it."""
    said = f" ({details[:_LONGEST_DETAIL]})" if details else ""
    if code in _CONTENT or (code == "RESOURCE_EXHAUSTED" and "larger than max" in details):
        return SinkRejected(f"{target}: refused as {code}{said}")
    if code in _PERSON:
        reason, what_to_do = _PERSON[code]
        names = {"topic": target.topic, "project": target.project, "member": _member(target)}
        return SinkNeedsPerson(f"{target}: {reason}{said}", what_to_do.format_map(names))
    # INTERNAL, UNKNOWN, ABORTED and whatever else a server may say: the data stays, and a later try costs little.
    what = _FOR_NOW.get(code, f"Pub/Sub answered {code}")
    return SinkUnavailable(f"{target}: {what}{said}")


def _member(target: Target) -> str:
    return f"serviceAccount:{target.account if '@' in target.account else 'ACCOUNT'}"


_PERSON: Mapping[str, tuple[str, str]] = {
    "PERMISSION_DENIED": (
        "the credentials do not allow to publish there",
        _GRANT,
    ),
    "NOT_FOUND": (
        "there is no such topic",
        "create it: gcloud pubsub topics create {topic} --project={project}; or correct [telemetry] sink",
    ),
    "UNAUTHENTICATED": ("the credentials are not accepted", f"{_KEY}; {_CLOCK}"),
    "FAILED_PRECONDITION": (
        "the topic cannot take messages as it is set up",
        "look at it: gcloud pubsub topics describe {topic} --project={project}",
    ),
    "UNIMPLEMENTED": (
        "what answers there is not Pub/Sub",
        "look at PUBSUB_EMULATOR_HOST and at the proxy settings of the service",
    ),
}


def explain_credentials(error: Exception, target: Target, *, retryable: bool) -> SinkError:
    """Say why there is no access token: `error` came from Google's token server, or from reading the key."""
    said = _first_words(error)
    if retryable:
        return SinkUnavailable(f"{target}: Google's token server gave no token ({said})")
    return SinkNeedsPerson(
        f"{target}: Google's token server refuses the credentials ({said})",
        f"make a new key if the old one was revoked; {_CLOCK}",
    )


def explain_missing(error: Exception, target: Target) -> SinkNeedsPerson:
    """Say that no credentials were found, or that they cannot be read."""
    said = _first_words(error)
    # Google's advice for developers would push our own out of the status line.
    why = "" if said.startswith("Your default credentials were not found") else f" ({said})"
    return SinkNeedsPerson(f"{target}: no usable credentials{why}", _KEY)


def _first_words(error: Exception) -> str:
    """What google-auth says for people; the answer of the server may follow as a second argument."""
    said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(said.split())[:_LONGEST_DETAIL]
