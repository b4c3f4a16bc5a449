"""The unit of docs/service.md under a real systemd: ready, killed, hung, stopped, refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.support import ROOT
from tests.unit.cli.test_service_unit import PROGRAM, unit

SYSTEMD = Path("/lib/systemd/systemd")
SCRIPT = Path(__file__).with_name("service_under_systemd.sh")
NAMESPACES = ("unshare", "-m", "-p", "-f", "--mount-proc", "--propagation", "private")
NOT_IN_NAMESPACES = ("User=libvirt-qemu", "ProtectKernelTunables=yes")
"""A user's systemd serves as that user alone; in a namespace of ours /proc can't be protected further."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_systemd_starts_restarts_and_stops_it(tmp_path: Path) -> None:
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        pytest.skip("NOT RUN UNDER SYSTEMD: systemd is not installed here")
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        pytest.skip("NOT RUN UNDER SYSTEMD: no namespaces without privileges here")
    units, configuration = tmp_path / ".config/systemd/user", tmp_path / "etc"
    units.mkdir(parents=True)
    configuration.mkdir()
    program = tmp_path / "iolane"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}/src exec {sys.executable} -m iolane "$@"\n')
    program.chmod(0o755)
    text = unit().replace(PROGRAM, str(program)).replace("/etc/iolane", str(configuration))
    text = text.replace("/run/iolane", "%t/iolane").replace("WatchdogSec=30", "WatchdogSec=10")
    lines = [line for line in text.splitlines() if line not in NOT_IN_NAMESPACES]
    (units / "iolane-device@.service").write_text("\n".join(lines))
    image = tmp_path / ".config/iolane/web.raw"  # a user's StateDirectory=; all else is read-only there
    image.parent.mkdir()
    image.write_bytes(bytes(1 << 20))
    (configuration / "web.conf").write_text(f"DEVICE=block,image={image}\nOPTIONS=--memory-limit 512M\n")
    (configuration / "bad.conf").write_text("DEVICE=block,image=/nonexistent\n")
    command = [*NAMESPACES, "sh", str(SCRIPT), str(SYSTEMD), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, start_new_session=True)
    status = "web (Block) is served on /run/user/iolane/web.sock"
    assert done.stdout.splitlines() == [
        f"started: {status}",
        f"killed: {status}",
        f"hung: {status}",
        "stopped: inactive success",
        "bad: refused",
    ], done.stderr + (tmp_path / "systemd.log").read_text()[-2000:]
