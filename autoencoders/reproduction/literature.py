"""The numbers of the papers behind the recipes, by the recipe that answers them, for `ae_reproduce.py --literature`.

A row is reached when the mean over the seeds is on the right side of the paper's number. THEIR_WAY keeps the published
widths, code size and protocol; OUR_WAY has a network of our own choice. The rest of the training is always ours.
"""

from autoencoders.reproduction.claims import EACH, OUR_WAY, REFERENCE, THEIR_WAY, Claim, Flags

_HINTON = "Hinton & Salakhutdinov 2006, figure 2B, https://doi.org/10.1126/science.1127647"
_BURDA = "Burda et al. 2016, https://arxiv.org/abs/1509.00519"
_RAPP = "Kim et al. 2020 (RaPP, ICLR), tables 2 and 3, as shown in https://github.com/Aiden-Jeon/RaPP"
_REMAKE = "https://github.com/Aiden-Jeon/RaPP, commit 73837a1, its best remake (VAE, SAP)"
_PYTHAE = "https://github.com/clementchadebec/benchmark_VAE, commit 6419e21"
_WIDE_VAE = ("--hidden-sizes", "512,512", "--activation", "gelu", "--init", "mean-image", "--lr", "2e-3",
             "--lr-schedule", "one-cycle")  # fmt: skip
_WIDE_IWAE = ("--hidden-sizes", "512,512", "--activation", "gelu", "--lr", "2e-3", "--epochs", "150")
_WTA = "Makhzani & Frey 2015, https://arxiv.org/abs/1409.2752, as quoted by the remake"
_DEC, _CLUSTERED = "https://github.com/XifengGuo/DEC-keras, mean of ten trials", ("--epochs", "20")
_DENSE_PROBE = ("--probe", "--features", "dense")
_UNSEEN, _ONE_CLASS = ("--leave-out", EACH), ("--only", EACH, "--epochs", "120", "--code-size", "16")
_STATIC, _DYNAMIC = (
    f"{pixels}; 1,000 importance samples, 10,000 images"
    for pixels in ("static: the pixels of binarized-mnist", "dynamic: binary pixels drawn by seed 0")
)


def _nll(name: str, value: float, protocol: str, kind: str, source: str, flags: Flags = ()) -> Claim:
    return Claim(name, "evaluation.likelihood.nll", value, flags=flags, protocol=protocol, relation="<", unit="nats",
                 kind=kind, source=source)  # fmt: skip


def _above(
    name: str, metric: str, value: float, flags: Flags, source: str, evaluate: Flags = (), kind: str = OUR_WAY
) -> Claim:
    return Claim(name, f"evaluation.{metric}", value, flags=flags, evaluate=evaluate, relation=">", kind=kind,
                 source=source)  # fmt: skip


# fmt: off
LITERATURE: dict[str, tuple[Claim, ...]] = {
    "hinton": (
        Claim("code of 30: squared error of an image", "image_error.test_mse_unit", 3.00, relation="<", kind=THEIR_WAY,
              source=_HINTON),
        Claim("code of 30, PCA: squared error of an image", "image_error.pca_test_mse_unit", 13.87, 0.05,
              kind=REFERENCE, source=_HINTON),
        Claim("the same, a remake with batch normalisation", "image_error.test_mse_unit", 2.65, relation="<",
              kind=THEIR_WAY, source="a remake with ReLU, batch normalisation and SGD, repository without a name"),
    ),
    "vae_static": (
        _nll("VAE of static pixels", 97.10, _STATIC, OUR_WAY,
             "https://github.com/altosaar/variational-autoencoder, commit c7b298e"),
        _nll("VAE of static pixels, pythae's network", 89.78, _STATIC, THEIR_WAY,
             _PYTHAE),
        _nll("IWAE of 5 samples, static pixels, wider network", 89.78, _STATIC, OUR_WAY, _PYTHAE,
             ("--epochs", "40", "--importance-samples", "5", *_WIDE_VAE)),
    ),
    "vae_dynamic": (
        _nll("VAE of dynamic pixels", 86.76, _DYNAMIC, THEIR_WAY, _BURDA),
    ),
    "iwae": (
        _nll("IWAE of 5 samples, dynamic pixels", 85.54, _DYNAMIC, THEIR_WAY, _BURDA),
        _nll("VAE of dynamic pixels; here IWAE, a wider network", 86.76, _DYNAMIC, OUR_WAY, _BURDA, _WIDE_IWAE),
        _nll("IWAE of 50 samples, dynamic pixels; here 5, a wider network", 84.78, _DYNAMIC, OUR_WAY, _BURDA,
             _WIDE_IWAE),
    ),
    "novelty": (
        _above("a digit never seen, by the error", "outliers.auroc_error", 0.825, _UNSEEN, _RAPP),
        _above("a digit never seen, by SAP", "outliers.auroc_sap", 0.881, _UNSEEN, _RAPP),
        _above("a digit never seen, by NAP", "outliers.auroc_nap", 0.899, _UNSEEN, _RAPP),
        _above("a digit never seen, by the hidden NAP", "outliers.auroc_nap_hidden", 0.930, _UNSEEN, _REMAKE),
        _above("one digit is normal, by the error", "outliers.auroc_error", 0.972, _ONE_CLASS, _RAPP),
        _above("one digit is normal, by SAP", "outliers.auroc_sap", 0.980, _ONE_CLASS, _RAPP),
        _above("one digit is normal, by NAP", "outliers.auroc_nap", 0.979, _ONE_CLASS, _RAPP),
        _above("one digit is normal, by the hidden NAP", "outliers.auroc_nap_hidden", 0.948, _ONE_CLASS,
               "Deep SVDD, repository of lukasruff, commit 1901612"),
        _above("k-means on codes: accuracy, an autoencoder", "probe.code.k_means.accuracy", 0.88, _CLUSTERED,
               _DEC, ("--probe",)),
        _above("k-means on codes: accuracy, DEC", "probe.code.k_means.accuracy", 0.91, _CLUSTERED, _DEC, ("--probe",)),
    ),
    "wta": (
        _above("linear accuracy of features without labels", "probe.code.linear.accuracy", 0.9880, (), _WTA,
               _DENSE_PROBE, THEIR_WAY),
        _above("the same, a remake", "probe.code.linear.accuracy", 0.9862, (),
               "https://github.com/guoguo12/tensorflow-fcwta, commit 1a72123", _DENSE_PROBE, THEIR_WAY),
    ),
    "vae": (
        Claim("squared error + KL, code of 8: test loss", "-1.test_loss", 27.83, relation="<", kind=OUR_WAY,
              flags=("--loss", "mse", "--code-size", "8", "--kl-anneal", "none", "--epochs", "15", *_WIDE_VAE),
              source="DeepOBS mnist_vae with Adam, https://github.com/fsschneider/DeepOBS_Baselines, commit 3da285a"),
    ),
}
# fmt: on
