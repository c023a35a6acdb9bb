"""Events of devices: as the kernel and udev write them, over sockets, and from this machine's kernel."""

import asyncio
import errno
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.accelerators.uevents import (
    LOST,
    Uevent,
    UeventListener,
    UeventsUnavailable,
    open_socket,
    parse,
    to_uevent,
)

STICK = {
    "ACTION": "add",
    "DEVPATH": "/devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/usb2/2-1/2-1.3",
    "SUBSYSTEM": "usb",
    "DEVTYPE": "usb_device",
    "PRODUCT": "18d1/9302/100",
    "BUSNUM": "002",
    "DEVNUM": "004",
}
APEX = {
    "ACTION": "add",
    "DEVPATH": "/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/apex/apex_0",
    "SUBSYSTEM": "apex",
    "DEVNAME": "apex_0",
}
CARD = {
    "ACTION": "bind",
    "DEVPATH": "/devices/pci0000:00/0000:00:1c.0/0000:01:00.0",
    "SUBSYSTEM": "pci",
    "DRIVER": "apex",
    "PCI_ID": "1AC1:089A",
}


def from_kernel(properties: dict[str, str]) -> bytes:
    """What lib/kobject_uevent.c sends."""
    head = f"{properties.get('ACTION', '')}@{properties.get('DEVPATH', '')}\0"
    return (head + "".join(f"{name}={value}\0" for name, value in properties.items())).encode()


def from_udev(properties: dict[str, str]) -> bytes:
    """What systemd-udevd sends: a header of 40 bytes, then the properties."""
    body = "".join(f"{name}={value}\0" for name, value in properties.items()).encode()
    return b"libudev\0" + struct.pack("!I", 0xFEEDCAFE) + struct.pack("=IIIIIII", 40, 40, len(body), 1, 2, 3, 4) + body


@pytest.mark.parametrize(
    ("properties", "event"),
    [
        (STICK, Uevent("add", "usb:2-1.3")),
        (STICK | {"ACTION": "remove", "PRODUCT": "1a6e/89a/100"}, Uevent("remove", "usb:2-1.3")),
        (APEX, Uevent("add", "pci:0000:01:00.0")),
        (CARD, Uevent("bind", "pci:0000:01:00.0")),
        (STICK | {"PRODUCT": "18d1/4ee7/440"}, None),
        (STICK | {"PRODUCT": "18d1/93021/1"}, None),
        (STICK | {"DEVTYPE": "usb_interface", "DEVPATH": "/devices/usb2/2-1.3/2-1.3:1.0"}, None),
        (CARD | {"PCI_ID": "8086:089A"}, None),
        ({"ACTION": "change", "DEVPATH": "/devices/virtual/net/lo", "SUBSYSTEM": "net"}, None),
        ({"ACTION": "", "DEVPATH": "", "SUBSYSTEM": "apex"}, None),
    ],
)
def test_what_an_event_says(properties: dict[str, str], event: Uevent | None) -> None:
    assert to_uevent(from_kernel(properties)) == event
    settled = None if event is None else Uevent(event.action, event.name, settled=True)
    assert to_uevent(from_udev(properties)) == settled


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0="), min_size=1)
_VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.dictionaries(_NAMES, _VALUES))
def test_all_properties_are_read(properties: dict[str, str]) -> None:
    assert parse(from_udev(properties)) == (properties, True)
    got, settled = parse(from_kernel({"ACTION": "add", "DEVPATH": "/x"} | properties))
    assert got == {"ACTION": "add", "DEVPATH": "/x"} | properties
    assert not settled


@given(st.binary() | st.binary().map(lambda tail: b"libudev\0" + tail))
def test_rubbish_is_no_event(message: bytes) -> None:
    assert to_uevent(message) is None


# ------------------------------------------------------------------------------------------ the listener


