"""Guest kernels from Debian packages: unpacked into the cache, never installed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from iolane.engines.qemu.archive import Archive, own_suites
from iolane.engines.qemu.cache import Cache
from iolane.engines.qemu.sources import this_machine
from iolane.errors import IolaneError


class Flavour(StrEnum):
    """Which of Debian's kernels: the small one for virtual machines, or the one with every driver."""

    CLOUD = "cloud"
    GENERIC = "generic"

    @property
    def suffix(self) -> str:
        return "cloud-amd64" if self is Flavour.CLOUD else "amd64"


@dataclass(frozen=True)
class GuestKernel:
    """A kernel image and, where known, its modules and configuration."""

    image: Path
    release: str = ""
    modules: Path | None = None
    """The folder lib/modules/RELEASE."""
    config: Path | None = None

    def has(self, option: str) -> bool:
        """Whether the kernel's configuration sets `option` to y or m; unknown counts as no."""
        if self.config is None:
            return False
        return re.search(rf"^CONFIG_{option}=[ym]$", self.config.read_text(), re.MULTILINE) is not None

    def builtin(self, option: str) -> bool:
        """Whether `option` is compiled into the kernel."""
        return self.config is not None and f"\nCONFIG_{option}=y\n" in self.config.read_text()


def own_kernel(image: Path, modules: Path | None = None) -> GuestKernel:
    """The user's own kernel."""
    if not image.is_file():
        raise IolaneError(f"no kernel image at {image}", remedy="give the path of a bzImage or vmlinux")
    return GuestKernel(image.absolute(), modules.name if modules else "", modules)


def debian_kernel(flavour: Flavour | str = Flavour.CLOUD, cache: Cache | None = None) -> GuestKernel:
    """The newest kernel of the machine's own Debian release."""
    flavour = Flavour(flavour)
    cache = cache or Cache()
    return unpacked_kernel(
        cache.tree(f"kernel/{flavour}", lambda prefix: _fetch_kernel(cache, flavour, prefix))
    )


def _fetch_kernel(cache: Cache, flavour: Flavour, prefix: Path) -> None:
    archive = _own_archive(cache)
    pattern = rf"linux-image-\d\S*-{flavour.suffix}$"
    names = [name for name in archive.depends(f"linux-image-{flavour.suffix}") if re.match(pattern, name)]
    if len(names) != 1:
        raise IolaneError(f"linux-image-{flavour.suffix} names no kernel package")
    archive.exactly(names, prefix)
    shutil.rmtree(prefix / "usr/share", ignore_errors=True)
    if not unpacked_kernel(prefix).image.is_file():
        raise IolaneError(f"{names[0]} holds no kernel image")


