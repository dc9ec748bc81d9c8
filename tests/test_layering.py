"""Who imports whom, and what no file of the project does."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_SCRIPTS = {"errors", "report"}  # report/ is a package, too
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - NO_SCRIPTS
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
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "eval", "exec"}
CODE_WITH_IMPORTS = """
import a.b
from c.d import e
from . import f
def later():
    import g
"""


def folder_of(path: Path) -> str:
    """The first folder of a relative path; empty for a script."""
    return path.parts[0] if len(path.parts) > 1 else ""


@functools.cache
def own_files() -> list[Path]:
    files = [*ROOT.glob("*.py")]
    for folder in FORBIDDEN:
        if folder:
            files += (ROOT / folder).rglob("*.py")
    return sorted(path.relative_to(ROOT) for path in files)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imported(nodes: ast.AST) -> set[str]:
    """The first part of every module that code imports; relative imports are left out."""
    modules = set()
    for node in ast.walk(nodes):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    return modules


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node


def name_of(call: ast.Call) -> str:
    """The called function as it is written, such as np.load."""
    return ast.unparse(call.func)


def keyword(call: ast.Call, name: str) -> str | None:
    """The value of a keyword as it is written; None if it is not passed."""
    for given in call.keywords:
        if given.arg == name:
            return ast.unparse(given.value)
    return None


def test_the_walk_finds_the_project():
    parts = {path.parts[0] for path in own_files()}
    assert parts >= {"network", "data", "tool", "benchmarks", "fig", "errors.py", "make_cam.py"}


def test_imports_are_found_wherever_they_stand():
    assert imported(ast.parse(CODE_WITH_IMPORTS)) == {"a", "c", "g"}


@pytest.mark.parametrize("path", own_files(), ids=str)
def test_imports_go_one_way(path):
    assert not imported(tree(path)) & FORBIDDEN[folder_of(path)]


def test_errors_imports_nothing():
    assert not imported(tree(Path("errors.py")))


def test_pydensecrf_is_imported_where_it_is_used_and_not_before():
    path = Path("tool/crf.py")
    users = [file for file in own_files() if "pydensecrf" in imported(tree(file))]
    assert users == [path]
    for node in tree(path).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "pydensecrf" not in ast.unparse(node)


def is_cuda_in_network(path: Path, call: ast.Call) -> bool:
    return folder_of(path) == "network" and name_of(call).endswith(".cuda")


def may_unpickle_an_array(path: Path, call: ast.Call) -> bool:
    allowed = keyword(call, "allow_pickle")
    if name_of(call) == "np.load" and allowed is None:
        return True
    return allowed not in (None, "False")


def may_unpickle_a_checkpoint(path: Path, call: ast.Call) -> bool:
    return name_of(call) == "torch.load" and keyword(call, "weights_only") != "True"


def runs_what_it_reads(path: Path, call: ast.Call) -> bool:
    return name_of(call) in UNSAFE


def is_flag_of_type_bool(path: Path, call: ast.Call) -> bool:
    """Such a flag takes "False" for true."""
    return keyword(call, "type") == "bool"


@pytest.mark.parametrize(
    "is_forbidden",
    [
        is_cuda_in_network,
        may_unpickle_an_array,
        may_unpickle_a_checkpoint,
        runs_what_it_reads,
        is_flag_of_type_bool,
    ],
)
def test_no_file_calls(is_forbidden):
    places = []
    for path in own_files():
        for call in calls(path):
            if is_forbidden(path, call):
                places.append(f"{path}:{call.lineno}")
    assert places == []


@pytest.mark.parametrize(
    ("code", "is_forbidden"),
    [
        ("model.cuda()", is_cuda_in_network),
        ("np.load(path)", may_unpickle_an_array),
        ("read(path, allow_pickle=True)", may_unpickle_an_array),
        ("torch.load(path)", may_unpickle_a_checkpoint),
        ("torch.load(path, weights_only=False)", may_unpickle_a_checkpoint),
        ("pickle.load(file)", runs_what_it_reads),
        ("parser.add_argument('--on', type=bool)", is_flag_of_type_bool),
    ],
)
def test_forbidden_calls_are_found(code, is_forbidden):
    (statement,) = ast.parse(code).body
    assert is_forbidden(Path("network/new.py"), statement.value)
