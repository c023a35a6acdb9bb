"""What an answer of Google Cloud Pub/Sub means for the events, in one line for the person who must act."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from edge_agent.settings.units import format_duration
from edge_agent.telemetry.sending.sinks import SinkError, SinkNeedsPerson, SinkRejected, SinkUnavailable

_LONGEST_DETAIL = 300
_WRONG_TIME = 300.0
"""Seconds by which a clock may be wrong before credentials fail because of it."""
_MINUTE = 60
_SET_CLOCK = "set the clock (timedatectl), and see why the network does not (timedatectl timesync-status)"
_CLOCK = "look at the device's clock too (timedatectl): a wrong one makes good credentials fail"
_KEY = (
    "put the key of a service account that may publish (roles/pubsub.publisher) into "
    "/etc/credstore/edge-agent.google-credentials.json and restart the service, or let GOOGLE_APPLICATION_CREDENTIALS "
    "name it"
)
_NEW_KEY = f"make a new key (gcloud iam service-accounts keys create); {_KEY}"
_PORTAL = (
    "log in to the network if it asks for that (a captive portal), or let connections to *.googleapis.com:443 through "
    "the firewall or proxy as they are"
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
_HTTP_STATUS = re.compile(r"http2 header with status: (\d+)")
_CONTENT = ("INVALID_ARGUMENT", "OUT_OF_RANGE")


@dataclass(frozen=True, slots=True)
class Target:
    """The topic that events go to. `account` is the e-mail address of the credentials, where it is known."""

    project: str
    topic: str
    account: str = ""

    def __str__(self) -> str:
        return f"pubsub://{self.project}/{self.topic}"


def explain_status(code: str, details: str, target: Target, skew: float | None = None) -> SinkError:
    """Map a gRPC status (its name, and what the server said) to what is to be done about it.

    `skew` is how many seconds the device's clock is ahead of the server's, where the server said what it has.
    """
    said = f" ({details[:_LONGEST_DETAIL]})" if details else ""
    if (error := explain_connection(details, target)) is not None:
        return error
    if code == "UNAUTHENTICATED" and skew is not None:
        return _explain_refused(said, skew, target)
    if code in _CONTENT or (code == "RESOURCE_EXHAUSTED" and "larger than max" in details):
        return SinkRejected(f"{target}: refused as {code}{said}")
    if code in _PERSON:
        reason, what_to_do = _why_denied(details) or _PERSON[code]
        names = {"topic": target.topic, "project": target.project, "member": _member(target)}
        return SinkNeedsPerson(f"{target}: {reason}{said}", what_to_do.format_map(names))
    # INTERNAL, UNKNOWN, ABORTED and whatever else a server may say: the data stays, and a later try costs little.
    what = _FOR_NOW.get(code, f"Pub/Sub answered {code}")
    return SinkUnavailable(f"{target}: {what}{said}")


def explain_connection(details: str, target: Target) -> SinkNeedsPerson | None:
    """Say what answers in Google's place, or that the clock is wrong; None if `details` are about something else."""
    page = _HTTP_STATUS.search(details)
    if page is not None and _is_out_of_order(int(page[1])):
        return None  # Google's own servers answer with a page then, too
    for words, reason, what_to_do in _CONNECTION:
        if words in details:
            return SinkNeedsPerson(f"{target}: {reason}", what_to_do)
    return None


def explain_page(status: int, target: Target) -> SinkError:
    """Say what a web page means that came in place of an access token; `status` is HTTP's."""
    if _is_out_of_order(status):
        return SinkUnavailable(f"{target}: Google's token server gave no token (HTTP status {status})")
    return SinkNeedsPerson(f"{target}: what answers is not Google (a web page instead of an access token)", _PORTAL)


def _is_out_of_order(status: int) -> bool:
    return HTTPStatus.INTERNAL_SERVER_ERROR <= status < HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED


def _explain_refused(said: str, skew: float, target: Target) -> SinkNeedsPerson:
    if abs(skew) < _WRONG_TIME:
        reason = "the key was revoked or has expired, as the credentials are not accepted and the clock is right"
        return SinkNeedsPerson(f"{target}: {reason}{said}", _NEW_KEY)
    wrong = f"{format_duration(_MINUTE * round(abs(skew) / _MINUTE))} {'ahead' if skew > 0 else 'behind'}"
    return SinkNeedsPerson(f"{target}: the device's clock is {wrong}, so the credentials are not accepted", _SET_CLOCK)


# What gRPC (BoringSSL) and requests (OpenSSL) say of a connection that is not one to Google.
_CONNECTION = (
    (
        "certificate is not yet valid",
        "the device's clock is behind: Google's certificate is not valid yet",
        _SET_CLOCK,
    ),
    (
        "certificate has expired",
        "by the device's clock, the certificate of what answers has expired",
        f"{_SET_CLOCK}; if it is right, {_PORTAL}",
    ),
    *(
        (words, f"what answers is not Google ({what})", _PORTAL)
        for words, what in (
            ("CERTIFICATE_VERIFY_FAILED", "its certificate is somebody else's"),
            ("Hostname Verification Check failed", "its certificate is for another name"),
            ("missing selected ALPN property", "it speaks TLS, but no HTTP/2"),
            ("WRONG_VERSION_NUMBER", "it speaks no TLS"),
            ("HTTP_REQUEST", "it speaks no TLS"),
            ("Failed parsing HTTP/2", "it speaks no HTTP/2"),
            ("http1.x server", "it speaks no HTTP/2"),
            ("Received http2 header with status", "a web page instead of an answer"),
        )
    ),
    (
        "HTTP proxy returned response code",
        "the proxy lets nothing through",
        "look at the proxy settings of the service (https_proxy), and at the proxy",
    ),
)


def _why_denied(details: str) -> tuple[str, str] | None:
    """Return what Google means by details that no role would change, and what to do."""
    return next(((reason, what_to_do) for words, reason, what_to_do in _DENIED if words in details), None)


def _member(target: Target) -> str:
    return f"serviceAccount:{target.account if '@' in target.account else 'ACCOUNT'}"


# In the words of Google, with PERMISSION_DENIED.
_DENIED = (
    (
        "it is disabled",
        "Pub/Sub is not enabled in the project",
        "enable it: gcloud services enable pubsub.googleapis.com --project={project}; it takes some minutes to count",
    ),
    (
        "requires billing",
        "the project has no billing account",
        "link one: gcloud billing projects link {project} --billing-account=ACCOUNT",
    ),
)

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
    if (connection := explain_connection(str(error), target)) is not None:
        return connection
    if retryable:
        return SinkUnavailable(f"{target}: Google's token server gave no token ({said})")
    for words, reason, what_to_do in _REFUSALS:
        if any(word in said.lower() for word in words):
            return SinkNeedsPerson(f"{target}: {reason} ({said})", what_to_do)
    return SinkNeedsPerson(
        f"{target}: Google's token server refuses the credentials ({said})",
        f"make a new key if the old one was revoked; {_CLOCK}",
    )


# In the words of Google's token server. The first that fit count.
_REFUSALS = (
    (("reasonable timeframe", "in the future", "too early"), "the device's clock is wrong", _SET_CLOCK),
    (("expired or revoked",), "the credentials have expired or were revoked", _NEW_KEY),
    (("expired", "stale"), "the credentials have expired", _NEW_KEY),
    (
        ("invalid jwt signature", "revoked", "account not found", "deleted", "disabled"),
        "the credentials were revoked, or their account was deleted or disabled",
        _NEW_KEY,
    ),
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
