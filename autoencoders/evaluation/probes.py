"""Codes as features, codes in the plane, errors as outlier scores: measured with scikit-learn.

Features are (n, d) float32, labels (n,). Every random choice follows from a seed.
"""

import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import average_precision_score, normalized_mutual_info_score, roc_auc_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from autoencoders.evaluation.metrics import Numbers

NEIGHBOURS = 5


def accuracy(correct: np.ndarray) -> Numbers:
    """The share of True and its 95% confidence interval (Wilson 1927)."""
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return {"accuracy": float(correct.mean()), "interval": [float(interval.low), float(interval.high)]}


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int,
    iterations: int = 300,
) -> Numbers:  # fmt: skip
    """Test accuracy of logistic regression on standardised features (Alain & Bengio 2017), at most `iterations` long.

    C (`strength`) is the best of four on a sixth of the training images of each label, held out by the seed; then all
    are fitted with it. Where a label has too few images for that it is 1.
    """
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    counts = np.unique(train_labels, return_counts=True)[1]
    model = LogisticRegression(max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says so
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # they are labels
        if counts.min() >= 2 and len(train) >= 6 * len(counts):
            held_out = StratifiedShuffleSplit(1, test_size=1 / 6, random_state=seed)
            search = GridSearchCV(model, {"C": (1e-3, 1e-2, 1e-1, 1.0)}, cv=held_out)
            model = search.fit(train, train_labels).best_estimator_
        else:
            model.fit(train, train_labels)
    converged = bool((model.n_iter_ < iterations).all())
    return accuracy(model.predict(test) == test_labels) | {"strength": model.C, "converged": converged}


def knn(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> Numbers:
    """Test accuracy of the vote of the five nearest training images, by the distance between unscaled features."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # they are labels
        model = KNeighborsClassifier(min(NEIGHBOURS, len(train)), algorithm="brute").fit(train, train_labels)
    return accuracy(model.predict(test) == test_labels)


def k_means(train: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int, starts: int = 10) -> Numbers:
    """k-means on training features, as many clusters as the test images have labels, and how well the clusters of the
    test images match these labels: `accuracy` by the best matching of clusters and labels, and `nmi`, normalised by the
    arithmetic mean of the entropies. Mean and standard deviation of several starts; `best` is the accuracy and NMI of
    the start with the smallest sum of squares, for which no label is needed.
    """
    clusters, found = len(np.unique(test_labels)), []
    for start in range(starts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
            random = np.random.RandomState([seed, start])
            model = KMeans(min(clusters, len(train)), n_init=1, random_state=random).fit(train)
        assigned = model.predict(test)
        nmi = normalized_mutual_info_score(test_labels, assigned)
        found.append((model.inertia_, matching_accuracy(test_labels, assigned), nmi))
    _, accuracies, nmis = np.array(found).T
    _, *best = min(found)
    return {
        "accuracy": float(accuracies.mean()), "accuracy_spread": float(accuracies.std(ddof=1)),
        "nmi": float(nmis.mean()), "nmi_spread": float(nmis.std(ddof=1)), "starts": starts,
        "best": dict(zip(("accuracy", "nmi"), map(float, best))),
    }  # fmt: skip


def matching_accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """The share of images whose cluster has their label, under the best one-to-one matching (Kuhn 1955)."""
    counts = contingency_matrix(labels, clusters)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(labels))


def embed_2d(codes: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Positions (n, 2) of codes (n, d) by method: PCA, and t-SNE (van der Maaten & Hinton 2008) of the codes' first 50
    principal components."""
    if (codes == codes[0]).all():  # no direction to scale by
        return dict.fromkeys(("PCA", "t-SNE"), np.zeros((len(codes), 2), np.float32))
    reduced = PCA(min(50, *codes.shape), random_state=seed).fit_transform(codes)
    reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))  # codes of one number lie on a line
    tsne = TSNE(perplexity=min(30.0, (len(codes) - 1) / 3), init="pca", random_state=seed)
    return {"PCA": reduced[:, :2], "t-SNE": tsne.fit_transform(reduced)}


def pick_thumbnails(positions: np.ndarray, cells: int = 11) -> np.ndarray:
    """The indices of points (n, 2) that lie well apart: in each cell of a grid the one nearest to the centre."""
    low, high = np.quantile(positions, (0.005, 0.995), axis=0)
    at = (positions - low) / np.maximum(high - low, 1e-12) * cells
    inside = np.flatnonzero(((at >= 0) & (at < cells)).all(axis=1))
    cell = np.floor(at[inside]) @ (cells, 1)
    distance = np.abs(at[inside] % 1 - 0.5).max(axis=1)
    order = np.lexsort((distance, cell))
    return inside[order[np.unique(cell[order], return_index=True)[1]]]


def detection(inliers: np.ndarray, outliers: np.ndarray, specificity: float = 0.95) -> Numbers:
    """How well errors separate outliers (m,) from inliers (n,); a larger error suggests an outlier.

    `threshold` is the smallest inlier error that at least the fraction `specificity` of the inliers do not exceed,
    `sensitivity` the fraction of outliers above it, `share` that of outliers, which the average precision depends on.
    """
    errors, truth = np.concatenate((inliers, outliers)), np.repeat((0, 1), (len(inliers), len(outliers)))
    threshold = float(np.quantile(inliers, specificity, method="inverted_cdf"))
    return {
        "auroc": float(roc_auc_score(truth, errors)),
        "average_precision": float(average_precision_score(truth, errors)),
        "share": len(outliers) / len(errors), "threshold": threshold,
        "specificity": float((inliers <= threshold).mean()), "sensitivity": float((outliers > threshold).mean()),
    }  # fmt: skip
