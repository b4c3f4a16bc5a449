"""A move over real sockets, between machines whose guest is a number of bytes."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iolane.engines.qemu.credentials import TlsCredentials
from iolane.engines.qemu.migration_progress import Progress
from iolane.errors import IolaneError
from iolane.operations.migration.channel import GREETING
from iolane.operations.migration.move import Move, Moved, Patience
from iolane.operations.migration.moved_device import Departed, MovedDevices
from iolane.operations.migration.offer import Finding
from iolane.operations.migration.receiver import Receiver
from iolane.operations.migration.source import SourcePhase
from iolane.operations.migration.uri import Place, parse_place
from iolane.testing.operations_link import CuttableLink
from tests.unit.operations.migration.certificates import make_certificates
from tests.unit.operations.migration.fake_machines import PIECES, FakeMaker, FakeSource

QUICK = {phase: 2.0 for phase in SourcePhase}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because socket paths are."""
    with tempfile.TemporaryDirectory(prefix="iolane-test-") as name:
        yield Path(name)


@pytest.fixture
def place(folder: Path) -> Place:
    return Place(path=folder / "there")


@pytest.fixture
def maker() -> FakeMaker:
    return FakeMaker()


@pytest.fixture
def receiver(place: Place, maker: FakeMaker) -> Iterator[Receiver]:
    with Receiver(place, maker) as receiver:
        yield receiver


@pytest.fixture
def link(receiver: Receiver, folder: Path) -> Iterator[CuttableLink]:
    assert receiver.place.path is not None
    with CuttableLink(folder / "link", receiver.place.path) as link:
        yield link


def patience() -> Patience:
    return Patience(dict(QUICK), stalled=2.0)


class InThread:
    """A move that goes on while the test looks."""

    def __init__(self, move: Move) -> None:
        self.move = move
        self.moved: Moved | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.moved = self.move.run()

    def outcome(self) -> Moved:
        self._thread.join(30)
        assert self.moved is not None
        return self.moved


def test_it_moves(receiver: Receiver, maker: FakeMaker) -> None:
    source = FakeSource()
    seen: list[Progress] = []
    moved = Move(source, receiver.place, on_progress=seen.append).run()
    assert moved.phase is SourcePhase.MOVED, moved
    assert moved.notes == ["a note"]
    assert 0 < moved.downtime <= moved.seconds
    arrival = receiver.receive(10)
    assert arrival is not None
    assert maker.machine.runs
    assert (source.runs, source.alive, source.gone_to) == (False, False, str(receiver.place))


