"""The Pub/Sub server of the tests behaves as Google's emulator does, as far as both can be asked."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.pubsub_v1 import PublisherClient, PubsubMessage, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from tests.servers.emulator import Emulator, Subscription
from tests.servers.pubsub import Delay, Fail, Hang, LoseResponse, PubSubServer

TOPIC = "projects/project/topics/events"
Backend = PubSubServer | Emulator


def _client(address: str) -> tuple[Any, PublisherClient]:
    # Without a pool of its own a new channel shares the old one's wait before it connects again.
    channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    return channel, PublisherClient(transport=PublisherGrpcTransport(channel=channel))


@pytest.fixture
def client(pubsub: PubSubServer) -> Iterator[PublisherClient]:
    channel, client = _client(pubsub.address)
    yield client
    channel.close()


@pytest.fixture
def backend_client(pubsub_backend: Backend) -> Iterator[PublisherClient]:
    channel, client = _client(pubsub_backend.address)
    yield client
    channel.close()


def _publish(client: PublisherClient, *data: bytes, topic: str = TOPIC, timeout: float = 30) -> Any:
    return client.publish(
        topic=topic, messages=[PubsubMessage(data=each) for each in data], retry=None, timeout=timeout
    )


def test_messages_go_through(pubsub_backend: Backend, backend_client: PublisherClient) -> None:
    with Subscription(pubsub_backend.address, TOPIC) as subscription:
        sent = [PubsubMessage(data=b"one", attributes={"kind": "result"}), PubsubMessage(data=b"two")]
        answer = backend_client.publish(topic=TOPIC, messages=sent)
        messages = subscription.pull(2)

    assert {(bytes(m.data), m.attributes.get("kind")) for m in messages} == {(b"one", "result"), (b"two", None)}
    assert {m.message_id for m in messages} == set(answer.message_ids)


def test_topics_can_be_asked_for(backend_client: PublisherClient) -> None:
    assert backend_client.get_topic(topic=TOPIC).name == TOPIC
    with pytest.raises(exceptions.AlreadyExists):
        backend_client.create_topic(name=TOPIC)
    with pytest.raises(exceptions.NotFound):
        backend_client.get_topic(topic="projects/project/topics/missing")
    backend_client.delete_topic(topic=TOPIC)
    with pytest.raises(exceptions.NotFound):
        _publish(backend_client, b"x")


@pytest.mark.parametrize("messages", [[{"data": b"x"}] * 1001, [{"data": b""}]], ids=["too many", "empty"])
def test_limits_of_a_request(backend_client: PublisherClient, messages: list[Any]) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        backend_client.publish(topic=TOPIC, messages=messages, retry=None)


@pytest.mark.parametrize(
    "messages",
    [[{"data": b"x" * 6_000_000}] * 2, [{"data": b"x", "attributes": {"kind": "x" * 1025}}]],
    ids=["too large", "attribute too long"],
)
def test_limits_the_emulator_does_not_hold_to(client: PublisherClient, messages: list[Any]) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        client.publish(topic=TOPIC, messages=messages, retry=None)


def test_streaming_pull(pubsub_backend: Backend, backend_client: PublisherClient) -> None:
    channel = grpc.insecure_channel(pubsub_backend.address)
    client = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
    name = "projects/project/subscriptions/stream"
    client.create_subscription(name=name, topic=TOPIC)
    _publish(backend_client, b"one", b"two")
    ended = threading.Event()

    def requests() -> Iterator[Any]:
        yield {"subscription": name, "stream_ack_deadline_seconds": 10}
        ended.wait()

    stream: Any = client.streaming_pull(requests=requests())
    received: set[bytes] = set()
    for response in stream:
        received |= {bytes(each.message.data) for each in response.received_messages}
        if len(received) == 2:
            break
    stream.cancel()
    ended.set()
    channel.close()

    assert received == {b"one", b"two"}


def test_unacknowledged_messages_come_again(pubsub: PubSubServer, client: PublisherClient) -> None:
    with grpc.insecure_channel(pubsub.address) as channel:
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        name = "projects/project/subscriptions/again"
        subscriber.create_subscription(name=name, topic=TOPIC)
        _publish(client, b"one")
        (first,) = subscriber.pull(subscription=name, max_messages=10).received_messages
        assert not subscriber.pull(subscription=name, max_messages=10).received_messages
        subscriber.modify_ack_deadline(subscription=name, ack_ids=[first.ack_id], ack_deadline_seconds=0)
        (second,) = subscriber.pull(subscription=name, max_messages=10).received_messages
        subscriber.delete_subscription(subscription=name)

    assert second.message.data == first.message.data


def test_scripted_status_for_so_many_requests(pubsub: PubSubServer, client: PublisherClient) -> None:
    pubsub.script(Fail("UNAVAILABLE"), Fail("INTERNAL", "broken"))
    with pytest.raises(exceptions.ServiceUnavailable, match="as scripted"):
        _publish(client, b"one")
    with pytest.raises(exceptions.InternalServerError, match="broken"):
        _publish(client, b"one")
    _publish(client, b"one")

    assert [message.data for message in pubsub.messages(TOPIC)] == [b"one"]
    assert [request.count for request in pubsub.requests] == [1, 1, 1]


def test_lost_response_stores_the_messages(pubsub: PubSubServer, client: PublisherClient) -> None:
    pubsub.script(LoseResponse())
    with pytest.raises(exceptions.ServiceUnavailable):
        _publish(client, b"one")

    assert [message.data for message in pubsub.messages(TOPIC)] == [b"one"]


def test_hanging_until_the_client_gives_up_or_the_server_lets_go(pubsub: PubSubServer, client: PublisherClient) -> None:
    pubsub.script(Hang(), times=2)
    with pytest.raises(exceptions.DeadlineExceeded):
        _publish(client, b"one", timeout=0.2)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(_publish, client, b"two")
        pubsub.wait_for(lambda server: len(server.requests) == 2)
        pubsub.clear()
        with pytest.raises(exceptions.ServiceUnavailable):
            hanging.result()

    assert pubsub.messages(TOPIC) == []


def test_delay(pubsub: PubSubServer, client: PublisherClient) -> None:
    pubsub.script(Delay(0.01))
    _publish(client, b"one")

    assert [message.data for message in pubsub.messages(TOPIC)] == [b"one"]


def test_refused_content(pubsub: PubSubServer, client: PublisherClient) -> None:
    pubsub.refuse(lambda message: message.data == b"poison")
    with pytest.raises(exceptions.InvalidArgument):
        _publish(client, b"one", b"poison")
    _publish(client, b"one")

    assert [message.data for message in pubsub.messages(TOPIC)] == [b"one"]


def test_stopped_and_started_on_the_same_port(pubsub: PubSubServer, client: PublisherClient) -> None:
    _publish(client, b"one")
    pubsub.stop()
    with pytest.raises(exceptions.ServiceUnavailable):
        _publish(client, b"two")
    address = pubsub.address
    pubsub.start()
    channel, anew = _client(address)
    _publish(anew, b"three")
    channel.close()

    assert [message.data for message in pubsub.messages(TOPIC)] == [b"one", b"three"]
