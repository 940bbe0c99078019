"""The sparse ensemble: S k-sparse autoencoders, trained side by side as one stacked parameter.

Images x are (B, P) in [0, 1]: B images of P pixels. A dictionary has F features, rows W_f of length n_f. Codes are
(S, B, F), reconstructions (S, B, P). The S dictionaries are also one stack of N = S F rows, and a row's number is its
number in the stack. Everything stays on the device: no step waits for a value.

Of a training step's five dense products only the encoder's remains: the autograd functions here touch active rows only.
With the largest k pre-activations v, amplitudes a, reconstruction y, and mean pre-activation m over the batch,

    v = top_k(W x + b)        a_f = v_f / n_f        y = sum_f a_f W_f        m = mean_x (W x + b)

    dL/dv_f = dL/dy . W_f / n_f
    dL/db_f = sum_x dL/dv_f + dL/dm_f
    dL/dW_f = sum_x dL/dv_f x  +  sum_x a_f dL/dy  -  sum_x a_f dL/dv_f W_f / n_f  +  dL/dm_f mean_x x

and for the cosine c_f = W_f . W_g / (n_f n_g) between row f and its partner, row g,

    dc_f/dW_f = W_g / (n_f n_g) - c_f W_f / n_f^2        (and so for W_g)
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_models import Autoencoder, Parts


def _dots(left: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """left[i] . rows[index[i, e]]: (M, P), (N, P), (M, E) -> (M, E), without an (M, E, P) copy of the rows.

    It is the gradient of `embedding_bag` for its per-sample weights.
    """
    bag = torch.arange(len(index), device=index.device)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, rows, index.flatten(), bag * index.shape[1], bag.repeat_interleave(index.shape[1]), 0
    )
    return dots.view_as(index)


class _RowSums:
    """Adds scaled rows to N rows, entry e to row target[e] (E,); by one `embedding_bag`, which is deterministic."""

    def __init__(self, target: Tensor, count: int) -> None:
        target, self.order = target.sort()
        self.first = torch.searchsorted(target, torch.arange(count, device=target.device))

    def __call__(self, factors: Tensor, rows: Tensor, sources: Tensor) -> Tensor:
        """sum_ce factors[c, e] rows[sources[c, e]]: (C, E), (M, P), (C, E) -> (N, P)."""
        source, factor = (values[:, self.order].T.flatten() for values in (sources, factors))
        return F.embedding_bag(source, rows, self.first * len(factors), mode="sum", per_sample_weights=factor)

    def of(self, *values: Tensor) -> Tensor:
        """sum_e value[e] of several values (E,), each: (C, N)."""
        return F.embedding_bag(self.order, torch.stack(values, dim=1), self.first, mode="sum").T


class _SparsePass(torch.autograd.Function):
    """Encode, keep the k largest, decode; compare rows with their partners. The equations are at the top of the module.

    x (B, P), weight (S, F, P), bias (S, F), partner (N,) or None -> y (S, B, P), m (S, F), cosines c (N,) or zeros,
    active rows (S B, k). x gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, partner: Tensor | None
    ) -> tuple[Tensor, ...]:  # fmt: skip
        # Detached, because embedding_bag does less for rows that need no gradient.
        rows, stack = weight.detach().flatten(0, 1), torch.arange(len(weight), device=x.device)
        # Under autocast this product is in half precision; everything else stays in single.
        pre = F.linear(x, rows, bias.flatten()).float().view(len(x), *bias.shape).transpose(0, 1)  # (S, B, F)
        v, f = pre.topk(k, sorted=False)
        v, f = v.reshape(-1, k), (f + bias.shape[1] * stack[:, None, None]).view(-1, k)  # (S B, k)
        n = torch.linalg.vector_norm(rows, dim=1)  # (N,)
        a = v / n[f]
        y = F.embedding_bag(f, rows, mode="sum", per_sample_weights=a)  # (S B, P)
        c = torch.zeros_like(n) if partner is None else _dots(rows, rows, partner[:, None])[:, 0] / (n * n[partner])
        ctx.save_for_backward(x, weight, n, a, f, partner, c)
        ctx.mark_non_differentiable(f)
        return y.view(len(weight), *x.shape), pre.mean(1), c, f

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, n, a, f, partner, c = ctx.saved_tensors
        rows, dy, dm, dc = weight.detach().flatten(0, 1), grads[0].reshape(-1, x.shape[1]), grads[1].flatten(), grads[2]
        dv = _dots(dy, rows, f) / n[f]  # (S B, k)
        answer = torch.arange(len(f), device=x.device).repeat_interleave(f.shape[1])  # (S B k,)
        a, dv, sums = a.flatten(), dv.flatten(), _RowSums(f.flatten(), len(rows))
        sources = torch.stack([answer % len(x), answer + len(x)])
        dw = sums(torch.stack([dv, a]), torch.cat([x, dy]), sources)  # sum_x dL/dv_f x  +  sum_x a_f dL/dy
        norm_term, db = sums.of(a * dv, dv)
        norm_term = norm_term / n  # sum_x a_f dL/dv_f / n_f
        if partner is not None:
            row, pull = torch.arange(len(rows), device=x.device), dc / (n * n[partner])
            ends, others = torch.cat([row, partner]), torch.cat([partner, row])  # both ends of every pair (f, g)
            pairs = _RowSums(ends, len(rows))
            dw += pairs(pull.repeat(2)[None], rows, others[None])  # W_g / (n_f n_g)
            norm_term += pairs.of((dc * c).repeat(2))[0] / n.square()  # c_f / n_f^2
        dw.addcmul_(rows, norm_term[:, None], value=-1)
        dw.addcmul_(dm[:, None], x.mean(0))  # dL/dm_f mean_x x
        return None, dw.view_as(weight), (dm + db).view(weight.shape[:2]), None, None


