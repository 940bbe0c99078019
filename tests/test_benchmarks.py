"""The parts of the benchmarks that others rely on; the measurements themselves are for a quiet machine."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import call_script, make_trainer

from autoencoders.data.sets import load_images
from autoencoders.evaluation import dictionaries
from autoencoders.evaluation.metrics import reconstruction_error
from autoencoders.evaluation.pca import fit_pca
from autoencoders.reproduction.runs import Setup
from autoencoders.runtime.errors import RunError
from autoencoders.sparse import SparseEnsemble
from benchmarks import code_sizes, peers, recipes, scaling, seeds, showcase, speedrun, step_profile
from benchmarks.common import SYSTEMS, run_python, sized
from benchmarks.figures import growth_panels
from benchmarks.parallel import largest_difference
from benchmarks.plain import build, plain_epoch


def test_a_process_is_timed_line_by_line_and_its_memory_is_its_own():
    program = "import time; print('first'); x = bytearray(10**8); time.sleep(0.3); print('last')"
    lines = []
    done = run_python("-c", program, on_line=lines.append)
    assert lines == ["first\n", "last\n"]
    assert 0 < done.seconds_until("first") < done.seconds_until("last") - 0.3 < done.seconds
    if sys.platform == "linux":
        assert 10**8 < done.peak_own <= done.peak < 3 * 10**8


def test_a_process_that_fails_is_reported_with_its_last_words():
    with pytest.raises(RunError, match=r"status 3.*the reason"):
        run_python("-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)")


def test_a_recipe_to_time_has_a_code_size_and_the_given_settings():
    assert sized("symmetric", batch_size=7).code_size == 154 and sized("symmetric", batch_size=7).batch_size == 7
    assert sized("simple").code_size == 32


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_plain_loop_trains_every_system_of_the_bench(name):
    torch.manual_seed(0)
    recipe, batches = sized(name), [(torch.rand(4, 1, 28, 28), torch.zeros(4))] * 3
    first, *_, last = plain_epoch(build(recipe), recipe, batches)()
    assert last < first


def test_the_largest_difference_is_relative_and_named_and_times_do_not_count():
    one = {"loss": 2.0, "parts": [1.0, 4.0], "zero": 0.0, "seconds": 5.0}
    assert largest_difference(one, one)[0] == 0
    assert largest_difference({**one, "parts": [1.0, 3.0], "seconds": 9.0}, one) == (0.25, "parts 2")
    assert largest_difference({**one, "zero": 1e-9}, one) == (1.0, "zero")


def test_the_table_of_recipes_has_a_row_for_each_with_pca_beside_it(tmp_path, capsys):
    flags = ("--dataset", "digits", "--only", "bce", "speedrun", "--output-dir", tmp_path, "--quiet")
    status, out, err = call_script(capsys, recipes.main, *flags)
    head, _, *rows = out.split("\n\n")[0].splitlines()
    assert status == 0 and [row.split("`")[1] for row in rows] == ["bce", "speedrun"], err
    assert head.count("|") == rows[0].count("|") and "pixels in [0, 1]" in out


def test_the_study_of_code_sizes_puts_pca_beside_each_recipe(tmp_path, capsys):
    flags = ("--dataset", "digits", "--recipes", "bce", "--code-sizes", "2,16", "--output-dir", tmp_path)
    status, out, err = call_script(capsys, code_sizes.main, *flags)
    assert status == 0, err
    errors = json.loads((tmp_path / "code_size.json").read_text())["test_mse_unit"]
    assert {name: tuple(points) for name, points in errors.items()} == {"bce": ("2", "16"), "pca": ("2", "16")}
    assert errors["pca"]["16"] < errors["pca"]["2"] and (tmp_path / "code_size.png").exists()
    assert "bce is ahead of PCA at the code sizes 2\n" in out


def test_the_study_of_seeds_has_the_agreement_of_independent_runs(tmp_path, capsys):
    flags = ("--dataset", "digits", "--seeds", 2, "--only", "centred", "--output-dir", tmp_path)
    status, out, err = call_script(capsys, seeds.main, *flags)
    assert status == 0, err
    row = json.loads((tmp_path / "seeds.json").read_text())["agreement"]["centred"]
    assert row["pairs"] == 1 and 0 < row["pw_mcc"] <= row["mmcs"] < 1
    assert f"`{row['command']}`" in out and "--center" in row["command"]


def test_the_most_stable_features_are_pooled_and_none_twice():
    torch.manual_seed(0)
    runs = [SparseEnsemble(1, features=6, k=2, inputs=16) for _ in range(2)]
    with torch.no_grad():
        runs[1].weight[0, :3] = 2 * runs[0].weight[0, :3]  # three features that both have found
        runs[0].bias.uniform_()
    stable = dictionaries.stability([run.weight[0] for run in runs])
    found = dictionaries.unit_rows(seeds.pooled(runs, stable).weight[0])
    first = dictionaries.unit_rows(runs[0].weight[0])
    assert torch.allclose(found[:3].sum(0), first[:3].sum(0), atol=1e-5)
    assert len(found) == 6 and ((found @ found.T).fill_diagonal_(0) < dictionaries.SHARED).all()


def test_without_a_tenth_of_its_features_the_error_of_a_sparse_code_grows(digits):
    trainer = make_trainer("sparse_tuned", digits, features=100, k=10, epochs=10)
    for _ in trainer.epochs():
        pass
    setup, model = Setup(digits, fit_pca(digits), Path("unused"), torch.device("cpu")), trainer.model.eval()
    every = np.ones(100, bool)
    error = reconstruction_error(model, trainer.test_images)["test_mse_unit"][0]
    assert seeds.error_without(model, setup, every) == pytest.approx(error, rel=1e-4)
    growth = seeds.growth_by_tenth(model, setup)
    assert len(growth) == 10 and growth[0] > growth[9] and growth[0] > 0.1
    pca_error, pca_correlation = seeds.pca_scores(setup, 10)
    assert pca_error == pytest.approx(setup.pca.test_mse(digits.test_images, 10), rel=1e-4) and 0 < pca_correlation < 1


def test_a_record_counts_if_all_seeds_pass_and_is_kept(tmp_path, monkeypatch):
    tiny = ("--dataset", "digits", "--recipe", "speedrun", "--epochs", "2")
    gate = speedrun.Gate("MSE", 0.05, "ours", tiny, ("metrics", "test_mse_unit"))
    monkeypatch.setattr(speedrun, "GATES", {"low": gate, "high": replace(gate, title="other", higher=True)})
    low = speedrun.measure("low", 1, tmp_path)
    assert low["passed"] and 0 < low["figures"][0] < 0.05 and min(low["seconds"]) > 0.5
    slower = {**low, "seconds": [99.0]}
    failed = {**low, "seconds": [0.1, 0.1], "passed": False}
    table = speedrun.format_records([slower, failed, low, {**low, "gate": "high"}])
    assert f"| {low['seconds'][0]:.1f} |" in table and "| 0 of 1 |" in table and "99.0" not in table
    assert "| 99.0 |" in speedrun.format_records([low, {**slower, "seconds": [99.0] * 5}])  # five seeds count more


def test_another_library_trains_on_the_same_files_and_stands_beside_ours(fake_mnist):
    root, _ = fake_mnist
    found = peers.run_peer("sklearn", "simple", Path(sys.executable), root, 2)
    assert found["images_per_second"] > 0 and 0 < found["test_mse"] < 1 and found["process_seconds"] > 0.5
    ours = {**found, "images_per_second": 3 * found["images_per_second"]}
    table = peers.format_results({"models": {"simple": {peers.OURS: ours, "sklearn": found}}})
    assert "| 3.00 |" in table


def test_ours_and_a_peer_stand_beside_each_other_where_the_work_grows(fake_mnist, tmp_path, monkeypatch):
    root, _ = fake_mnist
    ours, theirs = ("simple", "--hidden-sizes", "16", "--code-size", "{}"), ("simple", "--widths", "784,16,{}")
    monkeypatch.setattr(scaling, "AXES", {"code": scaling.Axis("code size", (4,), ours, "sklearn", theirs)})
    args = SimpleNamespace(images=300, rounds=1, output_dir=tmp_path)
    images = load_images("mnist", root)
    points = scaling.measure("code", images, args, tmp_path)
    repeated = load_images("mnist", tmp_path).train_images
    np.testing.assert_array_equal(repeated, np.resize(images.train_images, (300, 784)))
    lead = points["theirs"][4]["microseconds_per_image"] / points["ours"][4]["microseconds_per_image"]
    assert lead > 0 and min(points[side][4]["peak_mb"] for side in points) > 50
    assert scaling.format_points({"code": points}).endswith(f"| {lead:.2f} |")
    assert growth_panels({"code size": points}, "title").startswith(b"\x89PNG")


def test_the_showcase_draws_the_first_digits_through_each_system(tmp_path, capsys, digits, figures):
    flags = ("--dataset", "digits", "--recipes", "bce,speedrun", "--code-size", 8, "--picture", tmp_path / "rows.png")
    status, _, err = call_script(capsys, showcase.main, *flags, "--output-dir", tmp_path)
    assert status == 0, err
    rows = figures[-1].axes
    names = ["input", "PCA", "bce", "speedrun"]
    assert [axes.get_ylabel().split("\n")[0] for axes in rows] == names and (tmp_path / "rows.png").exists()
    record = json.loads((tmp_path / "digits" / "bce-code-size-8" / "seed-42" / "run.json").read_text())
    assert rows[2].get_ylabel().endswith(f"MSE {record['metrics']['test_mse_unit']:.4f}")
    shown = np.reshape([image.get_array() for image in rows[0].images], (8, -1))
    np.testing.assert_array_equal(shown, digits.test_images[:8] / 255)


def test_the_shares_of_a_step_add_up(capsys):
    threads = torch.get_num_threads()
    flags = ("--dataset", "digits", "--only", "simple,sparse", "--steps", 3)
    status, out, err = call_script(capsys, step_profile.main, *flags)
    torch.set_num_threads(threads)
    assert status == 0, err
    for row in out.split("\n\n")[1].splitlines()[2:]:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        products, elementwise, optimizer, batches, _ = (int(cell.rstrip("%")) for cell in cells[2:7])
        assert float(cells[1]) > 0 and products > 10 and elementwise >= 0 and 0 < optimizer < 60 and 0 <= batches < 60
