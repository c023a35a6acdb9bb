"""Events as messages of a Google Cloud Pub/Sub topic; the only module that knows the client library.

The library is imported at the first batch, in the sink's own thread: it takes 0.3 s on a PC, seconds on a small
board, and 36 MiB. Of the library only the types and the transport are used. Its batching publisher keeps no
bound offline on memory or threads, and its retries would hide for minutes what goes on; the disk queue and the
sender do both.

Access tokens are fetched in the sink's thread before each request rather than by gRPC, which would report a
revoked key as "unavailable" and try for ever.

`PUBSUB_EMULATOR_HOST` is honoured (no encryption, no credentials); otherwise Application Default Credentials are
used, and read again after each failure that needs a person, so that a new key works without a restart.

On a metered line requests are compressed: 50 events of one device to an eighth.
"""

import asyncio
import functools
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from edge_agent.telemetry.sending.metering import Meter
from edge_agent.telemetry.sending.pubsub_errors import (
    Target,
    explain_credentials,
    explain_missing,
    explain_page,
    explain_status,
)
from edge_agent.telemetry.sending.sinks import DaemonThread, SinkError, SinkNeedsPerson, SinkUnavailable, post

_ENDPOINT = "pubsub.googleapis.com:443"
_PATIENCE = 8.0
"""Seconds that an answer may take, not counting the upload. A hung server is thus left after 8 s, and the next try
is not far."""
_SLOWEST_UPLOAD = 16_000
"""Bytes per second below which a link is given up as dead."""
_LONGEST_DEADLINE = 60.0
_TOKEN_TIMEOUT = 10.0
_CLOSE_WITHIN = 0.8
_LONGEST_ATTRIBUTE = 1024
_FRAMING, _SHARE = 300, 1.06
"""What goes over the line for a request beside its bytes and those of the answer: HTTP/2 and gRPC, and for each byte
TLS, TCP and IP."""
_CONNECTING = 6000
"""Bytes of a TLS handshake with Google's certificates."""
_LINE_DOWN = ("failed to connect", "errors resolving")
_LONGEST_ATTRIBUTE_NAME = 256
_LABEL_BYTES = 512
"""What the labels of an event may take as attributes, names and values together: 1000 events stay below 10 MB with
them, and an event below 100 attributes."""
_OPTIONS = [
    # From the return of the network to the connection: at most 4 s and a fifth of jitter.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 4_000),
    # One try to connect lasts this long. TCP repeats its SYN after 1, 3 and 7 s: no gap is longer than 4 s.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    # A connection that went dead unnoticed (NAT, mobile network) is replaced after 40 s at most.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    # A new channel to a server does not wait because an old one has just failed.
    ("grpc.use_local_subchannel_pool", 1),
]


class PubSubSink:
    """Publishes to one topic.

    `emulator` is the host:port of an emulator, or empty. `meter` is told what goes over the line. `patience` is how
    long an answer may take, in seconds, not counting the upload.
    """

    def __init__(
        self,
        project: str,
        topic: str,
        *,
        emulator: str = "",
        meter: Meter | None = None,
        endpoint: str = _ENDPOINT,
        patience: float = _PATIENCE,
    ) -> None:
        self._meter = meter or Meter()
        self._target = Target(project, topic)
        self._emulator = emulator
        self._endpoint = endpoint
        self._patience = patience
        self._thread = DaemonThread("pubsub")
        self._connection: _Connection | None = None
        self._closed = False

    @property
    def description(self) -> str:
        """The topic as a URL."""
        return str(self._target)

    async def send(self, events: Sequence[bytes]) -> None:
        """Publish at most 1000 events and 9 MB in one request (Pub/Sub takes 10 MB). Raises SinkError."""
        try:
            call, length = await self._thread.run(self._start, events)
            await self._finish(call, length)
        except SinkNeedsPerson:
            self._hang_up()
            raise

    async def close(self) -> None:
        """Cancel requests in flight and close the connection."""
        self._closed = True
        self._hang_up()
        await self._thread.close(_CLOSE_WITHIN)

    def _start(self, events: Sequence[bytes]) -> "tuple[_Call, int]":
        """Start a request; returns the bytes that it sends as well."""
        connection, connecting = self._connection, 0
        if connection is None:
            connecting = _CONNECTING
            connection = self._connection = _connect(self._target, self._emulator, self._endpoint)
            self._target = replace(self._target, account=connection.account)
            if self._closed:
                self._hang_up()
        call, length = connection.publish(events, self._patience, measured=self._meter.limited)
        return call, length + connecting

    async def _finish(self, call: "_Call", length: int) -> None:
        answered = asyncio.Event()
        loop = asyncio.get_running_loop()
        call.add_done_callback(lambda _: post(loop, answered.set))
        await answered.wait()
        code, details = call.code().name, call.details() or ""
        if self._meter.limited:
            self._meter.count(_cost(length, call, details))
        if code == "OK":
            return
        if self._closed:
            raise SinkUnavailable("sending has ended")
        raise explain_status(code, details, self._target, _skew(call))

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.channel.close()


