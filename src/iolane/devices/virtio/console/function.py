"""The console device as a PCI function."""

from __future__ import annotations

from iolane.backends.stream import StreamBackend
from iolane.devices.virtio.console.device import Console, SizeOrder
from iolane.model.pci import Presentation
from iolane.model.virtio.pci import VirtioPci


class ConsoleFunction(VirtioPci):
    """A virtio console on PCI; Linux makes it /dev/hvc0 and its ports /dev/virtio-ports/NAME.

    Args:
        stream: the other end of port 0, the console: `pty[:LINK]`, `listen:PATH`, `unix:PATH`, `file:PATH`,
            `fd:N[:M]` or `null`.
        port: further ports, each `NAME=STREAM`.
        max_ports: how many ports there may be, those added later included.
        columns: width of the console; 0 for unknown.
        rows: height of the console.
        size_order: of messages about a new size; `rows-first` for Linux guests before 6.15.
    """

    virtio: Console

    def __init__(
        self,
        stream: StreamBackend | str = "pty",
        *,
        port: list[str] | None = None,
        max_ports: int | None = None,
        columns: int = 0,
        rows: int = 0,
        size_order: SizeOrder = SizeOrder.COLUMNS_FIRST,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        console = Console(
            stream,
            ports=port or (),
            max_ports=max_ports,
            columns=columns,
            rows=rows,
            size_order=size_order,
        )
        super().__init__(console, presentation=presentation, name=name or "console")
