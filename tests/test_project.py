"""The project's rules: checkers pass, layers hold, no large and no unsafe files."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "styleengine"
LARGEST_FILE = 10_000_000
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines

# The layers of modules, lowest first: a module imports from its own layer and from lower ones, never from higher ones.
LAYERS = [
    {"errors", "image_files", "memory", "networks", "phases", "turns", "version"},
    {"attention", "images", "settings", "cache", "disk_cache", "file_hashes"},
    {"contact_sheet", "stylization", "workfolder", "containers", "frame_colors", "mp4_index", "sound"},
    {"backbones", "metrics"},
    {"ddim", "measures", "perceptual", "video", "styles"},
    {"run"},
    {"sain"},
    {"style_attention"},
    {"learned_style"},
    {"style_library"},
    {"method"},
    {"methods"},
    {"loads"},
    {"engine_core"},
    {"engine", "found_inputs"},
    {"batch", "comparison", "rerun"},
    {"console"},
    {"arguments"},
    {"batch_command"},
    {"ui", "cli", "__main__"},
]
LAYER = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}


def python_files() -> list[Path]:
    """Every Python file that belongs to the project, whether committed yet or not."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        files = [ROOT / name for name in listed.split("\0") if name]
    else:
        files = [file for file in ROOT.rglob("*.py") if not any(part.startswith(".") for part in file.parts)]
    return [file for file in files if file.exists()]


def package_files() -> list[Path]:
    return [file for file in python_files() if PACKAGE in file.parents]


def imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it: `from a.b import c` gives a.b.c."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


def own_imports(file: Path) -> Iterator[list[str]]:
    """The package's modules that a file imports, as paths within the package."""
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "styleengine":
            yield parts[1:]


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", ".")


def test_everything_is_formatted() -> None:
    run("ruff", "format", "--check", ".")


def test_pyright_finds_nothing() -> None:
    run("pyright")


def test_files_to_check_are_found() -> None:
    names = {file.relative_to(ROOT).as_posix() for file in python_files()}
    assert {"styleengine/engine.py", "styleengine/methods/zstar.py", "tests/test_project.py"} <= names


def test_no_module_imports_from_a_higher_layer() -> None:
    wrong = []
    for file in package_files():
        module = file.relative_to(PACKAGE).with_suffix("").parts
        if module == ("__init__",):
            continue
        assert module[0] in LAYER, f"{module[0]} is in no layer yet: add it to LAYERS"
        for target in own_imports(file):
            layer = LAYER.get(target[0], LAYER["engine"])  # from the package itself: what the engine offers
            if layer > LAYER[module[0]]:
                wrong.append(f"{'.'.join(module)} imports {'.'.join(target)}")
    assert not wrong


def test_no_file_and_no_function_is_too_long() -> None:
    for file in package_files():
        text = file.read_text()
        assert len(text.splitlines()) <= LONGEST_FILE, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{file}: {node.name}"


def test_there_are_no_circular_imports() -> None:
    """Also within a layer: the modules that a module imports, directly or not, do not import it."""
    files = {
        "/".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("/__init__"): file
        for file in package_files()
    }
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        targets = {"/".join(parts[:length]) for parts in own_imports(file) for length in (len(parts), len(parts) - 1)}
        graph[name] = (targets & files.keys()) - {name, *(name[:i] for i, letter in enumerate(name) if letter == "/")}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_methods_do_not_import_each_other() -> None:
    for file in (PACKAGE / "methods").rglob("*.py"):
        method = file.relative_to(PACKAGE / "methods").with_suffix("").parts[0]
        if method == "__init__":  # the list of them all
            continue
        imported = {target[1] for target in own_imports(file) if target[0] == "methods"} - {method}
        assert not imported, f"{method} imports {imported}"


def test_only_the_user_interface_imports_gradio() -> None:
    with_gradio = {file.relative_to(ROOT).parts for file in python_files() if roots(file) & {"gradio", "spaces"}}
    allowed = {parts for parts in with_gradio if parts[:2] == ("styleengine", "ui") or parts == ("app.py",)}
    assert with_gradio - {parts for parts in with_gradio if parts[0] == "tests"} <= allowed


def test_only_attention_uses_the_kernels_and_only_backbones_the_hub() -> None:
    for file in package_files():
        if file.name != "attention.py":
            assert "xformers" not in roots(file), file
            assert "scaled_dot_product_attention" not in file.read_text(), file
        if file.parent.name != "backbones":
            assert "huggingface_hub" not in roots(file), file
            assert ".from_pretrained(" not in file.read_text(), file


def test_torchvision_is_imported_nowhere() -> None:
    assert not [file for file in python_files() if "torchvision" in roots(file)]


def test_the_package_unpickles_nothing() -> None:
    for file in package_files():
        assert not roots(file) & {"pickle", "dill", "joblib", "shelve", "marshal"}, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"torch.load", "np.load", "numpy.load", "torch.hub"}, file


def test_torch_is_pinned() -> None:
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert "torch==2.13.0" in requirements
    assert not [line for line in requirements if line.startswith("torchvision")]
    stated = [line for line in requirements if line and not line.startswith(("#", "-"))]
    assert all("==" in line for line in stated)


def test_no_tracked_file_is_too_large_for_a_space() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files
    assert not [file for file in files if file.is_file() and file.stat().st_size >= LARGEST_FILE]