class _Call(Protocol):
    """What is used of a gRPC request in flight."""

    def add_done_callback(self, callback: Callable[[Any], None], /) -> None: ...
    def code(self) -> Any: ...
    def details(self) -> str | None: ...
    def result(self) -> Any: ...
    def initial_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def _cost(length: int, call: _Call, details: str) -> int:
    """Return how many bytes went over the line, in both directions."""
    if any(words in details for words in _LINE_DOWN):
        return _CONNECTING  # most likely a connection that came to nothing
    if call.code().name == "OK":
        answer = call.result()
        length += type(answer).pb(answer).ByteSize()
    return int((length + len(details) + _FRAMING) * _SHARE)


def _skew(call: _Call) -> float | None:
    """Return how many seconds the device's clock is ahead of the server's, or None where that did not say."""
    metadata = dict([*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())])
    try:
        return time.time() - parsedate_to_datetime(str(metadata["date"])).timestamp()
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class _Connection:
    """A channel, and how to send on it. `account` is the e-mail address of the credentials, or empty."""

    channel: Any
    stub: Callable[..., _Call]
    encode: Callable[[Sequence[bytes]], Any]
    authorize: Callable[[], list[tuple[str, str]]]
    account: str
    gzip: Any

    def publish(self, events: Sequence[bytes], patience: float, *, measured: bool) -> tuple[_Call, int]:
        """Start one request. Raises SinkError when there is no access token to be had.

        `measured`: it is compressed, and the bytes that it sends are returned as well, else 0.
        """
        metadata = self.authorize()
        request = self.encode(events)
        deadline = min(_LONGEST_DEADLINE, patience + request.ByteSize() / _SLOWEST_UPLOAD)
        if not measured:
            return self.stub(request, timeout=deadline, metadata=metadata), 0
        # gRPC does not tell how much it made of it, but does the same.
        length = len(zlib.compress(request.SerializeToString())) + sum(len(key) + len(value) for key, value in metadata)
        call = self.stub(request, timeout=deadline, metadata=metadata, compression=self.gzip)
        return call, length


def _connect(target: Target, emulator: str, endpoint: str) -> _Connection:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or it writes to stderr, past the log, what goes on in the network
    import grpc  # noqa: PLC0415  # see the module's docstring
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport  # noqa: PLC0415

    topic = f"projects/{target.project}/topics/{target.topic}"
    routing = [("x-goog-request-params", f"topic={quote(topic, safe='')}")]
    if emulator:
        channel = grpc.insecure_channel(emulator, options=_OPTIONS)
        authorize, account = (lambda: routing), ""
    else:
        token_request = _token_request(target)
        credentials = _find_credentials(target, token_request)
        channel = grpc.secure_channel(endpoint, grpc.ssl_channel_credentials(), options=_OPTIONS)
        authorize = functools.partial(_authorize, credentials, token_request, endpoint, routing, target)
        account = getattr(credentials, "service_account_email", None) or ""
    transport: Any = PublisherGrpcTransport(channel=channel)  # annotated as plain functions, in fact gRPC stubs
    stub = transport.publish.future
    return _Connection(channel, stub, _encoder(topic), authorize, account, grpc.Compression.Gzip)


def _find_credentials(target: Target, token_request: Any) -> Any:
    import google.auth  # noqa: PLC0415
    from google.auth.exceptions import GoogleAuthError, OAuthError, RefreshError, TransportError  # noqa: PLC0415
    from google.oauth2 import service_account  # noqa: PLC0415
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport  # noqa: PLC0415

    try:
        credentials, _ = google.auth.default(request=token_request, default_scopes=PublisherGrpcTransport.AUTH_SCOPES)
    except (OAuthError, RefreshError, TransportError) as error:  # some kinds of credentials ask Google at once
        raise _no_token(error, target) from error
    except (GoogleAuthError, OSError, ValueError) as error:
        raise explain_missing(error, target) from error
    except SinkError:
        raise
    except Exception as error:  # what google-auth trips over in a file that is JSON, but no key
        file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "the file of gcloud")
        raise explain_missing(ValueError(f"{file} is no key"), target) from error
    if isinstance(credentials, service_account.Credentials):
        # Signs its tokens itself: no token server that could be out of reach.
        credentials = credentials.with_always_use_jwt_access(always_use_jwt_access=True)  # type: ignore[no-untyped-call]  # google-auth has no annotations there
    return credentials


