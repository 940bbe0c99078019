"""Pictures from a trained model: new images, interpolations, traversals of the code, or your own picture reconstructed.

--run names the folder of a finished run of ae_train.py. Without --interpolate, --walk or --input, new images are drawn,
which only a variational autoencoder can do.
"""

import argparse
from pathlib import Path

from autoencoders.data.pictures import read_picture
from autoencoders.data.sets import dataset_type
from autoencoders.runtime import cli
from autoencoders.runtime.errors import UsageError
from autoencoders.runtime.files import prepare_folder, write_atomic

# The kinds of picture that each flag applies to; with another kind it is refused, because it would be ignored.
_KINDS_OF = {
    "num": ("new images",), "temperature": ("new images",), "method": ("--interpolate",),
    "steps": ("--interpolate", "--walk"), "dataset": ("--interpolate", "--walk"),
    "data_root": ("--interpolate", "--walk"), "seed": ("new images", "--interpolate", "--walk"), "invert": ("--input",),
}  # fmt: skip


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--run", type=cli.path, required=True, help="folder of the trained model, such as outputs/vae")
    parser.add_argument("--output-dir", type=cli.path, help="where the picture goes (default: the folder of the run)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--seed", type=cli.integer(0), default=0, metavar="N",
                        help="random seed of the new images, or of the choice of test images")

    sample = parser.add_argument_group("new images (the default)")
    sample.add_argument("--num", type=cli.integer(1, 1000), default=64, metavar="N", help="number of images")
    sample.add_argument("--temperature", type=cli.number(0, 100), default=1.0, metavar="X",
                        help="standard deviation of the codes; below 1 images are more typical, above 1 more varied")

    tests = parser.add_argument_group("from test images")
    mode = tests.add_mutually_exclusive_group()
    mode.add_argument("--interpolate", type=two_labels, action=cli.ListAction, metavar="LABEL",
                      help="two labels: interpolate between the codes of a test image of each")
    mode.add_argument("--walk", type=cli.integer(0), metavar="DIM",
                      help="vary one code dimension, counted from 0, of a few test images: 3 standard deviations of "
                           "the prior either way for a variational autoencoder, the range of the test codes for others")
    tests.add_argument("--method", choices=("spherical", "linear"), default="spherical", help="of the interpolation")
    tests.add_argument("--steps", type=cli.integer(2, 40), default=9, metavar="N", help="images from end to end")
    tests.add_argument("--dataset", type=dataset_type, metavar="SET",
                       help="the run's images (default: those it was trained on, as run.json says)")
    tests.add_argument("--data-root", type=cli.path, default=Path("data"),
                       help="where known sets are, or are downloaded")

    own = parser.add_argument_group("your own picture")
    mode.add_argument("--input", type=cli.path, metavar="FILE",
                      help="reconstruct, or denoise, this picture; a digit is prepared the way MNIST was, a picture "
                           "for a model of your own images is resized as they were")
    own.add_argument("--invert", choices=("auto", "on", "off"), default="auto",
                     help="whether the ink is darker than the paper; auto takes what stands out most from the paper")
    return parser
# fmt: on


def two_labels(text: str) -> tuple[int, ...]:
    """An argparse type: two labels, separated by a comma."""
    labels = cli.items(cli.integer(0, 65535))(text)
    if len(labels) != 2:
        raise argparse.ArgumentTypeError(f"expected two labels, got {len(labels)}")
    return labels


def kind_of_picture(args: argparse.Namespace) -> str:
    """The kind of picture that the flags select; UsageError for a flag that does not apply to it."""
    selected = (f"--{name}" for name in ("interpolate", "walk", "input") if getattr(args, name) is not None)
    kind = next(selected, "new images")
    for flag, kinds in _KINDS_OF.items():
        if kind not in kinds and getattr(args, flag) != parser().get_default(flag):
            raise UsageError(f"--{flag.replace('_', '-')} is for {' or '.join(kinds)}, not for {kind}")
    return kind


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    kind = kind_of_picture(args)
    if kind == "--input":
        read_picture(args.input)  # a file that is no picture is refused here

    # What imports torch is imported once the flags and the picture are known to be good.
    from autoencoders.runtime.device import pick_device
    from autoencoders.training import generation
    from autoencoders.training.trained import load_run

    run = load_run(args.run, pick_device(args.device))
    if kind == "--input":
        picture = generation.own_picture(run, args.input, args.invert)
    elif kind == "new images":
        picture = generation.samples(run, args.num, args.temperature, args.seed)
    else:
        images = run.load_images(args.dataset, args.data_root)
        if kind == "--interpolate":
            picture = generation.interpolation(run, images, args.interpolate, args.method, args.steps, args.seed)
        else:
            picture = generation.traverse(run, images, args.walk, args.steps, args.seed)
    (name, png, text), folder = picture, prepare_folder(args.output_dir or args.run)
    write_atomic(folder / name, png)
    print(f"{text}\nWrote {folder / name} ({run.title})")


def command() -> None:
    cli.run(main)


if __name__ == "__main__":
    command()
