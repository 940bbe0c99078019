"""Do sparse autoencoders find the same features twice? Trains each setting under several seeds and prints three tables:

* how far independent runs agree, with error, correlation, dead features and seconds, beside PCA with as many numbers;
* of `published` and `tuned`, what the stable and the unstable half of the features are worth, one dictionary of the
  most stable features of all runs, as it is and trained on, and untrained and random dictionaries as controls;
* how much the error grows without each tenth of their features, from the most to the least active.

Writes seeds.json. Finished runs in the output folder are used as they are.
"""

from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoders.data.sets import DATASETS, load_images
from autoencoders.evaluation import dictionaries, metrics, probes
from autoencoders.evaluation.pca import fit_pca
from autoencoders.reproduction.runs import Setup, Training, machine_name, make_training
from autoencoders.runtime import cli
from autoencoders.runtime.device import keep_freed_memory, pick_device
from autoencoders.runtime.files import locked, write_json
from autoencoders.sparse import SparseEnsemble
from autoencoders.training.trained import load_run
from autoencoders.training.trainer import Trainer

ONE = ("sparse", "--num-saes", "1")
TUNED = ("sparse_tuned",)
SETTINGS = {
    "published": ONE,
    "ensemble": ("sparse",),
    "no-consistency": ("sparse", "--consistency-weight", "0"),
    "no-revival": (*ONE, "--revive", "off"),
    "centred": (*ONE, "--center"),
    "decay-0.1": (*ONE, "--optimizer", "adamw", "--weight-decay", "0.1"),
    "decay-1": (*ONE, "--optimizer", "adamw", "--weight-decay", "1"),
    "small-weights": (*ONE, "--init-scale", "0.01"),
    "k-5": (*ONE, "--k", "5"),
    "k-10": (*ONE, "--k", "10"),
    "k-25": (*ONE, "--k", "25"),
    "k-100": (*ONE, "--k", "100"),
    "features-256": (*ONE, "--features", "256"),
    "features-4096": (*ONE, "--features", "4096"),
    "epochs-50": (*ONE, "--epochs", "50"),
    "tuned": TUNED,
    "tuned-centred": (*TUNED, "--center"),
    "tuned-k-5": (*TUNED, "--k", "5"),
    "tuned-k-10": (*TUNED, "--k", "10"),
    "tuned-k-25": (*TUNED, "--k", "25"),
    "tuned-k-100": (*TUNED, "--k", "100"),
    "tuned-features-256": (*TUNED, "--features", "256"),
    "tuned-epochs-50": (*TUNED, "--epochs", "50"),
}
_PROBED = 10_000  # training images of the linear probe


def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--seeds", type=cli.integer(2, 10), default=5, metavar="N", help="runs of each setting")
    parser.add_argument("--only", type=cli.items(cli.one_of(SETTINGS)), default=tuple(SETTINGS), metavar="SETTING",
                        help="settings to train (default: all)")  # fmt: skip
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="a small set is a smoke test")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="where the images are")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/seeds"), help="where the runs go")
    return parser


def models(runs: list[Training]) -> list[SparseEnsemble]:
    """The trained models of runs."""
    return [load_run(run.folder, run.setup.device).model for run in runs]  # type: ignore[misc]


def agreement_row(runs: list[Training], found: list[SparseEnsemble]) -> dict[str, Any]:
    """Agreement of independent runs, and their mean error, correlation, dead features and seconds."""
    pairs = [(a, b) for one, other in combinations(found, 2) for a, b in zip(one.weight, other.weight)]
    row: dict[str, Any] = dictionaries.compare(pairs)[0]
    for name in ("test_mse_unit", "pearson", "dead_features"):
        values = [run.measured(f"metrics.{name}") for run in runs]
        row |= {name: fmean(values), f"{name}_spread": stdev(values)}
    row |= {"seconds": fmean(run.record["seconds"] for run in runs), "command": runs[0].command}
    return row | dict(zip(("pca_mse", "pca_pearson"), pca_scores(runs[0].setup, found[0].k)))


