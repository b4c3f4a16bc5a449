"""Attacks on regions, interrupts and DMA maps."""

from __future__ import annotations

import os
import struct

from tests.hostile.vfio_user_attacks import (
    PAGE,
    READ_WRITE,
    Kit,
    attack,
    dma_map,
    dma_unmap,
    read,
    refused,
    region_info,
    set_irqs,
    state,
    write,
)
from tests.hostile.vfio_user_link import Found, Link, message

# Regions.


@attack("REGION_INDEX")
def no_such_region(kit: Kit, link: Link) -> None:
    index = kit.rng.choice((9, 10, 0xFF, 0x8000_0000, 0xFFFF_FFFF))
    refused(link, kit.rng.choice((read(0, index, 4), write(0, index, bytes(4)), region_info(32, index))))


@attack("REGION_RANGE")
def outside_of_a_region(kit: Kit, link: Link) -> None:
    index, count = kit.rng.choice((0, 6, 7, 8)), kit.rng.choice((1, 2, 4, 8, 100))
    offset = kit.rng.choice(
        (4096, 4095 - count + 2, (1 << 64) - 1, 1 << 63, 1 << 32, kit.rng.randrange(4097, 1 << 64))
    )
    refused(link, kit.rng.choice((read(offset, index, count), write(offset, index, bytes(count)))))


@attack("REGION_COUNT")
def wrong_count(kit: Kit, link: Link) -> None:
    count = kit.rng.choice((0, 3, 5, 0xFFFF_FFFF, 1 << 21))
    huge = kit.rng.choice((0xFFFF_FFFF, (1 << 20) + 1))
    refused(
        link, kit.rng.choice((message(10, struct.pack("<QII", 0, 0, count) + bytes(4)), read(0, 0, huge)))
    )


@attack("WRITE_MULTI_COUNT")
def wrong_multi(kit: Kit, link: Link) -> None:
    good = struct.pack("<QII8s", 0, 0, 4, b"")
    refused(
        link,
        message(
            15,
            kit.rng.choice(
                (
                    struct.pack("<Q", kit.rng.choice((0, 2, 1 << 32, (1 << 64) - 1))) + good,
                    struct.pack("<Q", 2)
                    + good
                    + struct.pack("<QII8s", 0, 0, kit.rng.choice((9, 0xFFFF_FFFF)), b""),
                )
            ),
        ),
    )


@attack("REGION_FLAGS")
def region_io_flags(kit: Kit, link: Link) -> None:
    refused(link, message(6, struct.pack("<IIII", 4096, kit.rng.randrange(1, 99), 0, kit.rng.randrange(99))))


@attack("DEVICE_STOPPED")
def write_while_stopped(kit: Kit, link: Link) -> None:
    link.expect(state(kit.rng.choice((1, 3, 4))))
    refused(link, write(0, 0, bytes(kit.rng.choice((1, 4, 8)))))
    link.expect(state(2))


# Interrupts.


@attack("IRQ_INDEX")
def no_such_interrupt(kit: Kit, link: Link) -> None:
    index = kit.rng.choice((5, 6, 0xFFFF_FFFF))
    refused(
        link, kit.rng.choice((set_irqs(0x21, index, 0, 1), message(7, struct.pack("<IIII", 16, 0, index, 0))))
    )


@attack("IRQ_RANGE")
def no_such_vector(kit: Kit, link: Link) -> None:
    start, count = kit.rng.choice(
        ((40, 1), (0, 41), (39, 2), (0xFFFF_FFFF, 1), (1, 0xFFFF_FFFF), (0xFFFF_FFFF, 0xFFFF_FFFF))
    )
    refused(link, set_irqs(kit.rng.choice((0x21, 0x24)), 2, start, count))


@attack("IRQ_FLAGS")
def irq_flags(kit: Kit, link: Link) -> None:
    flags = kit.rng.choice((0, 1, 0x20, 0x23, 0x39, 0x61, 0x8000_0021, 0x25))
    refused(link, set_irqs(flags, 2, 0, 1))
    refused(link, kit.rng.choice((set_irqs(0x21, 2, 5, 0), set_irqs(0x24, 2, 0, 0), set_irqs(0x09, 0, 0, 0))))


@attack("IRQ_ACTION")
def irq_action(kit: Kit, link: Link) -> None:
    if kit.rng.random() < 0.5:
        refused(link, set_irqs(kit.rng.choice((0x09, 0x11)), 2, 0, 4))
    else:
        mask, unmask = set_irqs(0x0C, 0, 0, 1), set_irqs(0x14, 2, 0, 1)  # an eventfd unmasks INTx alone
        refused(link, kit.rng.choice((mask, unmask)), [kit.event])


@attack("IRQ_FDS")
def irq_fds(kit: Kit, link: Link) -> None:
    count, given = kit.rng.choice(((1, 2), (2, 1), (16, 15), (1, 100)))
    refused(link, set_irqs(0x24, 2, 0, count), [kit.event] * given)


