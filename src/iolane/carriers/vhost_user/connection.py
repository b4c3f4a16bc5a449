"""One front end: its requests, its end."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from iolane.carriers.descriptors import close_after_reading
from iolane.carriers.vhost_user.commands import Commands
from iolane.carriers.vhost_user.config import ConfigCommands
from iolane.carriers.vhost_user.device_state import DeviceStateCommands
from iolane.carriers.vhost_user.plane import DataPlane
from iolane.carriers.vhost_user.protocol import (
    U64,
    HeaderFlag,
    ProtocolFeature,
    Request,
)
from iolane.carriers.vhost_user.rejection import ENDS_CONNECTION, RefusedError, Rejection, Statistics
from iolane.carriers.vhost_user.rings import VringCommands
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.wire import Message, Reply, receive, send_reply
from iolane.carriers.vhost_user.written_config import WrittenConfig
from iolane.memory.signals import Signaller
from iolane.model.virtio import VirtioDevice
from iolane.model.virtio.queue import nobody

_log = logging.getLogger("iolane.vhost_user")

EIO = 5
LARGEST_LOGGED = 200

Handler = Callable[[Message], Reply | int | None]


class Entry(NamedTuple):
    """How a request is handled. A handler that returns None is acknowledged if the front end asks for
    that; one that returns a number or a reply has always answered, and is not acknowledged too.
    """

    handler: Handler
    fds: range = range(1)
    """How many descriptors it may have."""
    feature: ProtocolFeature | None = None
    """What must be negotiated."""


ONE = range(1, 2)
UP_TO_ONE = range(2)
REGIONS = range(1, 9)


class Connection:
    """Serves one front end on the thread that calls `run`.

    Args:
        connection: the accepted socket; closed by `run`.
        device: what is served.
        plane: what serves its rings.
        written: what earlier front ends wrote of the configuration.
        signaller: what signals the front end.
        on_negotiated: called when the front end has said that the device is its own.
    """

    def __init__(
        self,
        connection: socket.socket,
        device: VirtioDevice,
        plane: DataPlane,
        written: WrittenConfig,
        signaller: Signaller,
        *,
        on_negotiated: Callable[[], object] = nobody,
    ) -> None:
        self.statistics = Statistics()
        self.negotiated = False
        self.ended_by = ""
        """Why the connection ended, once it has."""
        self._socket = connection
        self._device = device
        self._stopped = False
        self._on_negotiated = on_negotiated
        self._session = Session(device, self.statistics, plane, written, signaller)
        self._states = DeviceStateCommands(self._session)
        self._table = self._make_table()

    def _make_table(self) -> dict[int, Entry]:
        commands, rings = Commands(self._session), VringCommands(self._session)
        config = ConfigCommands(self._session)
        feature = ProtocolFeature
        return {
            Request.GET_FEATURES: Entry(commands.get_features),
            Request.SET_FEATURES: Entry(commands.set_features),
            Request.SET_OWNER: Entry(self._set_owner),
            Request.RESET_OWNER: Entry(commands.reset_owner),
            Request.GET_PROTOCOL_FEATURES: Entry(commands.get_protocol_features),
            Request.SET_PROTOCOL_FEATURES: Entry(commands.set_protocol_features),
            Request.GET_QUEUE_NUM: Entry(commands.get_queue_num),
            Request.SET_MEM_TABLE: Entry(commands.set_mem_table, REGIONS),
            Request.GET_MAX_MEM_SLOTS: Entry(commands.get_max_mem_slots, feature=feature.CONFIGURE_MEM_SLOTS),
            Request.ADD_MEM_REG: Entry(commands.add_mem_reg, ONE, feature.CONFIGURE_MEM_SLOTS),
            Request.REM_MEM_REG: Entry(commands.rem_mem_reg, UP_TO_ONE, feature.CONFIGURE_MEM_SLOTS),
            Request.SET_LOG_BASE: Entry(commands.set_log_base, ONE, feature.LOG_SHMFD),
            Request.SET_LOG_FD: Entry(commands.set_log_fd, ONE),
            Request.SET_VRING_NUM: Entry(rings.set_num),
            Request.SET_VRING_ADDR: Entry(rings.set_address),
            Request.SET_VRING_BASE: Entry(rings.set_base),
            Request.GET_VRING_BASE: Entry(rings.get_base),
            Request.SET_VRING_KICK: Entry(rings.set_kick, UP_TO_ONE),
            Request.SET_VRING_CALL: Entry(rings.set_call, UP_TO_ONE),
            Request.SET_VRING_ERR: Entry(rings.set_error, UP_TO_ONE),
            Request.SET_VRING_ENABLE: Entry(rings.set_enable),
            Request.SEND_RARP: Entry(commands.send_rarp, feature=feature.RARP),
            Request.NET_SET_MTU: Entry(commands.set_mtu, feature=feature.MTU),
            Request.SET_BACKEND_REQ_FD: Entry(commands.set_backend_req_fd, ONE, feature.BACKEND_REQ),
            Request.GET_CONFIG: Entry(config.get, feature=feature.CONFIG),
            Request.SET_CONFIG: Entry(config.set, feature=feature.CONFIG),
            Request.GET_INFLIGHT_FD: Entry(commands.get_inflight_fd, feature=feature.INFLIGHT_SHMFD),
            Request.SET_INFLIGHT_FD: Entry(commands.set_inflight_fd, ONE, feature.INFLIGHT_SHMFD),
            Request.RESET_DEVICE: Entry(commands.reset_device, feature=feature.RESET_DEVICE),
            Request.SET_STATUS: Entry(commands.set_status, feature=feature.STATUS),
            Request.GET_STATUS: Entry(commands.get_status, feature=feature.STATUS),
            Request.SET_DEVICE_STATE_FD: Entry(self._states.set_fd, ONE, feature.DEVICE_STATE),
            Request.CHECK_DEVICE_STATE: Entry(self._states.check, feature=feature.DEVICE_STATE),
        }

    # The life of a connection.

    def run(self) -> None:
        """Serve until the front end goes, is thrown out, or `stop` is called. Returns with everything given
        back.
        """
        self.statistics.connections = 1
        with self._device.lock:
            self._device.config_interrupt = self._session.backend_requests.config_changed
        try:
            self.ended_by = self._serve()
        except RefusedError as error:
            self._count(error)
            self.ended_by = str(error)
        except OSError as error:
            self.ended_by = str(error)
        finally:
            self._end()

    def stop(self) -> None:
        """End the connection from another thread: a blocked receive or send returns at once."""
        self._stopped = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        self._states.close()
        self._session.close()
        with self._device.lock:
            self._device.config_interrupt = nobody
            for queue in self._device.queues:
                queue.interrupt = queue.error = nobody
        self._device.disconnect()
        close_after_reading(self._socket)

    def _count(self, error: RefusedError) -> None:
        self.statistics.rejections[error.rejection] += 1
        _log.debug("%s: refused: %.*s", self._device.name, LARGEST_LOGGED, error)

    # Requests.

    def _serve(self) -> str:
        while True:
            self._states.attend(self._socket)
            message = receive(self._socket)
            if message is None:
                return "stopped" if self._stopped else "the front end closed the connection"
            self.statistics.messages += 1
            answer = self._handle(message)
            if answer is None and message.flags & HeaderFlag.NEED_REPLY:
                answer = 0
            if answer is not None:
                reply = Reply(U64.pack(answer)) if isinstance(answer, int) else answer
                send_reply(self._socket, message.request, reply)

    def _handle(self, message: Message) -> Reply | int | None:
        try:
            return self._call(message)
        except RefusedError as error:
            if error.rejection in ENDS_CONNECTION:
                raise
            answer = self._refusal(message, error.rejection.error)
            if answer is None:
                raise
            self._count(error)
        except OSError:
            raise
        except Exception as error:
            self.statistics.device_errors += 1
            self._device.report_error(f"vhost-user request {message.request}", error)
            answer = self._refusal(message, EIO)
            if answer is None:
                raise RefusedError(Rejection.UNKNOWN_REQUEST, "it failed") from error
        finally:
            message.close()
        return answer

    def _call(self, message: Message) -> Reply | int | None:
        if message.flags & HeaderFlag.REPLY:
            raise RefusedError(Rejection.UNEXPECTED_REPLY, f"{message.request}")
        entry = self._table.get(message.request)
        if entry is None:
            raise RefusedError(Rejection.UNKNOWN_REQUEST, f"{message.request}")
        if entry.feature is not None and not self._session.negotiated(entry.feature):
            raise RefusedError(Rejection.NOT_NEGOTIATED, f"{Request(message.request).name}")
        if len(message.fds) not in entry.fds:
            raise RefusedError(
                Rejection.FDS_COUNT, f"{len(message.fds)} with {Request(message.request).name}"
            )
        return entry.handler(message)

    def _refusal(self, message: Message, error: int) -> Reply | int | None:
        """How the front end learns that a request was refused; None: it can't, so the connection must end."""
        request = message.request
        if request == Request.GET_CONFIG:
            return Reply()
        if request == Request.GET_INFLIGHT_FD:
            return Reply(bytes(len(message.payload)))
        if request in (Request.SET_DEVICE_STATE_FD, Request.CHECK_DEVICE_STATE):
            return error | (0x100 if request == Request.SET_DEVICE_STATE_FD else 0)
        if request in REPLIES or not message.flags & HeaderFlag.NEED_REPLY:
            return None
        return error

    def _set_owner(self, message: Message) -> None:
        """ "It marks the sender as the front-end that owns of the session"."""
        if not self.negotiated:
            self.negotiated = True
            self._on_negotiated()


REPLIES = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_VRING_BASE,
        Request.GET_QUEUE_NUM,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
        Request.SET_LOG_BASE,
    }
)
"""Requests whose reply is no acknowledgement, so that nothing can be refused by it."""