def pca_scores(setup: Setup, numbers: int) -> tuple[float, float]:
    """Error and correlation of the test images through so many principal components."""
    images = setup.images.test_images
    x = metrics.to_pixels(torch.tensor(images), "unit")
    y = torch.from_numpy(setup.pca.decode(setup.pca.encode(images, numbers)))
    return metrics.squared_error(x, y).mean().item(), metrics.pearson(y, x).nanmean().item()


@torch.no_grad()
def error_without(model: SparseEnsemble, setup: Setup, kept: np.ndarray) -> float:
    """The test error of a single autoencoder whose other features are set to 0."""
    total, mask = 0.0, torch.from_numpy(kept).to(model.weight)
    for batch in torch.tensor(setup.images.test_images, device=setup.device).split(500):
        x = metrics.to_pixels(batch, "unit")
        total += float((model.decode(model.encode(x) * mask)[0] - x).square().mean(dim=1).sum())
    return total / len(setup.images.test_images)


def growth_by_tenth(model: SparseEnsemble, setup: Setup) -> list[float]:
    """By how much the error grows, as a share of it, without each tenth of the features, the most active first."""
    rates = metrics.firing_rates(model, torch.tensor(setup.images.test_images, device=setup.device))[0].cpu().numpy()
    whole = error_without(model, setup, np.ones(model.features, bool))
    tenths = np.array_split(np.argsort(-rates, kind="stable"), 10)
    kept = (~np.isin(np.arange(model.features), tenth) for tenth in tenths)
    return [error_without(model, setup, mask) / whole - 1 for mask in kept]


def worth(model: SparseEnsemble, setup: Setup, kept: np.ndarray) -> dict[str, float]:
    """Error, linear accuracy and firing rate of a single autoencoder whose other features are set to 0."""
    images, error = setup.images, error_without(model, setup, kept)
    features = [metrics.encode(model, torch.tensor(part, device=setup.device))[0].cpu().numpy()[:, kept]
                for part in (images.train_images[:_PROBED], images.test_images)]  # fmt: skip
    labels = images.train_labels[:_PROBED], images.test_labels
    linear = probes.linear_probe(features[0], labels[0], features[1], labels[1], 0)
    return {"test_mse_unit": error, "accuracy": linear["accuracy"], "firing_rate": float((features[1] != 0).mean())}


def scores(model: SparseEnsemble, setup: Setup) -> dict[str, float]:
    """Error, correlation and linear accuracy of a single autoencoder with all its features."""
    test = torch.tensor(setup.images.test_images, device=setup.device)
    correlation = metrics.code_statistics(model, test)["pearson"][0]
    return worth(model, setup, np.ones(model.features, bool)) | {"pearson": correlation}


def with_rows(model: SparseEnsemble, rows: Tensor, bias: Tensor) -> SparseEnsemble:
    """A single autoencoder like `model` with other features: rows (F, P) and biases (F,)."""
    other = SparseEnsemble(1, len(rows), model.k, rows.shape[1], center=model.center).to(rows.device).eval()
    other.load_state_dict(model.state_dict() | {"weight": rows[None].detach(), "bias": bias[None].detach()})
    return other


def pooled(found: list[SparseEnsemble], stable: list[np.ndarray]) -> SparseEnsemble:
    """As many features as one run has, the most stable of all runs, none of them twice (cosine above 0.7)."""
    rows = torch.cat([model.weight[0] for model in found]).detach()
    bias = torch.cat([model.bias[0] for model in found]).detach()
    unit, chosen, late = dictionaries.unit_rows(rows), list[int](), list[int]()
    for number in np.argsort(-np.concatenate(stable), kind="stable").tolist():
        known = chosen and bool((unit[chosen] @ unit[number]).max() > dictionaries.SHARED)
        (late if known else chosen).append(number)
    best = torch.tensor((chosen + late)[: found[0].features])
    return with_rows(found[0], rows[best], bias[best])


