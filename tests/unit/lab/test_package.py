"""iolane as it goes into the lab's memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from iolane.engines.qemu.cache import Cache
from iolane.lab.init import content
from iolane.lab.package import compiled_name, package_files


def made(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    (package / "inner" / "__pycache__").mkdir(parents=True)
    (package / "inner" / "__pycache__" / "old.pyc").touch()
    (package / "__init__.py").touch()
    (package / "inner" / "__init__.py").touch()
    (package / "inner" / "module.py").write_text("VALUE = 1\n")
    (package / "inner" / "_fast.c").touch()
    (package / "inner" / "agent.c").write_text("int main;")
    (package / "broken.py").write_text("def\n")
    return package


def test_sources_data_and_compiled_files_but_nothing_stale(tmp_path: Path) -> None:
    package = made(tmp_path)
    files = package_files(package, Cache(tmp_path / "cache"))
    modules = ["__init__.py", "inner/__init__.py", "inner/module.py"]
    expected = [*modules, *map(compiled_name, modules), "broken.py", "inner/agent.c"]
    assert sorted(files) == sorted(expected)


def test_python_takes_the_compiled_files_whatever_the_time_of_the_sources(tmp_path: Path) -> None:
    package = made(tmp_path)
    there = tmp_path / "there"
    for name, file in package_files(package, Cache(tmp_path / "cache")).items():
        (there / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, there / "package" / name)
        os.utime(there / "package" / name, (0, 0))
    command = [sys.executable, "-v", "-c", "import package.inner.module as m; print(m.VALUE)"]
    said = subprocess.run(command, cwd=there, capture_output=True, text=True, check=True)
    assert said.stdout == "1\n"
    assert f"matches {there / 'package/inner/module.py'}" in said.stderr
    (there / "package/inner/module.py").write_text("VALUE = 2\n")
    assert subprocess.run(command, cwd=there, capture_output=True, text=True, check=True).stdout == "2\n"


def test_what_has_not_changed_is_not_compiled_again(tmp_path: Path) -> None:
    package, cache = made(tmp_path), Cache(tmp_path / "cache")
    first = package_files(package, cache)
    assert package_files(package, cache) == first
    (package / "inner/module.py").write_text("VALUE = 1000\n")
    second = package_files(package, cache)
    same, changed = compiled_name("inner/__init__.py"), compiled_name("inner/module.py")
    assert first[same] != second[same]
    assert os.path.samefile(first[same], second[same])
    assert not os.path.samefile(first[changed], second[changed])
    assert second[changed].read_bytes()[8:16] == importlib.util.source_hash(b"VALUE = 1000\n")


def test_the_set_up_script_is_one_for_sh(tmp_path: Path) -> None:
    made = content(Path("/home/a b/it's,here"), {"errors.py": tmp_path}, ["vhost_net"])
    assert made.files == {"/package/errors.py": tmp_path}
    assert "vhost_net" in made.modules
    assert made.setup is not None
    assert made.setup.endswith("touch ./lab/ready\n")
    assert subprocess.run(["sh", "-n", "-c", made.setup]).returncode == 0
