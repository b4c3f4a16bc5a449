"""Scripts for the lab that print what they saw: an interpreter takes seconds to start there."""

from __future__ import annotations

import json
from typing import Any

from iolane.lab.machine import Lab

PRELUDE = """
import atexit, json, os, signal, subprocess, sys
from iolane.errors import IolaneError
from iolane.host.journal import Journal
from iolane.host.sysfs import Host
from iolane.host.taking import Taking, recover, release, take
from iolane.host.verdict import Survey
from iolane.model.pci.pcie_id import PcieId

def address(text):
    return PcieId.from_string(text)

def state(*addresses):
    host = Host()
    folders = [f"/sys/bus/pci/devices/{each}" for each in addresses]
    return [[host.link(f"{each}/driver"), host.read(f"{each}/driver_override")] for each in folders]

def refusal(work):
    try:
        work()
    except IolaneError as error:
        return str(error)
    return None

class Mortal(Host):
    "Kills its process before or after the write of a given number."
    def __init__(self, step):
        super().__init__()
        self.left = step
    def step(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
    def write(self, path, text, **more):
        self.step()
        super().write(path, text, **more)
        self.step()

def killed(step, work):
    child = os.fork()
    if child == 0:
        try:
            work(Mortal(step))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

seen = {}
atexit.register(refusal, release)  # a test that failed leaves nothing to the next one
"""


def seen(lab: Lab, script: str, *arguments: object, timeout: float = 300) -> dict[str, Any]:
    """Run a script in the lab; what it put into `seen`."""
    text = PRELUDE + script + "\nprint(json.dumps(seen))\n"
    done = lab.python(text, *(str(each) for each in arguments), timeout=timeout).check()
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found
