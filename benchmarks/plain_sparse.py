"""The sparse ensemble as its write-up builds it, which `bench.py` compares the stacked one with.

Five separate modules and optimizers, dense products throughout, `.item()` after every loss, and at every step the full
best-match search over the ten pairs, on detached values as published (but features against features).
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SparseAutoencoder(nn.Module):
    """One tied k-sparse autoencoder."""

    def __init__(self, pixels: int = 784, features: int = 1024, k: int = 50) -> None:
        super().__init__()
        self.encoder = nn.Linear(pixels, features)
        self.k = k
        nn.init.orthogonal_(self.encoder.weight)
        nn.init.zeros_(self.encoder.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pre = self.encoder(x)
        values, indices = pre.topk(self.k, dim=-1)
        code = torch.zeros_like(pre).scatter(-1, indices, values)
        return code @ F.normalize(self.encoder.weight, dim=1), code


class PlainEnsemble:
    """Trains several of them, step by step."""

    def __init__(self, num_saes: int = 5, consistency_weight: float = 0.01) -> None:
        self.saes = [SparseAutoencoder() for _ in range(num_saes)]
        self.optimizers = [torch.optim.Adam(sae.parameters(), lr=1e-3) for sae in self.saes]
        self.consistency_weight = consistency_weight
        self.activity = [torch.zeros(1024) for _ in self.saes]

    def consistency(self) -> float:
        """1 - MMCS, averaged over the pairs."""
        scores = []
        with torch.no_grad():
            rows = [F.normalize(sae.encoder.weight, dim=1) for sae in self.saes]
            for a, b in combinations(rows, 2):
                cosine = a @ b.T
                scores.append((cosine.amax(1).mean() + cosine.amax(0).mean()).item() / 2)
        return 1 - sum(scores) / len(scores) if scores else 0.0

    def step(self, x: Tensor) -> list[float]:
        """One step on images (batch, 784); the losses as floats."""
        losses = []
        consistency = self.consistency_weight * self.consistency()
        for number, (sae, optimizer) in enumerate(zip(self.saes, self.optimizers)):
            reconstruction, code = sae(x)
            loss = F.mse_loss(reconstruction, x) + consistency
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            self.activity[number] += (code.detach() != 0).float().mean(0)
        return losses
