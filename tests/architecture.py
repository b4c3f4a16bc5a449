"""Reads the imports of a source tree and says what breaks the floors (docs/design.md)."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

FLOORS = {
    "errors": -1,
    "_version": -1,
    "_lazy": -1,
    "memory": 0,
    "uapi": 0,
    "model": 1,
    "devices": 2,
    "backends": 2,
    "carriers": 3,
    "host": 3,
    "hypervisor": 3,
    "engines": 4,
    "operations": 5,
    "bench": 6,
    "lab": 6,
    "cli": 7,
    "__main__": 7,
}
# A module of testing/ stands on the floor of the package that its name begins with, or on this one.
TESTING = {"power_cut": 2, "nvme_driver": 2, "drivers": 2, "fake_vfio": 3, "pytest_plugin": 7}
# Who may import testing/ besides tests.
MAY_IMPORT_TESTING = {"testing", "cli"}
# Libraries that cost start-up time or bind to one engine, and the only packages that may know them.
LIBRARIES = {"typer": {"cli"}, "rich": {"cli"}, "qemu": {"engines"}, "libvirt": {"engines"}}


@dataclass(frozen=True)
class Import:
    """`importer` (a dotted module) names `target`; lazily when it does so in a function or for types only."""

    importer: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: Path) -> list[Import]:
    """Every import below `source`, in .py files by syntax, in .pyx files by what their lines say."""
    found: list[Import] = []
    for path in sorted([*source.rglob("*.py"), *source.rglob("*.pyx")]):
        name = module_name(path, source)
        tree = ast.parse(_python_part(path))
        targets = dict.fromkeys(_targets(tree, name, path.stem == "__init__", source, False))
        found += [Import(name, target, line, lazy) for target, line, lazy in targets]
    return found


def _python_part(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    plain = ("import ", "from ")
    lines = path.read_text().splitlines()
    return "\n".join(line if line.startswith(plain) and " cimport " not in line else "" for line in lines)


def _targets(
    tree: ast.AST, name: str, package: bool, source: Path, lazy: bool
) -> Iterator[tuple[str, int, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: None if package and node.level == 1 else -(node.level - package)]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                inner = source / Path(*base.split("."), alias.name)
                is_module = inner.is_dir() or any(inner.with_suffix(end).exists() for end in (".py", ".pyx"))
                yield f"{base}.{alias.name}" if is_module else base, node.lineno, lazy
        else:
            deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _targets(node, name, package, source, lazy or deferred or _for_types_only(node))


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def top(module: str) -> str:
    """iolane.model.pci.bar -> model; iolane itself -> ''."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int | None:
    """The floor a module stands on; None for what no floor is known for."""
    if top(module) != "testing":
        return FLOORS.get(top(module))
    word = module.split(".")[2] if module.count(".") > 1 else ""
    return TESTING.get(word, FLOORS.get(word.split("_")[0]))


def violations(found: list[Import]) -> list[str]:
    """What each import breaks; the order of the rules is that of the text."""
    return [f"{each}: {reason}" for each in found for reason in _reasons(each)]


def _reasons(each: Import) -> Iterator[str]:
    importer, target = top(each.importer), each.target
    library = target.split(".")[0]
    if library in LIBRARIES and importer not in LIBRARIES[library]:
        yield f"only {', '.join(LIBRARIES[library])} may know {library}"
    if library != "iolane":
        return
    if each.importer in (
        "iolane",
        "iolane.testing",
    ):  # they offer names of every floor, and import them when asked
        if (floor(target) or 0) > 0 and not each.lazy:
            yield "it must do so lazily"
        return
    if target == "iolane":
        yield "the package's front door hides which floor is meant; import from the module"
        return
    if top(target) == "testing" and importer not in MAY_IMPORT_TESTING:
        yield "testing/ is for tests, the command line and the pytest plugin"
    mine, theirs = floor(each.importer), floor(target)
    if mine is None:
        yield f"{each.importer} stands on no known floor"
    elif theirs is None and target != "iolane.testing":
        yield f"{target} stands on no known floor"
    elif theirs is not None and theirs > mine:
        yield f"floor {mine} must not know floor {theirs}"


def cycle(found: list[Import]) -> list[str]:
    """Packages that import one another in a ring, or nothing."""
    graph: dict[str, set[str]] = {}
    for each in found:
        importer, target = top(each.importer), top(each.target)
        if (
            each.target.startswith("iolane.")
            and importer not in ("", "testing", target)
            and target != "testing"
        ):
            graph.setdefault(importer, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        ring: list[str] = error.args[1]
        return ring
    return []
