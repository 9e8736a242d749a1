"""Where a configuration comes from: a file, the command line's options, or the JSON that was saved with weights.

A config file is a Python module with a ``get_config() -> Config``. ``--train.steps 100`` replaces one field; unknown
names and unfit values are refused with one line that names the option.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import types
import typing
from pathlib import Path
from typing import Any

from lpm_jax.config import Config, MeshConfig
from lpm_jax.errors import InputError


def load_config(path: str | Path) -> Config:
    """The ``get_config()`` of a Python config file.

    Raises:
      InputError: the file is missing or has no ``get_config``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config {path}: expected a Python file with get_config(), found no file")
    spec = importlib.util.spec_from_file_location(f"lpm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"config {path}: expected a function get_config(), found none")
    return module.get_config()


def _parse(text: str, kind: Any, option: str) -> Any:
    if typing.get_origin(kind) in (tuple, list):  # "" is the empty tuple
        element = typing.get_args(kind)[0]
        return tuple(_parse(part.strip(), element, option) for part in text.split(",") if text.strip())
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{option}: expected {getattr(kind, '__name__', kind)}, found {text!r}") from None
    raise InputError(f"{option}: cannot be set on the command line")


def override(config: Config, arguments: list[str]) -> Config:
    """``config`` with ``--section.field value`` (or ``--field value``) pairs applied in order."""
    items = list(arguments)
    while items:
        option = items.pop(0)
        if not option.startswith("--"):
            raise InputError(f"expected an option such as --train.steps, found {option!r}")
        option, equals, text = option.partition("=")
        if not equals:
            if not items:
                raise InputError(f"{option}: expected a value, found the end of the line")
            text = items.pop(0)
        config = _replace(config, option[2:].split("."), text, option)
    return config


def changes(kind: type, given: list[str], option: str) -> dict[str, Any]:
    """Fields of the dataclass ``kind`` by name, from ``option``'s words such as ``levels=1,0.5``."""
    hints, found = typing.get_type_hints(kind), {}
    for words in given:
        name, equals, text = words.partition("=")
        if not equals or name not in hints:
            raise InputError(f"{option}: expected NAME=VALUE with one of {', '.join(hints)}, found {words!r}")
        found[name] = _parse(text, hints[name], f"{option} {name}")
    return found


def _replace(node: Any, path: list[str], text: str, option: str) -> Any:
    kinds = typing.get_type_hints(type(node))
    name = path[0]
    if name not in kinds or isinstance(kinds[name], types.GenericAlias) and name == "stages":
        raise InputError(f"{option}: expected one of {', '.join(kinds)}, found {name!r}")
    value = getattr(node, name)
    if len(path) > 1:
        if not dataclasses.is_dataclass(value):
            raise InputError(f"{option}: {name} has no parts")
        return dataclasses.replace(node, **{name: _replace(value, path[1:], text, option)})
    if dataclasses.is_dataclass(value):
        raise InputError(f"{option}: expected one of its parts, such as {option}.{dataclasses.fields(value)[0].name}")
    return dataclasses.replace(node, **{name: _parse(text, kinds[name], option)})


def from_dict(data: Any, kind: type = Config) -> Any:
    """The dataclass that ``dataclasses.asdict`` and JSON made ``data`` from; unknown fields are refused."""
    if not isinstance(data, dict):
        raise InputError(f"config: expected fields of {kind.__name__}, found {data!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in data.items():
        if name not in hints:
            raise InputError(f"config: expected fields of {kind.__name__}, found {name!r}")
        hint = hints[name]
        members = [member for member in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(member)]
        if members and not (value is None and type(None) in typing.get_args(hint)):
            # Of several, the one that has all these fields.
            knows = [m for m in members if isinstance(value, dict) and value.keys() <= typing.get_type_hints(m).keys()]
            value = from_dict(value, (knows or members)[0])
        elif hint in (int, float, str, bool):
            fits = (int, float) if hint is float else hint
            if not isinstance(value, fits) or isinstance(value, bool) and hint is not bool:
                raise InputError(f"config: {kind.__name__}.{name}: expected {hint.__name__}, found {value!r}")
            value = hint(value)
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"config: {error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"config: {kind.__name__}: {error}") from None


def parse_mesh(text: str) -> MeshConfig:
    """``fsdp=16,context=4``; ``fsdp`` is what is left where it is not named.

    Raises:
      InputError: an axis is unknown, or a size is no number.
    """
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in names or not value.strip().lstrip("-").isdigit():
            raise InputError(f"--mesh: expected AXIS=SIZE with an axis of {', '.join(names)}, found {part!r}")
        sizes[name.strip()] = int(value)
    return MeshConfig(**sizes)
