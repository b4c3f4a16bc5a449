"""The state document: round trips, upgrades, and what is refused without a trace."""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iolane.errors import IolaneError
from iolane.model.device import Device
from iolane.model.reset import ResetKind
from iolane.model.state import DeviceState, Saved, StateError, decode, encode
from iolane.testing.model_state import check_golden, golden_files, golden_path, missing_golden, write_golden

GOLDEN = Path(__file__).parent / "golden"


class Phase(enum.IntEnum):
    IDLE = 0
    BUSY = 3


class Part(msgspec.Struct, forbid_unknown_fields=True):
    text: str = ""
    data: bytes = b""


class Probe(Device):
    """Registers, extra data of a floor, a timer, and a state of its own."""

    class State(DeviceState):
        phase: Phase = Phase.IDLE
        level: Annotated[int, msgspec.Meta(ge=0, le=63)] = 0
        ratio: float = 0.0
        parts: list[Part] = msgspec.field(default_factory=list)
        queues: dict[str, int] = msgspec.field(default_factory=dict)
        note: str | None = None
        alarm_ns: int | None = None

    state: State
    state_version = 2

    @staticmethod
    def from_version_1(saved: Saved) -> Saved:
        """Version 1 called the level `volume` and had 4 more bytes of registers."""
        saved.state["level"] = saved.state.pop("volume")
        saved.regions["bar0"] = saved.regions["bar0"][:16]
        return saved

    upgrades = {1: from_version_1}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.bar0 = bytearray(16)
        self.bar2 = bytearray(8)
        self.mask = 0
        self.fail_load = False
        self.alarms = 0
        self.alarm_timer = self.clock.call_after(0, lambda: None)

    def storages(self) -> Mapping[str, memoryview]:
        return {"bar0": memoryview(self.bar0), "bar2": memoryview(self.bar2)}

    def save_extra(self) -> dict[str, Any]:
        return {"mask": self.mask}

    def load_extra(self, extra: dict[str, Any]) -> Callable[[], None]:
        mask = extra.get("mask")
        if set(extra) != {"mask"} or type(mask) is not int or not 0 <= mask < 256:
            raise StateError("bad mask")

        def take() -> None:
            self.mask = mask

        return take

    def alarm(self, ns: int) -> None:
        self.alarm_timer = self.clock.call_after(ns, self.ring)

    def ring(self) -> None:
        self.alarms += 1

    def on_save(self) -> None:
        self.state.alarm_ns = self.alarm_timer.remaining_ns if self.alarm_timer.active else None

    def on_load(self) -> None:
        if self.fail_load:
            self.fail_load = False
            raise ValueError("planned")
        if self.state.alarm_ns is not None:
            self.alarm(self.state.alarm_ns)

    def on_reset(self, kind: ResetKind) -> None:
        self.bar0[:] = bytes(16)


states = st.builds(
    Probe.State,
    phase=st.sampled_from(Phase),
    level=st.integers(0, 63),
    ratio=st.floats(allow_nan=False),
    parts=st.lists(st.builds(Part, text=st.text(max_size=5), data=st.binary(max_size=5)), max_size=3),
    queues=st.dictionaries(st.text(max_size=5), st.integers(-(1 << 63), (1 << 64) - 1), max_size=3),
    note=st.none() | st.text(max_size=5),
)


def probe(state: Probe.State | None = None, registers: bytes = b"", mask: int = 0, now: int = 0) -> Probe:
    device = Probe()
    device.clock.advance(now)
    if state is not None:
        device.state = state
    device.bar0[: len(registers)] = registers
    device.mask = mask
    return device


def content(device: Probe) -> tuple[object, ...]:
    return bytes(device.bar0), bytes(device.bar2), device.mask, device.state, device.clock.now_ns()


@given(states, st.binary(min_size=16, max_size=16), st.integers(0, 255), st.integers(1, 1 << 62))
def test_round_trip(state: Probe.State, registers: bytes, mask: int, now: int) -> None:
    device = probe(state, registers, mask, now)
    document = device.save()
    other = probe(registers=b"x" * 16)
    other.load(document)
    assert content(other) == content(device)
    assert other.save() == document
    assert not other.paused


def test_equal_states_are_equal_documents() -> None:
    one = probe(Probe.State(queues={"a": 1, "b": 2}))
    other = probe(Probe.State(queues={"b": 2, "a": 1}))
    assert one.save() == other.save()