async def collect(sent: list[bytes], count: int) -> list[Uevent]:
    """Send messages to a listener, and return so many events."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    events: asyncio.Queue[Uevent] = asyncio.Queue()
    listener = UeventListener(events.put_nowait)
    with ours:
        listener.listen_on(its)
        for message in sent:
            ours.send(message)
        got = [await asyncio.wait_for(events.get(), 10) for _ in range(count)]
        listener.stop()
        listener.stop()
        assert its.fileno() == -1
    assert events.empty()
    return got


def test_only_edge_tpus_are_told_of() -> None:
    lo = from_kernel({"ACTION": "add", "DEVPATH": "/devices/virtual/net/lo", "SUBSYSTEM": "net"})
    got = asyncio.run(collect([lo, from_kernel(STICK), lo, from_udev(STICK), from_kernel(APEX)], 3))
    assert got == [
        Uevent("add", "usb:2-1.3"),
        Uevent("add", "usb:2-1.3", settled=True),
        Uevent("add", "pci:0000:01:00.0"),
    ]


class Overrun(socket.socket):
    """A socket that has lost messages once, and says so as the kernel does."""

    error: int | None = errno.ENOBUFS

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.error is not None:
            error, self.error = self.error, None
            raise OSError(error, "of this test")
        return super().recv(size, flags)


def overrun(error: int) -> tuple[socket.socket, Overrun]:
    ours, plain = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    its = Overrun(fileno=plain.detach())
    its.error = error
    return ours, its


def test_lost_events_are_told_of_and_the_next_ones_are_not_lost() -> None:
    async def scenario() -> None:
        ours, its = overrun(errno.ENOBUFS)
        events: asyncio.Queue[Uevent] = asyncio.Queue()
        listener = UeventListener(events.put_nowait)
        with ours:
            listener.listen_on(its)
            ours.send(from_kernel(STICK))
            assert await asyncio.wait_for(events.get(), 10) == Uevent(LOST)
            assert await asyncio.wait_for(events.get(), 10) == Uevent("add", "usb:2-1.3")
            listener.stop()

    asyncio.run(scenario())


def test_a_socket_that_is_broken_is_given_up_once_and_loudly() -> None:
    async def scenario() -> None:
        broken = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.set_result(context["exception"]))
        ours, its = overrun(errno.EIO)
        with ours:
            UeventListener(lambda _: None).listen_on(its)
            ours.send(from_kernel(STICK))
            error = await asyncio.wait_for(broken, 10)
        assert error.errno == errno.EIO
        assert its.fileno() == -1

    asyncio.run(scenario())


def test_a_listener_may_be_stopped_by_what_it_tells() -> None:
    async def scenario() -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        done = asyncio.Event()
        with ours:

            def stop(_: Uevent) -> None:
                listener.stop()
                done.set()

            listener = UeventListener(stop)
            ours.send(from_kernel(STICK))
            ours.send(from_kernel(STICK))
            listener.listen_on(its)
            await asyncio.wait_for(done.wait(), 10)

    asyncio.run(scenario())


@pytest.mark.parametrize("call", ["socket", "bind"])
def test_where_there_is_no_socket_it_says_so(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    class Forbidden(socket.socket):
        def __init__(self, *arguments: int) -> None:
            if call == "socket":
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(*arguments)

        def bind(self, _address: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("socket.socket", Forbidden)
    reason = {"socket": "no socket for events of devices: Address", "bind": "events of devices cannot be listened to: "}
    with pytest.raises(UeventsUnavailable, match=reason[call]):
        open_socket()


def test_the_kernel_of_this_machine() -> None:
    trigger = Path("/sys/devices/virtual/mem/null/uevent")
    if not trigger.exists():
        pytest.skip("/sys has no /devices/virtual/mem/null here")
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        pytest.skip("the kernel sends no events into another user namespace")
    with open_socket() as opened:
        opened.settimeout(10)
        try:
            trigger.write_text("change")
        except OSError as error:
            pytest.skip(f"events cannot be made here: {error}")
        found: dict[str, str] = {}
        while found.get("DEVPATH") != "/devices/virtual/mem/null":
            found, _ = parse(opened.recv(65536))
    assert (found["ACTION"], found["SUBSYSTEM"], found["DEVNAME"]) == ("change", "mem", "null")
