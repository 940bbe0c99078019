"""One training by another library, through its public API as its README shows it, in that library's environment.

`peers.py` runs this file as a process; it imports nothing of ours. The images are the IDX files of MNIST as float32
pixels in [0, 1], in memory. The architectures, batches and optimizers are those of our recipes. Prints one line of
JSON: seconds of the call that trains, and the mean squared error of the test images.
"""

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Result = tuple[float, float]  # seconds of training, test MSE
WIDTHS = {"simple": (784, 128, 64, 32), "vae": (784, 256, 20)}
BATCH, FEATURES, K = 128, 1024, 50
MEMBERS = 5


def read_pixels(root: Path, part: str) -> np.ndarray:
    """The images (N, 784) of MNIST's IDX file."""
    path = root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte"
    data = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def layers(sizes: tuple[int, ...], last: Any = None) -> Any:
    """Linear layers with ReLU between, as torch modules."""
    from torch import nn

    parts: list[nn.Module] = []
    for width, next_width in pairwise(sizes):
        parts += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*parts[:-1], *([last] if last else []))


def conv_parts() -> tuple[Any, Any]:
    """Encoder and decoder of our recipe `conv`."""
    from torch import nn

    halve: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
    return (
        nn.Sequential(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, **halve), nn.ReLU(), nn.Conv2d(16, 32, **halve),
                      nn.ReLU(), nn.Conv2d(32, 64, 7), nn.Flatten()),
        nn.Sequential(nn.Unflatten(1, (64, 1, 1)), nn.ConvTranspose2d(64, 32, 7), nn.ReLU(),
                      nn.ConvTranspose2d(32, 16, **halve, output_padding=1), nn.ReLU(),
                      nn.ConvTranspose2d(16, 1, **halve, output_padding=1), nn.Flatten(), nn.Sigmoid()),
    )  # fmt: skip


def modules(model: str) -> tuple[Any, Any]:
    """Encoder and decoder of `simple` or `conv`."""
    from torch import nn

    if model == "conv":
        return conv_parts()
    sizes = WIDTHS[model]
    return layers(sizes, nn.ReLU()), layers(sizes[::-1], nn.Sigmoid())


def run_pythae(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """AE and VAE with their TrainingPipeline."""
    import torch
    from pythae.models import AE, VAE, AEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            if model == "vae":
                self.body = nn.Sequential(nn.Linear(784, 256), nn.ReLU())
                self.mean, self.log_variance = nn.Linear(256, 20), nn.Linear(256, 20)
            else:
                self.body, _ = modules(model)

        def forward(self, x: torch.Tensor) -> ModelOutput:
            hidden = self.body(x.flatten(1))
            if model != "vae":
                return ModelOutput(embedding=hidden)
            return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = layers(WIDTHS["vae"][::-1], nn.Sigmoid()) if model == "vae" else modules(model)[1]

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.body(z))

    size = {"simple": 32, "vae": 20, "conv": 64}[model]
    config = (VAEConfig(input_dim=(784,), latent_dim=size, reconstruction_loss="bce") if model == "vae"
              else AEConfig(input_dim=(784,), latent_dim=size))  # fmt: skip
    net = (VAE if model == "vae" else AE)(config, encoder=Encoder(), decoder=Decoder())
    with tempfile.TemporaryDirectory() as folder:
        training = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, learning_rate=1e-3, per_device_train_batch_size=BATCH,
            optimizer_cls="AdamW" if model == "vae" else "Adam",
        )  # fmt: skip
        pipeline = TrainingPipeline(model=net, training_config=training)
        seconds = timed(lambda: pipeline(train_data=torch.from_numpy(train)))
    with torch.no_grad():
        z = net.encoder(torch.from_numpy(test)).embedding
        y = net.decoder(z)["reconstruction"].reshape(len(test), -1).numpy()
    return seconds, float(np.square(y - test).mean())


