import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoencoders.data.vectors import load_vectors
from autoencoders.recipes import RECIPES
from autoencoders.training.run import Run
from autoencoders.training.trainer import Trainer
from autoencoders.training.vector_results import write_measurements


def test_the_variance_explained_is_one_minus_the_error_over_the_variance_for_each_autoencoder(tmp_path):
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(400, 12)) * np.arange(1, 13))
    vectors = load_vectors(tmp_path / "vectors.npy", 0.25, 0, "off")
    recipe = RECIPES["sparse"].override({"num_saes": 2, "features": 24, "k": 4, "epochs": 3})
    trainer = Trainer(replace(recipe, vector_size=12), vectors)
    (tmp_path / "run").mkdir()
    run = Run(trainer, vectors, tmp_path / "run")
    for _ in run.epochs(lambda *_: None, 10):
        pass
    write_measurements(run, {})
    metrics = json.loads(Path(tmp_path / "run" / "evaluation.json").read_text())["metrics"]
    for error, explained in zip(metrics["test_mse_unit"], metrics["explained_variance"], strict=True):
        assert explained == pytest.approx(1 - error / vectors.test_images.var(axis=0).mean())
        assert explained > 0.1
    table = (tmp_path / "run" / "features.csv").read_text().splitlines()
    assert table[0] == "feature,stability,firing_rate,explained" and len(table) == 25