def _token_request(target: Target) -> Callable[..., Any]:
    from google.auth.transport.requests import Request  # noqa: PLC0415

    request: Any = Request()  # annotated so that arguments by place would be given twice

    def ask(*arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        # None is what google-auth asks with in a thread of its own, which would wait for ever.
        answer = request(*arguments, timeout=timeout or _TOKEN_TIMEOUT, **options)
        if "text/html" in answer.headers.get("content-type", ""):
            raise explain_page(answer.status, target)
        return answer

    return ask


def _authorize(
    credentials: Any,
    token_request: Callable[..., Any],
    endpoint: str,
    routing: list[tuple[str, str]],
    target: Target,
) -> list[tuple[str, str]]:
    headers: dict[str, str] = {}
    try:
        credentials.before_request(token_request, "POST", f"https://{endpoint}/google.pubsub.v1.Publisher", headers)
    except SinkError:
        raise
    except Exception as error:
        raise _no_token(error, target) from error
    return [*headers.items(), *routing]


def _no_token(error: Exception, target: Target) -> SinkError:
    from google.auth.exceptions import OAuthError, RefreshError, TransportError  # noqa: PLC0415

    # Some credentials wrap a network failure into a RefreshError.
    network = isinstance(error, TransportError) or isinstance(error.__cause__, TransportError)
    refused = isinstance(error, OAuthError | RefreshError) and not error.retryable
    return explain_credentials(error, target, retryable=network or not refused)


class _Attributes(msgspec.Struct, frozen=True):
    """The members of an event that subscriptions can filter by. `device_labels` is JSON."""

    device_id: str = ""
    kind: str = ""
    prediction: str = ""
    model_version: str = ""
    device_labels: msgspec.Raw = msgspec.Raw(b"{}")


def _encoder(topic: str) -> Callable[[Sequence[bytes]], Any]:
    """Return what makes a request for `topic` of events.

    Events of one device differ in few attributes, so these are put together once and copied as bytes: 2.1 us for
    an event instead of 3.5 us.
    """
    from google.pubsub_v1.types import PublishRequest, PubsubMessage  # noqa: PLC0415

    new_request = PublishRequest.pb()
    new_message = PubsubMessage.pb()
    decode = msgspec.json.Decoder(_Attributes).decode

    @functools.lru_cache(maxsize=256)
    def encoded(device_id: str, kind: str, prediction: str, model_version: str, labels: bytes) -> bytes:
        attributes = {"device_id": device_id, "kind": kind, "prediction": prediction, "model_version": model_version}
        present = {name: _cut(value) for name, value in (attributes | _label_attributes(labels)).items() if value}
        return bytes(new_message(attributes=present).SerializeToString())

    def encode(events: Sequence[bytes]) -> Any:
        request = new_request(topic=topic)
        add = request.messages.add
        for event in events:
            try:
                found = decode(event)
            except ValueError:  # attributes are a convenience: the event itself goes out as it is
                found = _Attributes()
            attributes = encoded(
                found.device_id, found.kind, found.prediction, found.model_version, bytes(found.device_labels)
            )
            add(data=event).MergeFromString(attributes)
        return request

    return encode


def _label_attributes(labels: bytes) -> dict[str, str]:
    """Return the labels of a device as attributes: names that are not known before have no other way into BigQuery."""
    try:
        found = msgspec.json.decode(labels, type=dict[str, str])
    except ValueError:
        return {}
    attributes: dict[str, str] = {}
    left = _LABEL_BYTES
    for label, value in found.items():
        name = f"label_{label}"
        size = len(name.encode()) + len(value.encode())
        if size <= left and len(name.encode()) <= _LONGEST_ATTRIBUTE_NAME:
            attributes[name] = value
            left -= size
    return attributes


def _cut(value: str) -> str:
    return value.encode()[:_LONGEST_ATTRIBUTE].decode(errors="ignore")
