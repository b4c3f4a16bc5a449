"""An initramfs written in Python: busybox, the agent as /init, modules in loading order, files, programs."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.cpio import CpioWriter
from iolane.engines.qemu.kernel import GuestKernel, busybox, content_key, program_tree
from iolane.engines.qemu.modules import ModuleTree, module_bytes
from iolane.errors import IolaneError

AGENT_SOURCE = Path(__file__).with_name("agent.c")
INITRAMFS_KEPT = 16
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib")


@dataclass(frozen=True)
class Program:
    """A program of a Debian package for the guest: `Program("nvme-cli", "nvme")`."""

    package: str
    name: str


NVME = Program("nvme-cli", "nvme")
MKFS_EXT4 = Program("e2fsprogs", "mkfs.ext4")
FSCK_EXT4 = Program("e2fsprogs", "fsck.ext4")


@dataclass(frozen=True)
class InitramfsContent:
    """What goes in beside busybox and the agent."""

    modules: Sequence[str] = ()
    """Names of modules of the guest kernel; what they need comes along; built-in ones are left out."""
    extra_modules: Sequence[Path] = ()
    """Out-of-tree modules (.ko), loaded after the others."""
    programs: Sequence[Program] = ()
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    """Path in the guest -> a file here, or its content. Files that are executable here are so there."""
    setup: str | None = None
    """A shell script that runs before the agent serves."""


def build_agent(cache: Cache) -> Path:
    """The guest agent, compiled for any x86-64 Linux (static)."""
    key = content_key([AGENT_SOURCE])

    def make(target: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise IolaneError("the guest agent needs a C compiler", remedy="apt-get install gcc libc6-dev")
        command = [compiler, "-std=gnu11", "-Os", "-static", "-s", "-o", str(target), str(AGENT_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise IolaneError(
                f"the guest agent does not compile: {done.stderr.strip()[-400:]}",
                remedy="apt-get install gcc libc6-dev",
            )

    return cache.file(f"agent/{key}", make)


def build_initramfs(kernel: GuestKernel, content: InitramfsContent, cache: Cache | None = None) -> Path:
    """The initramfs for `kernel`, kept in the cache by its content. Uncompressed: it is handed over in
    memory, and unpacking it would cost the guest."""
    cache = cache or Cache()
    data = initramfs_bytes(kernel, content, cache)
    key = hashlib.sha256(data).hexdigest()[:16]
    _forget_old(cache.root / "initramfs")
    return cache.file(f"initramfs/{key}.cpio", lambda target: _write(target, data))


def _forget_old(folder: Path) -> None:
    """Keeps the newest ones; none that a machine may be about to load."""
    files = sorted((file.stat().st_mtime, file) for file in folder.glob("*.cpio"))
    for made, file in files[:-INITRAMFS_KEPT]:
        if made < time.time() - 3600:
            file.unlink(missing_ok=True)


def _write(target: Path, data: bytes) -> None:
    target.write_bytes(data)


def compress(data: bytes, kernel: GuestKernel) -> bytes:
    """A smaller initramfs for keeping or sending: gzip where the kernel reads it, else as it is."""
    return gzip.compress(data, 1, mtime=0) if kernel.builtin("RD_GZIP") else data


def initramfs_bytes(kernel: GuestKernel, content: InitramfsContent, cache: Cache) -> bytes:
    """The archive itself."""
    out = io.BytesIO()
    cpio = CpioWriter(out)
    for folder in ("dev", "proc", "sys", "run", "mnt", "etc", "lib/modules", "usr/bin", "usr/sbin"):
        cpio.directory(folder)
    cpio.directory("root", 0o700)
    cpio.directory("tmp", 0o1777)
    cpio.character_device("dev/console", 5, 1)
    cpio.character_device("dev/null", 1, 3, 0o666)
    cpio.file("init", build_agent(cache).read_bytes(), 0o755)
    cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    cpio.file("etc/group", b"root:x:0:\n")
    cpio.symlink("etc/mtab", "/proc/mounts")
    _add_modules(cpio, kernel, content)
    for path, source in content.files.items():
        data = source if isinstance(source, bytes) else source.read_bytes()
        executable = not isinstance(source, bytes) and os.access(source, os.X_OK)
        cpio.file(path, data, 0o755 if executable else 0o644)
    for program in content.programs:
        _add_program(cpio, program, cache)
    _add_busybox(cpio, busybox(cache), cache)
    if content.setup is not None:
        cpio.file("iolane/setup", b"#!/bin/sh\n" + content.setup.encode(), 0o755)
    cpio.close()
    return out.getvalue()


def _add_modules(cpio: CpioWriter, kernel: GuestKernel, content: InitramfsContent) -> None:
    if not content.modules and not content.extra_modules:
        return
    if kernel.modules is None and content.modules:
        raise IolaneError(
            f"modules {', '.join(content.modules)} are wanted but the kernel came without its modules",
            remedy="name the folder lib/modules/RELEASE of that kernel",
        )
    if kernel.modules is None:
        files = list(content.extra_modules)
    else:
        files = ModuleTree(kernel.modules).in_order(content.modules, content.extra_modules)
    order = []
    for file in files:
        path = f"/lib/modules/{file.name.removesuffix('.xz')}"
        cpio.file(path, module_bytes(file))
        order.append(path)
    cpio.file("lib/modules/order", "".join(path + "\n" for path in order).encode())


def _add_busybox(cpio: CpioWriter, binary: Path, cache: Cache) -> None:
    cpio.file("bin/busybox", binary.read_bytes(), 0o755)
    applets = cache.file("busybox.applets", lambda target: _write(target, _applets(binary)))
    for path in applets.read_text().split():
        if path not in cpio and not any(
            f"{folder}/{Path(path).name}" in cpio for folder in ("usr/sbin", "usr/bin")
        ):
            cpio.symlink(path, "/bin/busybox")


def _applets(binary: Path) -> bytes:
    listed = subprocess.run([str(binary), "--list-full"], capture_output=True, check=True).stdout.split()
    return b"\n".join(path for path in listed if path != b"bin/busybox")


def _add_program(cpio: CpioWriter, program: Program, cache: Cache) -> None:
    """Puts the program, its interpreter and every library it needs where its loader looks for them."""
    tree = program_tree(program.package, cache)
    wanted = [(f"usr/sbin/{program.name}", find_in_tree(tree, program.name))]
    while wanted:
        place, file = wanted.pop()
        if place in cpio:
            continue
        data = file.read_bytes()
        cpio.file(place, data, 0o755)
        interpreter, needed = elf_needs(data)
        names = {f"lib/x86_64-linux-gnu/{name}": name for name in needed}
        if interpreter is not None:
            names[interpreter] = Path(interpreter).name
        wanted.extend((place, find_in_tree(tree, name)) for place, name in names.items())


def find_in_tree(tree: Path, name: str) -> Path:
    """A program or library of an unpacked closure."""
    for folder in ("usr/sbin", "sbin", "usr/bin", "bin", *LIBRARY_FOLDERS):
        file = tree / folder / name
        if file.is_symlink():
            target = os.readlink(file)
            file = tree / target.lstrip("/") if target.startswith("/") else file.parent / target
        if file.is_file():
            return file
    raise IolaneError(f"{tree.name} holds no {name}")


def elf_needs(data: bytes) -> tuple[str | None, list[str]]:
    """The interpreter (PT_INTERP) and needed libraries (DT_NEEDED) of an ELF64 file (System V ABI, ch. 5)."""
    if data[:5] != b"\x7fELF\x02":
        raise IolaneError("not an ELF64 program")
    (table,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<2H", data, 0x36)
    headers = [struct.unpack_from("<IIQQQQ", data, table + size * i) for i in range(count)]
    interpreter = next(
        (
            data[offset : offset + length].rstrip(b"\0").decode()
            for kind, _, offset, _, _, length in headers
            if kind == 3
        ),
        None,
    )
    dynamic = next(((offset, length) for kind, _, offset, _, _, length in headers if kind == 2), None)
    if dynamic is None:
        return interpreter, []
    entries = list(struct.iter_unpack("<QQ", data[dynamic[0] : sum(dynamic)]))
    strings = next(value for tag, value in entries if tag == 5)
    base = next(o - a + strings for k, _, o, a, _, s in headers if k == 1 and a <= strings < a + s)
    return interpreter, [_c_string(data, base + value) for tag, value in entries if tag == 1]


def _c_string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
