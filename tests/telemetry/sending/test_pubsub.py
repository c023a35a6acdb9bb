"""The Pub/Sub sink against a real gRPC server: delivery, attributes, and what each failure says."""

import asyncio
import contextlib
import datetime
import http.server
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth import exceptions, jwt

from edge_agent.telemetry.sending import pubsub as pubsub_module
from edge_agent.telemetry.sending.metering import Meter
from edge_agent.telemetry.sending.pubsub import PubSubSink, _no_token, _token_request
from edge_agent.telemetry.sending.pubsub_errors import Target, explain_status
from edge_agent.telemetry.sending.sinks import SinkError, SinkNeedsPerson, SinkRejected, SinkUnavailable
from tests.servers.emulator import Emulator, Subscription
from tests.servers.proxy import Proxy
from tests.servers.pubsub import Fail, Hang, LoseResponse, Message, PubSubServer

TOPIC = "projects/project/topics/events"
EVENT = b'{"kind":"result","event_id":"d/1/1","device_id":"d","prediction":"normal","model_version":"v1"}'


def _with_sink(
    work: Callable[[PubSubSink], Coroutine[Any, Any, None]],
    address: str,
    *,
    topic: str = "events",
    patience: float = 30.0,
) -> None:
    async def run() -> None:
        sink = PubSubSink("project", topic, emulator=address, patience=patience)
        try:
            await work(sink)
        finally:
            await sink.close()

    asyncio.run(run())
    assert "pubsub" not in {thread.name for thread in threading.enumerate()}


def _send(address: str, *events: bytes) -> None:
    _with_sink(lambda sink: sink.send(events), address)


def _refused(address: str, *, topic: str = "events", patience: float = 30.0) -> SinkError:
    with pytest.raises(SinkError) as caught:
        _with_sink(lambda sink: sink.send([EVENT]), address, topic=topic, patience=patience)
    return caught.value


def _stored(server: PubSubServer) -> list[bytes]:
    return [message.data for message in server.messages(TOPIC)]


def test_delivers_with_attributes(pubsub_backend: PubSubServer | Emulator) -> None:
    with Subscription(pubsub_backend.address, TOPIC) as subscription:
        _send(pubsub_backend.address, EVENT, b'{"kind":"health","device_id":"d"}')
        messages = subscription.pull(2)

    assert {bytes(m.data): dict(m.attributes) for m in messages} == {
        EVENT: {"kind": "result", "device_id": "d", "prediction": "normal", "model_version": "v1"},
        b'{"kind":"health","device_id":"d"}': {"kind": "health", "device_id": "d"},
    }


def test_labels_are_attributes(pubsub_backend: PubSubServer | Emulator) -> None:
    event = json.dumps({"device_id": "d", "device_labels": {"site": "Lyon", "": "x", "empty": ""}}).encode()
    with Subscription(pubsub_backend.address, TOPIC) as subscription:
        _send(pubsub_backend.address, event)
        (message,) = subscription.pull(1)

    assert dict(message.attributes) == {"device_id": "d", "label_site": "Lyon", "label_": "x"}


def test_labels_that_are_too_much_stay_in_the_event_alone(pubsub: PubSubServer) -> None:
    labels = {"n" * 260: "long", "first": "x" * 400, "too much": "y" * 100, "last": "é"}
    _send(pubsub.address, json.dumps({"device_labels": labels}).encode())

    (message,) = pubsub.messages(TOPIC)
    assert message.attributes == {"label_first": "x" * 400, "label_last": "é"}


def test_a_thousand_events_are_one_request(pubsub: PubSubServer) -> None:
    events = [b'{"n":%d}' % number for number in range(1000)]
    _send(pubsub.address, *events)

    assert [request.count for request in pubsub.requests] == [1000]
    assert _stored(pubsub) == events


def test_request_is_routed_by_its_topic(pubsub: PubSubServer) -> None:
    _send(pubsub.address, EVENT)

    routing = pubsub.requests[0].metadata["x-goog-request-params"]
    assert routing == "topic=projects%2Fproject%2Ftopics%2Fevents"


@pytest.mark.parametrize("event", [b"no json", b'{"kind":5}', b"[]", b'{"device_labels":{"n":5}}'])
def test_strange_event_goes_out_without_attributes(pubsub: PubSubServer, event: bytes) -> None:
    _send(pubsub.address, event)

    assert pubsub.messages(TOPIC) == [Message(event, {}, "1")]


