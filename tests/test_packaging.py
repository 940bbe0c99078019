"""`pip install .`: what the wheel holds, and that its commands are the scripts'."""

import importlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT, run_script

from autoencoders.runtime import cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The files of the wheel by name, built from a copy of the sources, without a network."""
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("setuptools is not installed")
    source = tmp_path_factory.mktemp("source")
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("requirements*.txt"),
        *(ROOT / n for n in ("pyproject.toml", "LICENSE", "README.md")),
    ]:
        shutil.copy(path, source)
    shutil.copytree(ROOT / "autoencoders", source / "autoencoders")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(source / "dist")]
    process = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_the_wheel_holds_every_module_and_file_of_the_package_and_no_more(wheel):
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "autoencoders").rglob("*")
        if path.suffix in (".py", ".html")
    }
    assert {name for name in wheel if ".dist-info" not in name} == ours | {f"{name}.py" for name in SCRIPTS}
    assert "autoencoders/reproduction/page.html" in ours


def test_the_wheel_has_the_version_and_the_requirements(wheel):
    facts = next(text for name, text in wheel.items() if name.endswith("METADATA")).splitlines()
    assert f"Version: {cli.VERSION}" in facts and "Requires-Python: >=3.11" in facts
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert pinned == [line.split(": ")[1] for line in facts if line.startswith("Requires-Dist") and "extra" not in line]


def test_every_script_has_its_command(wheel):
    commands = {name: target.split(":") for name, target in PROJECT["project"]["scripts"].items()}
    assert {name.replace("-", "_") for name in commands} == set(SCRIPTS) - {"ae_models"}
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == set(SCRIPTS)
    for name, (module, function) in commands.items():
        assert module == name.replace("-", "_") and callable(getattr(importlib.import_module(module), function))
    assert "ae-train = ae_train:command" in next(
        text for name, text in wheel.items() if name.endswith("entry_points.txt")
    )


def test_help_and_errors_show_the_name_of_the_command():
    code = "import sys, ae_pca; sys.argv = ['/usr/bin/ae-pca', sys.argv[1]]; ae_pca.command()"
    assert run_script("-c", code, "--help").stdout.startswith("usage: ae-pca ")
    process = run_script("-c", code, "--nothing")
    assert process.returncode == 2 and process.stderr.endswith("see ae-pca --help\n")
