"""What a reader may count on in every file: short parts, few parameters, nothing nested."""

import argparse
import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("network", "data", "tool", "exchange", "report")
FOLDERS = (*LIBRARIES, "benchmarks", "fig", "examples", "tests")
MOST_NODES = 20  # expression nodes that begin on one line
MOST_PARAMETERS = 5
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# functions that keep a form of their own, with the reason
MAY_HAVE_MORE_PARAMETERS: dict[str, str] = {}
MAY_BE_DENSE: dict[str, str] = {}


@functools.cache
def own_files() -> list[Path]:
    files = [*ROOT.glob("*.py")]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    return sorted(path.relative_to(ROOT) for path in files)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def functions(module: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function with its dotted name, methods and inner functions included."""
    for node in ast.iter_child_nodes(module):
        name = getattr(node, "name", "")
        if isinstance(node, FUNCTIONS):
            yield f"{prefix}{name}", node
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield from functions(node, f"{prefix}{name}.")
        else:
            yield from functions(node, prefix)


def parameters(function: ast.FunctionDef) -> list[str]:
    """The names of all parameters but self and cls."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [one.arg for one in named if one.arg not in ("self", "cls")]


def is_repeated_by_a_condition(node: ast.AST) -> bool:
    """Whether text or a list is multiplied by something that is no number."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    sides = [node.left, node.right]
    is_sequence = [isinstance(side, (ast.List, ast.JoinedStr)) or is_text(side) for side in sides]
    is_condition = [isinstance(side, (ast.Compare, ast.BoolOp)) for side in sides]
    return any(is_sequence) and any(is_condition)


def ideas(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions below a node; a table of plain values is one of them."""
    if isinstance(node, ast.expr):
        yield node
    if is_table(node):
        return
    for child in ast.iter_child_nodes(node):
        yield from ideas(child)


def is_table(node: ast.AST) -> bool:
    """Whether a list, tuple, set or dict holds nothing but plain values."""
    if not isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Dict)):
        return False
    plain = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp)
    parts = [part for part in ast.walk(node) if isinstance(part, ast.expr)]
    return all(isinstance(part, plain) for part in parts)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_nested_comprehension(node: ast.AST) -> bool:
    if not isinstance(node, COMPREHENSIONS):
        return False
    return any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def is_walrus_in_a_condition_of_several(node: ast.AST) -> bool:
    if not isinstance(node, ast.BoolOp):
        return False
    return any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node))


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("[x for x in y]", False),
        ("[x for x in [z for z in y]]", True),
        ("sum(x for row in y for x in row)", False),
    ],
)
def test_nested_comprehensions_are_found(code, is_found):
    nodes = ast.walk(ast.parse(code))
    assert any(is_nested_comprehension(node) for node in nodes) == is_found


@pytest.mark.parametrize(
    ("code", "is_found"), [("'a' * 3", False), ("'a' * (n > 1)", True), ("[a] * (x and y)", True)]
)
def test_repetitions_by_a_condition_are_found(code, is_found):
    nodes = ast.walk(ast.parse(code))
    assert any(is_repeated_by_a_condition(node) for node in nodes) == is_found


@pytest.mark.parametrize(("code", "count"), [("f(x, 1)", 4), ("[(1, -2), (3, 4)]", 1)])
def test_a_table_of_plain_values_is_one_idea(code, count):
    assert len([*ideas(ast.parse(code))]) == count


@pytest.mark.parametrize("path", own_files(), ids=str)
def test_no_line_hides_a_second_one(path):
    forbidden = (
        is_nested_comprehension,
        is_repeated_by_a_condition,
        is_walrus_in_a_condition_of_several,
    )
    lines = []
    for node in ast.walk(tree(path)):
        for is_forbidden in forbidden:
            if is_forbidden(node):
                lines.append(f"{path}:{node.lineno} {is_forbidden.__name__}")
    assert lines == []


@pytest.mark.parametrize("path", own_files(), ids=str)
def test_functions_take_few_parameters(path):
    wide = []
    for name, function in functions(tree(path)):
        is_test = path.parts[0] == "tests" and name.rpartition(".")[2].startswith("test_")
        has_fixtures = path.parts[0] == "tests" and function.decorator_list
        if is_test or has_fixtures or f"{path}:{name}" in MAY_HAVE_MORE_PARAMETERS:
            continue
        if len(parameters(function)) > MOST_PARAMETERS:
            wide.append(f"{path}:{function.lineno} {name}")
    assert wide == []


@pytest.mark.parametrize("path", own_files(), ids=str)
def test_lines_hold_one_idea(path):
    counts = Counter(node.lineno for node in ideas(tree(path)))
    allowed = set()
    for name, function in functions(tree(path)):
        if f"{path}:{name}" in MAY_BE_DENSE:
            allowed |= set(range(function.lineno, function.end_lineno + 1))
    dense = [line for line, count in sorted(counts.items()) if count > MOST_NODES]
    assert [f"{path}:{line}" for line in dense if line not in allowed] == []


def test_named_exceptions_exist():
    names = set()
    for path in own_files():
        names |= {f"{path}:{name}" for name, _ in functions(tree(path))}
    assert {*MAY_BE_DENSE, *MAY_HAVE_MORE_PARAMETERS} <= names


@pytest.mark.parametrize("path", own_files(), ids=str)
def test_libraries_know_no_namespace(path):
    if path.parts[0] not in LIBRARIES or path == Path("tool/flags.py"):
        return
    names = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    assert argparse.Namespace.__name__ not in names
