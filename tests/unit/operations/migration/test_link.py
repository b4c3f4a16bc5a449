"""One thread reads a link while others write it, under TLS or not (SSL_read(3): an object is used by one
thread at a time).
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from iolane.engines.qemu.credentials import TlsCredentials
from iolane.operations.migration.link import Link
from iolane.operations.migration.tls import secured
from tests.unit.operations.migration.certificates import make_certificates

LINES = 3000
LINKS = 400
Pair = tuple[Link, Link]


@pytest.fixture(params=["plain", "TLS"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    here, there = socket.socketpair()
    if request.param == "TLS":
        credentials = TlsCredentials(make_certificates(tmp_path))
        with ThreadPoolExecutor(1) as pool:
            answering = pool.submit(secured, there, credentials, server=True)
            here = secured(here, credentials, server=False, server_name="localhost")
            there = answering.result(30)
    return Link(here, 20.0), Link(there, 20.0)


def test_both_ways_at_once_from_several_threads(pair: Pair) -> None:
    """Nothing is lost, torn or kept: each side says as much as it hears."""

    def say(link: Link) -> None:
        for number in range(LINES):
            link.send_all(b"%d " % number + b"x" * (number % 5000) + b"\n")

    def hear(link: Link) -> int:
        lines = io.BufferedReader(link, 1 << 16)
        try:
            heard = [lines.readline() for _ in range(2 * LINES)]
        finally:
            lines.detach()
        return sum(len(line) == len(line.split()[0]) + 2 + int(line.split()[0]) % 5000 for line in heard)

    calls: list[Callable[[], int | None]] = []
    for link in pair:
        calls += [partial(hear, link), partial(say, link), partial(say, link)]
    with ThreadPoolExecutor(len(calls)) as pool:
        ends = [pool.submit(call) for call in calls]
        assert [end.result(60) for end in ends] == [2 * LINES, None, None] * 2
    for link in pair:
        link.close()


def test_a_link_that_is_cut_ends_who_reads(pair: Pair) -> None:
    ends: list[int] = []
    reader = threading.Thread(target=lambda: ends.append(pair[0].readinto(memoryview(bytearray(10)))))
    reader.start()
    pair[0].cut()
    reader.join(10)
    assert ends == [0]
    for link in pair:
        link.close()


def test_who_takes_nothing_is_given_up(pair: Pair) -> None:
    link = Link(pair[0]._connection, 0.2)
    with pytest.raises(TimeoutError):
        link.send_all(bytes(64 << 20))
    for each in pair:
        each.close()


def test_what_is_said_first_is_heard(tmp_path: Path) -> None:
    """Behind the handshake comes a ticket (RFC 8446, 4.6.1): the reader takes it while the first words leave.
    A reader that waits inside OpenSSL lost those in one to four of a hundred links.
    """
    credentials = TlsCredentials(make_certificates(tmp_path))
    for number in range(LINKS):
        here, there = socket.socketpair()
        with ThreadPoolExecutor(1) as pool:
            answering = pool.submit(hearing, there, credentials, server=True)
            link, _ = hearing(here, credentials, server=False)
            link.send_all(b"hello")
            other, heard = answering.result(30)
        assert heard.result(10) == b"hello", f"link {number}"
        for each in (link, other):
            each.cut()


def hearing(
    connection: socket.socket, credentials: TlsCredentials, *, server: bool
) -> tuple[Link, Future[bytes]]:
    """A link, and what it hears first, in a thread of its own."""
    name = "" if server else "localhost"
    link = Link(secured(connection, credentials, server=server, server_name=name), 20.0)
    heard: Future[bytes] = Future()

    def hear() -> None:
        words = bytearray(100)
        heard.set_result(bytes(words[: link.readinto(memoryview(words))]))

    threading.Thread(target=hear, daemon=True).start()
    return link, heard
