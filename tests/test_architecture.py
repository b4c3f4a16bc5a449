"""The house rules that a script can see: floors, file sizes, types, and imports that do no work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import FLOORS, cycle, imports, violations

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
LONGEST = 500
WRITTEN = (".py", ".pyx", ".pyi", ".h", ".c", ".sh")


def test_packages_import_downwards_only() -> None:
    assert violations(imports(SOURCE)) == []


def test_packages_form_no_cycle() -> None:
    assert cycle(imports(SOURCE)) == []


def test_every_package_has_a_floor() -> None:
    inside = [path for path in (SOURCE / "iolane").iterdir() if path.is_dir() or path.suffix == ".py"]
    names = {path.stem for path in inside} - {"__init__", "__pycache__", "testing"}
    assert names <= FLOORS.keys()


def test_files_are_short() -> None:
    folders = [ROOT / name for name in ("src", "tests", "examples", "tools")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in WRITTEN]
    generated = {path.with_suffix(".c") for path in files if path.suffix == ".pyx"}
    lengths = {path: len(path.read_text().splitlines()) for path in files if path not in generated}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LONGEST} == {}


def test_is_typed() -> None:
    assert (SOURCE / "iolane/py.typed").exists()
    assert [path for path in SOURCE.rglob("_*.pyx") if not path.with_suffix(".pyi").exists()] == []


HEAVY = ("typer", "rich", "msgspec", "click", "pyroute2", "qemu", "libvirt", "asyncio", "iolane.model")


@pytest.mark.parametrize("module", ["iolane", "iolane.cli.main"])
def test_start_is_light(module: str) -> None:
    code = (
        f"import sys, json; before = set(sys.modules); import {module}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(done.stdout)
    assert module in loaded
    assert [
        name for name in loaded if name in HEAVY or name.startswith(tuple(f"{heavy}." for heavy in HEAVY))
    ] == []


IMPORT_ALL = """
import importlib, json, os, pkgutil, signal, sys, threading
def look():
    return [
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        [str(signal.getsignal(number)) for number in (signal.SIGBUS, signal.SIGINT, signal.SIGTERM)],
        os.getcwd(),
        dict(os.environ),
    ]
before = look()
import iolane
names = [module.name for module in pkgutil.walk_packages(iolane.__path__, "iolane.")]
for name in names:
    if name != "iolane.__main__":  # libvirt's binding, an extra, is imported when it is used
        importlib.import_module(name)
after = look()
print(json.dumps([before, after, [name for name in iolane.__all__ if not hasattr(iolane, name)]]))
"""


def test_importing_does_no_work() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.stderr == ""
    before, after, missing = json.loads(done.stdout)
    assert after == before
    assert missing == []


BROKEN = [
    ("model/a.py", "from iolane.carriers import wire", "floor 1 must not know floor 3"),
    ("model/a.py", "def f():\n    import iolane.engines.qemu", "floor 1 must not know floor 4"),
    ("devices/a.py", "from ..carriers import wire", "floor 2 must not know floor 3"),
    ("devices/__init__.py", "from ..engines import qemu", "floor 2 must not know floor 4"),
    ("memory/_a.pyx", "from iolane.model import dma\ncdef int x", "floor 0 must not know floor 1"),
    ("engines/a.py", "from iolane import PciDevice", "front door"),
    ("engines/a.py", "from iolane.testing import power_cut", "testing/ is for tests"),
    ("testing/model_client.py", "import iolane.devices", "floor 1 must not know floor 2"),
    ("testing/odd.py", "import iolane.devices", "stands on no known floor"),
    ("engines/a.py", "import iolane.unheard_of", "stands on no known floor"),
    ("model/a.py", "import rich.table", "only cli may know rich"),
    ("__init__.py", "from iolane.model import pci", "lazily"),
]


@pytest.mark.parametrize(("path", "text", "reason"), BROKEN)
def test_finds_what_breaks_the_floors(tmp_path: Path, path: str, text: str, reason: str) -> None:
    file = tmp_path / "iolane" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    (tmp_path / "iolane/testing").mkdir(exist_ok=True)
    (tmp_path / "iolane/testing/power_cut.py").touch()
    found = violations(imports(tmp_path))
    assert len(found) == 1
    assert reason in found[0]


def test_allows_what_keeps_the_floors(tmp_path: Path) -> None:
    texts = {
        "__init__.py": "import typing\nif typing.TYPE_CHECKING:\n    from iolane.model import pci\n",
        "devices/disk.py": "from iolane.backends import file\nfrom iolane.errors import IolaneError\n",
        "testing/power_cut.py": "from iolane.backends import file\n",
        "testing/model_memory.py": "from iolane.model import dma\n",
        "cli/run.py": "import typer\nfrom iolane.testing import power_cut\nfrom . import output\n",
    }
    for name, text in texts.items():
        file = tmp_path / "iolane" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = imports(tmp_path)
    assert violations(found) == []
    assert cycle(found) == []


def test_finds_a_cycle_on_one_floor(tmp_path: Path) -> None:
    for name, other in (("devices", "backends"), ("backends", "devices")):
        file = tmp_path / "iolane" / name / "a.py"
        file.parent.mkdir(parents=True)
        file.write_text(f"import iolane.{other}")
    assert set(cycle(imports(tmp_path))) == {"devices", "backends"}