@attack("IRQ_NOT_EVENTFD")
def no_eventfd(kit: Kit, link: Link) -> None:
    bad = kit.rng.choice((kit.ram, kit.read_only, *kit.pipe, kit.null))
    fds = [kit.event, bad, kit.event]
    kit.rng.shuffle(fds)
    refused(link, set_irqs(0x24, 2, kit.rng.randrange(37), 3), fds)
    refused(link, set_irqs(0x14, 0, 0, 1), [bad])


# DMA.


@attack("DMA_FLAGS")
def dma_flags(kit: Kit, link: Link) -> None:
    flags = kit.rng.choice((0, 4, 8, 0x10, 0x13, 0x8000_0003, 0xFFFF_FFFF))
    fds = [kit.ram] * kit.rng.randrange(2)
    if flags in (4, 8):
        flags |= READ_WRITE
        fds = []
    refused(link, kit.rng.choice((dma_map(0, PAGE, flags=flags), dma_map(0, PAGE, flags=0))), fds)
    refused(link, dma_unmap(0, PAGE, flags=kit.rng.choice((3, 4, 0xFFFF_FFFF))))


@attack("DMA_RANGE")
def dma_range(kit: Kit, link: Link) -> None:
    address, size, offset = kit.rng.choice(
        (
            (0, 0, 0),
            ((1 << 64) - PAGE, 2 * PAGE, 0),
            (PAGE, (1 << 64) - PAGE + 1, 0),
            (1, PAGE, 0),
            (0, PAGE + 1, 0),
            (0, PAGE, 7),
            (0, (1 << 64) - 1, 0),
        )
    )
    refused(link, dma_map(address, size, offset=offset), [kit.ram])
    refused(
        link, kit.rng.choice((dma_unmap(0, 0), dma_unmap(1 << 63, (1 << 63) + 1), dma_unmap(1, 1, flags=2)))
    )


@attack("DMA_OVERLAP")
def dma_overlap(kit: Kit, link: Link) -> None:
    base = kit.rng.randrange(8) * 16 * PAGE
    link.ask(dma_map(base, 4 * PAGE), [kit.ram])
    refused(link, dma_map(base + kit.rng.randrange(4) * PAGE, kit.rng.randrange(1, 5) * PAGE), [kit.ram])
    link.expect(dma_unmap(0, 1 << 40))


@attack("DMA_LIMIT")
def dma_limit(kit: Kit, link: Link) -> None:
    """The limit is lowered for this test: 65,535 maps take a while."""
    for page in range(64):
        answer = link.ask(dma_map((1 << 32) + page * PAGE, PAGE))
        if answer is not None and answer.error is not None:
            break
    else:
        raise Found("as many maps as one likes")
    link.expect(dma_unmap(0, 1 << 40))


@attack("DMA_FILE")
def dma_file(kit: Kit, link: Link) -> None:
    fd = kit.rng.choice((kit.read_only, kit.event, *kit.pipe, kit.null))
    refused(link, dma_map(1 << 40, PAGE), [fd])
    offset = kit.rng.choice((64, 1 << 40, (1 << 52) - 1)) * PAGE
    refused(link, dma_map(1 << 40, kit.rng.choice((1, 65, 1 << 50)) * PAGE, offset=offset), [kit.ram])


@attack("DMA_STRADDLE")
def dma_straddle(kit: Kit, link: Link) -> None:
    link.ask(dma_map(1 << 41, 8 * PAGE), [kit.ram] * kit.rng.randrange(2))
    start, size = kit.rng.choice(((0, 1), (1, 1), (1, 100), (7, 1)))
    refused(link, dma_unmap((1 << 41) + start * PAGE, size * PAGE))
    link.expect(message(3, struct.pack("<IIQQ", 24, 2, 0, 0)))


@attack("DMA_BITMAP")
def dma_bitmap(kit: Kit, link: Link) -> None:
    bitmap = kit.rng.choice(
        (struct.pack("<QQ", PAGE, 8), struct.pack("<QQ", 0, 8), struct.pack("<QQ", PAGE, 0))
    )
    refused(link, dma_unmap(0, kit.rng.choice((PAGE, 1 << 50)), flags=1, argsz=64, extra=bitmap))


@attack()
def truncated_memory(kit: Kit, link: Link) -> None:
    """The file behind a map shrinks; the device then reads and writes it."""
    fd = os.memfd_create("shrinking")
    os.ftruncate(fd, 4 * PAGE)
    link.expect(message(13))
    link.expect(write(4, 7, b"\6\0"))
    link.expect(dma_map(0, 4 * PAGE), [fd])
    link.expect(write(0x10, 0, struct.pack("<Q", 3 * PAGE)))
    os.ftruncate(fd, kit.rng.choice((0, PAGE)))
    link.expect(write(0x1C, 0, kit.rng.choice((b"\1\0\0\0", b"\2\0\0\0"))))
    link.expect(dma_unmap(0, 4 * PAGE))
    os.close(fd)