def test_timers_go_on_with_what_remained() -> None:
    device = probe(now=1000)
    device.alarm(100)
    device.clock.advance(30)
    other = probe()
    other.alarm(5)
    other.load(device.save())
    assert other.clock.now_ns() == 1030
    assert other.alarm_timer.remaining_ns == 70
    other.clock.advance(69)
    assert other.alarms == 0
    other.clock.advance(1)
    assert other.alarms == 1


def forged(body: bytes, **header: int) -> bytes:
    """A document with a right checksum around any body."""
    fields = {"form": 1, "reserved": 0, "length": len(body), "checksum": zlib.crc32(body)} | header
    return struct.pack("<8sHHII", b"iolane\0S", *fields.values()) + body


GOOD = probe(Probe.State(level=5, parts=[Part("a", b"b")], queues={"x": 1}), b"registers", 7, 9).save()
BODY = GOOD[20:]


def edited(**changes: Any) -> bytes:
    plain = msgspec.msgpack.decode(BODY)
    plain.update(changes)
    return forged(msgspec.msgpack.encode({key: value for key, value in plain.items() if value is not ...}))


def state_with(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.msgpack.decode(BODY)["state"]
    plain.update(changes)
    return plain


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "at least 20 bytes"),
        (GOOD[:19], "at least 20 bytes"),
        (b"x" + GOOD[1:], "no state saved by iolane"),
        (GOOD[:-1], "after its header"),
        (GOOD + b"x", "after its header"),
        (GOOD[:-1] + b"\xee", "checksum"),
        (forged(BODY, form=2), "format 2, known is 1 (load it with a newer iolane)"),
        (forged(BODY, form=0), "header is damaged"),
        (forged(BODY, reserved=1), "header is damaged"),
        (forged(BODY, length=0xFFFFFFFF), "header is damaged"),
        (forged(b""), "malformed"),
        (forged(b"\xc1"), "malformed"),
        (forged(b"\x91" * 100_000), "malformed"),
        (forged(b"\xdf\xff\xff\xff\xff"), "malformed"),
        (forged(BODY + b"\x00"), "malformed"),
        (edited(version=3), "version 3, this iolane knows up to 2"),
        (edited(version=0), "can't be upgraded"),
        (edited(version=-1), "can't be upgraded"),
        (edited(version="1"), "malformed"),
        (edited(version=1), "was not upgraded: from_version_1: KeyError('volume')"),
        (edited(kind="Other"), "kind 'Other', not 'Probe'"),
        (edited(clock_ns=-1), "time -1"),
        (edited(clock_ns=1 << 63), "time 9223372036854775808"),
        (edited(regions={"bar0": bytes(16)}), "those of probe are"),
        (edited(regions={"bar0": bytes(15), "bar2": bytes(8)}), "those of probe are"),
        (edited(regions={"bar0": bytes(16), "bar2": bytes(8), "bar3": b""}), "those of probe are"),
        (edited(regions={"bar0": "x" * 16, "bar2": bytes(8)}), "malformed"),
        (edited(extra={}), "bad mask"),
        (edited(extra={"mask": 256}), "bad mask"),
        (edited(extra={"mask": True}), "bad mask"),
        (edited(more=1), "malformed"),
        (edited(state=...), "malformed"),
        (edited(state=state_with(level=64)), "malformed"),
        (edited(state=state_with(level="5")), "malformed"),
        (edited(state=state_with(phase=1)), "malformed"),
        (edited(state=state_with(unknown=1)), "malformed"),
        (edited(state=state_with(parts=[{"text": 1}])), "malformed"),
    ],
)
def test_refused_and_unchanged(document: bytes, message: str) -> None:
    device = probe(Probe.State(level=9), b"before", 3, 50)
    device.alarm(1000)
    before = content(device)
    with pytest.raises(StateError) as caught:
        device.load(document)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(device) == before
    assert device.alarm_timer.remaining_ns == 1000
    assert not device.paused


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["flip", "cut", "insert", "repeat"]),
            st.integers(0, 10_000),
            st.binary(max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_mutants_load_or_are_refused(mutations: list[tuple[str, int, bytes]]) -> None:
    body = bytearray(BODY)
    for what, place, data in mutations:
        at = place % (len(body) + 1)
        if what == "flip" and at < len(body):
            body[at] ^= 1 << place % 8
        elif what == "cut":
            del body[at : at + 1 + len(data)]
        elif what == "insert":
            body[at:at] = data
        elif what == "repeat":
            body[at:at] = body[at : at + 8]
    device = probe(Probe.State(level=9), b"before", 3, 50)
    before = content(device)
    try:
        device.load(forged(bytes(body)))
    except StateError:
        assert content(device) == before
    else:
        other = probe()
        other.load(device.save())
        assert content(other) == content(device)


def test_a_device_that_refuses_while_taking_is_as_before() -> None:
    device = probe(Probe.State(level=9, alarm_ns=70), b"before", 3, 50)
    device.alarm(70)
    before = content(device)
    device.fail_load = True
    with pytest.raises(StateError, match="did not take the saved state: ValueError"):
        device.load(GOOD)
    assert content(device) == before
    assert device.alarm_timer.remaining_ns == 70


def test_reset_makes_the_state_new_and_forgets_timers() -> None:
    device = probe(Probe.State(level=9), b"before")
    device.alarm(10)
    device.reset()
    assert device.state == Probe.State()
    assert device.clock.timers == 0


def test_base_floor_takes_no_extra() -> None:
    class Plain(Device):
        pass

    class Richer(Plain):
        state_kind = "Plain"

        def save_extra(self) -> dict[str, Any]:
            return {"queue": 1}

    with pytest.raises(StateError, match="queue, unknown to Plain"):
        Plain().load(Richer().save())
    Richer.save_extra = Plain.save_extra  # type: ignore[method-assign]
    Plain().load(Richer().save())


class TestUpgrades:
    def test_declared_wrongly(self) -> None:
        with pytest.raises(TypeError, match="no version 1 to upgrade"):
            type("New", (Device,), {"upgrades": {1: Probe.from_version_1}})
        with pytest.raises(TypeError, match="named function"):
            type("New", (Device,), {"state_version": 2, "upgrades": {1: lambda saved: saved}})

    def test_step_by_step(self) -> None:
        def first(saved: Saved) -> Saved:
            saved.state["steps"] = [1]
            return saved

        def second(saved: Saved) -> Saved:
            saved.state["steps"].append(2)
            saved.version = 4
            return saved

        class Steps(Device):
            class State(DeviceState):
                steps: list[int] = msgspec.field(default_factory=list)

            state: State
            state_version = 4
            upgrades = {1: first, 2: second}  # noqa: RUF012

        def saved(version: int) -> bytes:
            return encode(Saved("Steps", "s", version, 0, {}, {}, {}))

        device = Steps()
        device.load(saved(1))
        assert device.state.steps == [1, 2]
        with pytest.raises(StateError, match="can't be upgraded any more"):
            device.load(saved(3))
        assert decode(device.save()).version == 4


class TestGolden:
    """`golden/Probe-v1.state` and `-v2.state` were written once and never change."""

    @pytest.mark.parametrize("path", golden_files(GOLDEN, Probe), ids=lambda path: path.stem)
    def test_every_version_loads(self, path: Path) -> None:
        device = check_golden(Probe, path)
        assert device.state.level == 42
        assert device.state.parts == [Part("part", b"\x00\xff")]
        assert bytes(device.bar0) == bytes(range(16))
        assert device.mask == 0x55
        assert device.clock.now_ns() == 123_456_789
        assert device.alarm_timer.remaining_ns == 1_000_000

    def test_none_is_missing(self) -> None:
        assert missing_golden(GOLDEN, Probe) == []
        assert len(golden_files(GOLDEN, Probe)) == 2

    def test_an_existing_one_is_not_overwritten(self, tmp_path: Path) -> None:
        path = write_golden(probe(), tmp_path)
        assert path == golden_path(tmp_path, Probe)
        assert missing_golden(tmp_path, Probe) == [1]
        with pytest.raises(IolaneError, match=r"raise Probe\.state_version"):
            write_golden(probe(), tmp_path)

    def test_a_state_that_changes_on_the_way_is_found(self, tmp_path: Path) -> None:
        class Forgets(Probe):
            state_kind = "Probe"

            def on_load(self) -> None:
                self.state.level = 0

        path = write_golden(probe(Probe.State(level=3)), tmp_path)
        with pytest.raises(AssertionError, match="differs in state"):
            check_golden(Forgets, path)
