"""The kernel that is unpacked here instead of by the guest's processor."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.kernel import GuestKernel
from iolane.engines.qemu.vmlinux import uncompressed, vmlinux
from iolane.errors import IolaneError

KERNEL = b"\x7fELF\x02" + bytes(range(256)) * 40


def bzimage(payload: bytes, *, sectors: int = 2, version: int = 0x20F, offset: int = 64) -> bytes:
    """Documentation/arch/x86/boot.rst: the header, the real-mode part, the payload at its offset."""
    image = bytearray((sectors or 4) * 512 + 512 + offset) + payload
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    return bytes(image)


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress])
@pytest.mark.parametrize("sectors", [2, 0])
def test_the_payload_is_found_and_unpacked(compress: object, sectors: int) -> None:
    assert callable(compress)
    payload = compress(KERNEL) + struct.pack("<I", len(KERNEL))
    assert vmlinux(bzimage(payload, sectors=sectors)) == KERNEL


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not a bzImage"),
        (bytes(4096), "not a bzImage"),
        (bzimage(lzma.compress(KERNEL), version=0x207), "does not say where"),
        (bzimage(lzma.compress(KERNEL))[:-1], "does not say where"),
        (bzimage(b"\x02!L\x18" + bytes(64)), "neither by xz nor by gzip"),
        (bzimage(b"\xfd7zXZ\0" + bytes(64)), "cannot be unpacked"),
        (bzimage(b"\x1f\x8b" + bytes(64)), "cannot be unpacked"),
        (bzimage(lzma.compress(b"not a program")), "no ELF file"),
    ],
)
def test_what_is_no_kernel_is_refused(image: bytes, message: str) -> None:
    with pytest.raises(IolaneError, match=message):
        vmlinux(image)


def test_a_kernel_that_can_not_be_loaded_unpacked_stays_as_it_is(tmp_path: Path) -> None:
    image, config = tmp_path / "vmlinuz", tmp_path / "config"
    image.write_bytes(bzimage(lzma.compress(KERNEL) + bytes(4)))
    cache = Cache(tmp_path / "cache")
    for options in ("\nCONFIG_PVH=y\n", "\nCONFIG_KERNEL_XZ=y\n", "\nCONFIG_PVH=y\nCONFIG_KERNEL_ZSTD=y\n"):
        config.write_text(options)
        kernel = GuestKernel(image, "6.1", None, config)
        assert uncompressed(kernel, cache) is kernel
    config.write_text("\nCONFIG_PVH=y\nCONFIG_KERNEL_XZ=y\n")
    assert uncompressed(kernel, cache).image.read_bytes() == KERNEL
    assert uncompressed(kernel, cache).release == "6.1"
