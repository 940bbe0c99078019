"""The analyses of `ae_eval.py`: each measures a trained model and returns results, a table and pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ae_models import Autoencoder
from autoencoders.data.images import Images, ImageSet
from autoencoders.evaluation import dictionaries, metrics, plots, probes
from autoencoders.evaluation.metrics import Numbers
from autoencoders.evaluation.novelty import Novelty
from autoencoders.evaluation.pca import Pca
from autoencoders.evaluation.scores import Scores, image_scores, summary
from autoencoders.recipes import Recipe
from autoencoders.runtime.cli import format_csv, format_table

_SHOWN = 8  # images per row of a figure
_BATCH = 500  # images read at a time
_SCORES = {
    "test_mse_unit": ("MSE, pixels in [0, 1]", ".5f"),
    "psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".4f"), "pearson": ("Pearson correlation", ".4f"),
    "l0": ("L0, non-zero features per code", ".1f"), "dead_features": ("dead features, fraction", ".4f"),
    "mmcs": ("MMCS of the dictionaries", ".4f"), "noisy_mse": ("MSE of noisy images", ".5f"),
    "restored_mse": ("MSE of restored images", ".5f"),
}  # fmt: skip
_NATS = {"elbo": "ELBO", "nll": "negative log-likelihood", "kl_loss": "KL term", "entropy_floor": "entropy floor"}
_ERRORS = {
    "nll_standard_error": "standard error over images", "nll_monte_carlo_error": "Monte Carlo error",
    "nll_fall_from_tenth": "fall from a tenth of the samples",
}  # fmt: skip
_SCORES_BY_LAYERS = {"sap": "SAP", "nap": "NAP", "nap_hidden": "NAP, hidden"}
_DETECTION = {
    "auroc": "AUROC", "average_precision": "average precision", "threshold": "threshold",
    "specificity": "specificity at threshold", "sensitivity": "sensitivity at threshold",
}  # fmt: skip

Analysis = tuple[Numbers, str, dict[str, bytes]]  # entries of evaluation.json, text to print, PNGs by name
OutlierSplit = tuple[str, Images, Images]  # name of the outliers; inliers and outliers, (n, 784) uint8


@dataclass(frozen=True)
class Subject:
    """A trained model, its images, the PCA it is compared with, and the options of the analyses."""

    model: Autoencoder
    recipe: Recipe
    images: ImageSet
    test_images: Tensor  # on the model's device
    pca: Pca
    seed: int
    likelihood: Numbers  # of the test images; empty for none
    split: OutlierSplit | None
    features: str = "code"  # or `dense`: what the probe reads of a sparse code
    others: Mapping[str, Autoencoder] = field(default_factory=dict)  # the models of other runs, by name

    @property
    def title(self) -> str:
        return f"{self.images.title}, {self.recipe.name}"

    @property
    def pca_title(self) -> str:
        fitted_on_all = self.pca.samples == len(self.images.train_images)
        return f"PCA{'' if fitted_on_all else f' of {self.pca.samples:,} images'}, {self.components}"

    @property
    def components(self) -> int:
        """The components of PCA that equal the code in size."""
        return min(self.recipe.code_size or 0, len(self.pca.components))

    def to_device(self, images: np.ndarray) -> Tensor:
        return torch.tensor(images, device=self.test_images.device)

    def scores(self, images: Images) -> tuple[Scores, Scores]:
        """`image_scores` of the model and of PCA on images (n, 784) uint8."""

        def batches() -> Iterator[np.ndarray]:
            return (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))

        ours = (output for batch in batches() for output in metrics.outputs(self.model, self.to_device(batch)))
        decoded = (self.pca.decode(self.pca.encode(batch, self.components)) for batch in batches())
        by_pca = ((metrics.to_pixels(torch.tensor(batch), "unit"), torch.from_numpy(y))
                  for batch, y in zip(batches(), decoded))  # fmt: skip
        return image_scores(ours), image_scores(by_pca)


def reconstruction(subject: Subject) -> Analysis:
    """Errors of the model (lists for an ensemble) and of PCA on the test images."""
    model, images = subject.model, subject.images
    scores, pca_scores = subject.scores(images.test_images)
    ours, pca = (summary(each, images.test_labels) for each in (scores, pca_scores))
    if model.epoch_metrics:
        statistics = metrics.code_statistics(model, subject.test_images)
        ours |= {name: statistics[name] for name in ("l0", "dead_features")}
    if model.members > 1:
        ours["mmcs"] = metrics.mmcs(model.state_dict()["weight"]).item()
    if model.noise_factor:
        ours |= metrics.restoration_error(model, subject.test_images, subject.recipe.seed)
    by_label = ours["mse_by_label"] if model.members > 1 else [ours["mse_by_label"]]
    mean_by_label = {label: float(np.mean([member[label] for member in by_label])) for label in by_label[0]}

    name = subject.recipe.name + (f", mean of {model.members}" if model.members > 1 else "")
    rows = [(text, *(format(np.mean(each[key]), form) if key in each else "" for each in (ours, pca)))
            for key, (text, form) in _SCORES.items() if key in ours]  # fmt: skip
    rows += [(f"MSE of label {label}", f"{error:.5f}", f"{pca['mse_by_label'][label]:.5f}")
             for label, error in mean_by_label.items() if len(mean_by_label) > 1]  # fmt: skip
    text = (f"{subject.title}: {len(images.test_images):,} test images, {subject.recipe.code_size} numbers per code\n"
            + format_table(("", name, subject.pca_title), rows) + "\n")  # fmt: skip
    bars = {name: mean_by_label, subject.pca_title: pca["mse_by_label"]}
    results = {"model": ours, "pca": {"components": subject.components, "samples": subject.pca.samples, **pca}}
    return results, text, {"evaluation.png": _best_and_worst(subject, scores["mse"][0].numpy(), bars)}


def _best_and_worst(subject: Subject, errors: np.ndarray, bars: dict[str, dict[int, float]]) -> bytes:
    """The errors by label, and the test images with the smallest and the largest errors (n,)."""
    order = errors.argsort(kind="stable")
    rows: dict[str, np.ndarray] = {}
    captions = {}
    for label, index in {"best": order[:_SHOWN], "worst": order[::-1][:_SHOWN]}.items():
        chosen = subject.images.test_images[index]
        rebuilt = metrics.reconstruct(subject.model, subject.to_device(chosen)).reshape(-1, *chosen.shape)[0]
        rows |= {label: chosen / 255, f"{label}\nreconstructed": rebuilt.cpu().numpy()}
        captions[f"{label}\nreconstructed"] = [f"MSE {errors[i]:.4f}" for i in index]
    member = ", autoencoder 1" if subject.model.members > 1 else ""
    title = f"{subject.title}: best and worst of {len(errors):,} test images{member}"
    return plots.evaluation(bars, rows, captions, title)


def likelihood(subject: Subject) -> Analysis:
    """ELBO and importance-weighted likelihood of the test images."""
    found = subject.likelihood
    pixels = {"none": "grey", "dynamic": "dynamic"}.get(found["binarize"], "static")
    protocol = f"{pixels}, {found['importance_samples']:,} samples, {found['images']:,} images"
    rows = (
        [(f"{text} ({protocol})", f"{found[key]:.3f}") for key, text in _NATS.items() if key in found]
        + [(text, "undefined" if found[key] is None else f"{found[key]:.3f}") for key, text in _ERRORS.items()]
        + [
            ("effective samples, mean", f"{found['effective_samples']:.1f}"),
            ("active units", f"{found['active_units']} of {found['code_size']}"),
        ]
    )
    text = f"\nLikelihood in nats per image; protocol: {found['protocol']}\n{format_table(('', 'nats'), rows)}\n"
    return {"likelihood": found}, text, {}


def probe(subject: Subject) -> Analysis:
    """Linear probe, k-NN and k-means on codes, PCA's codes and pixels, for the labels that were trained on."""
    images, seed = subject.images, subject.seed
    known = np.isin(images.test_labels, images.train_labels)
    labels, sets = (images.train_labels, images.test_labels[known]), (images.train_images[:], images.test_images[known])
    codes = [first_member_codes(subject.model, subject.to_device(part), subject.features).numpy() for part in sets]
    name = "code" if subject.features == "code" else "activations before the selection"
    features = {
        "code": (f"{name}, {codes[0].shape[1]}", codes),
        "pca": (subject.pca_title, [subject.pca.encode(part, subject.components) for part in sets]),
        "pixels": (f"pixels, {subject.recipe.pixels}", [part / np.float32(255) for part in sets]),
    }
    found: Numbers = {"trained_on": len(sets[0]), "tested_on": len(sets[1]), "seed": seed}
    rows = []
    for key, (name, (train, test)) in features.items():
        linear = probes.linear_probe(train, labels[0], test, labels[1], seed)
        nearest = probes.knn(train, labels[0], test, labels[1])
        clusters = probes.k_means(train, test, labels[1], seed)
        found[key] = {"features": train.shape[1], "linear": linear, "nearest": nearest, "k_means": clusters}
        rows.append((name, format_accuracy(linear), format_accuracy(nearest), format_clusters(clusters)))
    header = ("", "logistic regression", f"{probes.NEIGHBOURS} nearest neighbours", "k-means: accuracy / NMI")
    text = (f"\nLabels predicted from features: {len(sets[0]):,} training images, accuracy on {len(sets[1]):,} test "
            f"images [95%]\n{format_table(header, rows)}\n")  # fmt: skip
    return {"probe": found}, text, {}


