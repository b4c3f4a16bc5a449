"""Running a guest with devices: its command's output and exit code, or its console."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from iolane.carriers.control import DeviceReport
from iolane.engines.qemu.agent import Type
from iolane.engines.qemu.cache import Report
from iolane.errors import IolaneError
from iolane.operations.machine import Machine, MachineDescription
from iolane.operations.terminal import ESCAPE_NAME, interact, require_terminal

UNLIMITED = 30 * 86400.0
"""Seconds: the longest a command in the guest may take when no limit is given."""
TIMED_OUT = 124
"""Exit code of a command that ran out of time, as timeout(1) has it."""
SHUTDOWN_LIMIT = 20.0
"""Seconds for a guest to power itself off; then it is ended."""


@dataclass(frozen=True)
class RunRequest:
    """What the user wants to run."""

    machine: MachineDescription
    command: Sequence[str] = ()
    timeout: float = UNLIMITED


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a command in the guest went, and what the devices counted meanwhile."""

    command: str
    exit_code: int
    output: str
    seconds: float
    timed_out: bool
    boot_seconds: float
    engine: str
    devices: list[DeviceReport]


def command_text(words: Sequence[str]) -> str:
    """One word is a line for the guest's shell; several are a command and its arguments, taken literally."""
    return words[0] if len(words) == 1 else shlex.join(words)


def run_command(request: RunRequest, report: Report, *, stream: bool) -> RunResult:
    """Boot, run the command, end the machine. With `stream` its output goes straight to ours."""
    text = command_text(request.command)
    if request.machine.has_own_system:
        raise IolaneError(
            "a command in the guest needs iolane's own initrd, which holds the agent that runs it",
            remedy="leave out the command and use the console, or leave out --boot and --initrd",
        )
    with Machine(request.machine, report=report) as machine:
        try:
            result = machine.run(text, timeout=request.timeout, on_output=_pass_on if stream else None)
        except IolaneError:
            if machine.stopped_by is not None or machine.moved_to is not None:
                raise IolaneError(_ending(machine)) from None
            raise
        outcome = RunResult(
            command=text,
            exit_code=TIMED_OUT if result.timed_out else result.exit_code,
            output=result.output,
            seconds=result.seconds,
            timed_out=result.timed_out,
            boot_seconds=machine.boot_seconds,
            engine=machine.engine,
            devices=machine.devices.reports(),
        )
        shut_down(machine)
        return outcome


def shut_down(machine: Machine) -> None:
    """Let the guest end as a machine should: what was written is on the disks, drivers have let go."""
    with contextlib.suppress(IolaneError):
        machine.powerdown(SHUTDOWN_LIMIT)


def run_console(request: RunRequest, report: Report) -> list[DeviceReport]:
    """Boot with the terminal as the console, until the escape key or the machine's end."""
    with Machine(request.machine, report=report, shell=True, before_boot=require_terminal) as machine:
        report(f"the guest's console; {ESCAPE_NAME} ends the machine")
        escaped = interact(machine.console)
        print("\r")
        report("ended by the escape key" if escaped else _ending(machine))
        return machine.devices.reports()


def _ending(machine: Machine) -> str:
    if machine.moved_to is not None:
        return f"the machine runs at {machine.moved_to} now"
    if machine.stopped_by is not None:
        return f"the machine was ended by `{machine.stopped_by}`"
    return "the machine ended by itself"


def _pass_on(kind: Type, data: bytes) -> None:
    """The guest's output as ours; what goes to its standard error goes to ours."""
    stream = sys.stderr if kind is Type.STDERR else sys.stdout
    stream.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(stream.fileno(), view) :]
