"""Kernel modules and what they need: modules.dep where a depmod has run, else each module's own .modinfo."""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from iolane.errors import IolaneError

_SUFFIXES = (".ko", ".ko.xz")


def module_name(file: str | Path) -> str:
    """The module's name as the kernel has it: no folder, no suffix, underscores."""
    return Path(file).name.split(".ko")[0].replace("-", "_")


def module_bytes(file: Path) -> bytes:
    """The module itself, decompressed."""
    data = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(data)
    if file.suffix in (".zst", ".gz"):
        raise IolaneError(
            f"{file} is compressed in a way iolane does not read", remedy="use .ko or .ko.xz modules"
        )
    return data


def modinfo(data: bytes) -> list[tuple[str, str]]:
    """The key=value strings of the ELF64 section .modinfo (include/linux/module.h, MODULE_INFO)."""
    try:
        if data[:5] != b"\x7fELF\x02":
            raise ValueError
        (section_offset,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<3H", data, 0x3A)
        sections = [struct.unpack_from("<IIQQQQ", data, section_offset + size * i) for i in range(count)]
        names = sections[names_index][4]
        for name, _, _, _, offset, length in sections:
            if data.startswith(b".modinfo\0", names + name):
                strings = data[offset : offset + length].split(b"\0")
                pairs = (text.decode(errors="replace").partition("=") for text in strings if text)
                return [(key, value) for key, _, value in pairs]
    except (ValueError, IndexError, struct.error):
        raise IolaneError("not a kernel module (ELF64 expected)") from None
    return []


def parse_modules_dep(text: str) -> dict[str, list[str]]:
    """modules.dep(5): `file: file file ...`, paths below lib/modules/RELEASE."""
    found = {}
    for line in text.splitlines():
        file, colon, needs = line.partition(":")
        if colon:
            found[file.strip()] = needs.split()
    return found


def parse_softdep(text: str) -> dict[str, tuple[list[str], list[str]]]:
    """`softdep NAME pre: a b post: c` lines of modprobe.d(5) and modules.softdep."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "softdep":
            found[module_name(words[1])] = split_softdep(words[2:])
    return found


def split_softdep(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """`pre: a b post: c` -> ([a, b], [c])."""
    before: list[str] = []
    after: list[str] = []
    into = before
    for word in words:
        if word in ("pre:", "post:"):
            into = before if word == "pre:" else after
        else:
            into.append(module_name(word))
    return before, after


class ModuleTree:
    """The folder lib/modules/RELEASE of one kernel."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.builtin = {module_name(line) for line in self._lines("modules.builtin")}
        dependencies = parse_modules_dep("\n".join(self._lines("modules.dep")))
        self._dependencies = {module_name(file): needs for file, needs in dependencies.items()}
        self._softdeps = parse_softdep("\n".join(self._lines("modules.softdep")))
        self._files = {module_name(file): file for file in self._all(dependencies)}

    def _all(self, dependencies: Iterable[str]) -> list[Path]:
        """Every module. A list that was made for the tree spares looking into each of its folders, which
        takes long where they are another machine's: modules.dep, or modules.order
        (Documentation/kbuild/kbuild.rst) as long as there are no modules beside the kernel's own and those
        are not compressed."""
        listed = list(dependencies)
        if not listed and {entry.name for entry in self.root.iterdir() if entry.is_dir()} == {"kernel"}:
            listed = self._lines("modules.order")
        files = [self.root / line for line in listed]
        if files and files[0].is_file():
            return files
        return [
            file
            for file in sorted(self.root.rglob("*.ko*"))
            if file.name.endswith((*_SUFFIXES, ".ko.zst", ".ko.gz"))
        ]

    def _lines(self, name: str) -> list[str]:
        file = self.root / name
        return file.read_text().splitlines() if file.is_file() else []

    def in_order(self, names: Iterable[str], extra: Iterable[Path] = ()) -> list[Path]:
        """The files to load for `names` and the out-of-tree `extra`, dependencies first, each once."""
        ordered: list[Path] = []
        done: set[str] = set()
        for name in names:
            ordered.extend(self._walk(module_name(name), done, required=True))
        for file in extra:
            for need in _declared(file):
                ordered.extend(self._walk(need, done, required=True))
            ordered.append(file)
        return ordered

    def _walk(self, name: str, done: set[str], *, required: bool) -> Iterator[Path]:
        if name in done or name in self.builtin:
            return
        done.add(name)
        file = self._files.get(name)
        if file is None:
            if required:
                raise IolaneError(
                    f"kernel {self.root.name} has no module {name}",
                    remedy="use Debian's generic kernel, which has every driver",
                )
            return
        needs, before, after = self._needs(name, file)
        for other in before:
            yield from self._walk(other, done, required=False)
        for other in needs:
            yield from self._walk(other, done, required=True)
        yield file
        for other in after:
            yield from self._walk(other, done, required=False)

    def _needs(self, name: str, file: Path) -> tuple[list[str], list[str], list[str]]:
        if name in self._dependencies:
            # modules.dep lists all that is needed, what is needed last comes first
            needs = [module_name(need) for need in reversed(self._dependencies[name])]
            return needs, *self._softdeps.get(name, ([], []))
        info = modinfo(module_bytes(file))
        before, after = split_softdep(" ".join(v for k, v in info if k == "softdep").split())
        return _depends(info), before, after


def _declared(file: Path) -> list[str]:
    return _depends(modinfo(module_bytes(file)))


def _depends(info: Iterable[tuple[str, str]]) -> list[str]:
    return [
        module_name(name) for key, value in info if key == "depends" for name in re.split(",", value) if name
    ]
