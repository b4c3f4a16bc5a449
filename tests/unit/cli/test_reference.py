"""docs/cli.md says what `iolane --help` says, and each example in it is a command line that is understood."""

from __future__ import annotations

import shlex

import pytest
import typer
from typer.main import get_command

from iolane.cli.app import app
from tests.unit.cli.support import iolane
from tools.cli_reference import DOCUMENT, document, examples, verbs

EXAMPLES = [line for _, verb in verbs() for line in examples(verb)]


def test_the_document_is_the_help() -> None:
    present = DOCUMENT.read_text()
    assert present == document(present), "python tools/cli_reference.py"


@pytest.mark.parametrize("line", EXAMPLES)
def test_each_example_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as a whole; the verb itself is not run."""
    program, *words = shlex.split(line)
    assert program == "iolane"
    called: list[str] = []
    monkeypatch.setattr(typer.core.TyperCommand, "invoke", lambda self, context: called.append(self.name))
    whole = typer.core.TyperGroup.invoke

    def invoke_group(self: typer.core.TyperGroup, context: typer.Context) -> object:
        """A group that does something without a verb behind it is a verb itself."""
        if context.parent is not None and not [*context._protected_args, *context.args]:
            called.append(str(self.name))
            return None
        return whole(self, context)

    monkeypatch.setattr(typer.core.TyperGroup, "invoke", invoke_group)
    get_command(app).main(args=words, prog_name="iolane", standalone_mode=False)
    assert len(called) == 1


@pytest.mark.parametrize("name", [name for name, _ in verbs()])
def test_each_verb_has_help_examples_and_json(name: str, env: dict[str, str]) -> None:
    done = iolane(*name.split(), "--help", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: iolane {name} ")
    assert "--json" in done.stdout
    assert "Examples:" in done.stdout
