"""Attacks by name: what each sends, and the rejection it must meet."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from typing import NamedTuple

from iolane.carriers.vhost_user.protocol import (
    CONFIG,
    DEVICE_STATE,
    HEADER,
    INFLIGHT,
    LOG,
    MEMORY_HEADER,
    MEMORY_REGION,
    SINGLE_REGION,
    HeaderFlag,
    Request,
)
from tests.hostile.vhost_user_link import GUARD, GUEST, RAM, RING, USER, Link, Ram

FEATURES = 1 << 32 | 1 << 30 | 0b11
TOP = (1 << 64) - 1


class Scene:
    """What attacks need: a connection, memory, descriptors of all kinds, dice."""

    def __init__(self, link: Link, ram: Ram, dice: random.Random) -> None:
        self.link = link
        self.ram = ram
        self.dice = dice
        self.running = False
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.reader, self.writer = os.pipe()
        self.null = os.open(os.devnull, os.O_RDWR)
        self.short = os.memfd_create("short")
        os.ftruncate(self.short, 100)
        self.pair = socket.socketpair()

    @property
    def descriptors(self) -> list[int]:
        pair = [end.fileno() for end in self.pair]
        return [self.kick, self.call, self.reader, self.writer, self.null, self.short, self.ram.fd, *pair]

    def share(self) -> None:
        """The memory, by its table."""
        payload = MEMORY_HEADER.pack(1, 0) + MEMORY_REGION.pack(GUEST, RAM, USER, GUARD)
        self.link.ask(Request.SET_MEM_TABLE, payload, [self.ram.fd])

    def run(self) -> None:
        """Both rings, in memory of random content."""
        self.share()
        for index in range(2):
            self.link.start(index, self.kick, self.call, 0x1000 * index)
        self.running = True

    def close(self) -> None:
        self.link.close()
        for fd in (self.kick, self.call, self.reader, self.writer, self.null, self.short):
            os.close(fd)
        for end in self.pair:
            end.close()


class Attack(NamedTuple):
    """`rejection`: the name that it must count under."""

    rejection: str
    run: Callable[[Scene], object]
    running: bool = False
    """It needs rings that run."""


def _region(scene: Scene, *region: int, fd: int | None = None) -> None:
    fds = [scene.ram.fd if fd is None else fd]
    if scene.dice.random() < 0.5:
        scene.link.ask(Request.ADD_MEM_REG, SINGLE_REGION.pack(0, *region), fds)
    else:
        payload = MEMORY_HEADER.pack(1, 0) + MEMORY_REGION.pack(*region)
        scene.link.ask(Request.SET_MEM_TABLE, payload, fds)


def _overlap(scene: Scene) -> None:
    two = MEMORY_REGION.pack(GUEST, RAM, USER, GUARD) + MEMORY_REGION.pack(GUEST + RAM // 2, RAM, USER, GUARD)
    scene.link.ask(Request.SET_MEM_TABLE, MEMORY_HEADER.pack(2, 0) + two, [scene.ram.fd] * 2)


def _cut(scene: Scene) -> None:
    scene.link.socket.sendall((HEADER.pack(2, 1, 8) + bytes(8))[: scene.dice.randrange(1, 20)])
    scene.link.socket.shutdown(socket.SHUT_WR)
    scene.link.answer()


def _raw(scene: Scene, flags: int, size: int = 0) -> None:
    scene.link.send(scene.dice.choice(list(Request)), b"", flags=flags, size=size)
    scene.link.answer()


def _log(scene: Scene, *layout: int) -> None:
    scene.link.ask(Request.SET_LOG_BASE, LOG.pack(*layout), [scene.ram.fd])


def _log_address(scene: Scene) -> None:
    log = os.memfd_create("log")
    os.ftruncate(log, 4096)
    scene.link.ask(Request.SET_LOG_BASE, LOG.pack(16, 0), [log])
    os.close(log)
    scene.link.address(0, flags=1, log=16 * 8 * 4096 - scene.dice.randrange(6))


def _outside(scene: Scene) -> None:
    scene.share()
    scene.link.state(Request.SET_VRING_NUM, 0, RING)
    scene.link.address(0, scene.dice.choice([RAM, RAM - 0x800, -0x100, 1 << 40, 8, 1 << 63]) % (1 << 62))
    scene.link.u64(Request.SET_VRING_KICK, 0, [scene.kick])
    scene.link.state(Request.SET_VRING_ENABLE, 0, 1)


def _refused_features(scene: Scene) -> None:
    scene.link.u64(Request.SET_FEATURES, FEATURES & ~scene.dice.choice([0b01, 1 << 32]))
    scene.run()


def _config(scene: Scene, offset: int, size: int, flags: int, content: bytes) -> None:
    scene.link.ask(Request.SET_CONFIG, CONFIG.pack(offset, size, flags) + content)


def _inflight(scene: Scene, *shape: int) -> None:
    scene.link.ask(Request.SET_INFLIGHT_FD, INFLIGHT.pack(*shape), [scene.ram.fd])


def _tracked_too_few(scene: Scene) -> None:
    _inflight(scene, 4096, 0, 1, 8)
    scene.link.state(Request.SET_VRING_NUM, 0, 64)
    scene.share()
    scene.link.address(0)
    scene.link.u64(Request.SET_VRING_KICK, 0, [scene.kick])
    scene.link.state(Request.SET_VRING_ENABLE, 0, 1)


def _many_fds(scene: Scene) -> None:
    scene.link.ask(scene.dice.choice(list(Request)), bytes(8), [scene.null] * scene.dice.randrange(9, 80))


def _slots(scene: Scene) -> None:
    payload = MEMORY_HEADER.pack(scene.dice.choice([0, 9, 1 << 31]), 0)
    scene.link.ask(Request.SET_MEM_TABLE, payload + bytes(64), [scene.ram.fd])


def _state_fd(scene: Scene, direction: int, phase: int, fd: int) -> None:
    scene.link.ask(Request.SET_DEVICE_STATE_FD, DEVICE_STATE.pack(direction, phase), [fd])


def _status(scene: Scene) -> None:
    offered = scene.link.ask(Request.GET_PROTOCOL_FEATURES)
    scene.link.u64(Request.SET_PROTOCOL_FEATURES, offered or 0)
    scene.link.u64(Request.SET_STATUS, scene.dice.choice([256, TOP, 1 << 32]))


def _not_negotiated(scene: Scene) -> None:
    scene.link.u64(Request.SET_PROTOCOL_FEATURES, 0b1000)
    scene.link.ask(
        scene.dice.choice([Request.SET_CONFIG, Request.RESET_DEVICE, Request.NET_SET_MTU, Request.SEND_RARP])
    )


ATTACKS = [
    Attack("MESSAGE_VERSION", lambda s: _raw(s, s.dice.choice([0, 2, 3, 8, 0xFFFF_FFFC]))),
    Attack("MESSAGE_TOO_LONG", lambda s: _raw(s, 1, s.dice.choice([4097, 1 << 20, 0xFFFF_FFFF]))),
    Attack("MESSAGE_CUT", _cut),
    Attack("UNEXPECTED_REPLY", lambda s: _raw(s, 1 | HeaderFlag.REPLY)),
    Attack("UNKNOWN_REQUEST", lambda s: s.link.ask(s.dice.choice([0, 22, 23, 26, 33, 44, 1 << 31]))),
    Attack("PAYLOAD_SIZE", lambda s: s.link.ask(Request.SET_FEATURES, bytes(s.dice.choice([0, 7, 9, 4096])))),
    Attack("NOT_NEGOTIATED", _not_negotiated),
    Attack(
        "FDS_COUNT", lambda s: s.link.ask(Request.SET_OWNER, b"", s.descriptors[: s.dice.randrange(1, 8)])
    ),
    Attack("FDS_LOST", _many_fds),
    Attack("FD_KIND", lambda s: s.link.u64(s.dice.choice([12, 13, 14]), 0, [s.null])),
    Attack("FEATURES_NOT_OFFERED", lambda s: s.link.u64(2, FEATURES | 1 << s.dice.choice([5, 33, 40, 63]))),
    Attack("FEATURES_WHILE_RUNNING", lambda s: s.link.u64(2, FEATURES & ~1), running=True),
    Attack("PROTOCOL_FEATURES", lambda s: s.link.u64(16, 1 << s.dice.choice([6, 8, 14, 17, 20, 63]))),
    Attack("REGION_COUNT", _slots),
    Attack("REGION_RANGE", lambda s: _region(s, TOP - s.dice.randrange(4096), 8192, USER, 0)),
    Attack("REGION_OVERLAP", _overlap),
    Attack("REGION_FILE", lambda s: _region(s, GUEST, 1 << s.dice.randrange(20, 60), USER, 0)),
    Attack("REGION_FILE", lambda s: _region(s, GUEST, 4096, USER, 0, fd=s.dice.choice([s.null, s.short]))),
    Attack("REGION_UNKNOWN", lambda s: s.link.ask(38, SINGLE_REGION.pack(0, 1, 2, 3, 4))),
    Attack("VRING_INDEX", lambda s: s.link.state(s.dice.choice([8, 10, 18]), s.dice.choice([2, TOP]), 1)),
    Attack("VRING_NUM", lambda s: s.link.state(8, 0, s.dice.choice([0, 3, 1 << 16, TOP]))),
    Attack("VRING_NUM", _tracked_too_few),
    Attack("VRING_BASE", lambda s: s.link.state(10, 0, s.dice.choice([1 << 16, TOP]))),
    Attack("VRING_ADDRESS", _outside),
    Attack("VRING_RUNNING", lambda s: s.link.state(8, 0, 2 * RING), running=True),
    Attack("VRING_RUNNING", lambda s: s.link.address(1, 0x4000), running=True),
    Attack("VRING_REFUSED", lambda s: s.run()),
    Attack("LOG_SIZE", lambda s: _log(s, s.dice.choice([0, 1 << 50, TOP]), s.dice.choice([0, 1 << 63]))),
    Attack("LOG_ADDRESS", _log_address),
    Attack("CONFIG_RANGE", lambda s: _config(s, s.dice.choice([0, TOP >> 32]), 257, 0, bytes(300))),
    Attack("CONFIG_READ_ONLY", lambda s: _config(s, 0, 4, 0, s.dice.randbytes(4))),
    Attack("CONFIG_FLAGS", lambda s: _config(s, 4, 1, s.dice.choice([2, TOP >> 32]), b"\1")),
    Attack("INFLIGHT_SHAPE", lambda s: _inflight(s, 4096, 0, s.dice.choice([0, 3, 0xFFFF]), 16)),
    Attack("INFLIGHT_FILE", lambda s: _inflight(s, 4096, s.dice.choice([RAM << 4, TOP - 4095]), 1, 16)),
    Attack("STATUS", _status),
    Attack("FEATURES_REFUSED", _refused_features),
    Attack("STATE_DIRECTION", lambda s: _state_fd(s, s.dice.choice([2, TOP >> 32]), 0, s.writer)),
    Attack("STATE_RUNNING", lambda s: _state_fd(s, 0, 0, s.writer), running=True),
    Attack("STATE_REFUSED", lambda s: s.link.ask(Request.CHECK_DEVICE_STATE)),
    Attack("MTU", lambda s: s.link.u64(Request.NET_SET_MTU, s.dice.choice([0, 67, 65536, TOP]))),
]
