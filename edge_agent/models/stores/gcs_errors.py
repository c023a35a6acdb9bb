"""What went wrong with Google Cloud Storage, in one line for the person who must act.

The texts hold no addresses, ports or request numbers: the same trouble gives the same text at every try, so
that it is logged once. Imported only after a failure, as the libraries behind it are heavy.
"""

import contextlib
import datetime as dt
import email.utils
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.auth import exceptions as auth

from edge_agent.models.release.releases import clean_version
from edge_agent.models.stores.base import (
    PORTAL,
    FetchFailed,
    Forbidden,
    LineBroken,
    Missing,
    StoreError,
    StoreNeedsPerson,
    StoreUnavailable,
)


@dataclass(frozen=True)
class Access:
    """What was wanted of the bucket, the role that allows it, and what to do about something missing."""

    verb: str
    role: str
    missing: str
    supply: str
    on_device: bool = True

    @property
    def give_key(self) -> str:
        if not self.on_device:
            return "gcloud auth application-default login, or let GOOGLE_APPLICATION_CREDENTIALS name a key"
        return (
            f"put the key of a service account that may {self.verb} the bucket into "
            "/etc/credstore/edge-agent.google-credentials.json and restart the service, or let "
            "GOOGLE_APPLICATION_CREDENTIALS name it"
        )

    @property
    def who(self) -> str:
        return "the device's service account" if self.on_device else "whoever publishes"

    @property
    def grant(self) -> str:
        return f"grant {self.role} on the bucket to {self.who}"


READ = Access("read", "roles/storage.objectViewer", "object", "upload the model there")
WRITE = Access("write to", "roles/storage.objectCreator", "bucket", "make the bucket")
PUBLISH = Access("publish to", "roles/storage.objectUser", "bucket", "make the bucket", on_device=False)
LONGEST_REST = 3600.0
"""Seconds: no answer keeps a device from asking for longer than that."""
_TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_NETWORK_ERRORS = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
_NETWORK_REASONS: list[tuple[tuple[type[BaseException], ...], str]] = [
    ((urllib3.exceptions.NameResolutionError, socket.gaierror), "the host name cannot be resolved"),
    ((urllib3.exceptions.ConnectTimeoutError,), "no connection in time"),
    ((urllib3.exceptions.TimeoutError, TimeoutError), "no data in time"),
    ((urllib3.exceptions.DecodeError,), "the answer cannot be unpacked"),
    ((urllib3.exceptions.IncompleteRead, http.client.HTTPException), "the connection broke off"),
]


def explain(
    error: Exception, url: str, *, fetching: bool = False, setting: str = "[model].url", access: Access = READ
) -> StoreError:
    """Turn whatever the client library raised into one of the three ways a store fails; `setting` named the URL."""
    match error:
        case api.GoogleAPICallError():
            return _explain_status(error, url, fetching=fetching, setting=setting, access=access)
        case auth.GoogleAuthError():
            return _explain_auth(error, url, access)
        case requests.exceptions.JSONDecodeError() | requests.exceptions.TooManyRedirects():
            return StoreUnavailable(f"{url}: {PORTAL}")
        case ssl.SSLError():  # which can be a ValueError, too
            return _broken(error, url)
        case ValueError():
            return StoreNeedsPerson(f"{url} cannot be asked for: {error}", f"correct {setting}")
    return _broken(error, url)


def _explain_status(
    error: api.GoogleAPICallError, url: str, *, fetching: bool, setting: str, access: Access
) -> StoreError:
    status, said = HTTPStatus(error.code or HTTPStatus.BAD_GATEWAY), _said(error.response)
    answer = f"{status.value}: {said or status.phrase}"
    if status in _TRY_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return StoreUnavailable(f"{url}: the server answers {answer}", rest=_rest(error.response))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return FetchFailed(f"{url}: the object is shorter than announced ({answer}); what came of it was thrown away")
    if said.startswith("<"):
        return StoreUnavailable(f"{url}: {PORTAL}")
    if status == HTTPStatus.PRECONDITION_FAILED or (status == HTTPStatus.NOT_FOUND and fetching):
        return StoreUnavailable(f"{url} was replaced while it was being fetched")
    return _refusal(status, url, answer, setting, access)


def _refusal(status: HTTPStatus, url: str, answer: str, setting: str, access: Access) -> StoreNeedsPerson:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return StoreNeedsPerson(f"{url}: the credentials are not accepted ({answer})", access.give_key)
        case HTTPStatus.FORBIDDEN:
            whose = "the credentials of this device" if access.on_device else "the credentials"
            what = f"{whose} do not give the right to {access.verb} it"
            return Forbidden(f"{url}: {what} ({answer})", access.grant)
        case HTTPStatus.NOT_FOUND:
            return Missing(
                f"{url}: there is no such {access.missing} ({answer})", f"{access.supply}, or correct {setting}"
            )
    return StoreNeedsPerson(f"{url}: the server refuses the request ({answer})", f"check {setting}")


def _rest(response: Any) -> float:
    """For how long the server asks to be left alone: seconds, or a date by its own clock (RFC 9110, 10.2.3)."""
    headers = response.headers if response is not None else {}
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(float(text), LONGEST_REST)
    with contextlib.suppress(TypeError, ValueError):  # none, or no date
        until = email.utils.parsedate_to_datetime(text) - email.utils.parsedate_to_datetime(headers.get("Date", ""))
        return min(max(until, dt.timedelta()).total_seconds(), LONGEST_REST)
    return 0.0


def _broken(error: Exception, url: str) -> StoreUnavailable:
    """It is of no use to go on at once where the certificate is not good, or with what nobody has foreseen."""
    of_network = isinstance(error, _NETWORK_ERRORS)
    certificate = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))
    kind = LineBroken if of_network and not certificate else StoreUnavailable
    return kind(f"{url}: {_network_reason(error)}")


def _said(response: Any) -> str:
    """The server's own words, one line of them at most."""
    text = response.text.strip() if response is not None else ""
    # Not the API's JSON: take the text itself.
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        text = json.loads(text)["error"]["message"]
    return clean_version(str(text))


def _explain_auth(error: auth.GoogleAuthError, url: str, access: Access) -> StoreError:
    said = clean_version(str(error.args[0]) if error.args else "")
    if isinstance(error, auth.DefaultCredentialsError):
        # Google's advice for developers would push our own out of the status line.
        why = "" if said.startswith("Your default credentials were not found") else f": {said}"
        return StoreNeedsPerson(f"{url}: there are no usable Google credentials{why}", access.give_key)
    if not isinstance(error, auth.RefreshError) or error.retryable:
        return StoreUnavailable(f"{url}: no access token: {_network_reason(error)}")
    # What Google's token service says to a device that believes it is 1970.
    if " iat " in str(error) or "timeframe" in str(error):
        return StoreUnavailable(f"{url}: no access token, as the clock of this device is wrong")
    return StoreNeedsPerson(f"{url}: Google refuses the credentials: {said}", access.give_key)


def _network_reason(error: BaseException) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the server's certificate is not valid ({cause.verify_message}): check clock and proxy"
        for types, reason in _NETWORK_REASONS:
            if isinstance(cause, types):
                return reason
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    return f"the request failed ({type(causes[0]).__name__}: {clean_version(str(causes[0]))})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in an exception, innermost first; requests and urllib3 nest them in `args`, `reason`."""
    for cause in (error.__cause__, *error.args, getattr(error, "reason", None)):
        if isinstance(cause, BaseException):
            yield from _causes(cause)
    yield error
