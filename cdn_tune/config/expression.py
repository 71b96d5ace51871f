"""Constraints of a search space: comparisons over an experiment's keys and over costs derived from it.

``model.map.dynamic_layers <= model.map.layers``, ``parameters <= 4e8``, ``max(kernel_size) <= clips``. A key may be
written by its last part where that is unambiguous. Expressions are parsed into Python's syntax tree and evaluated node
by node; nothing but arithmetic on numbers, comparisons and a few functions is accepted, and no code is run. Neither a
text nor a number grows beyond bounds.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

COSTS = {
    "parameters": "number of the model's parameters",
    "memory_gb": "estimated memory of a worker in training, in 10^9 bytes",
    "checkpoint_gb": "most that a trial's checkpoints occupy on disk, in 10^9 bytes",
}

_ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.LtE: operator.le,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.Gt: operator.gt,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": lambda *values: min(_items(values)),
    "max": lambda *values: max(_items(values)),
    "abs": abs,
    "sum": lambda *values: sum(_items(values)),
    "len": lambda *values: len(_items(values)),
}
_HARMLESS = (ast.Expression, ast.Compare, ast.BoolOp, ast.And, ast.Or, ast.Not, ast.BinOp, ast.UnaryOp, ast.Load)
_LARGEST_POWER = 64
_LARGEST_NUMBER = 1e100
_LONGEST = 1000  # characters
_DEEPEST = 50  # operations within each other


@dataclass(frozen=True)
class Expression:
    """A constraint."""

    text: str
    names: frozenset[str]  # of keys and costs, as written
    _tree: ast.expr = field(repr=False, compare=False)

    def violation(self, values: Mapping[str, Any]) -> float:
        """Returns how far the constraint is from holding for values by name; at most 0 if it holds.

        The distance of a comparison of numbers is relative to its right side, so that constraints of different units
        can be added up, as samplers do. Compared with a list, a number is compared with each of its items.

        Raises:
            ValueError: If values cannot be compared or computed with.
        """
        try:
            return _violation(self._tree, values)
        except (TypeError, ArithmeticError) as error:
            raise ValueError(f"constraint {self.text!r} cannot be evaluated: {error}") from None


def parse_expression(text: str) -> Expression:
    """Returns a constraint, parsed.

    Raises:
        ValueError: If it is no comparison, or contains anything else than names, values, arithmetic, comparisons,
            ``and``, ``or``, ``not`` and the functions abs, len, max, min, sum.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"constraint {text[:40]!r}... has more than {_LONGEST} characters; divide it into several")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about odd spellings
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser's, of what is nested deeply
        raise ValueError(f"constraint {text!r} is no expression; write it like 'parameters <= 4e8'") from None
    names: set[str] = set()
    _check(tree, text, names)
    if not isinstance(tree, ast.Compare | ast.BoolOp) and not (
        isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
    ):
        raise ValueError(f"constraint {text!r} compares nothing; write it like 'parameters <= 4e8'")
    if not names:
        raise ValueError(f"constraint {text!r} names no key and no cost; costs are {', '.join(COSTS)}")
    return Expression(text, frozenset(names), tree)


def _check(node: ast.AST, text: str, names: set[str], depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"constraint {text!r} is nested more than {_DEEPEST} deep; divide it into several")
    if isinstance(node, ast.Name | ast.Attribute):
        names.add(_dotted(node, text))
        return
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise ValueError(f"constraint {text!r}: functions are {', '.join(sorted(_FUNCTIONS))}")
        children: list[ast.AST] = list(node.args)
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, str | bool | int | float | None):
            raise ValueError(f"constraint {text!r}: {node.value!r} is no value of a key")
        return
    elif isinstance(node, ast.List | ast.Tuple):
        children = list(node.elts)
    elif isinstance(node, (*_HARMLESS, *_ARITHMETIC, *_COMPARISONS)):
        children = list(ast.iter_child_nodes(node))
    else:
        raise ValueError(
            f"constraint {text!r}: {type(node).__name__} is not understood; use keys, numbers, + - * / // % **, "
            "comparisons, and, or, not"
        )
    for child in children:
        _check(child, text, names, depth + 1)


def _dotted(node: ast.Name | ast.Attribute, text: str) -> str:
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name):
        raise ValueError(f"constraint {text!r}: a key is written with names and dots, like optim.lr")
    return ".".join([inner.id, *reversed(parts)])


def _violation(node: ast.expr, values: Mapping[str, Any]) -> float:
    if isinstance(node, ast.BoolOp):
        parts = [_violation(part, values) for part in node.values]
        return max(parts) if isinstance(node.op, ast.And) else min(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return 1.0 if _violation(node.operand, values) <= 0 else 0.0
    if isinstance(node, ast.Compare):
        sides = [_value(side, values) for side in (node.left, *node.comparators)]
        return max(_distance(*each) for each in zip(node.ops, sides, sides[1:], strict=False))
    return 0.0 if _value(node, values) else 1.0


def _distance(comparison: ast.cmpop, left: Any, right: Any) -> float:
    if not isinstance(comparison, ast.In | ast.NotIn):
        if isinstance(left, list | tuple):
            return max((_distance(comparison, item, right) for item in left), default=0.0)
        if isinstance(right, list | tuple):
            return max((_distance(comparison, left, item) for item in right), default=0.0)
    if _COMPARISONS[type(comparison)](left, right):
        return 0.0
    if isinstance(comparison, ast.LtE | ast.Lt | ast.GtE | ast.Gt) and not isinstance(left, str):
        distance = abs(left - right) / max(abs(right), 1e-12)
        return float(distance) if 0 < distance < math.inf else 1.0
    return 1.0


def _items(values: tuple[Any, ...]) -> Any:
    """Returns a function's items: those of its only list, else its arguments; one kernel size is a list of one."""
    return values[0] if len(values) == 1 and isinstance(values[0], list | tuple) else values


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute):
        return values[_dotted(node, "")]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, values) for item in node.elts]
    if isinstance(node, ast.Call):
        return _FUNCTIONS[ast.unparse(node.func)](*(_value(item, values) for item in node.args))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, values), _value(node.right, values)
        if isinstance(node.op, ast.Pow) and isinstance(right, int | float) and abs(right) > _LARGEST_POWER:
            raise OverflowError(f"the power {right} is too large")
        return _computed(node.op, left, right)
    if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not):
        return _computed(node.op, _value(node.operand, values))
    return _violation(node, values) <= 0


def _computed(operation: ast.AST, *numbers: Any) -> int | float:
    """Returns what an operation makes of numbers; each is of a bounded size, so that none takes long.

    Raises:
        TypeError: If one is no number: a text times a number, or one that is filled in, could be as long as one likes.
        OverflowError: If the result is out of bounds.
    """
    for number in numbers:
        if not isinstance(number, int | float):
            raise TypeError(f"{number!r} is no number")
    result = _ARITHMETIC[type(operation)](*numbers)
    if not isinstance(result, int | float) or abs(result) > _LARGEST_NUMBER:  # a root of a negative number is complex
        raise OverflowError(f"a result is no number up to {_LARGEST_NUMBER:g}")
    return result
