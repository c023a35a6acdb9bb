"""A Pub/Sub server in this process that speaks Google's protocol and fails on request.

The official client libraries work with it. It keeps topics, subscriptions and messages over `stop()` and
`start()`, holds to the limits of the real service, and does one scripted fault for each publish request:

    with PubSubServer() as server:
        server.create_topic("projects/p/topics/t")
        server.script(Fail("UNAVAILABLE"), times=3)
        server.script(Hang())
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from tests.servers.ports import ReservedPort

MAX_MESSAGES = 1000
MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_ATTRIBUTE_BYTES = 1024
_THREADS = 16
_PULL_WAIT = 0.5


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a topic."""

    data: bytes
    attributes: dict[str, str]
    message_id: str


@dataclass(frozen=True, slots=True)
class Request:
    """One publish request as it came, whatever became of it. `size` is in bytes on the wire."""

    topic: str
    count: int
    size: int
    metadata: dict[str, str | bytes]


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with a gRPC status and `headers`; nothing is stored."""

    code: str
    details: str = "as scripted"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Hang:
    """Do not answer until `clear()`, `stop()` or the client's deadline; nothing is stored."""


@dataclass(frozen=True, slots=True)
class LoseResponse:
    """Store the messages, then answer as if the connection had broken."""

    code: str = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Delay:
    """Answer properly, after some seconds."""

    seconds: float


Fault = Fail | Hang | LoseResponse | Delay


@dataclass(slots=True)
class _Subscription:
    topic: str
    ack_deadline: float
    waiting: deque[Any] = field(default_factory=deque)
    outstanding: dict[str, tuple[float, Any]] = field(default_factory=dict)

    def lease(self, most: int, now: float) -> list[Any]:
        """Hand out at most so many messages, those first that were handed out and never acknowledged."""
        for ack_id in [ack_id for ack_id, (until, _) in self.outstanding.items() if until <= now]:
            self.waiting.appendleft(self.outstanding.pop(ack_id)[1])
        leased: list[Any] = []
        while self.waiting and len(leased) < most:
            message = self.waiting.popleft()
            self.outstanding[message.message_id] = (now + self.ack_deadline, message)
            leased.append(message)
        return leased

    def extend(self, ack_ids: Iterable[str], seconds: float) -> None:
        for ack_id in ack_ids:
            if ack_id in self.outstanding:
                self.outstanding[ack_id] = (time.monotonic() + seconds, self.outstanding[ack_id][1])

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        for ack_id in ack_ids:
            self.outstanding.pop(ack_id, None)


