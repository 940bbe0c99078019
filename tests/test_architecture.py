"""The house: which room may import which, and what importing a script costs."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "autoencoders"
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "ae_models")
# What a module of each room may import of ours, besides its own room and ae_models.
BESIDE = {"recipes", "sparse", "vae", "wta", "figures", "style"}
ALLOWED = {
    "runtime": set(),
    "data": {"runtime"},
    "evaluation": {"runtime", "data", *BESIDE},
    "training": {"runtime", "data", "evaluation", *BESIDE},
    "reproduction": {"runtime", "data", "evaluation", "training", *BESIDE},
    "api": {"runtime", "data", "evaluation", "training", *BESIDE},
    "estimator": {"api"},
    "recipes": {"runtime"},
    "sparse": set(),
    "vae": set(),
    "wta": set(),
    "figures": {"style"},
    "style": set(),
}


def modules():
    """Every module of ours by its dotted name."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name):
    """The modules of ours that the module `name` imports, at the top or later; not those for type checkers only."""
    known, found = modules(), set()
    for node in run_time_nodes(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {other for other in found if other in known and other != name}


def run_time_nodes(tree):
    """The nodes of a tree without the blocks under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from run_time_nodes(node)


def rests_on(name):
    """All modules of ours that the module `name` imports, directly or not."""
    reached, waiting = {name}, [name]
    while waiting:
        new = imports(waiting.pop()) - reached
        reached |= new
        waiting += new
    return reached


def lines(names):
    return sum(len(modules()[name].read_text().splitlines()) for name in names)


def room(name):
    return name.split(".")[1] if name.count(".") else ""


@pytest.mark.parametrize("name", sorted(name for name in modules() if name.startswith("autoencoders.")))
def test_a_room_imports_only_from_the_rooms_below_it(name):
    ours = room(name)
    for other in imports(name):
        assert not other.startswith("ae_") or other == "ae_models", f"{name} imports the script {other}"
        if room(other) and room(other) != ours:
            assert room(other) in ALLOWED[ours], f"{name} imports {other}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_imports_a_script_but_the_front_end_of_ae_train(name):
    scripts = imports(name) & set(SCRIPTS)
    assert scripts == ({"ae_train"} if name == "mnist_sae_train" else set())


def test_imports_make_no_circle():
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in imports(name):
                visit(other, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_the_models_need_torch_alone():
    tree = ast.parse((ROOT / "ae_models.py").read_text())
    names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    standard = set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in names} - standard == {"torch"}


def test_a_lazy_import_stands_once_a_script_and_elsewhere_only_for_optional_packages():
    """Torch in modules that `--help` imports; the packages that only a download, a tracker or an export needs."""
    allowed = {"torch", "torchvision", "sklearn", "wandb", "swanlab", "onnx", "onnxruntime", "safetensors"}
    for name, path in modules().items():
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        lazy = {f.name: [n for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)] for f in functions}
        lazy = {function: nodes for function, nodes in lazy.items() if nodes}
        if name in SCRIPTS:
            assert len(lazy) <= 1, f"{name}: {list(lazy)}"
            continue
        for function, nodes in lazy.items():
            for node in nodes:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                assert {n.split(".")[0] for n in names} <= allowed, f"{name}.{function} imports {names}"


def test_the_main_job_can_be_read_in_one_sitting():
    assert lines(rests_on("ae_train")) <= 4675
    assert lines(rests_on("ae_pca")) <= 2005


def test_no_file_and_no_function_is_too_long_to_read():
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 370, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name != "parser":
                length = node.end_lineno - node.lineno + 1
                assert length <= 40, f"{name}.{node.name}: {length} lines"


def test_importing_and_stepping_the_optimizer_does_not_load_the_compiler():
    """It takes 150 MB and two seconds; a new release of torch may bring it back without a word."""
    code = """
import sys, torch
from autoencoders.recipes import RECIPES
from autoencoders.training.trainer import make_optimizer
recipe = RECIPES["simple"]
model = recipe.build()
optimizer = make_optimizer(model, recipe)
model.loss(torch.rand(2, 784))[0].backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "False\n", process.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_importing_a_script_changes_nothing_and_loads_no_torch(script):
    code = f"""
import signal, sys
before = sys.excepthook, signal.getsignal(signal.SIGTERM), sys.stdout, sys.stderr
import {script}
after = sys.excepthook, signal.getsignal(signal.SIGTERM), sys.stdout, sys.stderr
print(before == after, "torch" in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "True False\n", process.stderr


def test_every_module_has_its_test_file():
    tests = {path.stem.removeprefix("test_") for path in Path(ROOT / "tests").rglob("test_*.py")}
    files = BESIDE | {"api", "estimator"}  # beside the rooms
    rooms = {"autoencoders", *(f"autoencoders.{name}" for name in ALLOWED.keys() - files)}
    wanted = {name.split(".")[-1] for name in modules() if name not in rooms and name.split(".")[-1] != "errors"}
    assert wanted <= tests, wanted - tests
