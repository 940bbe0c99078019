"""Whatever a file of a run holds, the script that reads it ends well or with one line, and writes nowhere else."""

import shutil

import pytest
from conftest import call_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import KINDS, is_harmless, make_folder, mutate


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with every kind of file."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    make_folder(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_value_under_a_right_checksum_is_used_or_refused_in_a_line(name, sound, tmp_path, capsys):
    @settings(max_examples=KINDS[name].examples // 2, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def property(data):
        shutil.rmtree(tmp_path)
        folder = shutil.copytree(sound, tmp_path / "a" / "b" / "run")
        mutate(KINDS[name], folder, data)
        status, out, err = call_script(capsys, KINDS[name].main, *KINDS[name].arguments(folder))
        assert is_harmless(status, out, err), (status, out[-500:], err[-2000:])
        beside = {path for path in tmp_path.rglob("*") if folder not in (path, *path.parents)}
        assert beside == {tmp_path / "a", tmp_path / "a" / "b"}

    property()
