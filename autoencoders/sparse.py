"""The k-sparse ensemble: autoencoders trained side by side as one stacked parameter, and the pass that makes it fast.

Images x are (batch, pixels) in [0, 1]; codes are (S, batch, features) and reconstructions (S, batch, pixels) for S
autoencoders. Everything stays on the device: no step waits for a number.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ae_models import Autoencoder, Parts


def _selected_dots(left: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Entry (n, e) is left[n] . rows[index[n, e]]: (N, P), (M, P), (N, E) -> (N, E).

    It is the gradient of `embedding_bag` with respect to its per-sample weights, which PyTorch
    computes without gathering the (N, E, P) rows.
    """
    count, entries = index.shape
    bag = torch.arange(count, device=index.device)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left, rows, index.flatten(), bag * entries, bag.repeat_interleave(entries), 0
    )
    return dots.view(count, entries)


def _add_rows(target: Tensor, source: Tensor, factor: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum `factor * rows[source]` into row `target` of a (count, P) result.

    target: (E,), source and factor: (E, r), rows: (R, P). Sorting by target turns the scattered
    additions into one `embedding_bag`, which writes every row once and is deterministic.
    """
    target, order = target.sort()
    offsets = torch.searchsorted(target, torch.arange(count, device=target.device))
    return F.embedding_bag(
        source[order].flatten(),
        rows,
        offsets * source.shape[1],
        mode="sum",
        per_sample_weights=factor[order].flatten(),
    )


def _pulls(partner: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows to add to each dictionary when row f and row partner[f] attract one another.

    partner, factor: (S, F). Returns target (row in its dictionary), source (row of the stack) and
    factor, each (S, 2F): every row is a target by itself, and for the row whose partner it is.
    """
    num_saes, features = partner.shape
    row = torch.arange(partner.numel(), device=partner.device)
    target, order = torch.cat([row, partner.flatten()]).sort()
    source = torch.cat([partner.flatten(), row])[order]
    factor = factor.flatten().repeat(2)[order]
    return (target % features).view(num_saes, -1), source.view(num_saes, -1, 1), factor.view(num_saes, -1, 1)


class _SparsePass(torch.autograd.Function):
    """Encode, keep the k largest, decode: touching only the rows that are active.

    Of a training step's five dense products only the encoder's remains. With n_f = |W_f|, the
    kept pre-activations v and y = sum_f (v_f / n_f) W_f, the gradients are

        dL/dv_f = (dL/dy . W_f) / n_f
        dL/dW_f = sum_batch [dL/dv_f x + (v_f / n_f) dL/dy - (v_f / n_f) dL/dv_f W_f / n_f],

    and for the cosine c between rows f and m, dc/dW_f = W_m / (n_f n_m) - c W_f / n_f^2.

    x (B, P), weight (S, F, P), bias (S, F), and partner (S, F): for each row the number, in the
    whole stack, of a row in another dictionary, a different one for each dictionary; or None.
    Returns the reconstruction (S, B, P), the active rows (S * B, k), the mean pre-activations
    (S, F) and the cosines with the partners (S, F), 1 without. The input gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, partner: Tensor | None, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Under autocast the products are in half precision; everything else stays in single.
        pre = torch.stack([F.linear(x, w, b) for w, b in zip(weight, bias)]).float()
        value, index = pre.topk(k, sorted=False)
        first = torch.arange(len(weight), device=x.device) * weight.shape[1]
        index = (index + first[:, None, None]).view(-1, k)
        norm = torch.linalg.vector_norm(weight, dim=-1)
        scaled = value.view(-1, k) / norm.view(-1)[index]
        rows = weight.flatten(0, 1)
        output = F.embedding_bag(index, rows, mode="sum", per_sample_weights=scaled)
        cosine = torch.ones_like(norm)
        if partner is not None:
            cosine = _selected_dots(rows, rows, partner.view(-1, 1)).view_as(norm)
            cosine /= norm * norm.view(-1)[partner]
        ctx.save_for_backward(x, weight, partner, norm, scaled, index, cosine)
        ctx.mark_non_differentiable(index)
        return output.view(len(weight), *x.shape), index, pre.mean(1), cosine

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        grad_output, _, grad_mean, grad_cosine = grads
        x, weight, partner, norm, scaled, index, cosine = ctx.saved_tensors
        rows, active, grad_output = weight.flatten(0, 1), index.flatten(), grad_output.contiguous()
        grad_scaled = _selected_dots(grad_output.flatten(0, 1), rows, index)
        grad_value = grad_scaled / norm.view(-1)[index]
        radial = torch.zeros_like(norm)
        radial.view(-1).index_add_(0, active, (grad_scaled * scaled).flatten())
        if partner is not None:
            pull = grad_cosine * cosine
            radial += pull
            radial.view(-1).index_add_(0, partner.flatten(), pull.flatten())
            pulls = _pulls(partner, grad_cosine / (norm * norm.view(-1)[partner]))
        image = torch.arange(len(x), device=x.device).repeat_interleave(index.shape[1])
        source = torch.stack([image, image + len(x)], dim=1)
        factor = torch.stack([grad_value, scaled], dim=-1).view(len(weight), -1, 2)
        target = active.view(len(weight), -1) % weight.shape[1]
        grad_weight, radial, mean = torch.empty_like(weight), radial / norm**2, x.mean(0)
        for s, one in enumerate(weight):  # one at a time, to stay in the cache; written out once
            batch = torch.cat([x, grad_output[s]])
            grad = _add_rows(target[s], source, factor[s], batch, len(one))
            if partner is not None:
                grad += _add_rows(pulls[0][s], pulls[1][s], pulls[2][s], rows, len(one))
            grad.addcmul_(one, radial[s, :, None], value=-1)
            torch.addcmul(grad, grad_mean[s, :, None], mean, out=grad_weight[s])
        grad_bias = grad_mean.flatten().index_add(0, active, grad_value.flatten())
        return None, grad_weight, grad_bias.view_as(norm), None, None


class SparseEnsemble(Autoencoder):
    """S k-sparse autoencoders with tied, normalised decoders, trained side by side.

        code = top_k(W x + b),    reconstruction = sum_f code_f W_f / |W_f|

    (Makhzani & Frey 2014, "k-Sparse Autoencoders"; here without a ReLU, as in the write-up.)
    `weight` (S, features, pixels) and `bias` (S, features) hold all autoencoders. Adam works
    element by element, so one optimiser over the stack equals one per autoencoder.

    The training state (step, activity, matches) lives in non-persistent buffers: a state dict holds
    the model alone, and a checkpoint that also stores `buffers()` resumes bit by bit.

    revive="lift" brings features back that were silent for `revive_window` steps: the loss falls
    with their mean pre-activation, at a weight so small that only Adam's scaling makes it count
    (a silent feature has no other gradient). It replaces the auxiliary loss of Gao et al. 2024
    ("Scaling and evaluating sparse autoencoders"), which rebuilds the residual from silent
    features; with a tied decoder that costs correlation, and a second top-k.

    reinit_threshold: the published rule, off by default. Every `reinit_every` steps an autoencoder
    with mean(|rate - 0.0625| / 0.0625)^3 above it starts afresh.
    """

    epoch_metrics = ("pearson", "dead_features", "mean_activity")
    loss_unit = "squared error, summed over the autoencoders"
    target_rate = 0.0625

    def __init__(
        self,
        num_saes: int = 5,
        features: int = 1024,
        k: int = 50,
        image_size: int = 28,
        consistency_weight: float = 0.01,
        consistency_warmup: int = 100,
        matches_per_step: int = 64,
        revive: str = "lift",
        revive_weight: float = 3e-3,
        revive_window: int = 2,
        reinit_threshold: float | None = None,
        reinit_every: int = 100,
    ) -> None:
        super().__init__()
        if min(num_saes, features, image_size) < 1 or not 1 <= k <= features:
            raise ValueError(
                f"expected num_saes, features >= 1 and 1 <= k <= features, got "
                f"num_saes {num_saes}, features {features}, k {k}"
            )
        self.members, self.num_saes, self.features, self.k = num_saes, num_saes, features, k
        self.consistency_weight = consistency_weight
        self.consistency_warmup = consistency_warmup
        self.matches_per_step = matches_per_step
        self.revive, self.revive_weight, self.revive_window = revive, revive_weight, revive_window
        self.reinit_threshold, self.reinit_every = reinit_threshold, reinit_every
        self.weight = nn.Parameter(torch.empty(num_saes, features, image_size**2))
        self.bias = nn.Parameter(torch.zeros(num_saes, features))
        if not self.weight.is_meta:  # a model without memory is only asked for its shapes
            for weight in self.weight:
                nn.init.orthogonal_(weight)
        self._register_state()
        self.refresh_matches()

    def extra_repr(self) -> str:
        return f"num_saes={self.num_saes}, features={self.features}, k={self.k}"

    def _register_state(self) -> None:
        """step; images seen; per feature: steps silent, firings (ever, last batch), matches."""
        self.step: Tensor
        self.images: Tensor
        self.silent: Tensor
        self.fires: Tensor
        self.matches: Tensor
        shape = (self.num_saes, self.features)
        self.register_buffer("step", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("images", torch.zeros(()), persistent=False)
        for name in ("silent", "fires"):
            self.register_buffer(name, torch.zeros(shape), persistent=False)
        matches = torch.zeros(self.num_saes - 1, *shape, dtype=torch.long)
        self.register_buffer("matches", matches, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """x (batch, pixels) -> code (S, batch, features), exactly k kept per row, also in a tie."""
        pre = torch.matmul(x, self.weight.mT) + self.bias[:, None]
        value, index = pre.topk(self.k)
        return torch.zeros_like(pre).scatter(-1, index, value)

    def decode(self, code: Tensor) -> Tensor:
        """code (S, batch, features) -> reconstruction (S, batch, pixels)."""
        return torch.matmul(code, F.normalize(self.weight, dim=-1).to(code.dtype))

    def loss(self, x: Tensor) -> tuple[Tensor, Parts]:
        """x (batch, pixels) -> the scalar to minimise, and its detached parts.

        The squared errors are summed over the autoencoders, so that each one gets the gradient of its own mean
        squared error. Outside of training it is these errors alone.
        """
        if not self.training:
            recon_loss = (self(x)[0] - x).square().mean((1, 2))
            return recon_loss.sum(), {"recon_loss": recon_loss}
        consistent = self.num_saes > 1 and self.consistency_weight > 0
        partner = self._partner() if consistent else None
        output, index, mean_pre, cosine = _SparsePass.apply(x, self.weight, self.bias, partner, self.k)
        recon_loss = (output - x).square().mean((1, 2))
        total, parts = recon_loss.sum(), {"recon_loss": recon_loss.detach(), "firing_rate": self._firing_rate(index)}
        if consistent:
            consistency = 1 - cosine.mean()
            total = total + self.consistency_weight * self._warmup() * consistency
            parts["consistency"] = consistency.detach()
        if self.revive == "lift":
            silent = self.silent >= self.revive_window
            total = total - self.revive_weight * (silent * mean_pre).mean(1).sum()
            parts["silent_features"] = silent.float().mean(1)
        return total, parts

    def _partner(self) -> Tensor:
        """The matched row of every row, in the dictionary whose turn it is.

        Dictionary i meets i + 1 + turn: after S - 1 steps every pair was met in both directions,
        so that at fresh matches the mean over a round is 1 - MMCS, and so is its gradient.
        """
        turn = self.step.view(1) % (self.num_saes - 1)
        return self.matches.index_select(0, turn)[0]

    def _warmup(self) -> Tensor | float:
        """Cosine ramp from 0 to 1 over the first `consistency_warmup` steps."""
        if not self.consistency_warmup:
            return 1.0
        progress = (self.step / self.consistency_warmup).clamp(max=1)
        return (1 - torch.cos(math.pi * progress)) / 2

    def _firing_rate(self, index: Tensor) -> Tensor:
        """The share of a batch's images that each feature fires for, (S, features); index (S * batch, k) active rows."""
        share = torch.full((), self.num_saes / len(index), device=index.device).expand(index.numel())
        return torch.zeros_like(self.fires).view(-1).index_add_(0, index.flatten(), share).view_as(self.fires)

    @torch.no_grad()
    def _match(self, pair: Tensor, rows: Tensor) -> None:
        """Search the best matches of some rows of one dictionary in one other.

        pair: 0-d tensor below S * (S - 1), read as (dictionary, turn); rows: (n,) of its features.
        Index arithmetic on tensors keeps the step free of host synchronisation.
        """
        sae, turn = pair // (self.num_saes - 1), pair % (self.num_saes - 1)
        other = (sae + turn + 1) % self.num_saes
        dictionary = self.weight.index_select(0, other.view(1))[0]
        query = self.weight[sae.expand_as(rows), rows]
        norm = torch.linalg.vector_norm(dictionary, dim=1)
        best = (query @ dictionary.T / norm).argmax(1) + other * self.features
        self.matches[turn.expand_as(rows), sae.expand_as(rows), rows] = best

    def refresh_matches(self) -> None:
        """Search all best matches anew."""
        if self.weight.is_meta:  # only its shapes are wanted
            return
        rows = torch.arange(self.features, device=self.weight.device)
        for pair in torch.arange(self.num_saes * (self.num_saes - 1), device=rows.device):
            for part in rows.split(4096):  # of many features, all against all would not fit into memory
                self._match(pair, part)

    @torch.no_grad()
    def after_step(self, parts: Parts) -> None:
        """Add the batch's firing rates to the totals and search the next matches; call it after the optimizer."""
        self.silent.add_(1).masked_fill_(parts["firing_rate"] > 0, 0)
        self.fires.add_(parts["firing_rate"])
        self.images.add_(1)
        if self.num_saes > 1 and self.consistency_weight:
            pairs = self.num_saes * (self.num_saes - 1)
            rows = torch.arange(self.matches_per_step, device=self.step.device)
            rows = (self.step // pairs * self.matches_per_step + rows) % self.features
            self._match(self.step % pairs, rows)
        self.step.add_(1)
        self._reinitialise()

    def _reinitialise(self) -> None:
        """The published rule: start an autoencoder afresh when its firing rates are far off.

        Acting on the rule takes the host; only here, and only when the rule is switched on.
        """
        if self.reinit_threshold is None or self.step % self.reinit_every:
            return
        rate = self.fires / self.images
        deviation = ((rate - self.target_rate).abs() / self.target_rate).mean(1) ** 3
        for sae in (deviation > self.reinit_threshold).nonzero().flatten().tolist():
            nn.init.orthogonal_(self.weight[sae])
            self.bias[sae].zero_()
            self.silent[sae].zero_()
            self.refresh_matches()
        self.fires.zero_()
        self.images.zero_()
