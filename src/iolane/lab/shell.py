"""The user's terminal as a shell in the lab."""

from __future__ import annotations

import os
import shlex
import threading

from iolane.engines.qemu.agent import CommandResult
from iolane.errors import IolaneError
from iolane.lab.environment import environment
from iolane.lab.machine import Lab
from iolane.operations.run import UNLIMITED
from iolane.operations.terminal import interact

TTY = "/dev/ttyS0"
"""The kernel's console: what the kernel says is seen there too, faults of the IOMMU among it."""
ESCAPED = 0
"""Exit code when the user left by the escape key."""


def shell_line(folder: str, variables: dict[str, str], columns: int, rows: int) -> str:
    """What the agent has its shell do. The agent starts it as a session's leader, so the first terminal that
    it opens becomes its controlling one."""
    assignments = shlex.join(f"{name}={value}" for name, value in variables.items())
    return (
        f"exec <{TTY} >{TTY} 2>&1; stty sane rows {rows} columns {columns}; "
        f"cd {shlex.quote(folder)} 2>/dev/null || cd /; "
        f"if command -v bash >/dev/null; then set -- bash --noprofile --norc -i; else set -- sh -i; fi; "
        f'exec env -i {assignments} "$@"'
    )


class Shell:
    """A shell in a lab, in a thread that waits for its end and then ends the lab."""

    def __init__(self, lab: Lab, folder: str) -> None:
        self._lab = lab
        size = os.get_terminal_size()
        variables = environment(more={"PS1": r"lab:\w\$ ", "TERM": os.environ.get("TERM", "linux")})
        self._line = shell_line(folder, variables, size.columns, size.lines)
        self._result: CommandResult | None = None
        self._thread = threading.Thread(target=self._run, name="lab shell", daemon=True)

    def interact(self) -> int:
        """Connects the terminal until the shell ends, the lab ends, or the escape key. The exit code."""
        self._thread.start()
        escaped = interact(self._lab.console, replay=False)
        if escaped:
            return ESCAPED
        self._thread.join(10.0)
        if self._result is None:
            raise IolaneError("the lab ended before its shell", remedy=f"see {self._lab.console.log}")
        return self._result.exit_code

    def _run(self) -> None:
        try:
            self._result = self._lab.machine.run(self._line, timeout=UNLIMITED)
            self._lab.machine.qmp.execute("quit", 5.0)
        except IolaneError:
            pass  # the lab is gone: whoever waits at its console is told by its end
