"""Options from a YAML file: `--config FILE`, and `--print-config`, which writes such a file.

A key is the name of an option, without its dashes in front; `inputs` and `run` are the arguments. A value means what it
means on the command line, which wins over the file. Scalars stay text until the option converts them: else YAML would
read the range `2:8` as the number 128.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from pipeline.errors import UsageError
from pipeline.secrets import has_secret, without_secrets
from sewd_model.files import shown

PANEL: Final = "Config file"
_OWN: Final = ("help", "config", "print-config")
_YAML: Final = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types here
    """Mappings, lists, null, true and false; every other scalar is text. A key occurs once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(f"{_YAML}null", re.compile(r"(~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver(f"{_YAML}bool", re.compile(r"(true|false)$", re.IGNORECASE), list("tTfF"))


def configurable(verb: Callable[..., int]) -> Callable[..., int]:
    """The verb with the options `--config` and `--print-config`."""

    @functools.wraps(verb)
    def with_file(context: typer.Context, print_config: bool, config_file: object = None, **options: Any) -> int:
        del config_file  # `_take` has read it
        if print_config:
            typer.echo(as_yaml(context), nl=False)
            return 0
        return verb(**options)

    signature = inspect.signature(verb, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    file_option = typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with options by their names; the command line wins.",
        is_eager=True,  # the others take their defaults from it
        callback=_take,
        expose_value=False,
        rich_help_panel=PANEL,
    )
    print_option = typer.Option(
        "--print-config",
        help="Print all options as such a file, and do nothing else.",
        is_eager=True,  # the others may be missing
        callback=_require_nothing,
        rich_help_panel=PANEL,
    )
    added = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        inspect.Parameter("config_file", keyword, default=None, annotation=Annotated[Path | None, file_option]),
        inspect.Parameter("print_config", keyword, default=False, annotation=Annotated[bool, print_option]),
    ]
    given = [parameter.replace(kind=keyword) for parameter in signature.parameters.values()]
    with_file.__signature__ = signature.replace(parameters=[*given, *added])  # type: ignore[attr-defined]
    return with_file


def as_yaml(context: typer.Context) -> str:
    """The options of a command as a file that `--config` reads; the credentials in URIs are left out."""
    values = {key: _plain(context.params.get(name)) for key, (name, _) in _parameters(context).items()}
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def has_file(context: Any) -> bool:
    """Whether a command was given a file, which may hold no option."""
    return context.default_map is not None


def arguments_of_file(context: Any) -> tuple[list[str], list[str]]:
    """What a command took from its file, as (options, arguments) of a command line."""
    options: list[str] = []
    arguments: list[str] = []
    for key, value in (context.default_map or {}).items():
        parameter = next(item for item in context.command.params if item.name == key)
        source = context.get_parameter_source(key)
        if source is None or source.name != "DEFAULT_MAP":
            continue
        values = value if isinstance(value, list) else [value]
        if parameter.param_type_name == "argument":
            arguments += values
        elif getattr(parameter, "is_flag", False):
            options += parameter.opts[:1] if context.params[key] else parameter.secondary_opts[:1]
        else:
            options += [f"{parameter.opts[0]}={item}" for item in values]
    return options, arguments


def without_file(arguments: Sequence[str]) -> list[str]:
    """Arguments without `--config FILE` and `--config=FILE`."""
    named = [index for index, argument in enumerate(arguments) if argument == "--config"]
    dropped = {*named, *(index + 1 for index in named)}
    return [a for index, a in enumerate(arguments) if index not in dropped and not a.startswith("--config=")]


def _parameters(context: typer.Context) -> dict[str, tuple[str, Any]]:
    """The options and arguments of a command, by key: their names and themselves."""
    found: dict[str, tuple[str, Any]] = {}
    for parameter in context.command.params:
        is_option = parameter.param_type_name == "option"
        key = max(parameter.opts, key=len).lstrip("-") if is_option else str(parameter.name)
        if key not in _OWN:
            found[key] = (str(parameter.name), parameter)
    return found


def _take(context: typer.Context, path: Path | None) -> None:
    """Take the defaults of the other options from a file."""
    if path is None or context.resilient_parsing:
        return
    known = _parameters(context)
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
            raise UsageError(without_secrets(f"{path}: {key} is no option: {hint}"))
        if value is not None and value != []:  # as without the option
            name, parameter = known[key]
            defaults[name] = _checked(context, parameter, value, f"{path}: {key}")
    context.default_map = defaults


def _require_nothing(context: typer.Context, print_config: bool) -> bool:
    """Where the options are printed, those that are required may be missing."""
    if print_config:
        for parameter in context.command.params:
            parameter.required = False
    return print_config


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: no YAML: {without_secrets(' '.join(str(error).split()))}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: not a mapping of options to values")
    return values


def _checked(context: typer.Context, parameter: Any, value: Any, where: str) -> Any:
    """The value for the option, which converts it later; raises UsageError if it cannot."""
    is_list = parameter.multiple or parameter.nargs == -1
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not is_list:
        raise UsageError(f"{where}: a list, but it has one value")
    is_flag = bool(getattr(parameter, "is_flag", False))
    for item in values:
        if isinstance(item, dict | list):  # not shown: a few aliases may stand for gigabytes
            raise UsageError(
                f"{where}: a {'mapping' if isinstance(item, dict) else 'list in a list'} is no value of it"
            )
        if has_secret(str(item)):
            raise UsageError(f"{where}: it looks like a secret, which a run would record: set it in the environment")
        if isinstance(item, bool) != is_flag:
            wanted = "true or false" if is_flag else "text or a number"
            raise UsageError(f"{where}: {item!r} is not {wanted}")
        if item is None:
            raise UsageError(f"{where}: {item!r} is neither text nor a number")
    try:
        parameter.process_value(context, list(values) if is_list else value)
    except typer.BadParameter as error:
        raise UsageError(f"{where}: {error.message}") from error
    return list(values) if is_list else value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return shown(os.fspath(value)) if isinstance(value, str | os.PathLike) else value
