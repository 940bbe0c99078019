"""The notebook runs from its first cell to its last; what is stored in it was made on MNIST."""

import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"


def code_cells():
    return [cell for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebook_runs_on_digits_without_an_error_or_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUR_IMAGES", "digits")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # it would replace the notebook's own
    (tmp_path / "docs").mkdir()
    shutil.copy(TOUR, tmp_path / "docs")
    for name in ("autoencoders", "ae_models.py"):  # the notebook finds them in the folder above its own
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = nbformat.read(tmp_path / "docs" / TOUR.name, as_version=4)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path / "docs")}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 8
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def test_every_code_cell_is_stored_with_its_output_on_mnist():
    texts = [output.text for cell in code_cells() for output in cell.outputs if output.output_type == "stream"]
    assert "MNIST (60000, 784) (10000, 784)" in texts[0] and all(cell.execution_count for cell in code_cells())
    assert not any(str(ROOT) in text for text in texts)


@pytest.mark.parametrize("cell", code_cells(), ids=lambda cell: cell.source.splitlines()[0][:40])
def test_a_cell_is_plain_python(cell):
    compile(cell.source, "cell", "exec")
