"""The block device as a PCI function."""

from __future__ import annotations

from pathlib import Path

from iolane.backends.block import BlockBackend
from iolane.devices.virtio.block.device import Block
from iolane.errors import IolaneError
from iolane.model.pci import Presentation
from iolane.model.virtio.pci import VirtioPci


class BlockFunction(VirtioPci):
    """A virtio disk on PCI; Linux's virtio_blk makes it /dev/vda.

    Args:
        image: a raw image or block device of the host.
        read_only: refuse writes.
        serial: what the guest reads as the disk's serial number, up to 20 characters.
        queues: number of request queues.
        queue_size: largest size of a queue, a power of two.
        block_size: the logical block size that the guest sees; by default the back end's.
    """

    virtio: Block

    def __init__(
        self,
        image: Path | None = None,
        *,
        backend: BlockBackend | None = None,
        read_only: bool = False,
        serial: str = "",
        queues: int = 1,
        queue_size: int = 256,
        block_size: int | None = None,
        presentation: Presentation | str = Presentation.AUTO,
        name: str | None = None,
    ) -> None:
        block = Block(
            image,
            backend=backend,
            read_only=read_only,
            serial=serial,
            queues=queues,
            queue_size=queue_size,
            block_size=block_size,
        )
        try:
            block.check_image()
            super().__init__(block, presentation=presentation, name=name or "block")
        except IolaneError:
            block.release()
            raise