@torch.no_grad()
def first_member_codes(model: Autoencoder, images: Tensor, features: str = "code") -> Tensor:
    """Codes (n, code_size) on the CPU, or the `dense` activations before the selection of the largest; of an ensemble
    those of its first autoencoder."""
    encode = model.encode if features == "code" else model.dense_code
    codes = (encode(metrics.to_pixels(batch, model.input_range)) for batch in images.split(_BATCH))
    # A view would keep all autoencoders' codes.
    return torch.cat([code.reshape(-1, *code.shape[-2:])[0].to("cpu", copy=True) for code in codes])


def format_accuracy(found: Numbers) -> str:
    """An accuracy with its interval; says where a fit has not converged."""
    low, high = found["interval"]
    return f"{found['accuracy']:.4f} [{low:.4f}, {high:.4f}]{'' if found.get('converged', True) else ', not converged'}"


def format_clusters(found: Numbers) -> str:
    """Accuracy and NMI of k-means: mean and spread of the starts."""
    return " / ".join(f"{found[name]:.4f} ± {found[f'{name}_spread']:.4f}" for name in ("accuracy", "nmi"))


def code_map(subject: Subject) -> Analysis:
    """The test codes in the plane, by PCA and by t-SNE."""
    images = subject.images
    positions = probes.embed_2d(first_member_codes(subject.model, subject.test_images).numpy(), subject.seed)
    thumbnails = {method: probes.pick_thumbnails(at) for method, at in positions.items()}
    title = f"{subject.title}: the codes of {len(images.test_images):,} test images"
    png = plots.code_map(positions, images.test_labels, images.test_images, thumbnails, title)
    return {}, "", {"code_map.png": png}


