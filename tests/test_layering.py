"""Who imports whom, and what no file of the project does."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {
    "errors",
    "report",
}  # report/ is a package, too
ABOVE = {"benchmarks", "report", *SCRIPTS}  # what no library imports
FORBIDDEN = {  # what the files of a folder may not import
    "network": {"data", "tool", "exchange", "errors", *ABOVE},
    "data": {"network", "tool", "exchange", *ABOVE},
    "tool": {"exchange", *ABOVE},
    "exchange": ABOVE,
    "report": {"exchange", *ABOVE} - {"report"},
    "benchmarks": set(),  # they time the scripts, too
    "fig": {"benchmarks", "report", *SCRIPTS},
    "examples": {"network", "data", "tool", "exchange", "errors", *ABOVE},
    "": {"benchmarks", *SCRIPTS},  # the scripts themselves
}


@functools.cache
def own_files() -> list[Path]:
    found = [
        *ROOT.glob("*.py"),
        *(path for folder in FORBIDDEN if folder for path in (ROOT / folder).rglob("*.py")),
    ]
    return sorted(path.relative_to(ROOT) for path in found)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imported(nodes: ast.AST) -> set[str]:
    """The first part of every module that the code imports; relative imports are left out."""
    found = set()
    for node in ast.walk(nodes):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def test_the_walk_finds_the_project():
    assert {path.parts[0] for path in own_files()} >= {
        "network",
        "data",
        "tool",
        "benchmarks",
        "fig",
        "errors.py",
        "make_cam.py",
    }
    assert imported(
        ast.parse("import a.b\nfrom c.d import e\nfrom . import f\ndef later():\n    import g")
    ) == {"a", "c", "g"}


@pytest.mark.parametrize("path", own_files(), ids=str)
def test_imports_go_one_way(path):
    folder = path.parts[0] if len(path.parts) > 1 else ""
    assert not imported(tree(path)) & FORBIDDEN[folder]


def test_errors_imports_nothing():
    assert not imported(tree(Path("errors.py")))


def test_pydensecrf_is_imported_where_it_is_used_and_not_before():
    assert [path for path in own_files() if "pydensecrf" in imported(tree(path))] == [
        Path("tool/crf.py")
    ]
    at_the_top = [
        node
        for node in tree(Path("tool/crf.py")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not any("pydensecrf" in ast.unparse(node) for node in at_the_top)


@pytest.mark.parametrize(
    "is_forbidden",
    [
        lambda path, call: (
            path.parts[0] == "network" and getattr(call.func, "attr", None) == "cuda"
        ),
        lambda path, call: keywords(call).get("allow_pickle", "False") != "False",
        lambda path, call: (
            ast.unparse(call.func) == "np.load" and "allow_pickle" not in keywords(call)
        ),
        lambda path, call: (
            ast.unparse(call.func) == "torch.load" and keywords(call).get("weights_only") != "True"
        ),
        lambda path, call: (
            ast.unparse(call.func)
            in {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "eval", "exec"}
        ),
        lambda path, call: keywords(call).get("type") == "bool",  # takes "False" for true
    ],
    ids=[
        "cuda in network",
        "unpickled array",
        "np.load by default",
        "torch.load",
        "pickle, eval, exec",
        "flag of type bool",
    ],
)
def test_no_file_calls(is_forbidden):
    assert [
        f"{path}:{call.lineno}"
        for path in own_files()
        for call in calls(path)
        if is_forbidden(path, call)
    ] == []