def trained_on(run: Training, start: SparseEnsemble) -> SparseEnsemble:
    """A single autoencoder after the whole training of a run, begun with the weights of `start`."""
    trainer = Trainer(run.recipe, run.images, run.setup.device)
    trainer.model.load_state_dict(start.state_dict())
    for _ in trainer.epochs():
        pass
    return trainer.model.eval()  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    keep_freed_memory()
    images = load_images(args.dataset, args.data_root)
    setup = Setup(images, fit_pca(images), args.output_dir, pick_device(args.device))
    results: dict[str, Any] = {"dataset": images.title, "machine": machine_name(), "seeds": args.seeds}
    results |= {"agreement": {}, "worth": {}, "growth": {}}
    with locked(args.output_dir):
        for name in args.only:
            runs = [make_training(SETTINGS[name], number, setup) for number in range(args.seeds)]
            for run in runs:
                run.train()
            found = models(runs)
            results["agreement"][name] = agreement_row(runs, found)
            if SETTINGS[name] in (ONE, TUNED):
                results["worth"] |= {f"{name}: {kind}": row for kind, row in worth_rows(runs, found, setup).items()}
                results["growth"][name] = np.mean([growth_by_tenth(one, setup) for one in found], axis=0).tolist()
        write_json(args.output_dir / "seeds.json", results)
    print(format_results(results))
    print(f"\nWrote seeds.json into {args.output_dir} ({images.title})")


def worth_rows(runs: list[Training], found: list[SparseEnsemble], setup: Setup) -> dict[str, dict[str, float]]:
    """Means over the runs: all features, the stable and the unstable half; the pooled dictionary, as it is and trained
    on beside one run trained on; the controls."""
    stable, model = dictionaries.stability([one.weight[0] for one in found]), found[0]
    halves = [scores > np.median(scores) for scores in stable]
    controls = {
        "untrained": dictionaries.untrained(runs[0].recipe, 1),
        "random, with the images' covariance": dictionaries.random(setup.images.train_images, model.features, 1),
    }
    no_bias = torch.zeros_like(model.bias[0])
    rows = {
        "all features": [scores(one, setup) for one in found],
        "the stable half": [worth(one, setup, half) for one, half in zip(found, halves)],
        "the unstable half": [worth(one, setup, ~half) for one, half in zip(found, halves)],
        "pooled from all runs": [scores(pooled(found, stable), setup)],
        "one run, trained once more": [scores(trained_on(runs[0], model), setup)],
        "pooled, trained once more": [scores(trained_on(runs[0], pooled(found, stable)), setup)],
        **{
            kind: [scores(with_rows(model, dictionaries.unit_rows(rows).to(model.weight), no_bias), setup)]
            for kind, rows in controls.items()
        },
    }
    return {kind: {name: fmean(row[name] for row in its) for name in its[0]} for kind, its in rows.items()}


def format_results(results: dict[str, Any]) -> str:
    """All tables, in Markdown."""
    head = ("setting", "PW-MCC", "above 0.7", "MMCS", "MSE", "correlation", "PCA, as many: MSE / correlation", "dead",
            "seconds", "command")  # fmt: skip
    rows = [
        (name, f"{row['pw_mcc']:.3f} ± {row['pw_mcc_spread'] or 0:.3f}", f"{row['shared']:.1%}", f"{row['mmcs']:.3f}",
         f"{row['test_mse_unit']:.5f}", f"{row['pearson']:.4f} ± {row['pearson_spread']:.4f}",
         f"{row['pca_mse']:.5f} / {row['pca_pearson']:.4f}",
         f"{row['dead_features']:.1%}", f"{row['seconds']:.0f}", f"`{row['command']}`")
        for name, row in results["agreement"].items()
    ]  # fmt: skip
    of = [
        (name, f"{row['test_mse_unit']:.5f}", f"{row['pearson']:.4f}" if "pearson" in row else "",
         f"{row['accuracy']:.4f}", f"{row['firing_rate']:.4f}")
        for name, row in results["worth"].items()
    ]  # fmt: skip
    worth_head = ("features kept", "MSE", "correlation", "linear accuracy", "firing rate")
    tenths = [(str(tenth + 1), *(f"{of[tenth]:.1%}" for of in results["growth"].values())) for tenth in range(10)]
    growth_head = ("error without tenth", *results["growth"])
    tables = ((head, rows), (worth_head, of), (growth_head, tenths if results["growth"] else []))
    return "\n\n".join(cli.format_table(head, rows, markdown=True) for head, rows in tables if rows)


if __name__ == "__main__":
    cli.run(main)