def test_long_attribute_is_cut_between_characters(pubsub: PubSubServer) -> None:
    _send(pubsub.address, json.dumps({"prediction": "x" + "é" * 600}).encode())

    (message,) = pubsub.messages(TOPIC)
    assert message.attributes == {"prediction": "x" + "é" * 511}


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("UNAVAILABLE", SinkUnavailable, "Pub/Sub cannot be reached (said)"),
        ("DEADLINE_EXCEEDED", SinkUnavailable, "Pub/Sub did not answer in time (said)"),
        ("RESOURCE_EXHAUSTED", SinkUnavailable, "Pub/Sub asks to send less (quota) (said)"),
        ("ABORTED", SinkUnavailable, "Pub/Sub answered ABORTED (said)"),
        ("INTERNAL", SinkUnavailable, "Pub/Sub answered INTERNAL (said)"),
        ("UNKNOWN", SinkUnavailable, "Pub/Sub answered UNKNOWN (said)"),
        ("CANCELLED", SinkUnavailable, "the request was cancelled (said)"),
        ("DATA_LOSS", SinkUnavailable, "Pub/Sub answered DATA_LOSS (said)"),
        ("ALREADY_EXISTS", SinkUnavailable, "Pub/Sub answered ALREADY_EXISTS (said)"),
        ("INVALID_ARGUMENT", SinkRejected, "refused as INVALID_ARGUMENT (said)"),
        ("OUT_OF_RANGE", SinkRejected, "refused as OUT_OF_RANGE (said)"),
        (
            "PERMISSION_DENIED",
            SinkNeedsPerson,
            (
                "the credentials do not allow to publish there (said); allow it: gcloud pubsub topics "
                "add-iam-policy-binding events --project=project --member=serviceAccount:ACCOUNT "
                "--role=roles/pubsub.publisher"
            ),
        ),
        (
            "NOT_FOUND",
            SinkNeedsPerson,
            (
                "there is no such topic (said); create it: gcloud pubsub topics create events --project=project; "
                "or correct [telemetry] sink"
            ),
        ),
        (
            "UNAUTHENTICATED",
            SinkNeedsPerson,
            (
                "the credentials are not accepted (said); put the key of a service account that may publish "
                "(roles/pubsub.publisher) into /etc/credstore/edge-agent.google-credentials.json and restart the "
                "service, or let GOOGLE_APPLICATION_CREDENTIALS name it; look at the device's clock too "
                "(timedatectl): a wrong one makes good credentials fail"
            ),
        ),
        (
            "FAILED_PRECONDITION",
            SinkNeedsPerson,
            (
                "the topic cannot take messages as it is set up (said); look at it: gcloud pubsub topics describe "
                "events --project=project"
            ),
        ),
        (
            "UNIMPLEMENTED",
            SinkNeedsPerson,
            (
                "what answers there is not Pub/Sub (said); look at PUBSUB_EMULATOR_HOST and at the proxy settings of "
                "the service"
            ),
        ),
    ],
)
def test_each_status_says_what_to_do(pubsub: PubSubServer, code: str, kind: type[SinkError], text: str) -> None:
    pubsub.script(Fail(code, "said"))
    error = _refused(pubsub.address)

    assert type(error) is kind
    assert str(error) == f"pubsub://project/events: {text}"


def test_missing_topic(pubsub_backend: PubSubServer | Emulator) -> None:
    error = _refused(pubsub_backend.address, topic="missing")

    assert isinstance(error, SinkNeedsPerson)
    assert error.what_to_do.startswith("create it: gcloud pubsub topics create missing --project=project")


def test_too_large_for_the_server_is_content() -> None:
    error = explain_status("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", Target("p", "t"))

    assert isinstance(error, SinkRejected)


def test_the_account_is_named_where_it_is_known() -> None:
    error = explain_status("PERMISSION_DENIED", "", Target("p", "t", account="edge@p.iam.gserviceaccount.com"))

    assert isinstance(error, SinkNeedsPerson)
    assert "--member=serviceAccount:edge@p.iam.gserviceaccount.com " in error.what_to_do


def test_refused_connection(pubsub: PubSubServer) -> None:
    pubsub.stop()
    error = _refused(pubsub.address)

    assert isinstance(error, SinkUnavailable)
    assert "Pub/Sub cannot be reached" in str(error)
    assert "Connection refused" in str(error)


