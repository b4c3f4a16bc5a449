"""The console device against virtio 1.3, 5.3; each test names the section."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.backends.stream import MemoryStream
from iolane.devices.registry import create
from iolane.devices.virtio.console import Console, ConsoleFunction, SizeOrder
from iolane.devices.virtio.console.features import ConsoleFeature
from iolane.devices.virtio.console.state import CONTROL_LIMIT
from iolane.errors import IolaneError
from iolane.model.state import StateError
from iolane.model.virtio.features import mask
from iolane.model.workers import Workers
from iolane.testing.drivers.function import MEMORY_START
from iolane.testing.drivers.virtio_console import CONTROL_TRANSMIT, Control, VirtioConsoleDriver
from iolane.testing.model_state import check_golden, golden_files, missing_golden
from iolane.uapi.virtio import ConsoleEvent

ALL = (1 << 64) - 1
GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


@pytest.fixture
def plain(stream: MemoryStream) -> Iterator[VirtioConsoleDriver]:
    """One port, no control queues."""
    with VirtioConsoleDriver(ConsoleFunction(stream, columns=80, rows=25)) as driver:
        yield driver


@pytest.fixture
def ports(stream: MemoryStream) -> Iterator[VirtioConsoleDriver]:
    """Four ports, two of them there, the driver not yet ready."""
    device = ConsoleFunction(stream, port=["org.iolane.data=memory"], max_ports=4, columns=80, rows=25)
    with VirtioConsoleDriver(device) as driver:
        yield driver


def port_stream(driver: VirtioConsoleDriver, index: int) -> MemoryStream:
    stream = driver.device.virtio.ports[index].stream
    assert isinstance(stream, MemoryStream)
    return stream


def come_up(driver: VirtioConsoleDriver) -> list[Control]:
    """What Linux does: ready, ports ready, consoles open."""
    driver.give_control(16)
    driver.tell(0, ConsoleEvent.DEVICE_READY, 1)
    found = driver.control()
    for message in list(found):
        if message.event is ConsoleEvent.PORT_ADD:
            driver.tell(message.port, ConsoleEvent.PORT_READY, 1)
    found += driver.control()
    for message in found:
        if message.event is ConsoleEvent.CONSOLE_PORT:
            driver.tell(message.port, ConsoleEvent.PORT_OPEN, 1)
    return found


# One port (5.3.6).


def test_output(plain: VirtioConsoleDriver, stream: MemoryStream) -> None:
    assert plain.transmit(b"hello ") == 1
    plain.transmit_ring(0).send([b"wor", b"ld"], indirect=True)
    plain.transmit_ring(0).kick()
    assert stream.take() == b"hello world"


def test_input_waits_for_buffers(plain: VirtioConsoleDriver, stream: MemoryStream) -> None:
    stream.feed(b"early")
    assert plain.received() == b""
    plain.give(size=3)
    assert plain.received() == b"ear"
    plain.give(size=3)
    assert plain.received() == b"ly"
    plain.give(size=64, count=2)
    stream.feed(b"late")
    assert plain.received() == b"late"
    assert plain.interrupts(1) > 0


def test_output_waits_for_the_stream(plain: VirtioConsoleDriver, stream: MemoryStream) -> None:
    """A reader that does not read stops the guest, and loses nothing."""
    stream.capacity = 5
    assert plain.transmit(b"0123456789ab") == 0
    assert stream.take() == b"01234"
    assert plain.transmitted() == 0
    assert stream.take() == b"56789"
    assert plain.transmitted() == 1
    assert stream.take() == b"ab"


def test_more_than_a_service_moves(plain: VirtioConsoleDriver, stream: MemoryStream) -> None:
    stream.capacity = 1 << 24
    data = os.urandom(3 << 17)
    for _ in range(8):
        plain.transmit_ring(0).add([(MEMORY_START + (1 << 19), len(data))], [])
    plain.memory[1 << 19 : (1 << 19) + len(data)] = data
    plain.transmit_ring(0).kick()
    assert plain.transmitted() == 8
    assert stream.take() == data * 8


def test_buffers_of_the_wrong_kind(plain: VirtioConsoleDriver, stream: MemoryStream) -> None:
    """5.3.6.1: what a driver MUST NOT give comes back unused."""
    plain.receive_ring(0).send(b"not for input")
    plain.give(size=8)
    stream.feed(b"input")
    assert plain.received() == b"input"
    plain.transmit_ring(0).send(b"", 8)
    plain.transmit_ring(0).kick()
    assert plain.transmitted() == 1
    assert plain.device.error_count == 0


def test_the_configuration(plain: VirtioConsoleDriver) -> None:
    assert not plain.offered() & mask((ConsoleFeature.MULTIPORT,))
    assert (plain.config(0, 2), plain.config(2, 2), plain.config(4, 4)) == (80, 25, 1)
    assert len(plain.rings) == 2


def test_the_size_changes(plain: VirtioConsoleDriver) -> None:
    assert plain.interrupts(0) == 1, "the first size is told, too"
    plain.device.virtio.resize(132, 43)
    assert plain.interrupts(0) == 1
    assert (plain.config(0, 2), plain.config(2, 2)) == (132, 43)


def test_emergency_write(stream: MemoryStream) -> None:
    """5.3.5.1: MUST be allowed even on an unconfigured device; the lower byte goes out."""
    with VirtioConsoleDriver(ConsoleFunction(stream), ready=False) as driver:
        assert driver.offered() >> ConsoleFeature.EMERG_WRITE & 1
        for character in b"oops":
            driver.set_config(8, 4, 0xFFFF_FF00 | character)
        assert stream.take() == b"oops"
        assert driver.config(8, 4) == 0


# Several ports (5.3.6.2).


def test_ports_are_announced(ports: VirtioConsoleDriver) -> None:
    size = struct.pack("<HH", 80, 25)
    assert come_up(ports) == [
        (0, ConsoleEvent.PORT_ADD, 0, b""),
        (1, ConsoleEvent.PORT_ADD, 0, b""),
        (0, ConsoleEvent.CONSOLE_PORT, 1, b""),
        (0, ConsoleEvent.RESIZE, 0, size),
        (0, ConsoleEvent.PORT_OPEN, 1, b""),
        (1, ConsoleEvent.PORT_NAME, 1, b"org.iolane.data"),
        (1, ConsoleEvent.PORT_OPEN, 1, b""),
    ]


def test_control_messages_wait_for_buffers(ports: VirtioConsoleDriver) -> None:
    ports.tell(0, ConsoleEvent.DEVICE_READY, 1)
    assert ports.control() == []
    ports.give_control(1)
    assert [message.port for message in ports.control()] == [0]
    ports.give_control(1)
    assert [message.port for message in ports.control()] == [1]


def test_a_driver_that_asks_and_never_takes(ports: VirtioConsoleDriver) -> None:
    for _ in range(CONTROL_LIMIT):
        ports.tell(0, ConsoleEvent.DEVICE_READY, 1)
    assert ports.device.describe()["control_dropped"] == CONTROL_LIMIT


def test_nonsense_on_the_control_queue(ports: VirtioConsoleDriver) -> None:
    ports.rings[CONTROL_TRANSMIT].send(b"short")
    ports.rings[CONTROL_TRANSMIT].kick()
    assert len(ports.rings[CONTROL_TRANSMIT].collect()) == 1
    ports.tell(99, ConsoleEvent.PORT_OPEN, 1)
    ports.tell(0xFFFF_FFFF, ConsoleEvent.PORT_READY, 1)
    ports.tell(0, 77)
    ports.tell(1, ConsoleEvent.PORT_READY, 0)
    counted = {key: ports.device.counters[key] for key in sorted(ports.device.counters)}
    assert counted == {
        "control_malformed": 1,
        "control_unknown_event": 1,
        "control_unknown_port": 2,
        "ports_refused": 1,
    }
    assert ports.device.error_count == 0


def test_a_ports_bytes(ports: VirtioConsoleDriver) -> None:
    come_up(ports)
    stream = port_stream(ports, 1)
    assert ports.transmit(b"from the guest", 1) == 1
    assert stream.take() == b"from the guest"
    ports.give(1)
    stream.feed(b"to the guest")
    assert ports.received(1) == b"", "nobody in the guest has it open"
    ports.tell(1, ConsoleEvent.PORT_OPEN, 1)
    assert ports.received(1) == b"to the guest"
    ports.tell(1, ConsoleEvent.PORT_OPEN, 0)
    ports.give(1)
    stream.feed(b"later")
    assert ports.received(1) == b""
    ports.tell(1, ConsoleEvent.PORT_OPEN, 1)
    assert ports.received(1) == b"later"


def test_a_port_without_peer(ports: VirtioConsoleDriver) -> None:
    come_up(ports)
    stream = port_stream(ports, 1)
    stream.connect(False)
    assert ports.control() == [(1, ConsoleEvent.PORT_OPEN, 0, b"")]
    ports.transmit(b"dropped", 1)
    assert stream.bytes_dropped == 7
    stream.connect()
    assert ports.control() == [(1, ConsoleEvent.PORT_OPEN, 1, b"")]


def test_output_to_a_port_that_does_not_exist(ports: VirtioConsoleDriver) -> None:
    come_up(ports)
    assert ports.transmit(b"nowhere", 3) == 1
    ports.give(3)
    assert ports.received(3) == b""


def test_ports_come_and_go(ports: VirtioConsoleDriver) -> None:
    """5.3.6.2.1: never a port that exists, nor one from max_nr_ports on."""
    come_up(ports)
    console = ports.device.virtio
    added = [console.add_port(f"more.{number}", MemoryStream()) for number in range(2)]
    assert [port.index for port in added] == [2, 3]
    assert [message[:2] for message in ports.control()] == [
        (2, ConsoleEvent.PORT_ADD),
        (3, ConsoleEvent.PORT_ADD),
    ]
    with pytest.raises(IolaneError, match="all 4 ports are in use"):
        console.add_port("one.too.many", MemoryStream())
    port_stream(ports, 2).capacity = 1
    assert ports.transmit(b"stuck", 2) == 0
    console.remove_port(2)
    assert ports.transmitted(2) == 1
    assert [message[:2] for message in ports.control()] == [(2, ConsoleEvent.PORT_REMOVE)]
    for index in (0, 2):
        with pytest.raises(IolaneError, match="no port"):
            console.remove_port(index)
    assert console.add_port("again", "null").index == 2


@pytest.mark.parametrize(("order", "numbers"), [("columns-first", (132, 43)), ("rows-first", (43, 132))])
def test_resize_messages(stream: MemoryStream, order: str, numbers: tuple[int, int]) -> None:
    device = ConsoleFunction(stream, max_ports=2, size_order=SizeOrder(order))
    with VirtioConsoleDriver(device) as driver:
        come_up(driver)
        driver.device.virtio.resize(132, 43)
        assert driver.control() == [(0, ConsoleEvent.RESIZE, 0, struct.pack("<HH", *numbers))]


def test_a_driver_without_multiport(stream: MemoryStream) -> None:
    device = ConsoleFunction(stream, max_ports=2)
    with VirtioConsoleDriver(device, features=ALL & ~mask((ConsoleFeature.MULTIPORT,))) as driver:
        driver.give()
        stream.feed(b"input")
        assert driver.received() == b"input"
        driver.device.virtio.resize(1, 2)
        assert driver.control() == []


def test_a_reset_closes_the_ports(ports: VirtioConsoleDriver, stream: MemoryStream) -> None:
    come_up(ports)
    stream.capacity = 1
    ports.transmit(b"stuck")
    ports.reset()
    stream.feed(b"for the next driver")
    ports.negotiate()
    ports.set_up_queues()
    ports.add_status(ports.status.__class__(4))
    come_up(ports)
    ports.give()
    assert ports.received() == b"for the next driver"


# By name, and with threads.


def test_by_its_name(tmp_path: Path) -> None:
    place = tmp_path / "line"
    device = create(f"console,stream=listen:{place},port=a.b=null,port=c.d=memory,columns=80,rows=24")
    assert isinstance(device, ConsoleFunction)
    assert [port.name for port in device.virtio.ports.values()] == ["", "a.b", "c.d"]
    with VirtioConsoleDriver(device) as driver, Workers(1) as workers, socket.socket(socket.AF_UNIX) as peer:
        device.attach(workers)
        come_up(driver)
        peer.settimeout(10)
        peer.connect(str(place))
        peer.sendall(b"hello")
        driver.give(count=4)
        got = b""
        deadline = time.monotonic() + 10
        while len(got) < 5 and time.monotonic() < deadline:
            got += driver.received()
        assert got == b"hello"
        driver.transmit(b"answer")
        assert peer.recv(6) == b"answer"
    assert not place.exists(), "closed with the device"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("stream=nonsense", "names no stream"),
        ("stream=null,port=nameless", "is not NAME=STREAM"),
        ("stream=null,port=a=null,max_ports=1", "a console has 2 to 31 ports"),
        ("stream=null,max_ports=32", "a console has 1 to 31 ports"),
        ("stream=null,columns=65536", "up to 65535"),
        (f"stream=null,port={'x' * 300}=null", "up to 256 bytes"),
    ],
)
def test_wrong_options(options: str, message: str) -> None:
    with pytest.raises(IolaneError, match=message):
        create(f"console,{options}")


# State.


def golden_device() -> ConsoleFunction:
    return ConsoleFunction(MemoryStream(2), port=["data=memory"], max_ports=3, name="golden")


def test_golden_states() -> None:
    assert missing_golden(GOLDEN, ConsoleFunction) == []
    for path in golden_files(GOLDEN, ConsoleFunction):
        device = check_golden(golden_device, path)
        console = device.virtio
        assert (console.columns, console.rows, console.driver_ready) == (90, 20, True)
        assert [port.guest_open for port in console.ports.values()] == [True, False]
        assert console.ports[0].save().pending == b"for no buffer"
        assert console.ports[0].save().sent == 2
        device.close()


def test_what_is_half_said_is_said_once(ports: VirtioConsoleDriver, stream: MemoryStream) -> None:
    """A save in the middle of a chain: the rest goes out of the other device."""
    come_up(ports)
    stream.capacity = 4
    ports.transmit(b"01234567")
    ports.device.pause()
    rest = MemoryStream()
    other = ConsoleFunction(rest, port=["org.iolane.data=memory"], max_ports=4)
    other.dma.map(MEMORY_START, len(ports.memory), buffer=ports.memory)
    other.load(ports.device.save())
    assert stream.take() + rest.take() == b"01234567"
    assert ports.transmitted() == 1
    other.close()


def test_other_ports_are_refused(ports: VirtioConsoleDriver) -> None:
    other = ConsoleFunction("null", port=["another=null"], max_ports=4)
    with pytest.raises(StateError, match="are not those of"):
        other.load(ports.device.save())
    other.close()


def test_a_device_without_a_function() -> None:
    device = Console(MemoryStream())
    other = Console(MemoryStream())
    device.resize(10, 20)
    other.load(device.save())
    assert other.read_config(0, 4) == struct.pack("<HH", 10, 20)
    for each in (device, other):
        each.close()
