"""Who imports whom, and what no file of the project does."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("network", "data", "tool")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "errors")
ELSEWHERE = {"tests", "runs"}


@functools.cache
def own_files() -> list[Path]:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name not in ELSEWHERE and not path.name.startswith(".")]
    found = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(path.relative_to(ROOT) for path in found)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def modules(nodes: ast.Module, path: Path) -> set[str]:
    """The full name of every module that the code of a file imports anywhere in it, and of all that it imports from them."""
    found = set()
    for node in ast.walk(nodes):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def imported(path: Path) -> set[str]:
    """The first part of every module that a file imports anywhere in it; its own package for a relative import."""
    return {name.split(".")[0] for name in modules(tree(path), path)}


def runs_as_a_command(path: Path) -> bool:
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree(path).body)


@functools.cache
def commands() -> list[Path]:
    """The files in data/ that are called as the stage scripts are."""
    return [path for path in own_files() if path.parts[0] == "data" and runs_as_a_command(path)]


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


def places(breaches: Iterator[tuple[Path, ast.AST]]) -> list[str]:
    return [f"{path}:{node.lineno}" for path, node in breaches]


def test_the_walk_finds_the_project():
    assert {"network", "data", "tool"} <= {path.parts[0] for path in own_files()}
    assert {"train_resnet50_SIPE", "make_cam", "eval_cam", "make_ir_labels", "train_irn", "make_seg_labels", "eval_seg"} <= set(SCRIPTS)
    assert {"train_seg", "infer_seg", "predict"} <= set(SCRIPTS)
    assert imported(Path("train_irn.py")) >= {"torch", *PACKAGES, "errors"}
    assert imported(Path("tool/cam_file.py")) >= {"numpy", "tool", "errors"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_neither_another_package_nor_a_script(package):
    strangers = {*PACKAGES, *SCRIPTS} - {package}
    for path in own_files():
        if path.parts[0] == package and path not in commands():
            assert not imported(path) & strangers, path


def test_the_commands_in_data_are_known():
    assert [path.stem for path in commands()] == ["check_dataset", "draw_demo", "prepare_coco", "prepare_voc"]


@pytest.mark.parametrize("path", commands(), ids=str)
def test_a_command_in_data_imports_no_script_and_is_imported_by_no_other_file(path):
    assert not imported(path) & set(SCRIPTS)
    command = ".".join(path.with_suffix("").parts)
    assert [other for other in own_files() if other != path and command in modules(tree(other), other)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import data.draw_demo",
        "import data.draw_demo as drawing",
        "from data import draw_demo",
        "from data.draw_demo import main",
        "from . import draw_demo",
        "from .draw_demo import main",
        "def later():\n    from data import tables, draw_demo",
    ],
)
def test_an_import_is_seen_however_it_is_written(code):
    assert "data.draw_demo" in modules(ast.parse(code), Path("data/tables.py"))
    assert "tool" not in modules(ast.parse(code), Path("data/tables.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stage_script_imports_no_other(script):
    assert not imported(Path(f"{script}.py")) & set(SCRIPTS)


def test_errors_imports_nothing():
    assert not imported(Path("errors.py"))


def test_pydensecrf_is_imported_where_it_is_used_and_not_before():
    assert [path for path in own_files() if "pydensecrf" in imported(path)] == [Path("tool/crf.py")]
    at_the_top = (node for node in tree(Path("tool/crf.py")).body if isinstance(node, ast.Import | ast.ImportFrom))
    assert not any("pydensecrf" in ast.unparse(node) for node in at_the_top)


def test_the_network_leaves_the_device_to_its_caller():
    in_network = [path for path in own_files() if path.parts[0] == "network"]
    assert not places((p, call) for p in in_network for call in calls(p) if getattr(call.func, "attr", None) == "cuda")


def test_no_array_is_unpickled():
    assert not places((p, call) for p in own_files() for call in calls(p) if keywords(call).get("allow_pickle", "False") != "False")


def test_no_checkpoint_is_unpickled():
    loads = [(p, call) for p in own_files() for call in calls(p) if ast.unparse(call.func) == "torch.load"]
    assert loads
    assert not places((p, call) for p, call in loads if keywords(call).get("weights_only") != "True")


def test_nothing_is_unpickled_in_another_way():
    ways = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "eval", "exec"}
    assert not places((p, call) for p in own_files() for call in calls(p) if ast.unparse(call.func) in ways)


def test_no_flag_is_read_by_bool_which_takes_false_for_true():
    assert not places((p, call) for p in own_files() for call in calls(p) if keywords(call).get("type") == "bool")
