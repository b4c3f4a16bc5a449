"""The engine uml without booting: its parameters, and errors that say what is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from iolane.engines.uml.machine import UmlDevice, UmlError, UmlMachine
from iolane.engines.uml.process import UmlProcess
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType

PARENT = """
import os, subprocess, sys
writer = int(sys.argv[1])
child = subprocess.Popen(["sleep", "1000"], pass_fds=[writer])
os.write(writer, b"%d\\n" % child.pid)
child.wait()
"""


def test_a_device_is_a_kernel_parameter(tmp_path: Path) -> None:
    device = UmlDevice(tmp_path / "s", DeviceType.BLOCK)
    assert device.parameter == f"virtio_uml.device={tmp_path}/s:2"


def test_paths_that_the_kernel_would_cut(tmp_path: Path) -> None:
    for name in ("a b", "a:b", 'a"b'):
        with pytest.raises(IolaneError, match="does not take"):
            _ = UmlDevice(tmp_path / name, DeviceType.NET).parameter


def test_a_machine_that_is_not_started() -> None:
    machine = UmlMachine()
    assert not machine.running
    with pytest.raises(UmlError, match="is not running"):
        machine.run("true")
    with pytest.raises(UmlError, match="is not running"):
        _ = machine.console
    machine.stop()


def test_a_process_that_ends_by_itself() -> None:
    process = UmlProcess(["/bin/sh", "-c", "echo why; exit 3"], [])
    assert process.wait(10)
    process.kill()
    assert process.output == b"why\n"
    assert not process.running


def test_a_process_and_its_children_are_killed() -> None:
    reader, writer = os.pipe()
    process = UmlProcess([sys.executable, "-c", PARENT, str(writer)], [writer])
    os.close(writer)
    with open(reader) as pipe:
        child = int(pipe.readline())
        process.kill()
        assert pipe.read() == ""  # the child held the other end, too
    assert child > 0
    assert not process.running


def test_a_program_that_is_not_there() -> None:
    process = UmlProcess(["/no/such/program"], [])
    assert process.wait(10)
    process.kill()
    assert b"/no/such/program" in process.output
