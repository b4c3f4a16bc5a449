"""The device's configuration space ("Virtio device config space")."""

from __future__ import annotations

from iolane.carriers.vhost_user.protocol import CONFIG, MAX_CONFIG_SIZE, ConfigFlag
from iolane.carriers.vhost_user.rejection import RefusedError, Rejection
from iolane.carriers.vhost_user.session import Session
from iolane.carriers.vhost_user.wire import Message, Reply
from iolane.carriers.vhost_user.written_config import writable_bits
from iolane.model.virtio import VirtioDevice

FLAGS = frozenset(ConfigFlag)


class ConfigCommands:
    """GET_CONFIG and SET_CONFIG."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, message: Message) -> Reply:
        """ "vhost-user back-end's payload size MUST match the front-end's request, vhost-user back-end
        uses zero length of payload to indicate an error".

        Front ends ask for the largest configuration that they know; what the device does not have is 0.
        """
        offset, size, flags = message.unpack(CONFIG, exact=False)
        _check_range(offset, size)
        device = self._session.device
        with device.lock:
            content = device.read_config(offset, size)
            content = self._session.written.overlay(device.config, offset, content)
        return Reply(CONFIG.pack(offset, size, flags) + content)

    def set(self, message: Message) -> None:
        """ "Back-ends MUST NOT accept SET_CONFIG for read-only configuration space fields unless the live
        migration bit is set": then what is read-only stays what the device makes it.
        """
        offset, size, flags = message.unpack(CONFIG, exact=False)
        content = message.payload[CONFIG.size :]
        _check_range(offset, size)
        if len(content) < size:
            raise RefusedError(Rejection.PAYLOAD_SIZE, f"SET_CONFIG of {size} bytes has {len(content)}")
        if flags not in FLAGS:
            raise RefusedError(Rejection.CONFIG_FLAGS, f"{flags:#x}")
        device = self._session.device
        with device.lock:
            if flags == ConfigFlag.WRITABLE:
                _check_writable(device, offset, content[:size])
            device.write_config(offset, content[:size])
            self._session.written.note(device.config, offset, content[:size])


def _check_range(offset: int, size: int) -> None:
    if not size or offset + size > MAX_CONFIG_SIZE:
        raise RefusedError(Rejection.CONFIG_RANGE, f"{size} bytes at {offset}")


def _check_writable(device: VirtioDevice, offset: int, content: bytes) -> None:
    """What the driver may only read must be written as it is."""
    present = device.read_config(offset, len(content))
    for at, (new, old) in enumerate(zip(content, present, strict=True), offset):
        if (new ^ old) & ~writable_bits(device.config, at):
            raise RefusedError(Rejection.CONFIG_READ_ONLY, f"byte {at}: {new:#04x}, it is {old:#04x}")
