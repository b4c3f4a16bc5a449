"""Attacks on a vfio-user server, each after one rule.

Registered with the name of the rejection that it must meet, or with None for random ones, and by whether the
message passes the check of its header (a known command from client to server, a size that is its own).
"""

from __future__ import annotations

import os
import random
import resource
import struct
from collections.abc import Callable
from typing import NamedTuple

from tests.hostile.vfio_user_link import HEADER, REPLY, VERSION, Found, Link, message

PAGE = 4096
READ_WRITE = 3
EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    31,
    32,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0xFFF,
    0x1000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
)
EDGES_64 = (*EDGES, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)


class Kit:
    """What an attack works with: randomness, descriptors of every kind, and where to connect."""

    def __init__(self, rng: random.Random, connect: Callable[..., Link]) -> None:
        self.rng = rng
        self.connect = connect
        self.ram = os.memfd_create("ram")
        os.ftruncate(self.ram, 64 * PAGE)
        self.read_only = os.open(f"/proc/self/fd/{self.ram}", os.O_RDONLY)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.pipe = os.pipe()
        self.null = os.open("/dev/null", os.O_RDWR)
        self.fds = (self.ram, self.read_only, self.event, *self.pipe, self.null)

    def edge(self) -> int:
        return self.rng.choice(EDGES_64) if self.rng.random() < 0.8 else self.rng.getrandbits(64)

    def edge32(self) -> int:
        return self.edge() & 0xFFFF_FFFF

    def some_fds(self, most: int = 3) -> list[int]:
        return [self.rng.choice(self.fds) for _ in range(self.rng.randint(0, most))]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


Run = Callable[[Kit, Link], None]


class Attack(NamedTuple):
    name: str
    rejection: str | None
    passes_header: bool
    run: Run


ATTACKS: list[Attack] = []


def attack(*rejections: str | None, header: bool = True) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        ATTACKS.extend(Attack(run.__name__, rejection, header, run) for rejection in rejections or (None,))
        return run

    return register


def refused(link: Link, data: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
    """Must get an error reply, or the door."""
    answer = link.ask(data, fds)
    if answer is not None and answer.error is None:
        raise Found(f"accepted: {data[:64].hex()} with {len(fds)} descriptors")


def region_info(argsz: int, index: int) -> bytes:
    return message(5, struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0))


def dma_map(address: int, size: int, flags: int = READ_WRITE, offset: int = 0, argsz: int = 32) -> bytes:
    return message(2, struct.pack("<IIQQQ", argsz, flags, offset, address, size))


def dma_unmap(address: int, size: int, flags: int = 0, argsz: int = 24, extra: bytes = b"") -> bytes:
    return message(3, struct.pack("<IIQQ", argsz, flags, address, size) + extra)


def set_irqs(flags: int, index: int, start: int, count: int, data: bytes = b"", argsz: int = 20) -> bytes:
    return message(8, struct.pack("<IIIII", argsz, flags, index, start, count) + data)


def read(offset: int, index: int, count: int) -> bytes:
    return message(9, struct.pack("<QII", offset, index, count))


def write(offset: int, index: int, data: bytes, *, flags: int = 0) -> bytes:
    return message(10, struct.pack("<QII", offset, index, len(data)) + data, flags=flags)


def feature(index: int, operation: int, data: bytes = b"", argsz: int = 65536) -> bytes:
    return message(16, struct.pack("<II", argsz, index | operation << 16) + data)


def state(number: int) -> bytes:
    return feature(2, 2, struct.pack("<II", number, 0))


# Headers.


@attack("MESSAGE_TOO_SHORT", header=False)
def too_short(kit: Kit, link: Link) -> None:
    refused(link, message(kit.rng.choice((9, 10, 13)), bytes(20), size=kit.rng.randrange(16)))


@attack("MESSAGE_TOO_LONG", header=False)
def too_long(kit: Kit, link: Link) -> None:
    size = kit.rng.choice((0x7FFF_FFFF, 0xFFFF_FFFF, (1 << 20) + 200, kit.rng.randrange(2 << 20, 1 << 32)))
    refused(link, message(kit.rng.choice((9, 10, 2)), bytes(20), size=size))


@attack("MESSAGE_CUT", header=False)
def cut(kit: Kit, link: Link) -> None:
    whole = write(0, 0, bytes(kit.rng.choice((4, 100, 5000))))
    link.send(whole[: kit.rng.randrange(1, len(whole))], kit.some_fds())
    if link.drain():
        raise Found("a reply to a part of a message")


@attack("MESSAGE_TYPE", header=False)
def wrong_type(kit: Kit, link: Link) -> None:
    flags = kit.rng.randrange(2, 16) | kit.rng.choice((0, 0x20, 0x40))
    refused(link, message(9, struct.pack("<QII", 0, 0, 4), flags=flags))


@attack("UNEXPECTED_REPLY", header=False)
def reply_to_nothing(kit: Kit, link: Link) -> None:
    payload = kit.rng.randbytes(kit.rng.choice((0, 15, 16, 100)))
    link.send(
        message(kit.rng.randrange(20), payload, flags=REPLY | kit.rng.choice((0, 0x20))), kit.some_fds()
    )
    link.expect(read(0, 0, 4))


@attack("UNKNOWN_COMMAND", header=False)
def unknown_command(kit: Kit, link: Link) -> None:
    command = kit.rng.choice((0, 14, 19, 20, 0x100, 0xFFFF))
    refused(link, message(command, kit.rng.randbytes(kit.rng.randrange(100))), kit.some_fds())


@attack("WRONG_DIRECTION", header=False)
def wrong_direction(kit: Kit, link: Link) -> None:
    refused(link, message(kit.rng.choice((11, 12)), struct.pack("<QQ", kit.edge(), kit.edge())))


