"""Which utterances are exported: a condition like that of SQL's WHERE, over the columns of `transcripts` and labels.

    confidence > 0.9 and duration_s < 20 and speaker in ('anna', 'ben')
    text not like '%<unk>%' and keyword = 'yes' and keyword.score >= 0.8

sqlglot parses it, and what is known here becomes an expression of Arrow; nothing else does, so that a condition can
neither run code nor read anything but the rows. As in SQL, a comparison with null is null, and a row is taken only
where the condition is true.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from pipeline.errors import UsageError
from pipeline.schemas import TRANSCRIPTS

COLUMNS: Final = tuple(column.name for column in TRANSCRIPTS if not pa.types.is_nested(column.type))
"""The columns of `transcripts` that a condition may name."""

_MAX_LENGTH: Final = 10_000  # characters of a condition: deeper nesting than this allows would exhaust the parser
_BINARY: Final[Mapping[Any, Callable[[pc.Expression, pc.Expression], pc.Expression]]] = {
    exp.And: pc.and_kleene,
    exp.Or: pc.or_kleene,
    exp.EQ: pc.equal,
    exp.NEQ: pc.not_equal,
    exp.LT: pc.less,
    exp.LTE: pc.less_equal,
    exp.GT: pc.greater,
    exp.GTE: pc.greater_equal,
    exp.Add: pc.add,
    exp.Sub: pc.subtract,
    exp.Mul: pc.multiply,
    exp.Div: lambda one, other: pc.divide(one.cast(pa.float64()), other.cast(pa.float64())),  # by zero: infinity
}
_READ: Final = frozenset(
    {"this", "expression", "expressions", "low", "high", "is_string", "negate", "table", "db", "catalog"}
)
"""Arguments of nodes; a node with another, as SYMMETRIC of BETWEEN, means something else."""
_UNARY: Final[Mapping[Any, Callable[[pc.Expression], pc.Expression]]] = {
    exp.Not: pc.invert,
    exp.Neg: pc.negate,
    exp.Length: pc.utf8_length,
}


@dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
        text: as it was given.
        expression: of Arrow, over the columns of `transcripts`, and `TASK.label` and `TASK.score` for the tasks.
        columns: the columns of `transcripts` that it names.
        tasks: the classifiers that it names.
    """

    text: str
    expression: pc.Expression = field(repr=False)
    columns: tuple[str, ...]
    tasks: tuple[str, ...]

    def holds(self, transcripts: pa.Table, labels: pa.Table | None = None) -> pa.ChunkedArray:
        """Whether the condition holds, for each row.

        Args:
            transcripts: rows with `utt_id` and the columns that the condition names.
            labels: where it names tasks, rows of `labels` with `utt_id`, `task`, `label` and `score`, in any order,
                with those of all these utterances.
        """
        table = transcripts.select(list(dict.fromkeys(["utt_id", *self.columns])))
        for task in self.tasks:
            assert labels is not None
            own = labels.filter(pc.equal(labels["task"], task))
            places = pc.index_in(table["utt_id"], own["utt_id"])
            for name in ("label", "score"):
                table = table.append_column(f"{task}.{name}", own[name].take(places))
        holds = _evaluated(self.expression, table)
        return pc.fill_null(holds, fill_value=False)


def parse(text: str, tasks: tuple[str, ...] = ()) -> Condition:
    """Parse a condition.

    Args:
        text: the condition.
        tasks: the classifiers of the run: `TASK` is the most probable label of an utterance, `TASK.score` its score.

    Raises:
        UsageError: it is no condition, names what there is not, or compares values of different types.
    """
    try:
        if len(text) > _MAX_LENGTH:
            raise UsageError(f"where: a condition has at most {_MAX_LENGTH:,} characters")
        tree = sqlglot.parse_one(text)
        reader = _Reader(tasks)
        condition = Condition(text, reader.read(tree), tuple(reader.columns), tuple(reader.tasks))
        empty = {name: pa.array([], TRANSCRIPTS.field(name).type) for name in ("utt_id", *condition.columns)}
        for task in condition.tasks:
            empty |= {f"{task}.label": pa.array([], pa.string()), f"{task}.score": pa.array([], pa.float32())}
        found = _evaluated(condition.expression, pa.table(empty))
    except SqlglotError as error:
        errors = getattr(error, "errors", None)
        where = f" after character {errors[0]['col']}" if errors and errors[0]["col"] else ""
        raise UsageError(f"where: {text!r} is not a condition{where}") from error
    except RecursionError as error:
        raise UsageError("where: the condition is nested too deeply") from error
    except pa.ArrowException as error:
        raise UsageError(f"where: {text!r} compares values of different types ({error})") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"where: {text!r} is not UTF-8") from error
    if found.type != pa.bool_():
        raise UsageError(f"where: {text!r} is not true or false, as `confidence > 0.9` is")
    return condition


