"""Attacks on features, migration and message DMA, and random ones on everything."""

from __future__ import annotations

import struct

from tests.hostile.vfio_user_attacks import (
    PAGE,
    Kit,
    attack,
    dma_map,
    dma_unmap,
    feature,
    read,
    refused,
    region_info,
    set_irqs,
    state,
    write,
)
from tests.hostile.vfio_user_link import HEADER, MESSAGE_ID, NO_REPLY, REPLY, Found, Link, message

# Features and migration.


@attack("FEATURE_INDEX")
def no_such_feature(kit: Kit, link: Link) -> None:
    refused(
        link, feature(kit.rng.choice((0, 3, 4, 5, 9, 0xFFFF)), kit.rng.randrange(8), kit.rng.randbytes(24))
    )


@attack("FEATURE_FLAGS")
def feature_flags(kit: Kit, link: Link) -> None:
    index, operation = kit.rng.choice(((1, 0), (1, 2), (2, 3), (6, 1), (8, 2), (1, 8), (2, 0x8000), (1, 6)))
    refused(link, feature(index, operation, kit.rng.randbytes(24)))


@attack("LOGGING_RANGE", "LOGGING_OFF")
def dirty_logging(kit: Kit, link: Link) -> None:
    link.ask(feature(7, 2))
    refused(link, kit.rng.choice((feature(7, 2), feature(8, 1, struct.pack("<QQQ", 0, PAGE, PAGE)))))
    page_size = kit.rng.choice((0, 1, 3000, 1 << 40, (1 << 64) - 1))
    refused(link, feature(6, 2, struct.pack("<QII", page_size, 0, 0)))
    refused(link, feature(6, 2, struct.pack("<QIIQQ", PAGE, 1, 0, (1 << 64) - PAGE, 2 * PAGE)))
    link.expect(feature(6, 2, struct.pack("<QII", PAGE, 0, 0)))
    iova, length, page = kit.rng.choice(
        ((0, 0, PAGE), (0, PAGE, 512), (0, PAGE, 0), (0, 1 << 63, PAGE), (1, PAGE, PAGE))
    )
    refused(link, feature(8, 1, struct.pack("<QQQ", iova, length, page)))
    link.expect(feature(7, 2))


@attack("MIGRATION_ARC")
def no_such_way(kit: Kit, link: Link) -> None:
    refused(link, state(kit.rng.choice((0, 5, 7, 8, 0xFFFF_FFFF))))


@attack("MIGRATION_DATA")
def no_data_now(kit: Kit, link: Link) -> None:
    size = kit.rng.choice((0, 8, 100))
    refused(link, message(17, struct.pack("<II", size + 8, size)))
    refused(link, message(18, struct.pack("<II", size + 8, size) + bytes(size)))


@attack("MIGRATION_STREAM")
def bad_stream(kit: Kit, link: Link) -> None:
    """Every few, a real state with some bytes changed."""
    link.expect(state(3))
    payload = link.expect(message(17, struct.pack("<II", 65544, 65536)))
    stream = bytearray(payload[8:])
    for _ in range(kit.rng.randrange(1, 5)):
        stream[kit.rng.randrange(len(stream))] ^= 1 << kit.rng.randrange(8)
    if kit.rng.random() < 0.3:
        stream = bytearray(kit.rng.randbytes(kit.rng.randrange(1, 200)))
    link.expect(state(4))
    link.expect(message(18, struct.pack("<II", len(stream) + 8, len(stream)) + bytes(stream)))
    answer = link.ask(state(2))
    if answer is not None and answer.error is None and bytes(stream) != payload[8:]:
        raise Found("a state with flipped bits was taken")
    link.expect(message(13))


# Message DMA.


@attack("WRONG_REPLY")
def wrong_reply(kit: Kit, link: Link) -> None:
    link.expect(message(13))
    link.expect(write(4, 7, b"\6\0"))
    link.expect(dma_map(0, PAGE))
    link.answering = False
    link.send(write(0x1C, 0, b"\1\0\0\0", flags=NO_REPLY))
    link.send(read(0, 0, 4))
    link.answer()
    link.answering = True
    if not link.asked:
        raise Found("the device did not ask for memory")
    message_id, command, *_ = HEADER.unpack(link.asked.pop())
    payload = kit.rng.choice(
        (
            b"",
            struct.pack("<QQ", 0, 4),
            struct.pack("<QQ", 8, 4) + bytes(4),
            struct.pack("<QQ", 0, 1 << 63) + bytes(4),
            bytes(5000),
        )
    )
    command = kit.rng.choice((command, command, 12, 9))
    link.send(HEADER.pack(message_id, command, HEADER.size + len(payload), REPLY, 0) + payload)
    link.expect(dma_unmap(0, 1 << 40))


