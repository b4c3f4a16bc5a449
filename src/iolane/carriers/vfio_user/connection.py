"""One client: its negotiation, its commands, its end."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from iolane.carriers.descriptors import close_after_reading, send_message
from iolane.carriers.vfio_user.dma import DmaCommands
from iolane.carriers.vfio_user.features import FeatureCommands
from iolane.carriers.vfio_user.irqs import IrqCommands
from iolane.carriers.vfio_user.message_dma import CHUNK, MessageDma
from iolane.carriers.vfio_user.migration import Migration
from iolane.carriers.vfio_user.protocol import (
    DEVICE_INFO,
    HEADER_SIZE,
    IRQ_COUNT,
    REGION_COUNT,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    Command,
    DeviceFlag,
    HeaderFlag,
    MigrationState,
)
from iolane.carriers.vfio_user.regions import RegionCommands
from iolane.carriers.vfio_user.rejection import ENDS_CONNECTION, RefusedError, Rejection, Statistics
from iolane.carriers.vfio_user.session import STOPPED_STATES, Reply, Request, Session
from iolane.carriers.vfio_user.trap_loop import ConnectionEndedError, TrapLoop
from iolane.carriers.vfio_user.version import answer
from iolane.carriers.vfio_user.wire import Receiver, error_reply, limit_receive, reply_header
from iolane.model.pci import ServedFunction

_log = logging.getLogger("iolane.vfio_user")

GREETING_S = 10.0
"""A client that says nothing must not keep the next one waiting for ever."""
LARGEST_LOGGED = 200
TAKES_FDS = {Command.DMA_MAP: 1, Command.DEVICE_SET_IRQS: 253}
"""Commands that descriptors may come with, and how many."""

Handler = Callable[[Request], Reply]


class Connection:
    """Serves one client on the thread that calls `run`.

    Args:
        connection: the accepted socket; closed by `run`.
        device: what is served.
        twin_socket: agree to a socket of its own for our commands, if the client offers.
        on_negotiated: called when the device belongs to this client.
    """

    def __init__(
        self,
        connection: socket.socket,
        device: ServedFunction,
        *,
        twin_socket: bool = True,
        on_negotiated: Callable[[], object] = lambda: None,
    ) -> None:
        self.statistics = Statistics()
        self.negotiated = False
        self.ended_by = ""
        """Why the connection ended, once it has."""
        self._socket = connection
        self._device = device
        self._stopped = False
        self._twin_socket = twin_socket
        self._on_negotiated = on_negotiated
        self._send_lock = threading.Lock()
        self._receiver = Receiver(connection)
        self._session = Session(device, self.statistics)
        self._loop = TrapLoop(connection, self._receiver, self._session, self)
        self._message_dma = MessageDma(
            connection,
            self._send_lock,
            device.lock,
            self.statistics,
            serve=self._loop.serve_nested,
            reply_due=lambda: not self._loop.posted,
        )
        self._migration = Migration(self._session)
        self._features = FeatureCommands(self._session, self._migration)
        self._irqs = IrqCommands(self._session)
        self._handlers = self._command_table()

    def _command_table(self) -> dict[int, Handler]:
        regions, irqs = RegionCommands(self._session), self._irqs
        dma = DmaCommands(self._session)
        return {
            Command.DMA_MAP: dma.map,
            Command.DMA_UNMAP: dma.unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: regions.info,
            Command.DEVICE_GET_REGION_IO_FDS: regions.io_fds,
            Command.DEVICE_GET_IRQ_INFO: irqs.info,
            Command.DEVICE_SET_IRQS: irqs.set,
            Command.REGION_READ: regions.read,
            Command.REGION_WRITE: regions.write,
            Command.REGION_WRITE_MULTI: regions.write_multi,
            Command.DEVICE_RESET: self._reset,
            Command.DEVICE_FEATURE: self._features.feature,
            Command.MIG_DATA_READ: self._migration.read,
            Command.MIG_DATA_WRITE: self._migration.write,
        }

    # The life of a connection.

    def run(self) -> None:
        """Serve until the client goes, is thrown out, or `stop` is called. Returns with everything given
        back.
        """
        self._message_dma.thread = threading.get_ident()
        self.statistics.connections = 1
        try:
            limit_receive(self._socket, GREETING_S)
            self._loop.serve()
        except RefusedError as error:
            self._count(error)
            self.ended_by = str(error)
        except BlockingIOError:
            self.ended_by = f"the client did not negotiate within {GREETING_S:g} s"
        except OSError as error:
            self.ended_by = str(error)
            if self._receiver.end > self._receiver.position and not self._stopped:
                self._count(RefusedError(Rejection.MESSAGE_CUT))
        finally:
            self._end()

    def stop(self) -> None:
        """End the connection from another thread: a blocked receive or send returns at once."""
        self._stopped = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        """ "Client Disconnection": memory unmapped, eventfds closed, device state retained."""
        self._receiver.close()
        self._message_dma.close()
        self._irqs.close()
        if self.negotiated:
            self._device.disconnect()
            if self._session.state in STOPPED_STATES:
                self._device.resume()
        close_after_reading(self._socket)

    def _count(self, error: RefusedError) -> None:
        self.statistics.rejections[error.rejection] += 1
        _log.debug("%s: refused: %.*s", self._device.name, LARGEST_LOGGED, error)

    # Messages that the trap loop hands over.

    def dispatch(self, message_id: int, command: int, size: int, flags: int, error: int) -> None:
        """Handle the message of `size` bytes that ends at the receiver's position."""
        receiver = self._receiver
        end = receiver.position
        fds, lost = receiver.take_fds(last=end == receiver.end)
        payload: bytes | memoryview = receiver.view[end - size + HEADER_SIZE : end]
        posted = bool(flags & HeaderFlag.NO_REPLY)
        if posted or flags & TYPE_MASK == TYPE_REPLY or command == Command.VERSION:
            payload = bytes(payload)  # handlers that may receive, or keep it
        request = Request(message_id, command, flags, payload, fds)
        self.statistics.messages += 1
        try:
            if flags & TYPE_MASK == TYPE_REPLY:
                self._take_reply(request, error)
                return
            self._loop.posted = posted
            reply = self._handle(request, lost=lost)
            try:
                if not posted:
                    self._send(message_id, command, reply)
            finally:
                reply.close()
        finally:
            self._loop.posted = False
            request.close()

    def _take_reply(self, request: Request, error: int) -> None:
        if request.fds:
            self._count(RefusedError(Rejection.FDS_UNWANTED, "a reply"))
        wrong = self._message_dma.reply(
            request.id, request.command, request.flags, error, bytes(request.payload)
        )
        if wrong is not None:
            self._count(RefusedError(wrong))

    def _handle(self, request: Request, *, lost: bool) -> Reply:
        if request.flags & TYPE_MASK != TYPE_COMMAND:
            raise RefusedError(Rejection.MESSAGE_TYPE, f"{request.flags:#x}")
        if lost:
            raise RefusedError(Rejection.FDS_LOST)
        if request.command == Command.VERSION:
            return self._version(request)
        if not self.negotiated:
            raise RefusedError(Rejection.VERSION_FIRST, f"command {request.command}")
        handler = self._handlers.get(request.command)
        if handler is None:
            if request.command in (Command.DMA_READ, Command.DMA_WRITE):
                raise RefusedError(Rejection.WRONG_DIRECTION, Command(request.command).name)
            raise RefusedError(Rejection.UNKNOWN_COMMAND, f"{request.command}")
        if len(request.fds) > TAKES_FDS.get(Command(request.command), 0):
            raise RefusedError(
                Rejection.FDS_UNWANTED, f"{len(request.fds)} with {Command(request.command).name}"
            )
        return handler(request)

    def _send(self, message_id: int, command: int, reply: Reply) -> None:
        message = reply_header(message_id, command, len(reply.payload)) + reply.payload
        try:
            with self._send_lock:
                send_message(self._socket, message, reply.fds)
        except OSError as error:
            raise ConnectionEndedError("the client takes no replies") from error

    def failed(self, message_id: int, command: int, flags: int, error: Exception) -> None:
        """Count what went wrong and answer it; the client may have to go."""
        if isinstance(error, RefusedError):
            self._count(error)
            number = error.rejection.error
        else:
            self.statistics.device_errors += 1
            self._device.report_error(f"vfio-user command {command}", error)
            number = errno.EIO
        try:
            if not flags & HeaderFlag.NO_REPLY and flags & TYPE_MASK != TYPE_REPLY:
                with self._send_lock:
                    self._socket.sendall(error_reply(message_id, command, number))
        except OSError as failure:
            raise ConnectionEndedError("the client takes no replies") from failure
        if isinstance(error, RefusedError) and error.rejection in ENDS_CONNECTION:
            raise ConnectionEndedError(str(error))

    # Commands of no particular noun.

    def _version(self, request: Request) -> Reply:
        """ "VFIO_USER_VERSION"; the device belongs to this client from here on."""
        if self.negotiated:
            raise RefusedError(Rejection.VERSION_AGAIN)
        if request.fds:
            raise RefusedError(Rejection.FDS_UNWANTED, "VERSION")
        peer, payload, twin = answer(bytes(request.payload), twin_socket=self._twin_socket)
        self._session.peer = peer
        self._message_dma.chunk = min(CHUNK, peer.max_data_xfer_size)
        self.negotiated = True
        self._session.enter(MigrationState.RUNNING)
        limit_receive(self._socket, 0)
        with self._device.lock:
            self._device.dma.indirect = self._message_dma
        self._on_negotiated()
        if not twin:
            return Reply(payload)
        ours, theirs = socket.socketpair()
        self._message_dma.use_twin(ours)
        return Reply(payload, (theirs.detach(),), given=True)

    def _device_info(self, request: Request) -> Reply:
        """ "VFIO_USER_DEVICE_GET_INFO"."""
        argsz, *_ = request.unpack(DEVICE_INFO)
        if argsz < DEVICE_INFO.size:
            raise RefusedError(Rejection.ARGSZ, f"{argsz} for device info")
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        return Reply(DEVICE_INFO.pack(DEVICE_INFO.size, flags, REGION_COUNT, IRQ_COUNT))

    def _reset(self, request: Request) -> Reply:
        """ "VFIO_USER_DEVICE_RESET"."""
        if len(request.payload):
            raise RefusedError(Rejection.PAYLOAD_SIZE, f"DEVICE_RESET with {len(request.payload)} bytes")
        with self._device.lock:
            self._device.reset_by_machine()
            self._migration.after_reset()
        return Reply()
