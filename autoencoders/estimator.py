"""A recipe as a scikit-learn transformer, for any table of numbers.

The table is handled as a set of images: one affine map takes its smallest value to 0 and its largest to 1, and each row
is padded with zeros to the next square. As before PCA, columns in different units should be scaled first.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from autoencoders.api import train


class AutoencoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Rows (n, n_features) to codes (n, code_size), and back.

    recipe         a recipe of the table with a code size, as of `ae_train.py --list-recipes`
    code_size      columns of the result; None for as many as PCA needs for 95% of the variance
    epochs, hidden_sizes, batch_size, lr     None for the recipe's; ten times its epochs for fewer than 10,000 rows
    random_state   a seed, a RandomState or None; the same seed and number of threads give the same bits
    device         cpu, cuda, cuda:N, mps or auto

    Values outside the range seen by `fit` are clipped to it. Training rounds to 256 levels of that range, as all images
    here are stored; `transform` does not. After `fit`, `model_` is the trained `autoencoders.Model`.
    """

    def __init__(
        self, recipe: str = "tuned", code_size: int | None = 32, *, epochs: int | None = None,
        hidden_sizes: Sequence[int] | None = None, batch_size: int | None = None, lr: float | None = None,
        random_state: Any = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self.code_size = code_size
        self.epochs = epochs
        self.hidden_sizes = hidden_sizes
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows X (n, n_features); y is ignored."""
        X = validate_data(self, X, dtype="numeric", ensure_min_samples=2)
        self.low_, self.high_ = float(X.min()), float(X.max())
        names = ("epochs", "hidden_sizes", "batch_size", "lr")
        settings = {name: value for name in names if (value := getattr(self, name)) is not None}
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        images = self._to_images(X)
        self.model_ = train(self.recipe, images, test_images=images, device=self.device, quiet=True, seed=seed,
                            code_size=self.code_size, **settings)  # fmt: skip
        self._n_features_out = self.model_.recipe.code_size
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Codes (n, code_size) float32 of rows (n, n_features)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype="numeric", reset=False)
        return self.model_.encode(self._to_images(X))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Rows (n, n_features), within the range seen by `fit`, of codes (n, code_size)."""
        check_is_fitted(self)
        images = self.model_.decode(check_array(X, dtype=np.float32))
        return images[:, : self.n_features_in_] * self._range + self.low_

    @property
    def _range(self) -> float:
        return self.high_ - self.low_ or 1.0  # of constant data

    def _to_images(self, X: np.ndarray) -> np.ndarray:
        """Rows as images (n, side * side) in [0, 1]."""
        unit = ((X - self.low_) / self._range).clip(0, 1)
        width = X.shape[1]
        return np.pad(unit, ((0, 0), (0, (math.isqrt(width - 1) + 1) ** 2 - width)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