def run_keras(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """`Model.fit` on the torch backend."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    from keras import layers as kl

    x = keras.Input((784,))
    if model == "simple":
        h = x
        for width in (128, 64, 32, 64, 128):
            h = kl.Dense(width, activation="relu")(h)
        y = kl.Dense(784, activation="sigmoid")(h)
        net = keras.Model(x, y)
    elif model == "conv":
        h = kl.Reshape((28, 28, 1))(x)
        for width in (16, 32):
            h = kl.Conv2D(width, 3, strides=2, padding="same", activation="relu")(h)
        h = kl.Conv2D(64, 7)(h)
        h = kl.Conv2DTranspose(32, 7, activation="relu")(h)
        h = kl.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu")(h)
        h = kl.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid")(h)
        net = keras.Model(x, kl.Reshape((784,))(h))
    else:
        return _keras_vae(train, test, epochs)
    net.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse")
    seconds = timed(lambda: net.fit(train, train, epochs=epochs, batch_size=BATCH, shuffle=True, verbose=0))
    return seconds, float(np.square(net.predict(test, batch_size=500, verbose=0) - test).mean())


def _keras_vae(train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """The variational one: a Sampling layer that adds the KL term, cross-entropy by `compile`."""
    import keras
    from keras import layers as kl
    from keras import ops

    class Sampling(kl.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(0)

        def call(self, parts: Any) -> Any:
            mean, logvar = parts
            kl_term = -0.5 * ops.sum(1 + logvar - ops.square(mean) - ops.exp(logvar), axis=1)
            self.add_loss(ops.mean(kl_term))
            return mean + ops.exp(0.5 * logvar) * keras.random.normal(ops.shape(mean), seed=self.seeds)

    x = keras.Input((784,))
    hidden = kl.Dense(256, activation="relu")(x)
    mean, logvar = kl.Dense(20)(hidden), kl.Dense(20)(hidden)
    decoder = keras.Sequential([kl.Dense(256, activation="relu"), kl.Dense(784, activation="sigmoid")])
    net = keras.Model(x, decoder(Sampling()((mean, logvar))))

    def nats(truth: Any, output: Any) -> Any:
        return 784 * keras.losses.binary_crossentropy(truth, output)

    net.compile(optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.01), loss=nats)
    seconds = timed(lambda: net.fit(train, train, epochs=epochs, batch_size=BATCH, shuffle=True, verbose=0))
    codes = keras.Model(x, mean).predict(test, batch_size=500, verbose=0)
    return seconds, float(np.square(decoder.predict(codes, batch_size=500, verbose=0) - test).mean())


def run_lightning(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """A LightningModule and its Trainer, as in their autoencoder example, with images in memory."""
    import lightning as L
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset

    class LitAutoEncoder(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = modules(model)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            x = batch[0]
            return F.mse_loss(self.decoder(self.encoder(x)), x)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    net = LitAutoEncoder()
    loader = DataLoader(TensorDataset(torch.from_numpy(train)), batch_size=BATCH, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, enable_progress_bar=False,
                            enable_model_summary=False)  # fmt: skip
        seconds = timed(lambda: trainer.fit(net, loader))
    with torch.no_grad():
        y = net.decoder(net.encoder(torch.from_numpy(test))).numpy()
    return seconds, float(np.square(y - test).mean())


def run_sklearn(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """MLPRegressor from the images to themselves; its output layer is linear."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    assert model == "simple"
    widths = WIDTHS["simple"][1:]
    net = MLPRegressor(hidden_layer_sizes=(*widths, *widths[-2::-1]), batch_size=BATCH, learning_rate_init=1e-3,
                       alpha=0, max_iter=epochs, tol=0, n_iter_no_change=epochs + 1, random_state=0)  # fmt: skip
    warnings.simplefilter("ignore", ConvergenceWarning)
    seconds = timed(lambda: net.fit(train, train))
    return seconds, float(np.square(net.predict(test) - test).mean())


def run_examples(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """The loop of PyTorch's own examples/vae, with the widths of our `vae` and images in memory."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    assert model == "vae"
    body = nn.Sequential(nn.Linear(784, 256), nn.ReLU())
    heads, decoder = nn.ModuleList([nn.Linear(256, 20), nn.Linear(256, 20)]), layers((20, 256, 784), nn.Sigmoid())
    weights = [*body.parameters(), *heads.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    loader = DataLoader(TensorDataset(torch.from_numpy(train)), batch_size=BATCH, shuffle=True)

    def fit() -> None:
        for _ in range(epochs):
            total = 0.0
            for (x,) in loader:
                optimizer.zero_grad()
                hidden = body(x)
                mean, logvar = heads[0](hidden), heads[1](hidden)
                y = decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))
                loss = F.binary_cross_entropy(y, x, reduction="sum")
                loss = loss - 0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
                loss.backward()
                total += loss.item()
                optimizer.step()

    seconds = timed(fit)
    with torch.no_grad():
        y = decoder(heads[0](body(torch.from_numpy(test)))).numpy()
    return seconds, float(np.square(y - test).mean())


def batches(train: np.ndarray, epochs: int) -> Iterator[Any]:
    """Shuffled batches (128, 784) as tensors, for libraries that take any iterator."""
    import torch

    x = torch.from_numpy(train)
    for _ in range(epochs):
        yield from (x[index] for index in torch.randperm(len(x)).split(BATCH))


def run_dictionary_learning(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """Five TopK trainers in one `trainSAE`."""
    import torch
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE

    assert model == "sparse"
    steps = epochs * -(-len(train) // BATCH)
    configs = [{"trainer": TopKTrainer, "steps": steps, "activation_dim": 784, "dict_size": FEATURES, "k": K,
                "layer": 0, "lm_name": "mnist", "lr": 1e-3, "warmup_steps": 0, "auxk_alpha": 0, "seed": seed,
                "device": "cpu"} for seed in range(MEMBERS)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        seconds = timed(lambda: trainSAE(batches(train, epochs), configs, steps, save_dir=folder, device="cpu"))
        errors = []
        for member in range(MEMBERS):
            net = AutoEncoderTopK.from_pretrained(Path(folder) / f"trainer_{member}" / "ae.pt", k=K, device="cpu")
            with torch.no_grad():
                code = net.encode(torch.from_numpy(test), use_threshold=False)
                errors.append(float(np.square(net.decode(code).numpy() - test).mean()))
    return seconds, float(np.mean(errors))


def run_sae_lens(model: str, train: np.ndarray, test: np.ndarray, epochs: int) -> Result:
    """Five TopK autoencoders, one `SAETrainer` after the other."""
    import torch
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    assert model == "sparse"
    nets = []

    def fit() -> None:
        for seed in range(MEMBERS):
            torch.manual_seed(seed)
            net = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=784, d_sae=FEATURES, k=K, device="cpu"))
            config = SAETrainerConfig(
                total_training_samples=epochs * len(train), train_batch_size_samples=BATCH, lr=1e-3, lr_end=1e-3,
                lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1,
                adam_beta1=0.9, adam_beta2=0.999, device="cpu", autocast=False, n_checkpoints=0, checkpoint_path=None,
                save_final_checkpoint=False, feature_sampling_window=10**9, dead_feature_window=10**9,
                logger=LoggingConfig(log_to_wandb=False),
            )  # fmt: skip
            nets.append(SAETrainer(config, net, batches(train, epochs + 1)).fit())

    seconds = timed(fit)
    with torch.no_grad():
        errors = [float((net(torch.from_numpy(test)) - torch.from_numpy(test)).square().mean()) for net in nets]
    return seconds, float(np.mean(errors))


RUNS = {name.removeprefix("run_"): function for name, function in globals().items() if name.startswith("run_")}


def main() -> None:
    global MEMBERS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=RUNS)
    parser.add_argument("model", choices=("simple", "conv", "vae", "sparse"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--widths", help="of another `simple`, for scikit-learn: 784,128,64,32")
    parser.add_argument("--members", type=int, default=MEMBERS, help="autoencoders of `sparse`, for sae_lens")
    args = parser.parse_args()
    if args.widths:
        WIDTHS["simple"] = tuple(map(int, args.widths.split(",")))
    MEMBERS = args.members
    train, test = read_pixels(args.data_root, "train"), read_pixels(args.data_root, "t10k")
    seconds, error = RUNS[args.peer](args.model, train, test, args.epochs)
    print(json.dumps({"seconds": seconds, "images": len(train), "test_mse": error}), flush=True)


if __name__ == "__main__":
    main()
