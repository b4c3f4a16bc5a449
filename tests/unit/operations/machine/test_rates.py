"""`iolane top`: rates from two looks, whichever process counts."""

from __future__ import annotations

import pytest

from iolane.carriers.control import DeviceReport, MachineReport, MachineState, PluggedDevice, ServerReport
from iolane.cli.top import NUMBERS, TEXT, _short, cells
from iolane.operations.machine.rates import Look, rates


def device(name: str, endpoint: str, **counters: int) -> DeviceReport:
    return DeviceReport(
        name=name,
        type="Adder",
        endpoint=endpoint,
        connected=True,
        interrupt_mode="msi",
        trace="off",
        counters=counters,
        statistics={},
    )


def plugged(name: str, carrier: str = "vfio-user", endpoint: str | None = None) -> PluggedDevice:
    return PluggedDevice(id=name, what=name, lane="emulated", carrier=carrier, endpoint=endpoint)


def server(pid: int, devices: list[DeviceReport], *owned: PluggedDevice, name: str = "") -> ServerReport:
    machine = MachineReport(
        name=name,
        pid=pid,
        state=MachineState.RUNNING,
        engine="",
        memory_mib=64,
        cpus=1,
        started=0.0,
        devices=list(owned),
    )
    return ServerReport(
        pid=pid,
        command="",
        started=0.0,
        version="",
        devices=devices,
        machine=machine if name else None,
    )


def look(time: float, *servers: ServerReport) -> Look:
    return Look(servers, {each.pid: time for each in servers})


def test_a_rate_is_the_difference_by_the_time_between() -> None:
    owned = plugged("a", endpoint="/a")
    before = look(10.0, server(1, [device("a", "/a", traps=100, dma_bytes_read=1000)], owned, name="web"))
    after = look(12.0, server(1, [device("a", "/a", traps=300, dma_bytes_read=5000)], owned, name="web"))
    [row] = rates(before, after)
    assert (row.machine, row.device, row.state) == ("web", "a", "running")
    assert row.counters is not None
    assert row.rates is not None
    assert (row.counters["traps"], row.rates["traps"], row.rates["dma_bytes_read"]) == (300, 100.0, 2000.0)
    assert row.rates["kicks"] == 0.0


def test_what_came_in_between_or_began_anew_counts_from_nothing() -> None:
    owned = [plugged("a", endpoint="/a"), plugged("new", endpoint="/new")]
    before = look(0.0, server(1, [device("a", "/a", kicks=500)], owned[0], name="web"))
    devices = [device("a", "/a", kicks=20), device("new", "/new", kicks=10)]
    after = look(2.0, server(1, devices, *owned, name="web"), server(7, [device("b", "/b", kicks=4)]))
    found = {row.device: row.rates for row in rates(before, after)}
    assert [values["kicks"] for values in found.values() if values is not None] == [10.0, 5.0, 0.0]


def test_a_device_is_counted_by_the_process_that_serves_it() -> None:
    own = plugged("a", endpoint="/a")
    passed = plugged("nic", carrier="vfio")
    now = look(1.0, server(1, [], own, passed, name="web"), server(2, [device("x", "/a", traps=9, errors=2)]))
    rows = rates(look(0.0), now)
    assert [(row.machine, row.device) for row in rows] == [("web", "a"), ("web", "nic")]
    assert rows[0].counters is not None
    assert (rows[0].counters["traps"], rows[0].troubles) == (9, 2)
    assert rows[1].counters is None
    assert cells(rows[1])[-1] == "-"


def test_machines_come_by_name_then_what_is_served_on_its_own() -> None:
    now = look(
        1.0,
        server(1, [device("s", "/s")]),
        server(2, [], plugged("z"), name="zebra"),
        server(3, [], plugged("a"), name="ape"),
    )
    rows = rates(now, now)
    assert [(row.machine, row.device) for row in rows] == [("ape", "a"), ("zebra", "z"), (None, "s")]
    assert all(len(cells(row)) == len(TEXT) + len(NUMBERS) for row in rows)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (12345, "12.3k"),
        (123456, "123k"),
        (2.5e6, "2.5M"),
        (7e12, "7000G"),
    ],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert _short(number) == text
