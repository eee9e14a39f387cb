"""Config dataclasses as command line options: one option a field, its docstring as the help."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import click


def field_docs(config: type) -> dict[str, str]:
    """Docstring under each field of a dataclass."""
    docs = field_docs(config.__base__) if is_dataclass(config.__base__) else {}
    for field, text in pairwise(_classes(config.__module__)[config.__name__].body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return docs


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """Classes of a module, which is read once: every command does so at its start."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


class ConfigCommand(click.Command):
    """A command whose config options stand in sections of their own, one a dataclass."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _ConfigOption(click.Option):
    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def config_options(*configs: Any, without: Sequence[str] = ()) -> Callable:
    """Decorator: an option ``--part.field`` for every field of some configs; one not given is absent, not default.

    Options of a nested config are named after its field. Tuples are written with commas.

    Args:
        configs: dataclass instances, whose values are shown as defaults.
        without: fields that the command sets itself.
    """

    def decorate(function: Callable) -> Callable:
        options = {name: option for config in configs for name, option in _options(config) if name not in without}
        for option in reversed(options.values()):
            function = option(function)
        return function

    return decorate


def overridden(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """The config with those fields replaced whose option was given.

    Args:
        config: a dataclass instance.
        values: what click passed; options not given are None.
        prefix: of the names in ``values``.

    Raises:
        ValueError: a value is out of its field's range.
    """
    changed = {}
    for f in fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if is_dataclass(value):
            changed[f.name] = overridden(value, values, name + "__")
        elif values.get(name) is not None:
            changed[f.name] = values[name]
    return replace(config, **changed)


def _options(config: Any, prefix: str = "", section: str = "") -> Iterator[tuple[str, Callable]]:
    section = section or (type(config).__doc__ or "").split(".")[0]
    docs = field_docs(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{f.name}.", f"{prefix}{f.name}: {docs[f.name].rstrip('.')}")
            continue
        name = prefix + f.name
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        yield name, click.option(
            f"--{name.replace('_', '-')}", name.replace(".", "__"), cls=_ConfigOption, section=section,
            type=_kind(value), default=None,
            help=f"{_plain(docs[f.name])} [default: {'none' if shown == '' else shown}]",
        )  # fmt: skip


def _plain(text: str) -> str:
    """A docstring's text without its marks for code and references."""
    return re.sub("(:[a-z]+:)?`+([^`]*)`+", r"\2", text)


def _kind(value: Any) -> click.ParamType:
    if not isinstance(value, tuple):
        return click.types.convert_type(type(value))
    item = str if value and isinstance(value[0], str) else int
    return Items(item)


class Items(click.ParamType):
    """Values between commas."""

    def __init__(self, item: type) -> None:
        self.item, self.name = item, f"{item.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        try:
            return tuple(map(self.item, value.split(",") if value else ())) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"must be {self.item.__name__} values between commas, got {value!r}", param, ctx)
