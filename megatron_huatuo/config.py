"""Configuration: dataclasses from YAML files and the command line, through jsonargparse.

Invariant: an unknown key or a value of a wrong type is an error that names it, before any work starts. Each section is
a dataclass beside its owner; its field docstrings are the `--help`. Every refused value is said in the same words.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from megatron_huatuo.errors import ConfigError

T = TypeVar("T")
_REQUIRED = "the following arguments are required: "
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Parser(ArgumentParser):
    """Says one line where the stock one prints the usage of every flag first."""

    file: str | None = None
    """Configuration file that is being read, for messages."""

    def _parse_optional(self, arg_string: str) -> Any:
        """A flag may be spelt with `-` or with `_`: the spelling that was added is the one in use."""
        name, equals, value = arg_string.partition("=")
        if name.startswith("--") and name not in self._option_string_actions:
            spelt = name.replace("_", "-")
            same = [known for known in self._option_string_actions if known.replace("_", "-") == spelt]
            name = same[0] if len(same) == 1 else name
        return super()._parse_optional(name + equals + value)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message with the file's name and exit with 2."""
        program = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
        if message.startswith(_REQUIRED):
            names = message.removeprefix(_REQUIRED).split(", ")
            message = f"missing: {', '.join(_as_typed(self, name) for name in names)}"
        where = f" ({self.file})" if self.file else ""
        print(f"error: {' '.join(message.split()).rstrip('.')}{where}. See {program} --help", file=sys.stderr)
        self.exit(2)


def _as_typed(parser: Any, name: str) -> str:
    """What a user writes for the argument that jsonargparse calls `name`, with its command before it: --output for export.output."""
    command, _, rest = name.partition(".")
    if parser._subcommands_action and command in parser._subcommands_action.choices:
        return _as_typed(parser._subcommands_action.choices[command], rest)
    return next((flag for flag, action in parser._option_string_actions.items() if action.dest == name), name)


class _ConfigFile(ActionConfigFile):
    """`--config FILE`: an unknown key is answered with the keys that exist."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        known = to_plain(parser.get_defaults().as_dict())
        del known[self.dest]
        _refuse_unknown_keys(read_yaml(values), known, values)
        parser.file = values
        super().__call__(parser, cfg, values, option_string)
        parser.file = None


def argument_parser(description: str, *, config_file: bool = False) -> ArgumentParser:
    """Parser of a tool. With `config_file`, `--config FILE` reads YAML; flags after it override the file.

    What it refuses, it says in one line: unknown keys of the file as ConfigError, all else with exit code 2.
    """
    parser = _Parser(description=description)
    if config_file:
        parser.add_argument("--config", action=_ConfigFile, help="YAML file; flags after it override it")
    return parser


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The mapping of a node; keys that `<<` merges in may come again."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} comes twice", key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Content of a YAML file. Raises: ConfigError naming the file, and the line where it is not YAML."""
    try:
        with open(path, encoding="utf-8") as handle:
            return yaml.load(handle, _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"configuration cannot be read: {path} ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration is not YAML: {path} ({' '.join(str(error).split())})") from error


def _refuse_unknown_keys(content: Any, known: Mapping[str, Any], path: str, section: str = "") -> None:
    if not isinstance(content, Mapping):
        raise ConfigError(f"wrong configuration: got {content!r}, need a mapping of keys to values ({path}).")
    for key, value in content.items():
        name = f"{section}{key}"
        if str(key).split(".")[0] not in known:
            raise ConfigError(f"unknown key {name!r} in {path}: need one of {', '.join(known)}.")
        if isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
            _refuse_unknown_keys(value, known[key], path, f"{name}.")


