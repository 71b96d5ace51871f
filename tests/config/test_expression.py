"""Constraints: the violation agrees with the comparison, and nothing but the grammar is accepted or run."""

import ast
import builtins
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdn_tune.config.expression import parse_expression

repeatable = settings(deadline=None, derandomize=True)

NAMES = ("parameters", "optim.lr", "clips")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
numbers = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6, allow_nan=False))
values = st.fixed_dictionaries(dict.fromkeys(NAMES, numbers))

terms = st.recursive(
    st.one_of(st.sampled_from(NAMES), st.integers(0, 50).map(str), st.sampled_from(["4e8", "0.5"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda each: f"({each[0]} {each[1]} {each[2]})"),
        inner.map(lambda term: f"-({term})"),
        inner.map(lambda term: f"abs({term})"),
        st.tuples(inner, inner).map(lambda each: f"max({each[0]}, {each[1]})"),
    ),
    max_leaves=5,
)
comparisons = st.tuples(terms, st.sampled_from(COMPARISONS), terms).map(" ".join)
constraints = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda each: f"({each[0]}) {each[1]} ({each[2]})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=4,
)


def python_says(text: str, known: dict[str, Any]) -> bool:
    flat = text.replace("optim.lr", "optim_lr")
    return bool(eval(flat, {"__builtins__": {"abs": abs, "max": max}}, {**known, "optim_lr": known["optim.lr"]}))  # noqa: S307


@repeatable
@given(constraints, values)
def test_violation_is_at_most_zero_iff_the_constraint_holds(text: str, known: dict[str, Any]) -> None:
    if not any(name in text for name in NAMES):
        with pytest.raises(ValueError, match="names no key"):
            parse_expression(text)
        return
    violation = parse_expression(text).violation(known)
    assert (violation <= 0) == python_says(text, known)
    assert math.isfinite(violation)
    assert violation >= 0


@repeatable
@given(st.lists(st.integers(1, 15), min_size=1, max_size=6), st.integers(1, 15), st.sampled_from(COMPARISONS))
def test_a_list_holds_if_every_item_does(sizes: list[int], limit: int, comparison: str) -> None:
    expression = parse_expression(f"kernel_size {comparison} {limit}")
    each = [parse_expression(f"size {comparison} {limit}").violation({"size": size}) for size in sizes]
    assert expression.violation({"kernel_size": sizes}) == max(each)
    turned = parse_expression(f"{limit} {comparison} kernel_size")
    holds = all(python_says(f"{limit} {comparison} clips", {"clips": size, "optim.lr": 0}) for size in sizes)
    assert (turned.violation({"kernel_size": sizes}) <= 0) == holds


@repeatable
@given(st.floats(1.0, 1e9), st.floats(1.0, 1e3))
def test_distance_grows_with_the_excess(limit: float, factor: float) -> None:
    expression = parse_expression("parameters <= limit")
    near = expression.violation({"parameters": limit * factor, "limit": limit})
    far = expression.violation({"parameters": limit * factor * 2, "limit": limit})
    assert far > near
    assert near == pytest.approx(factor - 1, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "known", "holds"),
    [
        ("clip_pool == 'attention' or steps == 1", {"clip_pool": "mean", "steps": 1}, True),
        ("clip_pool in ['attention', 'mean']", {"clip_pool": "max"}, False),
        ("clip_pool not in ['max']", {"clip_pool": "mean"}, True),
        ("1 < layers <= 4", {"layers": 4}, True),
        ("1 < layers <= 4", {"layers": 5}, False),
        ("max(kernel_size) <= 5", {"kernel_size": [3, 7]}, False),
        ("max(kernel_size) <= 5", {"kernel_size": 5}, True),
        ("len(kernel_size) <= 2 and sum(kernel_size) < 9", {"kernel_size": [3, 5]}, True),
        ("min(a, b) >= 2 ** 3", {"a": 8, "b": 9}, True),
        ("hidden % 8 == 0", {"hidden": 12}, False),
        ("residual == True", {"residual": True}, True),
        ("scale_layers == None or clips <= 16", {"scale_layers": None, "clips": 64}, True),
    ],
)
def test_examples(text: str, known: dict[str, Any], holds: bool) -> None:
    assert (parse_expression(text).violation(known) <= 0) == holds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "layers",
        "layers + 1",
        "1 <= 2",
        "layers <= ",
        "layers <= 4; clips",
        "layers <= lambda: 3",
        "layers <= (yield)",
        "layers <= [i for i in clips]",
        "layers <= {1: 2}",
        "layers <= open('x')",
        "layers <= __import__('os').getpid()",
        "layers <= clips.__class__()",
        "layers <= clips[0]",
        "layers <= f'{clips}'",
        "layers <= b'x'",
        "layers <= 1j",
        "layers <= (x := 3)",
        "layers <= max(*clips)",
        "layers <= max(clips, key=abs)",
        "layers <= (1 if clips else 2)",
        "layers is None",
        "layers <= 4 | 3",
        "layers <= 1 << 3",
        "layers <= ...",
        "await layers <= 3",
        "(1).real <= 3",
        "layers <= " + "(" * 500 + "1" + ")" * 500,
        "layers <= " + "-" * 900 + "1",
        "layers <= " + "1 + " * 200 + "1",
        "layers <= " + "1 + " * 2000 + "1",
        "layers <= " + "9" * 900 + "9" * 5000,
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="constraint"):
        parse_expression(text)


@repeatable
@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        expression = parse_expression(text)
    except ValueError:
        return
    kinds = {type(node) for node in ast.walk(ast.parse(text.strip(), mode="eval"))}
    assert kinds.isdisjoint({ast.Lambda, ast.Subscript, ast.ListComp, ast.Await, ast.NamedExpr, ast.JoinedStr})
    assert expression.names


def test_no_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("code was run")

    compiled = compile

    def parse_only(source: Any, filename: Any, mode: str, flags: int = 0, *rest: Any, **more: Any) -> Any:
        assert flags & ast.PyCF_ONLY_AST, "code was compiled"
        return compiled(source, filename, mode, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "eval", forbidden)
        patch.setattr(builtins, "exec", forbidden)
        patch.setattr(builtins, "compile", parse_only)
        violation = parse_expression("max(kernel_size) * 2 <= clips and not hidden == 3").violation(
            {"kernel_size": [3, 5], "clips": 16, "hidden": 8}
        )
    assert violation == 0


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("layers <= clips", {"layers": "two", "clips": 3}),
        ("layers / clips <= 1", {"layers": 2, "clips": 0}),
        ("2 ** layers <= 1", {"layers": 1000}),
        ("9.0 ** layers ** 2 <= 1", {"layers": 60}),
        ("abs(layers) <= 1", {"layers": [1, 2]}),
        ("layers <= ((((9**64)**64)**64)**64)", {"layers": 1}),
        ("'%1000000000d' % layers == 'x'", {"layers": 1}),
        ("len('a' * 10**10) <= layers", {"layers": 1}),
        ("len([1] * 10**10) <= layers", {"layers": 1}),
        ("clip_pool + clip_pool == 'a'", {"clip_pool": "mean"}),
        ("layers <= 1e99 * 1e99", {"layers": 1}),
        ("(-layers) ** 0.5 <= 1", {"layers": 2}),
    ],
)
def test_what_cannot_be_computed_names_the_constraint(text: str, known: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be evaluated"):
        parse_expression(text).violation(known)
