"""The kernel inside a bzImage, unpacked here, once: an emulated processor needs five seconds to do so."""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import replace

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.kernel import GuestKernel, content_key
from iolane.errors import IolaneError

_MAGIC = 0x202
"""Of `HdrS` (Documentation/arch/x86/boot.rst, The Real-Mode Kernel Header)."""
_PAYLOAD_VERSION = 0x0208
"""The first version of the boot protocol that says where the payload is."""
_ELF = b"\x7fELF\x02"
_LARGEST = 512 << 20


def uncompressed(kernel: GuestKernel, cache: Cache | None = None) -> GuestKernel:
    """The same kernel as an ELF file, kept in the cache; itself where it is compressed in a way not read here
    or has no entry for one that is loaded unpacked (CONFIG_PVH)."""
    cache = cache or Cache()
    if not kernel.builtin("PVH") or not (kernel.builtin("KERNEL_XZ") or kernel.builtin("KERNEL_GZIP")):
        return kernel
    name = f"vmlinux/{kernel.release}-{content_key([kernel.image])}"
    image = cache.file(name, lambda target: _discard(target.write_bytes(vmlinux(kernel.image.read_bytes()))))
    return replace(kernel, image=image)


def vmlinux(image: bytes) -> bytes:
    """The ELF file in a bzImage; raises `IolaneError` when there is none that QEMU could load."""
    payload = _payload(image)
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            # The size of the result (u32) follows the xz stream; it is ignored.
            kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, _LARGEST)
        elif payload.startswith(b"\x1f\x8b"):
            kernel = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload, _LARGEST)
        else:
            raise IolaneError("the kernel is compressed neither by xz nor by gzip")
    except (lzma.LZMAError, zlib.error) as error:
        raise IolaneError(f"the kernel cannot be unpacked: {error}") from error
    if not kernel.startswith(_ELF):
        raise IolaneError("what is in the kernel image is no ELF file")
    return kernel


def _payload(image: bytes) -> bytes:
    """The real-mode kernel header: setup_sects (0x1f1), version, payload_offset (0x248) and _length."""
    if len(image) < 0x250 or image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise IolaneError("not a bzImage", remedy="give the path of a vmlinuz")
    (version,) = struct.unpack_from("<H", image, 0x206)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] or 4) * 512 + 512 + offset
    if version < _PAYLOAD_VERSION or not length or start + length > len(image):
        raise IolaneError("the kernel image does not say where its payload is")
    return image[start : start + length]


def _discard(_: object) -> None:
    """For a maker whose result is the file alone."""