def test_over_tcp(maker: FakeMaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Receiver(parse_place(f"tcp:127.0.0.1:{port}"), maker) as receiver:
        assert Move(FakeSource(), receiver.place).run().phase is SourcePhase.MOVED
        assert maker.machine.runs


def test_a_dry_run_changes_nothing(receiver: Receiver, maker: FakeMaker) -> None:
    source = FakeSource()
    moved = Move(source, receiver.place, dry_run=True).run()
    assert (moved.phase, moved.reason, moved.notes) == (SourcePhase.KEPT, "it would be taken", ["a note"])
    assert (source.runs, source.leaving.is_set(), maker.made) == (True, False, 0)
    assert Move(source, receiver.place).run().phase is SourcePhase.MOVED, "the receiver still waits"


def test_every_reason_of_a_refusal_comes_back(receiver: Receiver, maker: FakeMaker) -> None:
    maker.findings = [Finding("no image", "--device ID=SPEC"), Finding("no kernel")]
    source = FakeSource()
    moved = Move(source, receiver.place).run()
    assert moved.reason == "no image (--device ID=SPEC); no kernel"
    assert (source.runs, maker.made) == (True, 0)


def test_a_machine_that_can_not_be_made_keeps_the_source(receiver: Receiver, maker: FakeMaker) -> None:
    maker.fails = "no such tap"
    source = FakeSource()
    assert "no such tap" in Move(source, receiver.place).run().reason
    assert source.runs


def test_nobody_receives(place: Place) -> None:
    source = FakeSource()
    with pytest.raises(IolaneError, match="nobody receives") as caught:
        Move(source, place).run()
    assert "iolane receive" in str(caught.value)
    assert source.runs


def test_an_engine_that_refuses_keeps_the_source(receiver: Receiver, maker: FakeMaker) -> None:
    source = FakeSource()
    source.refuses = "not now"
    assert Move(source, receiver.place).run().reason == "not now"
    assert source.runs
    assert receiver.receive(0.1) is None
    assert not maker.machine.runs


def test_a_state_that_does_not_fit_keeps_the_source(receiver: Receiver, maker: FakeMaker) -> None:
    maker.machine.can_not_take = True
    source = FakeSource()
    moved = Move(source, receiver.place).run()
    assert (moved.phase, source.runs) == (SourcePhase.KEPT, True)
    assert "the state does not fit" in moved.reason
    assert maker.machine.destroyed


def test_an_image_in_use_at_the_last_moment_keeps_the_source(receiver: Receiver, maker: FakeMaker) -> None:
    maker.machine.image_in_use = True
    source = FakeSource()
    moved = Move(source, receiver.place).run()
    assert (moved.phase, source.runs, maker.machine.runs) == (SourcePhase.KEPT, True, False)
    assert "the image is in use" in moved.reason


def test_it_is_cancelled(receiver: Receiver, maker: FakeMaker) -> None:
    source = FakeSource(pieces=PIECES // 2)
    running = InThread(Move(source, receiver.place))
    assert source.leaving.wait(10)
    assert running.move.cancel("the operator changed their mind")
    moved = running.outcome()
    assert (moved.phase, moved.reason) == (SourcePhase.KEPT, "the operator changed their mind")
    assert source.runs
    assert not running.move.cancel()
    assert receiver.free.wait(10)
    assert Move(FakeSource(), receiver.place).run().phase is SourcePhase.MOVED, "the receiver still waits"


@pytest.mark.parametrize("pieces", [0, 1, PIECES // 2, PIECES])
def test_a_link_that_is_cut_before_all_is_there_keeps_the_source(
    link: CuttableLink, receiver: Receiver, maker: FakeMaker, pieces: int
) -> None:
    source = FakeSource(pieces=pieces)
    running = InThread(Move(source, link.place))
    assert source.leaving.wait(10)
    link.cut()
    moved = running.outcome()
    assert (moved.phase, source.runs) == (SourcePhase.KEPT, True)
    assert receiver.receive(0.2) is None
    assert not maker.machine.runs


def test_a_link_that_is_stalled_keeps_the_source(link: CuttableLink, maker: FakeMaker) -> None:
    source = FakeSource(pieces=3)
    running = InThread(Move(source, link.place, patience=patience()))
    assert source.leaving.wait(10)
    link.stall()
    moved = running.outcome()
    assert (moved.phase, source.runs, maker.machine.runs) == (SourcePhase.KEPT, True, False)
    assert "nothing went over the link" in moved.reason


def test_a_cut_behind_commit_leaves_both_in_doubt_and_a_question_settles_it(
    link: CuttableLink, receiver: Receiver, maker: FakeMaker
) -> None:
    """The destination has heard Commit, and its answer is lost."""
    maker.machine.before_run = link.cut
    source = FakeSource()
    move = Move(source, link.place)
    moved = move.run()
    assert (moved.phase, source.runs, source.alive) == (SourcePhase.IN_DOUBT, False, True)
    assert source.doubts
    assert receiver.receive(10) is not None
    assert maker.machine.runs
    link.mend()
    assert move.resolve().phase is SourcePhase.MOVED
    assert (source.runs, source.alive) == (False, False)


def test_a_commit_that_is_lost_leaves_both_standing_still_and_a_question_completes_it(
    link: CuttableLink, receiver: Receiver, maker: FakeMaker
) -> None:
    link.stop_at(b'{"say":"commit"')
    source = FakeSource()
    move = Move(source, link.place)
    moved = move.run()
    assert (moved.phase, source.runs, maker.machine.runs) == (SourcePhase.IN_DOUBT, False, False)
    assert receiver.receive(0.2) is None
    with contextlib.suppress(IolaneError):
        assert move.resolve().phase is SourcePhase.IN_DOUBT
    assert (move.phase, source.runs, maker.machine.runs) == (SourcePhase.IN_DOUBT, False, False)
    link.mend()
    assert move.resolve().phase is SourcePhase.MOVED
    assert receiver.receive(10) is not None
    assert maker.machine.runs


def test_a_destination_that_has_ended_meanwhile_says_so(
    link: CuttableLink, receiver: Receiver, maker: FakeMaker
) -> None:
    link.stop_at(b'{"say":"commit"')
    source = FakeSource()
    move = Move(source, link.place)
    assert move.run().phase is SourcePhase.IN_DOUBT
    maker.machine.engine_ends()
    link.mend()
    moved = move.resolve()
    assert (moved.phase, source.runs, maker.machine.runs) == (SourcePhase.KEPT, True, False)


def test_a_process_that_knows_nothing_leaves_it_in_doubt(
    link: CuttableLink, receiver: Receiver, place: Place
) -> None:
    link.stop_at(b'{"say":"commit"')
    source = FakeSource()
    move = Move(source, link.place, patience=patience())
    assert move.run().phase is SourcePhase.IN_DOUBT
    receiver.close()
    with Receiver(place, FakeMaker()):
        link.mend()
        assert move.resolve().phase is SourcePhase.IN_DOUBT
        assert not source.runs
    assert move.give_up().phase is SourcePhase.KEPT
    assert source.runs


def test_the_operator_decides_at_the_destination(
    link: CuttableLink, receiver: Receiver, maker: FakeMaker
) -> None:
    link.stop_at(b'{"say":"commit"')
    source = FakeSource()
    assert Move(source, link.place).run().phase is SourcePhase.IN_DOUBT
    assert maker.machine.decide(True)
    assert receiver.receive(10) is not None
    assert maker.machine.runs
    assert not maker.machine.decide(True), "nothing is open any more"


def test_the_operator_ends_it_at_the_destination(
    link: CuttableLink, receiver: Receiver, maker: FakeMaker
) -> None:
    link.stop_at(b'{"say":"commit"')
    source = FakeSource()
    move = Move(source, link.place)
    assert move.run().phase is SourcePhase.IN_DOUBT
    assert maker.machine.decide(False)
    link.mend()
    assert move.resolve().phase is SourcePhase.KEPT
    assert (source.runs, maker.machine.destroyed) == (True, True)


class Beside:
    """A device that is taken out and put in."""

    name = "adder"

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.inside = True

    def check(self) -> None:
        if self.refuses == "check":
            raise IolaneError("not this one")

    def before(self) -> Departed:
        if self.refuses == "before":
            raise IolaneError("the guest refuses")
        self.inside = False
        return Departed(name="adder", state=b"\x00\xff")

    def rollback(self) -> None:
        self.inside = True


def test_devices_beside_go_out_and_come_in(receiver: Receiver, maker: FakeMaker) -> None:
    device = Beside()
    assert Move(FakeSource(), receiver.place, beside=MovedDevices([device])).run().phase is SourcePhase.MOVED
    assert receiver.receive(10) is not None
    assert maker.machine.brought == ["adder"]
    assert not device.inside


def test_devices_beside_come_in_again_where_the_machine_stays(receiver: Receiver, maker: FakeMaker) -> None:
    device, source = Beside(), FakeSource()
    maker.machine.can_not_take = True
    assert Move(source, receiver.place, beside=MovedDevices([device])).run().phase is SourcePhase.KEPT
    assert device.inside
    assert source.runs


def test_a_device_that_can_not_go_out_keeps_the_machine(receiver: Receiver) -> None:
    device, source = Beside("before"), FakeSource()
    moved = Move(source, receiver.place, beside=MovedDevices([device])).run()
    assert (moved.reason, device.inside, source.runs) == ("the guest refuses", True, True)


def test_a_device_that_is_refused_is_refused_before_anything(receiver: Receiver) -> None:
    with pytest.raises(IolaneError, match="not this one"):
        Move(FakeSource(), receiver.place, beside=MovedDevices([Beside("check")])).run()


# -- certificates ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def test_under_tls(place: Place, maker: FakeMaker, certificates: Path) -> None:
    credentials = TlsCredentials(certificates)
    with Receiver(place, maker, credentials=credentials) as receiver:
        assert Move(FakeSource(), receiver.place, credentials=credentials).run().phase is SourcePhase.MOVED


@pytest.mark.parametrize("secure", ["source", "destination", "other authority"])
def test_without_the_same_certificates_nobody_moves(
    place: Place, maker: FakeMaker, certificates: Path, tmp_path: Path, secure: str
) -> None:
    credentials = TlsCredentials(certificates)
    there = None if secure == "source" else credentials
    here = {"source": credentials, "destination": None}.get(secure) or (
        None if secure == "destination" else TlsCredentials(make_certificates(tmp_path))
    )
    if secure == "source":
        here = credentials
    source = FakeSource()
    with Receiver(place, maker, credentials=there) as receiver:
        with contextlib.suppress(IolaneError):
            moved = Move(source, receiver.place, credentials=here, patience=patience()).run()
            assert moved.phase is SourcePhase.KEPT
        assert source.runs
        assert maker.made == 0


def test_a_missing_certificate_is_named(tmp_path: Path, place: Place, maker: FakeMaker) -> None:
    with pytest.raises(IolaneError, match=r"ca-cert\.pem"):
        Receiver(place, maker, credentials=TlsCredentials(tmp_path)).__enter__()


# -- hostile peers --------------------------------------------------------------------


@pytest.mark.hostile
@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        GREETING + b"stream " + b"0" * 32 + b"\n",
        GREETING + b"stream \xff\xff\n",
        GREETING + b"dance\n",
        b"x" * 1000,
        GREETING + b"talk\n" + b"[" * 100_000 + b"\n",
        GREETING + b"talk\n" + b'{"say":"commit"}\n',
        GREETING + b"talk\n" + b'{"say":"ask","id":"%s"}\n' % (b"1" * 32),
        GREETING + b"talk\n" + b'{"say":"hello","protocol":1}\n',
        GREETING + b"talk\n" + b'{"say":"prepare"}\n{"say":"prepare"}\n',
        b"",
    ],
)
def test_nonsense_does_not_keep_the_next_one_from_coming(
    receiver: Receiver, maker: FakeMaker, said: bytes
) -> None:
    for _ in range(20):
        with contextlib.closing(receiver.place.connect(5)) as stranger, contextlib.suppress(OSError):
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):  # until it is thrown out: more than 16 at once are not listened to
                pass
    assert Move(FakeSource(), receiver.place).run().phase is SourcePhase.MOVED
    assert maker.machine.runs


@pytest.mark.hostile
def test_a_stranger_can_not_take_the_stream(receiver: Receiver, maker: FakeMaker) -> None:
    """While a machine comes: a wrong token is nobody's."""
    source = FakeSource(pieces=2)
    running = InThread(Move(source, receiver.place))
    assert source.leaving.wait(10)
    with contextlib.closing(receiver.place.connect(5)) as stranger:
        stranger.sendall(GREETING + b"stream " + b"0" * 32 + b"\n")
        assert stranger.recv(1) == b""
    source.may_send.release(1000)
    assert running.outcome().phase is SourcePhase.MOVED


@pytest.mark.hostile
def test_while_one_comes_another_is_refused(receiver: Receiver) -> None:
    source = FakeSource(pieces=2)
    running = InThread(Move(source, receiver.place))
    assert source.leaving.wait(10)
    other = FakeSource()
    assert "another machine" in Move(other, receiver.place).run().reason
    assert other.runs
    source.may_send.release(1000)
    assert running.outcome().phase is SourcePhase.MOVED