class PubSubServer:
    """The server, on a free port that stays the same over `stop()` and `start()`.

    `certificate` is (private key, certificate chain) in PEM for TLS, which clients with credentials insist on.
    """

    def __init__(self, *, certificate: tuple[bytes, bytes] | None = None) -> None:
        self.port = 0
        self.requests: list[Request] = []
        self._certificate = certificate
        self._server: grpc.Server | None = None
        self._reserved: ReservedPort | None = None
        self._changed = threading.Condition()
        self._releases = 0
        self._faults: deque[Fault] = deque()
        self._refuse: Callable[[Message], bool] | None = None
        self._topics: dict[str, list[Message]] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._reserved is not None:
            self._reserved.close()

    @property
    def address(self) -> str:
        """host:port, for PUBSUB_EMULATOR_HOST."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, or listen again on the port it had."""
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4 * MAX_REQUEST_BYTES)]
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, "pubsub-server"), options=options)
        self._server.add_generic_rpc_handlers(self._handlers())
        if self._certificate is None:
            self.port = self._server.add_insecure_port(self.address)
        else:
            credentials = grpc.ssl_server_credentials([self._certificate])
            self.port = self._server.add_secure_port(self.address, credentials)
        self._server.start()

    def stop(self) -> None:
        """Break all connections and refuse new ones. What was published stays."""
        server, self._server = self._server, None
        if server is None:
            return
        self._release()
        server.stop(None).wait()

    def script(self, *faults: Fault, times: int = 1) -> None:
        """Let the next publish requests meet these faults, one each, all of them `times` times over."""
        self._faults.extend(faults * times)

    def refuse(self, refused: Callable[[Message], bool] | None) -> None:
        """Answer INVALID_ARGUMENT to each request with a message that `refused` says so of; None ends it."""
        self._refuse = refused

    def clear(self) -> None:
        """Forget the faults not met yet, and let go of requests that hang."""
        self._faults.clear()
        self._release()

    def _release(self) -> None:
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def create_topic(self, topic: str) -> None:
        """Create "projects/P/topics/T"."""
        self._topics.setdefault(topic, [])

    def messages(self, topic: str) -> list[Message]:
        """What was published to "projects/P/topics/T", in order."""
        with self._changed:
            return list(self._topics[topic])

    def wait_for(self, condition: Callable[["PubSubServer"], bool], seconds: float = 30) -> None:
        """Wait until the condition holds after a publish request; fail the test otherwise."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), seconds), "the server waited in vain"

    def _handlers(self) -> "tuple[grpc.GenericRpcHandler[Any, Any], ...]":
        publisher: list[tuple[str, Any, Any, Any]] = [
            ("CreateTopic", self._create_topic, types.Topic, types.Topic),
            ("GetTopic", self._get_topic, types.GetTopicRequest, types.Topic),
            ("DeleteTopic", self._delete_topic, types.DeleteTopicRequest, Empty),
            ("Publish", self._publish, types.PublishRequest, types.PublishResponse),
        ]
        subscriber: list[tuple[str, Any, Any, Any]] = [
            ("CreateSubscription", self._create_subscription, types.Subscription, types.Subscription),
            ("DeleteSubscription", self._delete_subscription, types.DeleteSubscriptionRequest, Empty),
            ("Pull", self._pull, types.PullRequest, types.PullResponse),
            ("Acknowledge", self._acknowledge, types.AcknowledgeRequest, Empty),
            ("ModifyAckDeadline", self._modify_ack_deadline, types.ModifyAckDeadlineRequest, Empty),
        ]
        streaming = grpc.stream_stream_rpc_method_handler(
            self._streaming_pull,
            request_deserializer=types.StreamingPullRequest.pb().FromString,
            response_serializer=types.StreamingPullResponse.pb().SerializeToString,
        )
        return (
            grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", _unary(publisher)),
            grpc.method_handlers_generic_handler(
                "google.pubsub.v1.Subscriber", {**_unary(subscriber), "StreamingPull": streaming}
            ),
        )

    def _create_topic(self, request: Any, context: grpc.ServicerContext) -> Any:
        if request.name in self._topics:
            _abort(context, "ALREADY_EXISTS", "Topic already exists")
        self.create_topic(request.name)
        return request

    def _get_topic(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._topic(request.topic, context)
        return types.Topic.pb()(name=request.topic)

    def _delete_topic(self, request: Any, context: grpc.ServicerContext) -> Empty:
        self._topic(request.topic, context)
        del self._topics[request.topic]
        return Empty()

    def _publish(self, request: Any, context: grpc.ServicerContext) -> Any:
        metadata = dict(context.invocation_metadata())
        with self._changed:
            self.requests.append(Request(request.topic, len(request.messages), request.ByteSize(), metadata))
            fault = self._faults.popleft() if self._faults else None
            self._changed.notify_all()
        match fault:
            case Fail(code, details, headers):
                context.set_trailing_metadata(headers)
                _abort(context, code, details)
            case Hang():
                self._pause(context, None)
                _abort(context, "UNAVAILABLE", "it hung until the server let go")
            case Delay(seconds):
                self._pause(context, seconds)
        messages = self._checked(request, context)
        self._store(request.topic, messages)
        if isinstance(fault, LoseResponse):
            _abort(context, fault.code, "the answer was lost on the way")
        return types.PublishResponse.pb()(message_ids=[message.message_id for message in messages])

    def _pause(self, context: grpc.ServicerContext, seconds: float | None) -> None:
        """Wait, but not longer than the client does, nor beyond `clear()` or `stop()`."""

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        context.add_callback(wake)
        with self._changed:
            releases = self._releases
            self._changed.wait_for(lambda: self._releases != releases or not context.is_active(), seconds)

    def _checked(self, request: Any, context: grpc.ServicerContext) -> list[Message]:
        self._topic(request.topic, context)
        if len(request.messages) > MAX_MESSAGES:
            _invalid(context, f"The value for message_count is too large: {len(request.messages)} > {MAX_MESSAGES}.")
        if request.ByteSize() > MAX_REQUEST_BYTES:
            _invalid(context, f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes.")
        messages = [Message(m.data, dict(m.attributes), str(next(self._ids))) for m in request.messages]
        if not messages or any(not m.data and not m.attributes for m in messages):
            _invalid(context, "Some messages have neither data nor attributes.")
        if any(len(value.encode()) > MAX_ATTRIBUTE_BYTES for m in messages for value in m.attributes.values()):
            _invalid(context, f"An attribute value exceeds the limit: {MAX_ATTRIBUTE_BYTES} bytes.")
        if self._refuse is not None and any(map(self._refuse, messages)):
            _invalid(context, "Invalid data in message: as scripted.")
        return messages

    def _store(self, topic: str, messages: list[Message]) -> None:
        new = types.PubsubMessage.pb()
        with self._changed:
            self._topics[topic].extend(messages)
            for subscription in self._subscriptions.values():
                if subscription.topic == topic:
                    subscription.waiting.extend(
                        new(data=m.data, attributes=m.attributes, message_id=m.message_id) for m in messages
                    )
            self._changed.notify_all()

    def _topic(self, name: str, context: grpc.ServicerContext) -> None:
        if name not in self._topics:
            _abort(context, "NOT_FOUND", f"Resource not found (resource={name.rpartition('/')[2]}).")

    def _create_subscription(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._topic(request.topic, context)
        with self._changed:
            if request.name in self._subscriptions:
                _abort(context, "ALREADY_EXISTS", "Subscription already exists")
            self._subscriptions[request.name] = _Subscription(request.topic, request.ack_deadline_seconds or 10)
        return request

    def _delete_subscription(self, request: Any, context: grpc.ServicerContext) -> Empty:
        self._subscription(request.subscription, context)
        del self._subscriptions[request.subscription]
        return Empty()

    def _pull(self, request: Any, context: grpc.ServicerContext) -> Any:
        subscription = self._subscription(request.subscription, context)
        with self._changed:
            leased = subscription.lease(request.max_messages, time.monotonic())
            if not leased and not request.return_immediately:
                self._changed.wait(_PULL_WAIT)
                leased = subscription.lease(request.max_messages, time.monotonic())
        return types.PullResponse.pb()(received_messages=_received(leased))

    def _acknowledge(self, request: Any, context: grpc.ServicerContext) -> Empty:
        with self._changed:
            self._subscription(request.subscription, context).acknowledge(request.ack_ids)
        return Empty()

    def _modify_ack_deadline(self, request: Any, context: grpc.ServicerContext) -> Empty:
        with self._changed:
            subscription = self._subscription(request.subscription, context)
            subscription.extend(request.ack_ids, request.ack_deadline_seconds)
        return Empty()

    def _streaming_pull(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        first = next(requests)
        subscription = self._subscription(first.subscription, context)
        acks = threading.Thread(target=self._take_acks, args=(requests, subscription), daemon=True)
        acks.start()
        releases = self._releases
        while context.is_active() and self._releases == releases:
            with self._changed:
                leased = subscription.lease(first.max_outstanding_messages or MAX_MESSAGES, time.monotonic())
                if not leased:
                    self._changed.wait(_PULL_WAIT)
            if leased:
                yield types.StreamingPullResponse.pb()(received_messages=_received(leased))
        context.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it out
        acks.join()

    def _take_acks(self, requests: Iterator[Any], subscription: _Subscription) -> None:
        try:
            for request in requests:
                with self._changed:
                    subscription.acknowledge(request.ack_ids)
                    deadlines = zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True)
                    for ack_id, seconds in deadlines:
                        subscription.extend([ack_id], seconds)
        except grpc.RpcError:
            return  # the client has gone: that is how a stream ends

    def _subscription(self, name: str, context: grpc.ServicerContext) -> _Subscription:
        if name not in self._subscriptions:
            _abort(context, "NOT_FOUND", f"Resource not found (resource={name.rpartition('/')[2]}).")
        return self._subscriptions[name]


def _unary(methods: list[tuple[str, Any, Any, Any]]) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    return {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=_plain(request).FromString,
            response_serializer=_plain(response).SerializeToString,
        )
        for name, method, request, response in methods
    }


def _plain(kind: Any) -> Any:
    return kind.pb() if hasattr(kind, "pb") else kind


def _received(messages: list[Any]) -> list[Any]:
    new = types.ReceivedMessage.pb()
    return [new(ack_id=message.message_id, message=message) for message in messages]


def _abort(context: grpc.ServicerContext, code: str, details: str) -> NoReturn:
    context.abort(grpc.StatusCode[code], details)
    raise AssertionError("abort raises")


def _invalid(context: grpc.ServicerContext, details: str) -> NoReturn:
    _abort(context, "INVALID_ARGUMENT", details)