def test_hung_server_is_left_in_time(pubsub: PubSubServer) -> None:
    pubsub.script(Hang())
    error = _refused(pubsub.address, patience=0.2)

    assert isinstance(error, SinkUnavailable)
    assert str(error).startswith("pubsub://project/events: Pub/Sub did not answer in time")


def test_lost_response_is_a_failure_and_the_repeated_event_is_the_same(pubsub: PubSubServer) -> None:
    async def work(sink: PubSubSink) -> None:
        pubsub.script(LoseResponse())
        with pytest.raises(SinkUnavailable):
            await sink.send([EVENT])
        await sink.send([EVENT])

    _with_sink(work, pubsub.address)
    assert _stored(pubsub) == [EVENT, EVENT]


def test_two_requests_at_a_time(pubsub: PubSubServer) -> None:
    async def work(sink: PubSubSink) -> None:
        pubsub.script(Hang())
        hung = asyncio.create_task(sink.send([b"1"]))
        await asyncio.to_thread(pubsub.wait_for, lambda server: len(server.requests) == 1)
        await sink.send([b"2"])
        pubsub.clear()
        with pytest.raises(SinkUnavailable):
            await hung

    _with_sink(work, pubsub.address)
    assert _stored(pubsub) == [b"2"]


def test_close_cancels_what_hangs(pubsub: PubSubServer) -> None:
    async def work(sink: PubSubSink) -> None:
        pubsub.script(Hang())
        hung = asyncio.create_task(sink.send([EVENT]))
        await asyncio.to_thread(pubsub.wait_for, lambda server: len(server.requests) == 1)
        await sink.close()
        with pytest.raises(SinkUnavailable, match="sending has ended"):
            await hung
        with pytest.raises(SinkUnavailable, match="sending has ended"):
            await sink.send([EVENT])

    _with_sink(work, pubsub.address)


def test_comes_back_when_the_server_does(pubsub: PubSubServer) -> None:
    async def work(sink: PubSubSink) -> None:
        await sink.send([b"1"])
        pubsub.stop()
        with pytest.raises(SinkUnavailable):
            await sink.send([b"2"])
        pubsub.start()
        while True:
            try:
                return await sink.send([b"3"])
            except SinkUnavailable:
                await asyncio.sleep(0.05)  # gRPC waits before it connects again; the test's own time limit ends this

    _with_sink(work, pubsub.address)
    assert _stored(pubsub) == [b"1", b"3"]


def test_offline_for_long_costs_no_threads(pubsub: PubSubServer) -> None:
    pubsub.stop()

    async def work(sink: PubSubSink) -> None:
        for _ in range(20):
            with pytest.raises(SinkUnavailable):
                await sink.send([EVENT])
        before = _threads()
        for _ in range(300):
            with pytest.raises(SinkUnavailable):
                await sink.send([EVENT])
        # Of gRPC and other tests a few more may wake up; one for each failure would be 300.
        assert _threads() < before + 20

    _with_sink(work, pubsub.address)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# -- credentials


@pytest.fixture
def no_emulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which credentials are looked for, and found nowhere but where the test puts them."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    return monkeypatch


def test_no_credentials(no_emulator: pytest.MonkeyPatch) -> None:
    error = _refused("")

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason == "pubsub://project/events: no usable credentials"
    assert error.what_to_do == (
        "put the key of a service account that may publish (roles/pubsub.publisher) into "
        "/etc/credstore/edge-agent.google-credentials.json and restart the service, or let "
        "GOOGLE_APPLICATION_CREDENTIALS name it"
    )


