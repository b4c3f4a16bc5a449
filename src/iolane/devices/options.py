"""Options of a device: the parameters of its constructor, as text, converted by their annotations."""

from __future__ import annotations

import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import msgspec

from iolane.devices.specification import suggestion
from iolane.errors import IolaneError

_SIZE = re.compile(r"(\d+)([KMGT])(?:i?B)?", re.IGNORECASE)
_POWERS = {"K": 10, "M": 20, "G": 30, "T": 40}
_TRUE, _FALSE = ("on", "yes", "true", "1"), ("off", "no", "false", "0")
_LISTS = (list, tuple, Sequence)
RESERVED = ("name",)
"""Parameters that every device has and that are given in another way (`id=`)."""


class Option(msgspec.Struct, frozen=True):
    """One option, as help and error messages name it."""

    name: str
    kind: str
    default: str | None
    """As text; None where the option must be given."""

    def __str__(self) -> str:
        return f"{self.name}={self.kind}" + (f" (default {self.default})" if self.default else "")


def options_of(device: type) -> list[Option]:
    """The options that can be given as text; parameters of other types are for Python only."""
    return [
        Option(
            name,
            _kind(annotation),
            None if parameter.default is parameter.empty else _shown(parameter.default),
        )
        for name, (parameter, annotation) in _parameters(device).items()
    ]


def convert_options(device: type, given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Keyword arguments for `device(...)`; raises IolaneError naming the option and what it takes."""
    parameters = _parameters(device)
    arguments: dict[str, Any] = {}
    for name, values in given.items():
        known = parameters.get(name) or parameters.get(name.replace("-", "_"))
        if known is None:
            raise IolaneError(
                f"{device.__name__} has no option '{name}'", remedy=suggestion(name, parameters)
            )
        parameter, annotation = known
        if parameter.name in arguments:
            raise IolaneError(f"option {parameter.name} is given twice")
        arguments[parameter.name] = _convert_values(name, values, annotation)
    missing = [n for n, (p, _) in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise IolaneError(f"{device.__name__} needs {', '.join(f'{name}=' for name in missing)}")
    return arguments


def _parameters(device: type) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Constructor parameters with annotations that text converts to; **kwargs continues in the base class."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for owner in device.__mro__:
        constructor = owner.__dict__.get("__init__")
        if constructor is None or not inspect.isfunction(constructor):
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                annotation = _annotation(constructor, parameter)
                if parameter.name not in (*found, *RESERVED) and _convertible(annotation):
                    found[parameter.name] = (parameter, annotation)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _annotation(constructor: types.FunctionType, parameter: inspect.Parameter) -> Any:
    """The parameter's type; text where it has none, None where its name can't be resolved while running."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return str
    if not isinstance(annotation, str):
        return annotation
    names = vars(sys.modules[constructor.__module__]) if constructor.__module__ in sys.modules else {}
    try:
        return eval(annotation, {**vars(typing), **constructor.__globals__, **names})
    except Exception:  # a name imported for the type checker only: nothing that text converts to
        return None


def _members(annotation: Any) -> list[Any]:
    """The members of a union without None; otherwise the type itself."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [
            inner
            for member in typing.get_args(annotation)
            for inner in _members(member)
            if member is not type(None)
        ]
    return [annotation]


def _scalar(member: Any) -> bool:
    if typing.get_origin(member) is Literal:
        return True
    return isinstance(member, type) and (
        member in (str, int, float, bool, Path) or issubclass(member, enum.Enum)
    )


def _item(member: Any) -> Any:
    """The type of a list's items, None where the member is no list of convertible items."""
    if typing.get_origin(member) in _LISTS:
        inner = typing.get_args(member)[:1]
        if inner and all(_scalar(part) for part in _members(inner[0])):
            return inner[0]
    return None


def _convertible(annotation: Any) -> bool:
    return any(_scalar(member) or _item(member) is not None for member in _members(annotation))


def _convert_values(name: str, values: Sequence[str], annotation: Any) -> Any:
    for member in _members(annotation):
        item = _item(member)
        if item is not None:
            converted = [_convert(name, value, item) for value in values]
            return tuple(converted) if typing.get_origin(member) is tuple else converted
    if len(values) > 1:
        raise IolaneError(f"option {name} is given twice")
    return _convert(name, values[0], annotation)


def _convert(name: str, text: str, annotation: Any) -> Any:
    """The first member of the type that takes the text, text itself last."""
    members = [member for member in _members(annotation) if _scalar(member)]
    for member in sorted(members, key=lambda member: (member is str, member is Path)):
        try:
            return _convert_one(text, member)
        except (ValueError, msgspec.ValidationError):
            continue
    raise IolaneError(f"option {name}: '{text}' is not {_kind(annotation)}")


def _convert_one(text: str, member: Any) -> Any:
    if member is Path:
        if not text:
            raise ValueError("empty path")
        return Path(text).expanduser()
    if member is bool and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if member is int:
        size = _SIZE.fullmatch(text)
        return int(size[1]) << _POWERS[size[2].upper()] if size else int(text, 0)
    if isinstance(member, type) and issubclass(member, enum.Enum):
        for choice in member:
            if text.lower() in (choice.name.lower(), str(choice.value).lower()):
                return choice
    return msgspec.convert(text, member, strict=False)


def _kind(annotation: Any) -> str:
    """The type in the words of help: `path`, `number`, `on|off`, `a|b|c`."""
    shown: list[str] = []
    for member in _members(annotation):
        if typing.get_origin(member) is Literal:
            shown += [str(value) for value in typing.get_args(member)]
        elif isinstance(member, type) and issubclass(member, enum.Enum):
            shown += [str(value.value if isinstance(value.value, str) else value.name) for value in member]
        elif isinstance(member, type) and _scalar(member):
            shown.append({str: "text", int: "number", float: "number", bool: "on|off", Path: "path"}[member])
        elif _item(member) is not None:
            shown.append(f"{_kind(_item(member))} (may be repeated)")
    if "text" in shown and len(shown) > 1:  # `Presentation | str`: the named choices say more
        shown.remove("text")
    return "|".join(dict.fromkeys(shown))


def _shown(default: object) -> str:
    if default is None or default in ("", (), []):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, enum.Enum):
        return str(default.value)
    return str(default)
