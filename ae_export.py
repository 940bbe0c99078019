"""Export a trained model for other programs: as ONNX, or its weights as safetensors.

--run names the folder of a finished run of ae_train.py. --format onnx writes encoder.onnx, decoder.onnx and
autoencoder.onnx (both in one): images are (batch, 784) float32 in [0, 1], in and out, whatever the model's own range,
and the batch may have any size. --format safetensors writes the weights, for a model in its own range. Of an ensemble
all autoencoders are exported, with a leading dimension for them. Ranges, recipe and sizes are in the metadata.
Before anything is written, the exports are compared with PyTorch on 1,000 test images of the run: ONNX Runtime may
differ by 1e-5 at most, safetensors by no bit.
"""

from pathlib import Path

from autoencoders.data.sets import dataset_type
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import prepare_folder, write_atomic

FORMATS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ("safetensors",)}  # and what they need


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--run", type=cli.path, required=True, help="folder of the trained model, such as outputs")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="what to write")
    parser.add_argument("--output-dir", type=cli.path, help="where the files go (default: the folder of the run)")
    parser.add_argument("--dataset", type=dataset_type, metavar="SET",
                        help="the run's images (default: those it was trained on, as run.json says)")
    parser.add_argument("--data-root", type=cli.path, default=Path("data"),
                        help="where known sets are, or are downloaded")
    return parser
# fmt: on


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    cli.check_installed(f"--format {args.format}", FORMATS[args.format])

    # What imports torch is imported once the flags are known to be good.
    import torch

    from autoencoders.training import export
    from autoencoders.training.trained import load_run

    run = load_run(args.run, torch.device("cpu"))
    images = run.load_images(args.dataset, args.data_root).test_images[:1000]
    if len(images) < 2:
        raise UsageError(f"{args.run}: the comparison needs at least 2 test images, and the run has {len(images)}")
    files = export.FORMATS[args.format](run, torch.tensor(images))
    folder = prepare_folder(args.output_dir or args.run)
    for name, data, line in files:
        write_atomic(folder / name, data)
        print(f"{folder / name}: {line} ({len(images):,} test images of {run.title})")


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
