import importlib.util

import pytest
from conftest import call_script, is_one_error_line

import ae_export

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(("kind", "files"), [("onnx", 3), ("safetensors", 1)])
def test_a_run_is_exported_with_a_line_for_each_file(kind, files, finished, tmp_path, capfd):
    status, out, err = call_script(capfd, ae_export.main, "--run", finished, "--format", kind, "--output-dir", tmp_path)
    assert (status, err) == (0, "") and len(out.splitlines()) == files == len(list(tmp_path.iterdir()))
    assert all(str(path) in out and path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_missing_packages_are_named_with_the_command_that_installs_them(finished, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    status, _, err = call_script(capsys, ae_export.main, "--run", finished, "--output-dir", tmp_path)
    assert status == 2 and is_one_error_line(err) and "pip install onnxruntime" in err and not list(tmp_path.iterdir())


def test_nothing_is_written_without_a_finished_run(tmp_path, capsys):
    status, _, err = call_script(capsys, ae_export.main, "--run", tmp_path, "--output-dir", tmp_path / "out")
    assert status == 2 and is_one_error_line(err) and not (tmp_path / "out").exists()
