"""The winner-take-all autoencoder: sparse over the images, where the ensemble of sparse.py is sparse over the features.

Makhzani & Frey 2015, "Winner-take-all autoencoders" (https://arxiv.org/abs/1409.2752), fully connected.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ae_models import Parts, SymmetricAutoencoder


class WinnerTakeAll(SymmetricAutoencoder):
    """A symmetric autoencoder, each unit of whose code is active for the images that it fits best.

    In training a unit keeps its largest activations of the batch, a share `lifetime_sparsity` of it, as in the paper. A
    code must not depend on the other images of a batch, so `encode` keeps what is above the `threshold` of the unit, a
    running mean of the least activation kept in training; `dense_code` keeps all, as the paper does for a classifier.
    Further arguments: `SymmetricAutoencoder`.
    """

    selects = True
    threshold_momentum = 0.99

    threshold: Tensor
    steps: Tensor

    def __init__(self, layer_sizes: Sequence[int], lifetime_sparsity: float = 0.05, **arguments: Any) -> None:
        super().__init__(layer_sizes, **arguments)
        self.lifetime_sparsity = lifetime_sparsity
        for layer in (part for part in self.modules() if isinstance(part, nn.Linear)):  # as in the paper
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.register_buffer("threshold", torch.zeros(layer_sizes[-1]))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        code = self.dense_code(x)
        return code * (code >= self.threshold)

    def dense_code(self, x: Tensor) -> Tensor:
        """All activations (batch, code_size) of images (batch, 784)."""
        return self.encoder(x)

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        if not self.training:
            return super().loss(x)
        if self.shift:
            x = self.shifted(x)
        code = self.dense_code(self.corrupt(x) if self.noise_factor else x)
        kept = max(1, round(self.lifetime_sparsity * len(x)))
        least = code.detach().topk(kept, dim=0).values[-1]
        return self.reconstruction_loss(code * (code >= least), x), {"least": least[None].float()}

    @torch.no_grad()
    def after_step(self, parts: Parts) -> Sequence[int]:
        self.steps.add_(1)
        share = (1 / self.steps).clamp(min=1 - self.threshold_momentum)  # the plain mean of the first steps
        self.threshold.lerp_(parts["least"][0], share)
        return ()