def parse_config(section: type[T], content: Any, where: str) -> T:
    """A dataclass from a plain mapping, sections and lists of sections inside it included: for files without flags.

    where: the file, for messages. A value is taken as jsonargparse takes it, so the text "1e-3" is a number.
    Raises: ConfigError for a key that is unknown, missing or of a wrong type, with key, value and place.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"wrong section: got {type(content).__name__}, need keys and values ({where})")
    types = get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            raise ConfigError(f"unknown key: got {key!r}, need one of {', '.join(fields)} ({where})")
    for key, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and content.get(key) is None:
            raise ConfigError(f"missing key: {key} ({where})")
    return section(**{key: _parse_value(types[key], value, key, where) for key, value in content.items()})


def _parse_value(kind: Any, value: Any, key: str, where: str) -> Any:
    items: list[Any] = [item for item in get_args(kind) if dataclasses.is_dataclass(item)]
    if hasattr(kind, "__dataclass_fields__"):
        return parse_config(kind, {} if value is None else value, f"{where}, {key}")
    if items and get_origin(kind) in (list, tuple):
        if not isinstance(value, list):
            raise ConfigError(f"wrong {key}: got {value!r}, need a list ({where})")
        places = [f"{where}, {key}[{number}]{_name_of(entry, key)}" for number, entry in enumerate(value)]
        return get_origin(kind)(parse_config(items[0], entry, at) for entry, at in zip(value, places, strict=True))
    kinds = get_args(kind) or (kind,)
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    try:
        return _value_parser(kind).parse_object({"value": value}).value
    except ArgumentError:
        words = " or ".join(_WORDS.get(part, str(part)) for part in kinds if part is not NoneType)
        raise ConfigError(f"wrong {key}: got {value!r}, need {words} ({where})") from None


def _name_of(entry: Any, key: str) -> str:
    """The name of a list's entry, for messages: ", source 'web'" of the list `sources`."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f", {key.removesuffix('s')} {name!r}" if name else ""


@functools.cache
def _value_parser(kind: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def to_plain(value: Any) -> Any:
    """Dataclasses, paths and containers as plain YAML and JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, Path) else value


def dump_yaml(content: Any) -> str:
    """A resolved configuration as YAML text, keys in their own order."""
    return str(yaml.safe_dump(to_plain(content), sort_keys=False, allow_unicode=True))


def add_dashed_fields(parser: ArgumentParser, section: type[Any], *, skip: Collection[str] = ()) -> None:
    """Add one flag a field of a dataclass, spelt with dashes, its docstring as the help text.

    skip: fields whose flags the caller adds itself.
    """
    helps = {param.arg_name: param.description for param in docstring_parser.parse_from_object(section).params}
    types = get_type_hints(section)
    for field in dataclasses.fields(section):
        if field.name in skip:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=types[field.name], default=field.default, help=helps.get(field.name))


def from_dashed_fields(section: type[T], arguments: Namespace) -> T:
    """The dataclass whose fields `add_dashed_fields` added."""
    return section(**{field.name: arguments[field.name] for field in dataclasses.fields(section)})  # type: ignore[arg-type]


def at_least(name: str, value: float | None, minimum: float) -> None:
    """Refuse a number below `minimum`, NaN and infinity. None, a setting left out, passes. Raises: ConfigError."""
    if value is not None and not minimum <= value < math.inf:
        raise ConfigError(f"wrong {name}: got {value}, need {minimum} or more.")


def above_zero(name: str, value: float) -> None:
    """Refuse what is not above 0, NaN too. Raises: ConfigError."""
    if not value > 0:
        raise ConfigError(f"wrong {name}: got {value}, need more than 0.")


def within(name: str, value: float, lowest: float, highest: float) -> None:
    """Refuse what is not in [lowest, highest], NaN too. Raises: ConfigError."""
    if not lowest <= value <= highest:
        raise ConfigError(f"wrong {name}: got {value}, need {lowest} to {highest}.")


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse what is not among the allowed values; the message calls None null, as YAML does. Raises: ConfigError."""
    if value not in (choices := list(allowed)):
        shown = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise ConfigError(f"wrong {name}: got {value!r}, need one of {shown}.")