def test_key_file_is_missing(no_emulator: pytest.MonkeyPatch) -> None:
    no_emulator.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    error = _refused("")

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason == ("pubsub://project/events: no usable credentials (File /nowhere/key.json was not found.)")


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "null",
        "[]",
        '"AIza"',
        '{"type": "service_account"}',
        '{"type": "impersonated_service_account"}',
    ],
)
def test_key_file_is_damaged(no_emulator: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    (tmp_path / "key.json").write_text(content)
    no_emulator.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    error = _refused("")

    assert isinstance(error, SinkNeedsPerson)
    assert "no usable credentials" in error.reason
    assert "key.json" in error.reason


@dataclass
class TokenServer:
    """Google's token server, or what is in its place; it gives the one answer."""

    status: int = 400
    kind: str = "application/json"
    body: bytes = b""
    url: str = ""

    def refuse(self, error: str, description: str) -> None:
        self.body = json.dumps({"error": error, "error_description": description}).encode()

    def show_page(self, status: int) -> None:
        self.status, self.kind, self.body = status, "text/html; charset=utf-8", b"<html>Please log in</html>"


@pytest.fixture
def token_server(no_emulator: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TokenServer]:
    """Credentials for which the token server is asked first, and that server."""
    state = TokenServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(state.status)
            self.send_header("content-type", state.kind)
            self.send_header("content-length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        _external_account(tmp_path, f"http://127.0.0.1:{server.server_port}/token")
        no_emulator.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        yield state
        server.shutdown()
        thread.join()


def _external_account(path: Path, token_url: str) -> None:
    (path / "subject").write_text("token")
    key = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/d",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": token_url,
        "credential_source": {"file": str(path / "subject")},
    }
    (path / "key.json").write_text(json.dumps(key))


NEW_KEY = "make a new key (gcloud iam service-accounts keys create); put the key of a service account"
SET_CLOCK = "set the clock (timedatectl), and see why the network does not (timedatectl timesync-status)"
LOG_IN = "log in to the network if it asks for that (a captive portal), or let connections to *.googleapis.com:443"


@pytest.mark.parametrize(
    ("description", "reason", "what_to_do"),
    [
        ("Invalid JWT Signature.", "the credentials were revoked, or their account was deleted or disabled", NEW_KEY),
        ("Invalid grant: account not found", "the credentials were revoked, or their account was deleted", NEW_KEY),
        ("Token has been expired or revoked.", "the credentials have expired or were revoked", NEW_KEY),
        ("ID Token issued at 1634 is stale to sign-in.", "the credentials have expired", NEW_KEY),
        (
            (
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your "
                "iat and exp values in the JWT claim."
            ),
            "the device's clock is wrong",
            SET_CLOCK,
        ),
        ("Bad Request", "Google's token server refuses the credentials", "make a new key if the old one was revoked;"),
    ],
)
def test_token_server_refuses(token_server: TokenServer, description: str, reason: str, what_to_do: str) -> None:
    token_server.refuse("invalid_grant", description)
    error = _refused("")

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason.startswith(f"pubsub://project/events: {reason}")
    assert error.reason.endswith(f"(Error code invalid_grant: {description})")
    assert error.what_to_do.startswith(what_to_do)


@pytest.mark.parametrize("status", [200, 403, 511])
def test_captive_portal_in_place_of_the_token_server(token_server: TokenServer, status: int) -> None:
    token_server.show_page(status)
    error = _refused("")

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason == "pubsub://project/events: what answers is not Google (a web page instead of an access token)"
    assert error.what_to_do.startswith(LOG_IN)


def test_token_server_that_is_out_of_order_is_no_portal(token_server: TokenServer) -> None:
    token_server.show_page(502)
    error = _refused("")

    assert isinstance(error, SinkUnavailable)
    assert "Google's token server gave no token" in error.reason


def test_token_server_out_of_reach(no_emulator: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _external_account(tmp_path, "http://127.0.0.1:1/token")
    no_emulator.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    error = _refused("")

    assert isinstance(error, SinkUnavailable)
    assert "Google's token server gave no token" in error.reason


def test_no_question_about_credentials_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """google-auth asks some things without a time limit, in a thread of its own for each new key."""
    monkeypatch.setattr(pubsub_module, "_TOKEN_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/allowedLocations"
        with pytest.raises(exceptions.TransportError):
            _token_request(Target("p", "t"))(method="GET", url=url, headers={}, timeout=None)


def test_network_failure_inside_a_refresh_error_is_no_refusal() -> None:
    google: Any = exceptions  # it has no annotations
    error = google.RefreshError("no answer")
    error.__cause__ = google.TransportError("no route")

    assert isinstance(_no_token(error, Target("p", "t")), SinkUnavailable)
    assert isinstance(_no_token(google.RefreshError("busy", retryable=True), Target("p", "t")), SinkUnavailable)
    assert isinstance(_no_token(google.RefreshError("revoked"), Target("p", "t")), SinkNeedsPerson)


@pytest.mark.parametrize(
    ("ahead", "reason", "what_to_do"),
    [
        (0, "the key was revoked or has expired, as the credentials are not accepted and the clock is right", NEW_KEY),
        (-7500, "the device's clock is 2h5m behind, so the credentials are not accepted", SET_CLOCK),
        (86_400 * 2, "the device's clock is 2d ahead, so the credentials are not accepted", SET_CLOCK),
    ],
)
def test_revoked_key_is_told_from_a_wrong_clock(pubsub: PubSubServer, ahead: int, reason: str, what_to_do: str) -> None:
    date = formatdate(time.time() - ahead, usegmt=True)
    pubsub.script(Fail("UNAUTHENTICATED", "no", headers=(("date", date),)))
    error = _refused(pubsub.address)

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason.startswith(f"pubsub://project/events: {reason}")
    assert error.what_to_do.startswith(what_to_do)


# -- what answers in Google's place


class WebServer:
    """A server that answers everything with a page; with a certificate (key, chain) over TLS."""

    def __init__(self, folder: Path, certificate: tuple[bytes, bytes] | None = None) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>Please log in</html>")

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if certificate is not None:
            (folder / "web.pem").write_bytes(b"".join(certificate))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "web.pem")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> "WebServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_page_in_place_of_pubsub_without_tls(tmp_path: Path) -> None:
    with WebServer(tmp_path) as server:
        error = _refused(f"127.0.0.1:{server.port}")

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason == "pubsub://project/events: what answers is not Google (it speaks no HTTP/2)"


_ASK_EACH = """
import asyncio, json, sys
from edge_agent.telemetry.sending.pubsub import PubSubSink
from edge_agent.telemetry.sending.sinks import SinkError

async def ask(endpoint):
    sink = PubSubSink("project", "events", endpoint=endpoint)
    try:
        await sink.send([b"{}"])
    except SinkError as error:
        return [type(error).__name__, error.reason, getattr(error, "what_to_do", "")]
    finally:
        await sink.close()

async def main():
    print(json.dumps([await ask(endpoint) for endpoint in sys.argv[1:]]))

asyncio.run(main())
"""


def test_what_answers_with_tls_is_not_google_or_the_clock_is_wrong(tmp_path: Path) -> None:
    """The child trusts these certificates, but for one, as the device does Google's."""
    _service_account(tmp_path / "key.json")
    trusted = {
        "right": _certificate(),
        "expired": _certificate(days=(-20, -10)),
        "early": _certificate(days=(10, 20)),
        "portal": _certificate(name="portal.example"),
    }
    (tmp_path / "roots.pem").write_bytes(b"".join(chain for _, chain in trusted.values()))
    with contextlib.ExitStack() as stack:
        servers: list[PubSubServer | WebServer] = [
            stack.enter_context(PubSubServer(certificate=certificate))
            for certificate in (trusted["early"], trusted["expired"], trusted["portal"], _certificate())
        ]
        servers.append(stack.enter_context(WebServer(tmp_path, trusted["right"])))
        servers.append(stack.enter_context(WebServer(tmp_path)))
        found = _child(tmp_path, _ASK_EACH, *(f"localhost:{server.port}" for server in servers))

    target, not_google = "pubsub://project/events: ", "what answers is not Google"
    assert [(kind, reason.removeprefix(target), what_to_do[:40]) for kind, reason, what_to_do in json.loads(found)] == [
        ("SinkNeedsPerson", reason, what_to_do[:40])
        for reason, what_to_do in (
            ("the device's clock is behind: Google's certificate is not valid yet", SET_CLOCK),
            ("by the device's clock, the certificate of what answers has expired", SET_CLOCK),
            (f"{not_google} (its certificate is for another name)", LOG_IN),
            (f"{not_google} (its certificate is somebody else's)", LOG_IN),
            (f"{not_google} (it speaks TLS, but no HTTP/2)", LOG_IN),
            (f"{not_google} (it speaks no TLS)", LOG_IN),
        )
    ]


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("Received http2 header with status: 302", "what answers is not Google (a web page instead of an answer)"),
        ("HTTP proxy returned response code 407", "the proxy lets nothing through"),
    ],
)
def test_words_of_the_client_library(details: str, reason: str) -> None:
    error = explain_status("UNAVAILABLE", details, Target("p", "t"))

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason == f"pubsub://p/t: {reason}"


