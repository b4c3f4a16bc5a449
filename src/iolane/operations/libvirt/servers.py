"""Device servers of domains: daemons at known sockets, which outlive whoever starts them. What is served is
in the domain's metadata, so anybody who has that can start and stop them: `iolane attach`, and libvirt's
hook.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from iolane.carriers.control import check_socket_path, is_served, runtime_directory
from iolane.engines.libvirt.metadata import Attached
from iolane.engines.qemu.patience import patient
from iolane.errors import IolaneError

SYSTEM_FOLDER = Path("/run/iolane/libvirt")
"""Where root's servers listen; QEMU's user must be able to reach it."""
STOP_SECONDS = 10.0
START_SECONDS = 60.0


def socket_of(domain: str, identity: str) -> Path:
    """Where a device of a domain is served: the same on each host, so that a domain finds it where it comes
    to."""
    folder = SYSTEM_FOLDER if os.geteuid() == 0 else runtime_directory() / "libvirt"
    return check_socket_path(folder / domain / f"{identity}.sock")


def start_server(device: Attached) -> None:
    """Serve the device from now on; returns when machines can connect. Harmless where it is served.

    It runs as the user that QEMU runs as, who alone may use its socket, and is started anew when it dies.

    Raises:
        IolaneError: it does not start; with what it said.
    """
    socket = Path(device.socket)
    if is_served(socket):
        return
    _make_folder(socket.parent, device.owner)
    command = [
        *(sys.executable, "-m", "iolane", "serve", device.device),
        *("--socket", device.socket, "--carrier", device.carrier, "--name", device.id),
        *("--daemon", "--supervise", "--pid-file", str(pid_file(device)), "--log", str(log_file(device))),
    ]
    user, group = _owner(device.owner)
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    # A session's folder goes when its user logs out, and the server stays.
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(START_SECONDS),
            cwd="/",
            env=environment,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
    except subprocess.TimeoutExpired:
        raise IolaneError(f"the server of {device.id} did not start within {START_SECONDS:g} s") from None
    except PermissionError as error:
        raise IolaneError(
            f"the server of {device.id} can't run as {device.owner}: {error.strerror}",
            remedy=f"{sys.executable} must be readable for QEMU's user",
        ) from error
    if done.returncode:
        said = re.sub(r"^iolane: ", "", done.stderr.strip().splitlines()[-1]) if done.stderr.strip() else "?"
        raise IolaneError(f"the server of {device.id} does not start: {said}")


def stop_server(device: Attached) -> None:
    """End the device's server, and wait for its end. Harmless where there is none."""
    pid = server_pid(device)
    if pid is None:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if server_pid(device) != pid:
            return  # it ended, and another process has its number
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], patient(STOP_SECONDS))[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], patient(STOP_SECONDS))
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


def start_servers(devices: Sequence[Attached]) -> None:
    """All of them or none. Raises IolaneError."""
    with contextlib.ExitStack() as undo:
        for device in devices:
            if not is_served(Path(device.socket)):
                start_server(device)
                undo.callback(stop_server, device)
        undo.pop_all()


def stop_servers(devices: Sequence[Attached]) -> None:
    """All of them; their folders go when they are empty but for logs."""
    for device in devices:
        stop_server(device)
    for folder in {Path(device.socket).parent for device in devices}:
        if folder.is_dir() and all(file.suffix == ".log" for file in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def pid_file(device: Attached) -> Path:
    """The file with the number of its server's process, which locks it."""
    return Path(device.socket).with_suffix(".pid")


def log_file(device: Attached) -> Path:
    """What its server has to say."""
    return Path(device.socket).with_suffix(".log")


def server_pid(device: Attached) -> int | None:
    """The process that serves it; None where there is none."""
    try:
        text = pid_file(device).read_text()
    except OSError:
        return None
    pid = int(text) if text.strip().isdecimal() else 0
    if not pid or not _holds(pid, pid_file(device)):
        return None
    return pid


def _holds(pid: int, path: Path) -> bool:
    """Whether the process has the file open, which it locks as long as it lives."""
    try:
        status = path.stat()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                open_file = os.stat(f"/proc/{pid}/fd/{name}")
                if (open_file.st_dev, open_file.st_ino) == (status.st_dev, status.st_ino):
                    return True
    except OSError:
        return False
    return False


def _owner(owner: str) -> tuple[int | None, int | None]:
    """User and group that the server runs as; None for ours: only root can be another."""
    if not owner or os.geteuid() != 0:
        return None, None
    user, _, group = owner.partition(":")
    return (int(user), int(group)) if user.isdecimal() and group.isdecimal() else (None, None)


def _make_folder(folder: Path, owner: str) -> None:
    """Folders that everybody may pass through, the last one the server's own."""
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder.mkdir(mode=0o711, exist_ok=True)
    user, group = _owner(owner)
    if user is not None and group is not None:
        os.chown(folder, user, group)
