"""The wheel and the sdist install into a clean environment and work there; the sdist builds without Cython.

All but the last test work without a network: what they build with is copied from the test environment.
"""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
GUARD_WORKS = """
import os
from iolane.memory.mapping import Mapping
fd = os.memfd_create("packaging")
os.ftruncate(fd, 4096)
mapping = Mapping(fd, 4096)
os.ftruncate(fd, 0)
print(memoryview(mapping)[0], mapping.broken, mapping.__class__.__module__, end="")
"""
pytestmark = pytest.mark.timeout(300)


def _run(
    *command: object, directory: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], cwd=directory, capture_output=True, text=True)
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def _environment(directory: Path, *distributions: str) -> Path:
    """A clean virtual environment with copies of the named distributions; its Python."""
    venv.create(directory, with_pip=True, symlinks=True)
    python = directory / "bin/python"
    target = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    for old in target.glob("setuptools*"):
        shutil.rmtree(old)
    for name in distributions:
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                copy = target / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), copy)
    return python


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a fresh clone has them: nothing built or generated."""
    copy = tmp_path_factory.mktemp("checkout") / "iolane"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    built = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__", "_*.c")
    for name in ("src", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    return copy


@pytest.fixture(scope="session")
def distributions(checkout: Path) -> Path:
    """A folder with an sdist and the wheel made from the checkout."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", checkout)
    return checkout / "dist"


@pytest.fixture(scope="session")
def sdist(distributions: Path) -> Path:
    [found] = distributions.glob("iolane-*.tar.gz")
    return found


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    [found] = distributions.glob("iolane-*.whl")
    return found


def _sources() -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("_*.pyx")}


def _check_installed(python: Path, elsewhere: Path) -> None:
    version = _run(python.parent / "iolane", "--version", directory=elsewhere).stdout
    assert version.split() == ["iolane", distribution("iolane").version]
    assert _run(python, "-c", GUARD_WORKS, directory=elsewhere).stdout == "0 True iolane.memory._guard"
    where = _run(python, "-c", "import iolane; print(iolane.__file__)", directory=elsewhere).stdout
    assert Path(where.strip()).is_relative_to(python.parent.parent)


def test_the_sdist_ships_sources_and_generated_c(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert _sources()
    wanted = _sources() | {name.replace(".pyx", ".c") for name in _sources()}
    wanted |= {name.replace(".pyx", ".pyi") for name in _sources()}
    wanted |= {"LICENSE", "tools/build_backend.py", "src/iolane/memory/_guard.h", "src/iolane/py.typed"}
    assert wanted - names == set()
    assert not [name for name in names if name.endswith(".so")]


def test_the_wheel_holds_what_runs_and_what_types(checkout: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    modules = {name.removeprefix("src/").removesuffix(".pyx") for name in _sources()}
    wanted = {f"{name}{suffix}" for name in modules} | {f"{name}.pyi" for name in modules}
    source = checkout / "src"
    wanted |= {str(path.relative_to(source)) for path in source.rglob("*.py")} | {"iolane/py.typed"}
    assert wanted - names == set()
    assert not [name for name in names if name.startswith("tests") or Path(name).match("_*.c")]


def test_installs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "clean")
    _run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, directory=tmp_path)
    _check_installed(python, tmp_path)


def test_installs_from_the_sdist_without_cython(sdist: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "clean", "setuptools", "wheel", "packaging")
    assert _run(python, "-c", "import Cython", check=False).returncode == 1
    install = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--no-binary", "iolane", sdist)
    _run(python, "-m", "pip", *install, directory=tmp_path)
    _check_installed(python, tmp_path)


@pytest.mark.parametrize("shipped", [False, True], ids=["checkout", "sdist"])
def test_cython_is_asked_for_only_where_c_is_missing(
    shipped: bool, checkout: Path, sdist: Path, tmp_path: Path
) -> None:
    root = checkout
    if shipped:
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path)
        [root] = tmp_path.iterdir()
    ask = "import build_backend as b; print(b.get_requires_for_build_wheel())"
    done = _run(sys.executable, "-c", f"import sys; sys.path.insert(0, 'tools'); {ask}", directory=root)
    assert ("Cython" in done.stdout.splitlines()[-1]) is not shipped


UNREACHABLE = (
    "NewConnectionError",
    "Temporary failure in name resolution",
    "Connection refused",
    "timed out",
)


def test_installs_with_what_it_depends_on(wheel: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "clean")
    done = _run(python, "-m", "pip", "install", "--retries", "1", wheel, directory=tmp_path, check=False)
    if done.returncode and any(sign in done.stdout + done.stderr for sign in UNREACHABLE):
        pytest.skip(
            "NOT TESTED: no package index can be reached, so what iolane depends on can't be installed"
        )
    assert done.returncode == 0, done.stderr[-4000:]
    _run(python, "-m", "pip", "check")
    assert "Usage: iolane" in _run(python.parent / "iolane", "--help", directory=tmp_path).stdout