@attack("VERSION_FIRST", header=False)
def no_version(kit: Kit, link: Link) -> None:
    fresh = kit.connect(negotiate=False)
    refused(
        fresh, message(kit.rng.choice((2, 3, 4, 8, 9, 13, 16, 99)), kit.rng.randbytes(48)), kit.some_fds()
    )
    fresh.close()


@attack(header=False)
def random_header(kit: Kit, link: Link) -> None:
    """Anything may come of it but a hang, or a descriptor that stays."""
    fields = list(HEADER.unpack_from(read(0, 0, 4)))
    place = kit.rng.randrange(1, 5)
    fields[place] = kit.rng.choice((kit.edge32(), kit.rng.getrandbits(32), kit.rng.randrange(64))) & (
        0xFFFF if place == 1 else 0xFFFF_FFFF
    )
    link.send(HEADER.pack(*fields) + kit.rng.randbytes(kit.rng.randrange(80)), kit.some_fds())
    link.drain()


@attack(header=False)
def noise(kit: Kit, link: Link) -> None:
    link.send(kit.rng.randbytes(kit.rng.randrange(1, 200)), kit.some_fds())
    link.drain()


# Sizes and descriptors.


@attack("PAYLOAD_SIZE")
def wrong_payload(kit: Kit, link: Link) -> None:
    command, least = kit.rng.choice(
        (
            (2, 32),
            (3, 24),
            (4, 16),
            (5, 32),
            (6, 16),
            (7, 16),
            (8, 20),
            (9, 16),
            (10, 16),
            (15, 8),
            (16, 8),
            (17, 8),
            (18, 8),
        )
    )
    refused(link, message(command, kit.rng.randbytes(kit.rng.randrange(least))))


@attack("PAYLOAD_SIZE")
def wrong_payload_behind_the_fixed_part(kit: Kit, link: Link) -> None:
    refused(
        link,
        kit.rng.choice(
            (
                message(2, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE) + b"x"),
                message(9, struct.pack("<QII", 0, 0, 4) + b"x"),
                message(13, b"x"),
                set_irqs(0x22, 2, 0, 3, b"\1\1"),
                set_irqs(0x22, 2, 0, 0xFFFF_FFFF, b"\1\1"),
                dma_unmap(0, PAGE, flags=1, argsz=64),
                feature(2, 2, b"\1\0\0"),
                feature(6, 2, struct.pack("<QII", PAGE, kit.rng.choice((1, 0xFFFF_FFFF)), 0)),
                message(18, struct.pack("<II", 100, 50)),
            )
        ),
    )


@attack("ARGSZ")
def wrong_argsz(kit: Kit, link: Link) -> None:
    small = kit.rng.randrange(16)
    refused(
        link,
        kit.rng.choice(
            (
                region_info(kit.rng.randrange(32), kit.rng.randrange(9)),
                dma_map(0, PAGE, argsz=small),
                dma_unmap(0, PAGE, argsz=kit.rng.choice((small, 0xFFFF_FFFF, (1 << 20) + 1))),
                message(4, struct.pack("<IIII", small, 0, 0, 0)),
                message(6, struct.pack("<IIII", kit.rng.choice((small, 0xFFFF_FFFF)), 0, 0, 0)),
                message(7, struct.pack("<IIII", small, 0, 0, 0)),
                set_irqs(0x21, 0, 0, 1, argsz=small),
                feature(1, 1, argsz=small),
                feature(2, 2, struct.pack("<II", 2, 0), argsz=small),
                dma_unmap(
                    0,
                    PAGE,
                    flags=1,
                    argsz=48,
                    extra=struct.pack("<QQ", PAGE, kit.rng.choice((1 << 63, 4096))),
                ),
            )
        ),
    )


@attack("FDS_UNWANTED")
def unwanted_fds(kit: Kit, link: Link) -> None:
    given = [kit.rng.choice(kit.fds) for _ in range(kit.rng.choice((1, 2, 16, 100)))]
    refused(
        link,
        kit.rng.choice(
            (
                read(0, 0, 4),
                write(0, 0, bytes(4)),
                message(13),
                message(4, struct.pack("<IIII", 16, 0, 0, 0)),
                set_irqs(0x21, 2, 0, 1),
            )
        ),
        given,
    )
    refused(link, dma_map(0, PAGE), [kit.ram, *given])


@attack("FDS_LOST")
def lost_fds(kit: Kit, link: Link) -> None:
    """More than the process may open: the kernel drops what does not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        refused(link, set_irqs(0x24, 2, 0, 40), [kit.event] * 250)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# VERSION.


def proposal(data: bytes, major: int = 0) -> bytes:
    return message(1, struct.pack("<HH", major, 0) + data)


@attack("VERSION_AGAIN")
def version_again(kit: Kit, link: Link) -> None:
    refused(link, message(1, VERSION))


@attack("VERSION_MAJOR", "VERSION_DATA", "VERSION_CAPABILITY")
def bad_version(kit: Kit, link: Link) -> None:
    values = kit.rng.choice(("-1", '"x"', "1e400", "[]", str(1 << 70), "null1", "true"))
    for data in (
        proposal(b"{}\0", major=kit.rng.randrange(1, 0x10000)),
        proposal(
            kit.rng.choice(
                (b"{}", b"{\0", b"\xff\0", b"[]\0", b"1\0", b"[" * 5000 + b"\0", kit.rng.randbytes(30))
            )
        ),
        proposal(b'{"capabilities":{"max_msg_fds":%s}}\0' % values.replace("null1", "-9").encode()),
    ):
        fresh = kit.connect(negotiate=False)
        refused(fresh, data)
        fresh.close()