# Any message, anything in it.


def good_message(kit: Kit) -> tuple[bytes, list[int]]:
    fds: list[int] = []
    data = kit.rng.choice(
        (
            message(4, struct.pack("<IIII", 16, 0, 0, 0)),
            region_info(kit.rng.choice((32, 80)), kit.rng.randrange(9)),
            message(6, struct.pack("<IIII", 64, 0, 0, 0)),
            message(7, struct.pack("<IIII", 16, 0, kit.rng.randrange(5), 0)),
            set_irqs(kit.rng.choice((0x21, 0x24)), kit.rng.randrange(3), 0, 1),
            set_irqs(0x22, 1, 0, 4, b"\1\0\1\0", argsz=24),
            set_irqs(kit.rng.choice((0x09, 0x11, 0x21)), 0, 0, 1),
            read(kit.rng.randrange(64), kit.rng.choice((0, 1, 3, 4, 7)), kit.rng.choice((1, 2, 4, 8, 32))),
            write(
                kit.rng.randrange(64),
                kit.rng.choice((0, 1, 3, 4, 7)),
                kit.rng.randbytes(kit.rng.choice((1, 2, 4, 8, 32))),
            ),
            message(13),
            message(15, struct.pack("<QQII8s", 1, 0, 0, 4, b"abcd")),
            feature(kit.rng.choice((1, 2, 6, 7, 8)), kit.rng.choice((1, 2, 4)), kit.rng.randbytes(24)),
            state(kit.rng.randrange(8)),
            message(17, struct.pack("<II", 108, 100)),
            message(18, struct.pack("<II", 16, 8) + kit.rng.randbytes(8)),
            dma_map(kit.rng.randrange(16) * PAGE, PAGE, offset=kit.rng.randrange(16) * PAGE),
            dma_unmap(kit.rng.randrange(16) * PAGE, PAGE),
        )
    )
    if data[2] == 2:
        fds = kit.rng.choice(([], [kit.ram]))
    elif data[2] == 8:
        fds = kit.rng.choice(([], [kit.event]))
    return data, fds


@attack()
def any_field(kit: Kit, link: Link) -> None:
    """A good message in which some aligned fields get other values; its size stays its own."""
    data, fds = good_message(kit)
    changed = bytearray(data)
    for _ in range(kit.rng.randrange(1, 4)):
        width = kit.rng.choice((1, 2, 4, 8))
        places = range(HEADER.size, len(changed) - width + 1, width)
        if places:
            place = kit.rng.choice(places)
            changed[place : place + width] = (kit.edge() & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    if kit.rng.random() < 0.2:
        fds = kit.some_fds(20)
    link.ask(bytes(changed), fds)


@attack()
def any_length(kit: Kit, link: Link) -> None:
    """A good message, longer or shorter, with a header that says so."""
    data, fds = good_message(kit)
    payload = data[HEADER.size :]
    cut_at = kit.rng.randrange(len(payload) + 1)
    payload = payload[:cut_at] if kit.rng.random() < 0.5 else payload + kit.rng.randbytes(cut_at + 1)
    link.ask(message(data[2], payload), fds)


@attack()
def any_burst(kit: Kit, link: Link) -> None:
    """Several at once, posted and not, in pieces that end anywhere."""
    burst, replies = b"", 0
    for _ in range(kit.rng.randrange(2, 6)):
        data, _ = good_message(kit)
        posted = kit.rng.random() < 0.5
        replies += not posted
        burst += (
            HEADER.pack(MESSAGE_ID, data[2], len(data), NO_REPLY if posted else 0, 0) + data[HEADER.size :]
        )
    cut_at = kit.rng.randrange(len(burst))
    link.send(burst[:cut_at])
    link.send(burst[cut_at:], kit.some_fds(1))
    for _ in range(replies):
        if link.answer() is None:
            return