@pytest.mark.parametrize(("code", "status"), [("UNAVAILABLE", 502), ("UNAVAILABLE", 503), ("UNKNOWN", 500)])
def test_google_that_is_out_of_order_is_no_portal(code: str, status: int) -> None:
    error = explain_status(code, f"Received http2 header with status: {status}", Target("p", "t"))

    assert isinstance(error, SinkUnavailable)


@pytest.mark.parametrize(
    ("details", "reason", "what_to_do"),
    [
        (
            "Cloud Pub/Sub API has not been used in project 5 before or it is disabled. Enable it by visiting ...",
            "Pub/Sub is not enabled in the project",
            "enable it: gcloud services enable pubsub.googleapis.com --project=p; it takes some minutes to count",
        ),
        (
            "This API method requires billing to be enabled. Please enable billing on project #5 by visiting ...",
            "the project has no billing account",
            "link one: gcloud billing projects link p --billing-account=ACCOUNT",
        ),
    ],
)
def test_what_no_role_would_change_is_told_from_a_missing_role(details: str, reason: str, what_to_do: str) -> None:
    error = explain_status("PERMISSION_DENIED", details, Target("p", "t"))

    assert isinstance(error, SinkNeedsPerson)
    assert error.reason == f"pubsub://p/t: {reason} ({details})"
    assert error.what_to_do == what_to_do