def _evaluated(expression: pc.Expression, table: pa.Table) -> pa.ChunkedArray:
    from pyarrow import acero  # noqa: PLC0415 - only conditions need it

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    project = acero.Declaration("project", acero.ProjectNodeOptions([expression], ["holds"]), [source])
    return project.to_table(use_threads=False)["holds"]


class _Reader:
    """Makes an expression of Arrow of a tree of sqlglot, and notes what it names."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.known_tasks = tasks
        self.columns: dict[str, None] = {}
        self.tasks: dict[str, None] = {}

    def read(self, node: Any) -> pc.Expression:
        kind = type(node)
        if any(value and name not in _READ for name, value in node.args.items()):
            raise _unread(node)
        if kind in _BINARY:
            return _BINARY[kind](self.read(node.this), self.read(node.expression))
        if kind in _UNARY:
            return _UNARY[kind](self.read(node.this))
        if kind not in _OTHERS:
            raise _unread(node)
        return _OTHERS[kind](self, node)

    def between(self, node: Any) -> pc.Expression:
        value, low, high = self.read(node.this), self.read(node.args["low"]), self.read(node.args["high"])
        return pc.and_kleene(pc.greater_equal(value, low), pc.less_equal(value, high))

    def is_in(self, node: Any) -> pc.Expression:
        if not node.expressions:
            raise _unread(node)
        value = self.read(node.this)
        return functools.reduce(pc.or_kleene, (pc.equal(value, self.read(each)) for each in node.expressions))

    def like(self, node: Any) -> pc.Expression:
        if not (isinstance(node.expression, exp.Literal) and node.expression.is_string):
            raise _unread(node)
        found = pc.match_like(self.read(node.this), node.expression.this, ignore_case=isinstance(node, exp.ILike))
        return pc.invert(found) if node.args.get("negate") else found

    def is_null(self, node: Any) -> pc.Expression:
        if not isinstance(node.expression, exp.Null):
            raise _unread(node)
        return self.read(node.this).is_null()

    def column(self, node: Any) -> pc.Expression:
        parts = [part.name for part in node.parts]
        if len(parts) == 1 and parts[0] in COLUMNS:
            self.columns[parts[0]] = None
            return pc.field(parts[0])
        task, value = parts[0], parts[1] if len(parts) == 2 else "label"
        if len(parts) <= 2 and task in self.known_tasks and value in ("label", "score"):
            self.tasks[task] = None
            return pc.field(f"{task}.{value}")
        known = ", ".join([*COLUMNS, *(name for task in self.known_tasks for name in (task, f"{task}.score"))])
        raise UsageError(f"where: there is no column {'.'.join(parts)!r}: there are {known}")


_OTHERS: Final[Mapping[Any, Callable[[_Reader, Any], pc.Expression]]] = {
    exp.Paren: lambda reader, node: reader.read(node.this),
    exp.Between: _Reader.between,
    exp.In: _Reader.is_in,
    exp.Like: _Reader.like,
    exp.ILike: _Reader.like,
    exp.Is: _Reader.is_null,
    exp.Column: _Reader.column,
    exp.Literal: lambda reader, node: pc.scalar(node.this if node.is_string else _number(node.this)),
    exp.Boolean: lambda reader, node: pc.scalar(bool(node.this)),
    exp.Null: lambda reader, node: pc.scalar(None),
}


def _unread(node: Any) -> UsageError:
    what = node.sql() if isinstance(node, exp.Expression) else str(node)
    return UsageError(
        f"where: {what!r} is not read: a condition is made of columns, numbers, 'texts', comparisons, and, or, not, "
        "in (...), between, like, is null, length() and + - * /"
    )


def _number(text: str) -> int | float:
    try:
        number = int(text)
    except ValueError:
        return float(text)
    return number if abs(number) < 1 << 63 else float(number)