class SparseEnsemble(Autoencoder):
    """S k-sparse autoencoders with tied, normalised decoders (Makhzani & Frey 2014, here without a ReLU).

        code = top_k(W x + b)        reconstruction = sum_f code_f W_f / |W_f|
        loss = sum_s MSE_s + consistency_weight (1 - MMCS) - revive_weight sum_s mean_f [f is dead] mean_x (W x + b)_f

    `weight` (S, F, P) and `bias` (S, F) hold all autoencoders. Adam works element by element, so one optimizer over
    the stack equals one per autoencoder.

    MMCS: the matches are those known so far; `matches_per_step` of them are searched anew after each step. The weight
    rises to `consistency_weight` over the first `consistency_warmup` steps.

    revive="lift": the last term brings back features that did not fire for `revive_window` steps, at a weight so small
    that only Adam's scaling makes it count (a dead feature has no other gradient). It replaces the auxiliary loss of
    Gao et al. 2024 ("Scaling and evaluating sparse autoencoders"), which reconstructs the residual from dead
    features; with a tied decoder that costs correlation, and a second top-k.

    reinit_threshold: the published rule, off by default. Every `reinit_every` steps an autoencoder with
    mean_f (|rate_f - 0.0625| / 0.0625)^3 above it is re-initialised.
    center: the mean training image is subtracted first and added at the end; features are deviations from it.
    standardize: the difference is also divided by the standard deviation, and so is the error in the loss.
    init_scale: the factor of the first, orthogonal weights. What training leaves of them in a row is noise: the smaller
    they are, the less is left.
    The training state is in non-persistent buffers: a state dict holds the model alone, a checkpoint stores both.
    """

    selects = True
    epoch_metrics = ("pearson", "dead_features", "mean_activity")
    loss_unit = "squared error, summed over the autoencoders"
    matches_per_step = 64
    revive_weight = 3e-3
    revive_window = 2
    reinit_every = 100
    target_rate = 0.0625

    step: Tensor
    images: Tensor
    fires: Tensor
    silent: Tensor
    mean: Tensor
    scale: Tensor
    matches: Tensor

    def __init__(
        self, num_saes: int = 5, features: int = 1024, k: int = 50, inputs: int = 784,
        consistency_weight: float = 0.01, consistency_warmup: int = 100, revive: str = "lift",
        reinit_threshold: float | None = None, center: bool = False, standardize: bool = False, init_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(num_saes, features, inputs) < 1 or not 1 <= k <= features:
            raise ValueError(f"k {k}: expected 1 to the number of features, {features}, of at least one autoencoder, "
                             f"got {num_saes}")  # fmt: skip
        self.members, self.features, self.k = num_saes, features, k
        self.consistency_weight = consistency_weight if num_saes > 1 else 0.0
        self.consistency_warmup, self.revive, self.reinit_threshold = consistency_warmup, revive, reinit_threshold
        self.center, self.standardize, self.init_scale = center or standardize, standardize, init_scale
        shape = (num_saes, features)
        self.weight = nn.Parameter(torch.empty(*shape, inputs))
        self.bias = nn.Parameter(torch.zeros(shape))
        for name, buffer in {
            "step": torch.zeros((), dtype=torch.long),
            "images": torch.zeros(()),  # steps since `fires` was last emptied
            "fires": torch.zeros(shape),  # the firing rates of these steps, summed
            "silent": torch.zeros(shape),  # steps since the feature last fired
            "matches": torch.zeros(num_saes - 1, *shape, dtype=torch.long),  # rows; see `_partner`
        }.items():
            self.register_buffer(name, buffer, persistent=False)
        if self.center:
            self.register_buffer("mean", torch.zeros(inputs))
        if standardize:
            self.register_buffer("scale", torch.ones(inputs))
        if not self.weight.is_meta:  # a model on the meta device has shapes only
            for weight in self.weight:
                nn.init.orthogonal_(weight, init_scale)
            self.refresh_matches()

    def extra_repr(self) -> str:
        return f"num_saes={self.members}, features={self.features}, k={self.k}"

    def encode(self, x: Tensor) -> Tensor:
        """Codes (S, B, F) of images (B, P): exactly k entries of each row are selected, also in a tie."""
        pre = torch.matmul(self.normalized(x), self.weight.mT) + self.bias[:, None]
        value, index = pre.topk(self.k)
        return torch.zeros_like(pre).scatter(-1, index, value)

    def dense_code(self, x: Tensor) -> Tensor:
        """relu(W x + b) (S, B, F) of images (B, P): the activations before the k largest are selected."""
        return F.relu(torch.matmul(self.normalized(x), self.weight.mT) + self.bias[:, None])

    def decode(self, code: Tensor) -> Tensor:
        """Reconstructions (S, B, P) of codes (S, B, F)."""
        images = self._sums(code)
        images = images * self.scale if self.standardize else images
        return images + self.mean if self.center else images

    def _sums(self, code: Tensor) -> Tensor:
        return torch.matmul(code, F.normalize(self.weight, dim=-1).to(code.dtype))

    def normalized(self, x: Tensor) -> Tensor:
        x = x - self.mean if self.center else x
        return x / self.scale if self.standardize else x

    def on_start(self, moments: Callable[[], tuple[Tensor, Tensor]]) -> None:
        if self.center:
            mean, deviation = moments()
            self.mean.copy_(mean)
            if self.standardize:
                self.scale.copy_(torch.where(deviation > 0, deviation, 1))  # a constant pixel is 0 without its mean

    def dictionaries(self) -> Tensor:
        return F.normalize(self.weight, dim=-1)

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        """The scalar to minimise over images x (B, P), and its detached parts.

        The errors are summed over the autoencoders, so that each gets the gradient of its own mean squared error.
        Outside training the loss is these errors alone.
        """
        x, images = self.normalized(x), x
        if not self.training:
            recon_loss = (self._sums(self.encode(images)) - x).square().mean((1, 2))
            return recon_loss.sum(), {"recon_loss": recon_loss}
        partner = self._partner() if self.consistency_weight else None
        output, mean_pre, cosines, active = _SparsePass.apply(x, self.weight, self.bias, self.k, partner)
        recon_loss = (output - x).square().mean((1, 2))
        parts = {"recon_loss": recon_loss.detach(), "firing_rate": self._count(active) / len(x)}
        total = recon_loss.sum()
        if self.consistency_weight:
            consistency = 1 - cosines.mean()
            total = total + self.consistency_weight * self._warmup() * consistency
            parts["consistency"] = consistency.detach()
        if self.revive == "lift":
            silent = self.silent >= self.revive_window
            total = total - self.revive_weight * (silent * mean_pre).mean(1).sum()
            parts["silent_features"] = silent.float().mean(1)
        return total, parts

    def _count(self, active: Tensor) -> Tensor:
        """How often each feature (S, F) is among the active rows (S B, k)."""
        count = torch.zeros_like(self.fires).flatten()
        return count.index_add_(0, active.flatten(), count.new_ones(active.numel())).view_as(self.fires)

    def _partner(self) -> Tensor:
        """The row that each row (N,) is matched with at this step.

        matches[t, i] are the best matches of dictionary i in dictionary i + 1 + t (modulo S). The steps take turns t:
        in S - 1 steps every pair meets in both directions, so at fresh matches the mean cosine is the MMCS, and so is
        its gradient.
        """
        return self.matches.index_select(0, self.step.view(1) % (self.members - 1)).flatten()

    def _warmup(self) -> Tensor | float:
        """Cosine ramp from 0 to 1 over the first `consistency_warmup` steps."""
        if not self.consistency_warmup:
            return 1.0
        progress = (self.step / self.consistency_warmup).clamp(max=1)
        return (1 - torch.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def _match(self, pair: Tensor, features: Tensor) -> None:
        """Search the best matches of some features (n,) of one dictionary in one other.

        `pair` is a 0-d tensor below S (S - 1), read as (dictionary, turn): indices stay on the device.
        """
        sae, turn = pair // (self.members - 1), pair % (self.members - 1)
        other = (sae + turn + 1) % self.members
        dictionary = self.weight.index_select(0, other.view(1))[0]
        query = self.weight[sae.expand_as(features), features]
        norm = torch.linalg.vector_norm(dictionary, dim=1)
        best = (query @ dictionary.T / norm).argmax(1) + other * self.features
        self.matches[turn.expand_as(features), sae.expand_as(features), features] = best

    def refresh_matches(self) -> None:
        """Search all best matches anew."""
        features = torch.arange(self.features, device=self.weight.device)
        for pair in torch.arange(self.members * (self.members - 1), device=features.device):
            for part in features.split(4096):  # all against all would not fit into memory
                self._match(pair, part)

    @torch.no_grad()
    def after_step(self, parts: Parts) -> list[int]:
        """Add the batch's firing rates to the sums and search the next matches; returns the autoencoders that the
        published rule re-initialised.
        """
        self.silent.add_(1).masked_fill_(parts["firing_rate"] > 0, 0)
        self.fires.add_(parts["firing_rate"])
        self.images.add_(1)
        if self.consistency_weight:
            pairs = self.members * (self.members - 1)
            features = torch.arange(self.matches_per_step, device=self.step.device)
            features = (self.step // pairs * self.matches_per_step + features) % self.features
            self._match(self.step % pairs, features)
        self.step.add_(1)
        return self._reinitialise()

    def _reinitialise(self) -> list[int]:
        """The published rule: re-initialise the autoencoders whose firing rates are far off; waits for the device."""
        if self.reinit_threshold is None or self.step % self.reinit_every:
            return []
        rate = self.fires / self.images
        deviation = ((rate - self.target_rate).abs() / self.target_rate).mean(1) ** 3
        far_off: list[int] = (deviation > self.reinit_threshold).nonzero().flatten().tolist()
        for sae in far_off:
            nn.init.orthogonal_(self.weight[sae], self.init_scale)
            self.bias[sae].zero_()
            self.silent[sae].zero_()
            self.refresh_matches()
        self.fires.zero_()
        self.images.zero_()
        return far_off
