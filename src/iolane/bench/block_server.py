"""The iolane side of `iolane bench block`: a disk on the data plane that IOLANE_DATAPLANE names.

Run as `python -m iolane.bench.block_server IMAGE QUEUES DIRECT SOCKET`; says `ready`, serves until its
standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from iolane.carriers.vhost_user import VhostUserServer
from iolane.devices.virtio.block import Block
from iolane.model.workers import Workers


def main(image: str, queues: str, direct: str, socket: str) -> None:
    """Serve until whoever started this closes our standard input."""
    disk = Block(Path(image), queues=int(queues), queue_size=512, direct=direct == "1")
    with Workers(2) as workers, VhostUserServer(disk, socket, workers=workers):
        print("ready", flush=True)
        sys.stdin.read()
    disk.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
