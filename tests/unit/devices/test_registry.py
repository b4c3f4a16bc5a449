"""Naming devices: specifications, classes, options; each mistake one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from iolane.devices import registry
from iolane.devices.options import options_of
from iolane.devices.registry import available, create, resolve
from iolane.devices.specification import parse, split_commas
from iolane.errors import IolaneError
from iolane.model.pci import PciDevice

DEVICE = '''
from __future__ import annotations
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from iolane.model.pci import PciDevice
if TYPE_CHECKING:
    from somewhere import Backend

class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"

class Simple(PciDevice):
    """A device without options of its own.

    More text."""
    vendor_id, device_id, class_code = 0x1234, 0x1, 0xFF0000

class Rich(Simple):
    def __init__(self, image: Path | None = None, *, size: int = 0, ratio: float = 1.0,
                 read_only: bool = False, mode: Mode = Mode.SAFE, kind: Literal["a", "b"] = "a",
                 label: str = "", paths: list[Path] = (),
                 backend: Backend | None = None, wanted: int | str = 1, callback: object = None,
                 **more: object) -> None:
        super().__init__(**more)
        self.given = dict(image=image, size=size, ratio=ratio, read_only=read_only, mode=mode.value,
                          kind=kind, label=label, paths=paths, wanted=wanted)
        if label == "bad":
            raise ValueError("a label can't be bad")
        if label == "missing":
            open("/nonexistent/x")

class Needs(Simple):
    def __init__(self, image: Path) -> None:
        super().__init__()

class NotADevice: pass
function = print
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(DEVICE)
    return path


def refusal(text: str) -> str:
    """The one line that `create(text)` is refused with."""
    with pytest.raises(IolaneError) as caught:
        create(text)
    line = str(caught.value)
    assert "\n" not in line
    return line


def given(text: str) -> dict[str, object]:
    values = create(text).given  # type: ignore[attr-defined]
    assert isinstance(values, dict)
    return values


def test_a_specification_is_taken_apart() -> None:
    wanted = parse("nvme,image=disk.raw,read_only=true,id=disk0,process=own")
    assert wanted.name == "nvme"
    assert wanted.options == {"image": ["disk.raw"], "read_only": ["true"]}
    assert wanted.id == "disk0"
    assert wanted.own_process
    assert wanted.socket is None


def test_a_device_served_elsewhere_needs_no_name() -> None:
    assert parse("socket=/run/x.sock").socket == "/run/x.sock"
    assert parse("nvme,socket=/run/x.sock,id=d").id == "d"


def test_a_doubled_comma_is_a_comma() -> None:
    assert split_commas("nvme,image=a,,b,c=,,") == ["nvme", "image=a,b", "c=,"]
    assert parse("nvme,image=a,,b=c.raw").options == {"image": ["a,b=c.raw"]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "device '' has no name (NAME[,key=value...], e.g. nvme,image=disk.raw)"),
        ("image=x", "device 'image=x' has no name (NAME[,key=value...], e.g. nvme,image=disk.raw)"),
        ("nvme,disk.raw", "device 'nvme,disk.raw': 'disk.raw' is not key=value"),
        ("nvme,=x", "device 'nvme,=x': '=x' is not key=value"),
        ("nvme,id=a,id=b", "device 'nvme,id=a,id=b': id is given twice"),
        ("nvme,id=0/x", "device 'nvme,id=0/x': id '0/x' is not a name (a letter, then letters, digits, "),
        ("nvme,process=mine", "device 'nvme,process=mine': process is own or shared, not 'mine'"),
        ("nvme,socket=", "device 'nvme,socket=': socket needs a path"),
        (
            "nvme,socket=/s,image=x",
            "device 'nvme,socket=/s,image=x': image can't be given with socket=, the ",
        ),
    ],
)
def test_specifications_that_mean_nothing(text: str, line: str) -> None:
    with pytest.raises(IolaneError) as caught:
        parse(text)
    assert str(caught.value).startswith(line)


def test_a_class_in_a_file(file: Path) -> None:
    device = create(f"{file}:Simple")
    assert type(device).__name__ == "Simple"
    assert resolve(f"{file}:Simple") is type(device), "the file is loaded once"


def test_a_relative_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert isinstance(create("my.py:Simple"), PciDevice)


def test_a_file_may_import_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "neighbour_of_registry_test.py").write_text(DEVICE)
    (tmp_path / "other.py").write_text("from neighbour_of_registry_test import Simple\n")
    assert isinstance(create(f"{tmp_path}/other.py:Simple"), PciDevice)


def test_options_are_converted_by_their_annotations(file: Path) -> None:
    values = given(
        f"{file}:Rich,image=~/d.raw,size=64M,ratio=2.5,read_only=on,mode=fast,kind=b,label=x,paths=/a,paths=/b,wanted=0x10"
    )
    assert values == {
        "image": Path("~/d.raw").expanduser(),
        "size": 64 << 20,
        "ratio": 2.5,
        "read_only": True,
        "mode": "fast",
        "kind": "b",
        "label": "x",
        "paths": [Path("/a"), Path("/b")],
        "wanted": 16,
    }


def test_a_union_takes_the_narrowest_type(file: Path) -> None:
    assert given(f"{file}:Rich,wanted=twelve")["wanted"] == "twelve"
    assert given(f"{file}:Rich,wanted=12")["wanted"] == 12


def test_a_dash_stands_for_an_underscore(file: Path) -> None:
    assert given(f"{file}:Rich,read-only=true")["read_only"] is True


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{file}:Rich,size=big", "{file}:Rich: option size: 'big' is not number"),
        ("{file}:Rich,read_only=maybe", "{file}:Rich: option read_only: 'maybe' is not on|off"),
        ("{file}:Rich,mode=slow", "{file}:Rich: option mode: 'slow' is not fast|safe"),
        ("{file}:Rich,kind=c", "{file}:Rich: option kind: 'c' is not a|b"),
        ("{file}:Rich,image=", "{file}:Rich: option image: '' is not path"),
        ("{file}:Rich,size=1,size=2", "{file}:Rich: option size is given twice"),
        ("{file}:Rich,read-only=on,read_only=on", "{file}:Rich: option read_only is given twice"),
        ("{file}:Rich,siez=1", "{file}:Rich: Rich has no option 'siez' (did you mean size?)"),
        ("{file}:Rich,backend=x", "{file}:Rich: Rich has no option 'backend' ("),
        ("{file}:Rich,callback=x", "{file}:Rich: Rich has no option 'callback' ("),
        ("{file}:Needs", "{file}:Needs: Needs needs image="),
        ("{file}:Rich,label=bad", "{file}:Rich: a label can't be bad"),
        ("{file}:Rich,label=missing", "{file}:Rich: /nonexistent/x: no such file or directory"),
        ("{file}:Absent", "{file} has no class Absent (known: "),
        ("{file}:Simpel", "{file} has no class Simpel (did you mean Simple?)"),
        (
            "{file}:NotADevice",
            "{file}: NotADevice is not a device: it does not derive from iolane's PciDevice",
        ),
        ("{file}:PciDevice", "{file}: PciDevice is a base class, not a device"),
        ("{file}:function", "{file}: function is not a class"),
        ("{file}", "{file}: which class? It has Simple, Rich, Needs. (write {file}:CLASS)"),
        ("missing.py:Adder", "missing.py: no such file"),
        ("/tmp:Adder", "/tmp is a folder, not a Python file"),
        ("nvmee", "no device is called 'nvmee' (did you mean nvme?)"),
        (
            "printer",
            "no device is called 'printer' (known: block, console, edu, net, nvme, rng, serial, sriov)",
        ),
        ("no.such.module:X", "device 'no.such.module:X': No module named 'no'"),
        ("os.path:join", "os.path: join is not a class"),
        ("a b:X", "'a b:X' is neither a device's name nor file.py:Class nor module:Class"),
    ],
)
def test_each_mistake_has_one_clear_line(file: Path, text: str, line: str) -> None:
    assert refusal(text.format(file=file)).startswith(line.format(file=file))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("def broken(:\n", ", line 1: syntax error: invalid syntax"),
        ("x = 1\n\nraise RuntimeError('two\\nlines')\n", ", line 3: RuntimeError: two"),
        (
            "import absent_module_of_mine\n",
            ", line 1: ModuleNotFoundError: No module named 'absent_module_of_mine'",
        ),
        ("exit(3)\n", " calls exit() when it is imported"),
        ("\0", ": syntax error: source code string cannot contain null bytes"),
    ],
)
def test_a_file_that_does_not_load(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    assert refusal(f"{path}:X") == f"{path}{line}"
    path.write_text(DEVICE)
    assert isinstance(create(f"{path}:Simple"), PciDevice), "a failed load is not remembered"


def test_options_are_described(file: Path) -> None:
    described = [str(option) for option in options_of(resolve(f"{file}:Rich"))]
    assert described[:9] == [
        "image=path",
        "size=number (default 0)",
        "ratio=number (default 1.0)",
        "read_only=on|off (default off)",
        "mode=fast|safe (default safe)",
        "kind=a|b (default a)",
        "label=text",
        "paths=path (may be repeated)",
        "wanted=number (default 1)",
    ]
    assert described[9].startswith("presentation="), "options of the base class, by **more"


def test_the_built_in_devices_are_available() -> None:
    devices = {device.name: device for device in available()}
    assert set(devices) >= {"edu", "nvme", "serial"}
    assert [devices[name].problem for name in registry.BUILT_IN if devices[name].problem] == []
    assert "image" in [option.name for option in devices["nvme"].options]


def test_entry_points_of_other_packages(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vendor_of_registry_test.py").write_text(DEVICE)
    information = tmp_path / "vendor-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vendor\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[iolane.devices]\nvendor = vendor_of_registry_test:Simple\nnvme = vendor_of_registry_test:Simple\n"
        "broken = absent_module_of_mine:X\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("vendor").__module__ == "vendor_of_registry_test"
    assert registry.names()["nvme"] == registry.BUILT_IN["nvme"], "iolane's own names stay its own"
    devices = {device.name: device for device in available()}
    assert devices["vendor"].summary == "A device without options of its own."
    assert "No module named" in (devices["broken"].problem or "")