def unpacked_kernel(prefix: Path) -> GuestKernel:
    """The kernel in an unpacked package."""
    images = sorted(prefix.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise IolaneError(f"{prefix} holds {len(images)} kernels", remedy=f"remove {prefix} and try again")
    release = images[0].name.removeprefix("vmlinuz-")
    modules = next(
        (folder for top in ("lib", "usr/lib") if (folder := prefix / top / "modules" / release).is_dir()),
        None,
    )
    return GuestKernel(images[0], release, modules, prefix / "boot" / f"config-{release}")


def kernel_headers(kernel: GuestKernel, cache: Cache | None = None) -> Path:
    """The folder for `make -C` that builds modules for `kernel` (a Debian one)."""
    cache = cache or Cache()
    if not re.search(r"-amd64$", kernel.release):
        raise IolaneError(
            f"no header packages for kernel {kernel.release or kernel.image}",
            remedy="build modules for your own kernel with its own tree",
        )

    def make(prefix: Path) -> None:
        archive = _own_archive(cache)
        headers = f"linux-headers-{kernel.release}"
        try:
            needed = [name for name in archive.depends(headers) if re.match(r"linux-(headers|kbuild)-", name)]
            tools = [name for name in needed if name.startswith("linux-kbuild")]
            libraries = [
                name for tool in tools for name in archive.depends(tool) if name.startswith("libelf1")
            ]
            archive.exactly([headers, *needed, *libraries], prefix)
        except IolaneError as error:
            raise IolaneError(
                f"no headers for kernel {kernel.release}: {error.message}",
                remedy=f"if Debian has a newer kernel by now, remove {cache.root / 'kernel'} and try again",
            ) from error
        shutil.rmtree(prefix / "usr/share", ignore_errors=True)
        _relocate_makefile(prefix / "usr/src" / headers / "Makefile")

    prefix = cache.tree(f"headers/{kernel.release}", make)
    folder = prefix / "usr/src" / f"linux-headers-{kernel.release}"
    if not folder.is_dir():
        raise IolaneError(f"{prefix} holds no headers", remedy=f"remove {prefix} and try again")
    return folder


def _relocate_makefile(makefile: Path) -> None:
    """Debian's header Makefile includes the common one under /usr/src; here it lies beside."""
    here = "$(dir $(lastword $(MAKEFILE_LIST)))../"
    makefile.write_text(makefile.read_text().replace("/usr/src/", here))


def busybox(cache: Cache | None = None) -> Path:
    """A static busybox."""
    cache = cache or Cache()
    prefix = cache.tree(
        "busybox", lambda prefix: _discard(_own_archive(cache).exactly(["busybox-static"], prefix))
    )
    for place in ("bin/busybox", "usr/bin/busybox"):
        if (prefix / place).is_file():
            return prefix / place
    raise IolaneError(f"{prefix} holds no busybox", remedy=f"remove {prefix} and try again")


def program_tree(package: str, cache: Cache | None = None) -> Path:
    """A Debian package with its closure, unpacked: the source of programs for an initramfs."""
    cache = cache or Cache()

    def make(prefix: Path) -> None:
        _own_archive(cache).closure([package], prefix)
        for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"):
            shutil.rmtree(prefix / unused, ignore_errors=True)

    return cache.tree(f"programs/{package}", make)


def build_module(kernel: GuestKernel, source: Path, cache: Cache | None = None) -> Path:
    """Builds the out-of-tree module of one C file (or a folder with a Kbuild) against the kernel's headers.
    Returns the .ko, kept in the cache by the content of its source."""
    cache = cache or Cache()
    headers = kernel_headers(kernel, cache)
    sources = sorted(source.iterdir()) if source.is_dir() else [source]
    name = source.name if source.is_dir() else source.stem
    key = content_key([file for file in sources if file.is_file()], kernel.release)

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="iolane-module-") as scratch:
            for file in sources:
                if file.is_file():
                    shutil.copy(file, scratch)
            if not any((Path(scratch) / makefile).exists() for makefile in ("Kbuild", "Makefile")):
                (Path(scratch) / "Kbuild").write_text(f"obj-m := {name}.o\n")
            _make(headers, Path(scratch), name)
            target.mkdir()
            for built in Path(scratch).glob("*.ko"):
                shutil.copy(built, target)

    tree = cache.tree(f"modules/{kernel.release}/{name}-{key}", make)
    built = sorted(tree.glob("*.ko"))
    if len(built) != 1:
        raise IolaneError(f"building {source} made {len(built)} modules, one is expected")
    return built[0]


def _make(headers: Path, folder: Path, name: str) -> None:
    for program in ("make", "gcc"):
        if shutil.which(program) is None:
            raise IolaneError(
                f"{program} is needed to build {name}", remedy="apt-get install gcc make libc6-dev"
            )
    command = ["make", "-C", str(headers), f"M={folder}", "CC=gcc", "modules"]
    done = subprocess.run(command, capture_output=True, text=True, env=_build_environment(headers))
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise IolaneError(f"the kernel module {name} does not build:\n{tail}")


def _build_environment(headers: Path) -> dict[str, str]:
    """objtool needs libelf, which lies in the tree of the headers."""
    kept = ("PATH", "HOME", "TMPDIR")
    libraries = headers.parents[2] / "usr/lib/x86_64-linux-gnu"
    return {
        "LC_ALL": "C.UTF-8",
        "LD_LIBRARY_PATH": str(libraries),
        **{name: os.environ[name] for name in kept if name in os.environ},
    }


def content_key(files: Sequence[Path], *words: str) -> str:
    """A short name for the content of files."""
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _own_archive(cache: Cache) -> Archive:
    archive = this_machine()
    return Archive(cache, archive, own_suites(archive))


def _discard(_: object) -> None:
    """For a maker whose result is the tree alone."""
