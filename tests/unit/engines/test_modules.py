import lzma
import struct
from pathlib import Path

import pytest

from iolane.engines.qemu.modules import (
    ModuleTree,
    modinfo,
    module_name,
    parse_modules_dep,
    parse_softdep,
)
from iolane.errors import IolaneError


def module(**info: str) -> bytes:
    """A minimal ELF64 with a .modinfo section."""
    strings = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    sections = 64 + len(strings) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, sections, 0, 64, 0, 0, 64, 3, 2)

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    table = bytes(64) + section(1, 64, len(strings)) + section(10, 64 + len(strings), len(names))
    return header + strings + names + table


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "6.1.0-test"
    drivers = root / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (drivers / "a-top.ko").write_bytes(module(depends="b_middle,c", name="a_top"))
    (drivers / "b_middle.ko.xz").write_bytes(lzma.compress(module(depends="c", softdep="pre: d post: e")))
    (drivers / "c.ko").write_bytes(module(depends=""))
    (drivers / "d.ko").write_bytes(module())
    (drivers / "e.ko").write_bytes(module(depends="d"))
    (root / "modules.builtin").write_text("kernel/drivers/nvme.ko\nkernel/fs/ext4/ext4.ko\n")
    return root


def names(files: list[Path]) -> list[str]:
    return [module_name(file) for file in files]


def test_modinfo() -> None:
    assert modinfo(module(license="GPL", depends="x,y")) == [("license", "GPL"), ("depends", "x,y")]
    with pytest.raises(IolaneError):
        modinfo(b"not an ELF file")
    with pytest.raises(IolaneError):
        modinfo(module(license="GPL")[:70])


def test_order_from_the_modules_themselves(tree: Path) -> None:
    assert names(ModuleTree(tree).in_order(["a-top"])) == ["d", "c", "b_middle", "e", "a_top"]


def test_builtin_modules_are_left_out(tree: Path) -> None:
    assert names(ModuleTree(tree).in_order(["nvme", "c", "ext4", "c"])) == ["c"]


def test_a_missing_module_is_named(tree: Path) -> None:
    with pytest.raises(IolaneError, match=r"6\.1\.0-test has no module e1000e"):
        ModuleTree(tree).in_order(["e1000e"])


def test_order_from_modules_dep(tree: Path) -> None:
    (tree / "modules.dep").write_text(
        "kernel/drivers/a-top.ko: kernel/drivers/b_middle.ko.xz kernel/drivers/c.ko\n"
        "kernel/drivers/b_middle.ko.xz: kernel/drivers/c.ko\nkernel/drivers/c.ko:\nkernel/drivers/d.ko:\n"
    )
    (tree / "modules.softdep").write_text("# soft\nsoftdep c pre: d\n")
    assert names(ModuleTree(tree).in_order(["a_top"])) == ["d", "c", "b_middle", "a_top"]


def test_the_list_of_a_build_spares_a_look_into_each_folder(tree: Path) -> None:
    """modules.order, unless there are modules beside the kernel's own."""
    (tree / "modules.order").write_text("kernel/drivers/c.ko\nkernel/drivers/d.ko\n")
    assert names(ModuleTree(tree).in_order(["c"])) == ["c"]
    with pytest.raises(IolaneError, match="no module e"):
        ModuleTree(tree).in_order(["e"])
    (tree / "updates").mkdir()
    assert names(ModuleTree(tree).in_order(["e"])) == ["d", "e"]


def test_a_list_whose_files_are_compressed_is_not_taken(tree: Path) -> None:
    (tree / "modules.order").write_text("kernel/drivers/b_middle.ko\n")
    assert names(ModuleTree(tree).in_order(["c"])) == ["c"]


def test_an_own_module_brings_what_it_needs(tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.ko"
    own.write_bytes(module(depends="b_middle"))
    assert names(ModuleTree(tree).in_order([], [own]))[-1] == "own"
    assert "c" in names(ModuleTree(tree).in_order([], [own]))


def test_parsing() -> None:
    assert parse_modules_dep("a.ko: b.ko c.ko\nb.ko:\n\n") == {"a.ko": ["b.ko", "c.ko"], "b.ko": []}
    assert parse_softdep("softdep crc-t10dif pre: x-y post: z\nalias a b\n") == {
        "crc_t10dif": (["x_y"], ["z"])
    }