# -- what goes over the line


@pytest.mark.parametrize("count", [1, 50, 1000])
def test_meter_knows_what_goes_over_the_line(pubsub: PubSubServer, count: int) -> None:
    meter = Meter(bandwidth=1, clock=lambda: 0.0)
    events = [EVENT.replace(b"d/1/1", b"d/1/%d" % number) for number in range(count)]

    async def send(address: str) -> None:
        sink = PubSubSink("project", "events", emulator=address, meter=meter)
        for _ in range(10):
            await sink.send(events)
        await sink.close()

    with Proxy(pubsub.address) as proxy:
        asyncio.run(send(proxy.address))
        carried = proxy.carried

    counted = meter.pause() - 6000  # TLS is left out here
    assert carried < counted < 1.3 * carried + 10 * 300
    assert pubsub.requests[0].count == count
    assert count == 1 or carried < 10 * len(b"".join(events)) / 2


def test_refused_connection_costs_the_handshake_at_most(pubsub: PubSubServer) -> None:
    pubsub.stop()
    meter = Meter(bandwidth=1, clock=lambda: 0.0)

    async def send() -> None:
        sink = PubSubSink("project", "events", emulator=pubsub.address, meter=meter)
        with pytest.raises(SinkUnavailable):
            await sink.send([os.urandom(50_000).hex().encode()])
        await sink.close()

    asyncio.run(send())
    assert meter.pause() == 6000


_SEND_WITH_CREDENTIALS = """
import asyncio, sys
from edge_agent.telemetry.sending.pubsub import PubSubSink

async def main():
    sink = PubSubSink("project", "events", endpoint=sys.argv[1])
    await sink.send([b"{}"])
    await sink.close()

asyncio.run(main())
"""


def test_service_account_signs_its_own_token(tmp_path: Path) -> None:
    certificate = _certificate()
    (tmp_path / "roots.pem").write_bytes(certificate[1])
    _service_account(tmp_path / "key.json")
    with PubSubServer(certificate=certificate) as server:
        server.create_topic(TOPIC)
        assert _child(tmp_path, _SEND_WITH_CREDENTIALS, f"localhost:{server.port}") == ""

    assert _stored(server) == [b"{}"]
    token = str(server.requests[0].metadata["authorization"]).removeprefix("Bearer ")
    claims = _claims(token)
    assert claims["iss"] == "edge@project.iam.gserviceaccount.com"
    assert "https://www.googleapis.com/auth/pubsub" in claims["scope"]


def _child(folder: Path, program: str, *arguments: str) -> str:
    """Run a program that finds its credentials and the certificates it trusts in `folder`; returns what it prints."""
    child = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={
            "PATH": os.environ["PATH"],
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "key.json"),
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(folder / "roots.pem"),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout


def _claims(token: str) -> Any:
    decoder: Any = jwt  # it has no annotations
    return decoder.decode(token, verify=False)


def _service_account(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    content = {
        "type": "service_account",
        "client_email": "edge@project.iam.gserviceaccount.com",
        "private_key": _pem(key).decode(),
        "private_key_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }
    path.write_text(json.dumps(content))


def _certificate(name: str = "localhost", days: tuple[int, int] = (-1, 1)) -> tuple[bytes, bytes]:
    """Make a key and a certificate signed by itself, valid from the one day until the other, as seen from today."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Of their own each, so that a client can tell apart those that it trusts.
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, secrets.token_hex(8))])
    first, last = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=day) for day in days)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