def outliers(subject: Subject) -> Analysis:
    """How well the reconstruction error, SAP, NAP and PCA's error detect the outliers among the inliers."""
    assert subject.split
    name, *sets = subject.split
    scores = [subject.scores(images) for images in sets]
    errors, pca_errors = ([each["mse"][0].numpy() for each in of] for of in zip(*scores))
    layers = Novelty.fit(subject.model, subject.images.train_images, subject.test_images.device)
    novelty = [layers.scores(images) for images in sets]
    ours, pca = probes.detection(*errors), probes.detection(*pca_errors)
    by_layers = {key: probes.detection(novelty[0][key], novelty[1][key]) for key in novelty[0]}
    columns = (ours, *by_layers.values(), pca)
    rows = [(text, *(f"{each[key]:.4f}" for each in columns)) for key, text in _DETECTION.items()]
    header = ("", "error", *(_SCORES_BY_LAYERS[key] for key in by_layers), f"error of {subject.pca_title}")
    text = (f"\nOutliers, by {subject.recipe.name}: {len(sets[1]):,} images ({name}) among {len(sets[0]):,} test images"
            f"\n{format_table(header, rows)}\n")  # fmt: skip

    kinds, shown = ("inliers", "outliers"), {}
    for kind, extreme, sign in ((1, "largest", -1), (1, "smallest", 1), (0, "largest", -1)):
        index = (sign * errors[kind]).argsort(kind="stable")[:_SHOWN]
        shown[f"{kinds[kind]},\n{extreme} error"] = (sets[kind][index] / 255, errors[kind][index].tolist())
    title = f"{subject.title}: {name}; AUROC {ours['auroc']:.4f}"
    png = plots.outliers(dict(zip(kinds, errors)), ours["threshold"], shown, title)
    results = {"strange": name, "usual_images": len(sets[0]), "strange_images": len(sets[1]), "model": ours, "pca": pca,
               **by_layers, "auroc_error": ours["auroc"],
               **{f"auroc_{key}": found["auroc"] for key, found in by_layers.items()}}  # fmt: skip
    return {"outliers": results}, text, {"outliers.png": png}


