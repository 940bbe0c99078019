"""The results of a run of `ae_vectors.py`: what the sparse code keeps of the vectors, and what a feature is worth."""

from collections.abc import Mapping

from ae_models import Autoencoder
from autoencoders.evaluation import analyses
from autoencoders.evaluation.pca import fit_pca
from autoencoders.runtime.files import write_atomic, write_json
from autoencoders.training.report import format_summary, write_results
from autoencoders.training.run import Run
from autoencoders.training.trackers import Trackers


def write_measurements(run: Run, others: Mapping[str, Autoencoder]) -> None:
    """Measure the trained model and its features, which are matched with those of other models, by name; print and
    write the results."""
    trainer, folder, pca = run.trainer, run.folder, fit_pca(run.images)
    metrics = write_results(run, pca, Trackers(run, [], "", 1))
    variance = float(run.images.test_images.var(axis=0).mean())
    metrics["explained_variance"] = [1 - error / variance for error in metrics["test_mse_unit"]]
    subject = analyses.Subject(trainer.model, trainer.recipe, run.images, trainer.test_images, pca,
                               trainer.recipe.seed, {}, None, others=others)  # fmt: skip
    compared = bool(others) or trainer.model.members > 1
    results, text, files = analyses.agreement(subject) if compared else analyses.feature_values(subject)
    if not compared:
        (folder / "agreement.png").unlink(missing_ok=True)  # of an earlier comparison
    for name, content in files.items():
        write_atomic(folder / name, content)
    write_json(folder / "evaluation.json", {"metrics": metrics, **results})
    explained = ", ".join(f"{share:.1%}" for share in metrics["explained_variance"])
    print(f"{format_summary(trainer.recipe, metrics)}\nVariance explained: {explained}\n{text}", end="")
