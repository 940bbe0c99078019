"""Codes as features and as places: how well labels can be read off them, and where they lie in a plane.

Features are (n, d) float32, labels (n,). All of it is scikit-learn's work; every random choice follows from a seed.
"""

from typing import Any

import numpy as np

NEIGHBOURS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the linear probe's fit: scikit-learn's C, which it has at 1
_STEPS = 300  # of the fit at most
_Z = 1.959964  # of a 95 % interval


def accuracy(right: np.ndarray) -> dict[str, Any]:
    """The share of True and its 95 % interval (Wilson 1927)."""
    n, p = len(right), float(right.mean())
    centre, spread = p + _Z**2 / (2 * n), _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    low, high = ((centre + sign * spread) / (1 + _Z**2 / n) for sign in (-1, 1))
    return {"accuracy": p, "interval": [float(low), float(high)]}


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int
) -> dict[str, Any]:
    """Test accuracy of logistic regression on standardised features (Alain & Bengio 2017).

    The strength of the fit is the best of four on a sixth of the training images of each label, held out by the seed;
    then all are fitted with it. Where a label has too few images to be held out it is 1.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    counts, strength = np.unique(train_labels, return_counts=True)[1], STRENGTHS[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the answer says whether it converged
        if counts.min() >= 2 and len(train) >= 6 * len(counts):
            fit_x, held_x, fit_y, held_y = train_test_split(
                train, train_labels, test_size=1 / 6, random_state=seed, stratify=train_labels
            )
            fits = [LogisticRegression(C=c, max_iter=_STEPS).fit(fit_x, fit_y).score(held_x, held_y) for c in STRENGTHS]
            strength = STRENGTHS[int(np.argmax(fits))]
        model = LogisticRegression(C=strength, max_iter=_STEPS).fit(train, train_labels)
    found = accuracy(model.predict(test) == test_labels)
    return found | {"strength": strength, "converged": bool((model.n_iter_ < _STEPS).all())}


def nearest(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> dict[str, Any]:
    """Test accuracy of the vote of the five nearest training images, by the distance between the features as given."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(NEIGHBOURS, len(train)), algorithm="brute").fit(train, train_labels)
    return accuracy(model.predict(test) == test_labels)


def planes(codes: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Places (n, 2) of codes (n, d), by the name of the method: PCA, and t-SNE (van der Maaten & Hinton 2008) of the
    codes' first 50 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    with np.errstate(invalid="ignore"):  # codes that are all one explain no variance
        reduced = PCA(min(50, *codes.shape), random_state=seed).fit_transform(codes)
    flat = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))  # a code of one number is a line
    start = flat * (1e-4 / max(float(flat[:, 0].std()), 1e-12))  # small, as the method wants it
    tsne = TSNE(perplexity=min(30.0, (len(codes) - 1) / 3), init=start, random_state=seed)
    return {"PCA": flat, "t-SNE": tsne.fit_transform(reduced)}


def spread_out(places: np.ndarray, cells: int = 11) -> np.ndarray:
    """The numbers of some images that lie well apart: of each cell of a grid the one nearest to its centre."""
    low, high = np.quantile(places, (0.005, 0.995), axis=0)
    at = (places - low) / np.maximum(high - low, 1e-12) * cells
    inside = np.flatnonzero(((at >= 0) & (at < cells)).all(axis=1))
    cell = np.floor(at[inside]) @ (cells, 1)
    distance = np.abs(at[inside] % 1 - 0.5).max(axis=1)
    order = np.lexsort((distance, cell))
    chosen: np.ndarray = inside[order[np.unique(cell[order], return_index=True)[1]]]
    return chosen
