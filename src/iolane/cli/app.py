"""The grammar: every verb in one typer application. Verb modules import nothing heavy until they run."""

from __future__ import annotations

from typing import Annotated

import typer

from iolane._version import __version__
from iolane.cli import (
    attach,
    bench,
    console,
    demo,
    detach,
    devices,
    doctor,
    host,
    lab,
    libvirt_hook,
    migrate,
    pause,
    plug,
    ps,
    receive,
    replay,
    reset,
    resume,
    run,
    serve,
    stop,
    top,
    trace,
    unplug,
)

app = typer.Typer(
    name="iolane",
    help="I/O virtualization in Python: devices as classes, for guests on several engines.",
    epilog="First steps: `iolane doctor`, then `iolane demo`, then `iolane run --device FILE.py:CLASS`.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"iolane {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the program an error came from.")
    ] = False,
) -> None:
    """Options of iolane itself; they come before the verb."""


# A guest's command has options of its own: iolane's end at the first word that isn't one.
app.command("run", context_settings={"allow_interspersed_args": False})(run.run)
app.command("serve")(serve.serve)
app.command("ps")(ps.ps)
app.command("console")(console.console)
app.command("pause")(pause.pause)
app.command("resume")(resume.resume)
app.command("stop")(stop.stop)
app.command("plug")(plug.plug)
app.command("unplug")(unplug.unplug)
app.command("migrate")(migrate.migrate)
app.command("receive")(receive.receive)
app.command("top")(top.top)
app.command("devices")(devices.devices)
app.command("trace")(trace.trace)
app.command("replay")(replay.replay)
app.command("reset")(reset.reset)
app.command("attach")(attach.attach)
app.command("detach")(detach.detach)
app.command("libvirt-hook")(libvirt_hook.libvirt_hook)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.add_typer(host.app, name="host")
app.add_typer(lab.app, name="lab")
app.add_typer(bench.app, name="bench")
