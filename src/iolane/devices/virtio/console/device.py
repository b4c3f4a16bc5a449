"""A console with ports: byte streams between guest and host (virtio 1.3, 5.3)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum

from iolane.backends.stream import StreamBackend, open_stream
from iolane.devices.virtio.console.config import ConsoleConfig
from iolane.devices.virtio.console.control import CONTROL, Outbox, message
from iolane.devices.virtio.console.features import ConsoleFeature
from iolane.devices.virtio.console.port import Port
from iolane.devices.virtio.console.state import NAME_LIMIT, ConsoleState
from iolane.errors import IolaneError
from iolane.model.registers import Register32
from iolane.model.reset import ResetKind
from iolane.model.state import StateError
from iolane.model.virtio import VirtioDevice, Virtqueue
from iolane.model.virtio.device import BATCH
from iolane.model.virtio.features import mask
from iolane.model.virtio.queue import nobody
from iolane.uapi.virtio import ConsoleEvent, DeviceType

QUEUE_SIZE = 64
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
LARGEST_CONTROL = 4096
MAX_PORTS = 31
"""As many as QEMU offers: 64 queues with the control queues."""


class SizeOrder(StrEnum):
    """How RESIZE messages order their two numbers.

    The specification says columns first (5.3.6.2), and so do Linux guests of today; Linux before 6.15, and
    before the stable releases that took its change, reads rows first. The configuration, which devices with
    one port use, is the same everywhere.
    """

    COLUMNS_FIRST = "columns-first"
    ROWS_FIRST = "rows-first"


class Console(VirtioDevice):
    """The console device.

    Args:
        stream: the other end of port 0, the console: a stream or its name (`pty`, `listen:PATH`, ...).
        ports: further ports, each `NAME=STREAM`; the guest finds them as /dev/virtio-ports/NAME.
        max_ports: how many ports there may be, those added later included. With 1 there are no control
            queues.
        columns, rows: size of the console; 0 for unknown.
        size_order: of RESIZE messages.
    """

    device_type = DeviceType.CONSOLE
    Config = ConsoleConfig
    config: ConsoleConfig
    State = ConsoleState
    state: ConsoleState

    def __init__(
        self,
        stream: StreamBackend | str = "pty",
        *,
        ports: Sequence[str] = (),
        max_ports: int | None = None,
        columns: int = 0,
        rows: int = 0,
        size_order: SizeOrder = SizeOrder.COLUMNS_FIRST,
        name: str | None = None,
    ) -> None:
        self.max_ports = 1 + len(ports) if max_ports is None else max_ports
        if not 1 + len(ports) <= self.max_ports <= MAX_PORTS:
            raise IolaneError(f"a console has {1 + len(ports)} to {MAX_PORTS} ports, not {self.max_ports}")
        names = _queue_names(self.max_ports)
        super().__init__([QUEUE_SIZE] * len(names), queue_names=names, name=name)
        self.size_order = size_order
        self.columns, self.rows = _checked_size(columns, rows)
        self.ports: dict[int, Port] = {}
        self.driver_ready = False
        self._outbox = Outbox()
        self.config.hook_write(ConsoleConfig.EMERG_WR, self._emergency_write)
        self.fill_config()
        try:
            self.add_port("", stream, console=True)
            for text in ports:
                self.add_port(*_parse_port(text))
        except BaseException:
            self.release()
            raise

    # Features and configuration (5.3.3 to 5.3.5).

    def offered_features(self) -> int:
        several = (ConsoleFeature.MULTIPORT,) if self.max_ports > 1 else ()
        return mask((ConsoleFeature.SIZE, ConsoleFeature.EMERG_WRITE, *several))

    @property
    def multiport(self) -> bool:
        """Whether the control queues are in use."""
        return self.negotiated(ConsoleFeature.MULTIPORT)

    def fill_config(self) -> None:
        self.config.COLS = self.columns
        self.config.ROWS = self.rows
        self.config.MAX_NR_PORTS = self.max_ports

    def _emergency_write(self, value: Register32) -> None:
        """A character from a guest that has no queues, yet or any more (5.3.5.1)."""
        self.counters.add("emergency_writes")
        self.ports[0].stream.write(bytes((value & 0xFF,)))

    # Ports.

    def add_port(self, name: str, stream: StreamBackend | str, *, console: bool = False) -> Port:
        """A new port at the lowest free number; a running driver is told. Raises IolaneError."""
        if len(name.encode()) > NAME_LIMIT:
            raise IolaneError(f"a port's name has up to {NAME_LIMIT} bytes")
        index = next((number for number in range(self.max_ports) if number not in self.ports), None)
        if index is None:
            raise IolaneError(f"all {self.max_ports} ports are in use", remedy="raise max_ports")
        backend = open_stream(stream) if isinstance(stream, str) else stream
        first = 0 if index == 0 else 2 + 2 * index
        with self.lock:
            receive, transmit = self.queues[first], self.queues[first + 1]
            port = self.ports[index] = Port(index, name, backend, receive, transmit, console=console)
            if self.driver_ready:
                self._send(port, ConsoleEvent.PORT_ADD)
            backend.start(lambda: self._stream_changed(port))
        return port

    def remove_port(self, index: int) -> None:
        """Take a port away from a running guest. Port 0 always exists."""
        with self.lock:
            port = self.ports.get(index) if index else None
            if port is None:
                raise IolaneError(f"there is no port {index} to remove")
            del self.ports[index]
            port.give_up()
            if self.driver_ready:
                self._send(port, ConsoleEvent.PORT_REMOVE)
            port.stream.close()

    def resize(self, columns: int, rows: int) -> None:
        """The console of port 0 has another size; the guest is told (5.3.6)."""
        with self.lock:
            self.columns, self.rows = _checked_size(columns, rows)
            self.config_changed()
            if self.ports[0].ready:
                self._send_size(self.ports[0])

    def _send_size(self, port: Port) -> None:
        numbers = (self.columns, self.rows)
        if self.size_order is SizeOrder.ROWS_FIRST:
            numbers = (self.rows, self.columns)
        self._send(port, ConsoleEvent.RESIZE, data=struct.pack("<HH", *numbers))

    # Control queues (5.3.6.2).

    def _send(self, port: Port, event: ConsoleEvent, value: int = 0, data: bytes = b"") -> None:
        if self.multiport:
            self._outbox.put(message(port.index, event, value, data))
            self.queues[CONTROL_RECEIVE].service()

    def _take_control(self, queue: Virtqueue) -> None:
        for _ in range(BATCH):
            chain = queue.pop()
            if chain is None:
                return
            self._control(chain.read(self.dma, 0, LARGEST_CONTROL))
            queue.push(chain)
        self._later(queue)

    def _control(self, data: bytes) -> None:
        if len(data) < CONTROL.size:
            self.counters.add("control_malformed")
            return
        index, event, value = CONTROL.unpack_from(data)
        port = self.ports.get(index)
        if event == ConsoleEvent.DEVICE_READY:
            self._device_ready(bool(value))
        elif port is None:
            self.counters.add("control_unknown_port")
        elif event == ConsoleEvent.PORT_READY:
            self._port_ready(port, bool(value))
        elif event == ConsoleEvent.PORT_OPEN:
            port.guest_open = bool(value)
            port.receive.service()
        else:
            self.counters.add("control_unknown_event")

    def _device_ready(self, ready: bool) -> None:
        self.driver_ready = ready
        if ready:
            for port in self.ports.values():
                self._send(port, ConsoleEvent.PORT_ADD)

    def _port_ready(self, port: Port, ready: bool) -> None:
        """The driver has made the port: tell what it is."""
        port.ready = ready
        if not ready:
            self.counters.add("ports_refused")
            return
        if port.console:
            self._send(port, ConsoleEvent.CONSOLE_PORT, 1)
            if self.columns and self.rows:
                self._send_size(port)
        if port.name:
            self._send(port, ConsoleEvent.PORT_NAME, 1, port.name.encode())
        self._show_peer(port)

    def _show_peer(self, port: Port) -> None:
        """Let the guest know whether somebody is at the other end."""
        connected = port.stream.connected
        if port.ready and connected != port.host_open:
            port.host_open = connected
            self._send(port, ConsoleEvent.PORT_OPEN, int(connected))

    # Data.

    def on_driver_ok(self) -> None:
        """Without control queues nobody says that port 0 is open, nor that the driver has a console: Linux
        looks at the size when it hears of a change, so it hears of one.
        """
        if not self.multiport:
            self.ports[0].guest_open = True
            if self.columns and self.rows:
                self.config_interrupt()

    def on_kick(self, queue: Virtqueue) -> None:
        if self.max_ports > 1 and queue.index == CONTROL_RECEIVE:
            self._outbox.deliver(queue, self.dma)
        elif self.max_ports > 1 and queue.index == CONTROL_TRANSMIT:
            self._take_control(queue)
        else:
            self._move(queue)

    def _move(self, queue: Virtqueue) -> None:
        port = self.ports.get(max(0, queue.index // 2 - 1))
        if port is None:
            self._discard(queue)
        elif queue is port.receive:
            port.fill(self.dma, lambda: self._later(queue))
        else:
            port.drain(self.dma, lambda: self._later(queue))

    def _discard(self, queue: Virtqueue) -> None:
        """Output to a port that does not exist has nowhere to go; buffers for its input wait."""
        if queue.index % 2:
            for _ in range(BATCH):
                chain = queue.pop()
                if chain is None:
                    return
                queue.push(chain)
            self._later(queue)

    def _later(self, queue: Virtqueue) -> None:
        self.tasks.run(nobody, lambda _: queue.service(), lambda _: None)

    def _stream_changed(self, port: Port) -> None:
        with self.lock:
            if not self.paused and self.ports.get(port.index) is port:
                self._service(port)

    def _service(self, port: Port) -> None:
        port.stream.service()
        self._show_peer(port)
        port.transmit.service()
        port.receive.service()

    # What Device calls.

    def on_resume(self) -> None:
        super().on_resume()
        for port in list(self.ports.values()):
            self._service(port)

    def reset_registers(self, kind: ResetKind) -> None:
        super().reset_registers(kind)
        self.driver_ready = False
        self._outbox.waiting.clear()
        for port in self.ports.values():
            port.reset()

    def on_save(self) -> None:
        super().on_save()
        self.state.ports = [port.save() for port in self.ports.values()]
        self.state.control = list(self._outbox.waiting)
        self.state.driver_ready = self.driver_ready
        self.state.columns, self.state.rows = self.columns, self.rows

    def on_load(self) -> None:
        """The ports of the saved state are those of this device, by number, name and kind."""
        saved = {port.index: port for port in self.state.ports}
        ours = {index: (port.name, port.console) for index, port in self.ports.items()}
        if ours != {index: (port.name, port.console) for index, port in saved.items()}:
            raise StateError(f"the ports in the saved state are not those of {self.name}")
        self.columns, self.rows = self.state.columns, self.state.rows
        self.driver_ready = self.state.driver_ready
        self._outbox.waiting[:] = self.state.control
        super().on_load()
        for index, port in self.ports.items():
            port.load(saved[index])

    def statistics(self) -> dict[str, int | float | str]:
        shown = {**super().statistics(), "control_dropped": self._outbox.dropped}
        for port in self.ports.values():
            shown |= port.statistics()
        return shown

    def release(self) -> None:
        for port in self.ports.values():
            port.stream.close()


def _queue_names(max_ports: int) -> list[str]:
    names = ["receive0", "transmit0"]
    if max_ports > 1:
        names += ["control_receive", "control_transmit"]
    for index in range(1, max_ports):
        names += [f"receive{index}", f"transmit{index}"]
    return names


def _checked_size(columns: int, rows: int) -> tuple[int, int]:
    if not (0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF):
        raise IolaneError(f"a console has up to 65535 columns and rows, not {columns} and {rows}")
    return columns, rows


def _parse_port(text: str) -> tuple[str, str]:
    name, equals, stream = text.partition("=")
    if not equals or not name:
        raise IolaneError(f"port '{text}' is not NAME=STREAM", remedy="e.g. port=org.example.0=listen:/tmp/s")
    return name, stream