def agreement(subject: Subject) -> Analysis:
    """How far the dictionaries of this run and of the others agree, beside what chance gives, and what each feature of
    this run's first autoencoder is worth."""
    runs = {"this run": dictionaries.of_model(subject.model)}
    runs |= {name: dictionaries.of_model(model) for name, model in subject.others.items()}
    ours = next(iter(runs.values()))
    kinds = {"independent runs": [pair for a, b in combinations(runs.values(), 2) for pair in zip(a, b)]}
    kinds["autoencoders of one run"] = [pair for its in runs.values() for pair in combinations(its, 2)]
    seeds = 2 * subject.seed, 2 * subject.seed + 1
    first, second = (dictionaries.untrained(subject.recipe, seed) for seed in seeds)
    kinds["untrained"] = [(first, second)]
    first, second = (as_deviations(subject.model, dictionaries.random(subject.images.train_images, len(ours[0]), seed))
                     for seed in seeds)  # fmt: skip
    kinds["random, with the data's covariance"] = [(first, second)]
    found = {kind: dictionaries.compare(pairs) for kind, pairs in kinds.items() if pairs}
    rows = [(kind, f"{each['pw_mcc']:.4f}", f"{each['shared']:.2%}", f"{each['mmcs']:.4f}", str(each["pairs"]))
            for kind, (each, _) in found.items()]  # fmt: skip
    text = (f"\nAgreement of dictionaries, {len(ours[0]):,} features each\n"
            + format_table(("", "PW-MCC", f"above {dictionaries.SHARED}", "MMCS", "pairs"), rows) + "\n")  # fmt: skip

    compared = [its[0] for its in runs.values()] if subject.others else ours
    features = {"stability": dictionaries.stability(compared)[0]} | feature_numbers(subject)
    if len(features) > 1:
        text += format_quarters(features)
    title = f"{subject.title}: matched features, PW-MCC {next(iter(found.values()))[0]['pw_mcc']:.3f}"
    cosines = {kind: matched for kind, (_, matched) in found.items()}
    pairs = ({}, {}) if subject.recipe.vector_size else shown_pairs(*compared[:2])  # a feature of vectors is no picture
    picture = plots.agreement(*pairs, cosines, dictionaries.SHARED, title)
    results = {kind: numbers for kind, (numbers, _) in found.items()}
    return {"agreement": results}, text, {"agreement.png": picture, "features.csv": feature_table(features)}


def as_deviations(model: Autoencoder, rows: Tensor) -> Tensor:
    """Deviations (n, P) from an image as the features of a model see them."""
    rows = rows.to(next(model.parameters()))
    return model.normalized(rows) - model.normalized(torch.zeros_like(rows))


def feature_values(subject: Subject) -> Analysis:
    """What each feature of the run's first autoencoder is worth."""
    return {}, "", {"features.csv": feature_table(feature_numbers(subject))}


def feature_numbers(subject: Subject) -> dict[str, np.ndarray]:
    """`feature_statistics` of the first autoencoder, of a sparse code whose numbers each have a row of the dictionary;
    vectors have no labels to select."""
    code = subject.model.encode(metrics.to_pixels(subject.test_images[:1], subject.model.input_range))
    if not subject.model.selects or code.shape[-1] != len(dictionaries.of_model(subject.model)[0]):
        return {}
    numbers = dictionaries.feature_statistics(subject.model, subject.test_images, subject.images.test_labels)[0]
    return {name: of for name, of in numbers.items() if name != "selectivity" or not subject.recipe.vector_size}


def feature_table(features: dict[str, np.ndarray]) -> bytes:
    """features.csv: one row for each feature."""
    numbered = zip(*(values.tolist() for values in features.values()))
    return format_csv([{"feature": number, **dict(zip(features, row))} for number, row in enumerate(numbered)])


def shown_pairs(a: Tensor, b: Tensor) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Some matched features of two dictionaries, from the most to the least similar: (n, P) each, and captions."""
    rows, columns, cosines = dictionaries.match(a, b)
    shown = np.argsort(-cosines, kind="stable")[np.linspace(0, len(cosines) - 1, min(14, len(cosines))).astype(int)]
    first, second = a[rows[shown]].detach().cpu().numpy(), b[columns[shown]].detach().cpu().numpy()
    label = "its match,\nand the cosine"
    return {"feature": first, label: second}, {label: [f"{cosine:.3f}" for cosine in cosines[shown]]}


def format_quarters(features: dict[str, np.ndarray]) -> str:
    """A table of what the features of each quarter by stability are worth."""
    order = np.argsort(-features["stability"], kind="stable")
    titles = {"stability": "stability", "firing_rate": "firing rate", "explained": "explained variance, sum",
              "selectivity": "selectivity"}  # fmt: skip
    quarters = zip(("most stable quarter", "second", "third", "least stable quarter"), np.array_split(order, 4))
    rows = [(name, *(f"{values[part].sum() if key == 'explained' else values[part].mean():.4f}"
                     for key, values in features.items()))
            for name, part in quarters if len(part)]  # fmt: skip
    return f"\n{format_table(('features by stability', *(titles[key] for key in features)), rows)}\n"
