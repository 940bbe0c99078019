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

# The modes that each flag applies to; with another mode it is refused, because it would be ignored.
_MODES_OF = {
    "num": ("sample",), "temperature": ("sample",), "method": ("interpolate",), "steps": ("interpolate", "walk"),
    "dataset": ("interpolate", "walk"), "data_root": ("interpolate", "walk"),
    "seed": ("sample", "interpolate", "walk"), "invert": ("input",),
}  # fmt: skip


# fmt: off
def parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the trained model, such as outputs/vae")
    parser.add_argument("--output-dir", type=Path, help="where the picture goes (default: the folder of the run)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    parser.add_argument("--seed", type=cli.integer(0), default=0, metavar="N",
                        help="random seed of the new images, or of the choice of test images")

    sample = parser.add_argument_group("new images (the default)")
    sample.add_argument("--num", type=cli.integer(1, 1000), default=64, metavar="N", help="number of images")
    sample.add_argument("--temperature", type=cli.number(0, 100), default=1.0, metavar="X",
                        help="standard deviation of the codes; below 1 images are more typical, above 1 more varied")

    tests = parser.add_argument_group("from test images")
    mode = tests.add_mutually_exclusive_group()
    mode.add_argument("--interpolate", type=cli.integer(0, 65535), nargs=2, metavar="LABEL",
                      help="interpolate between the codes of a test image of one label and one of another")
    mode.add_argument("--walk", type=cli.integer(0), metavar="DIM",
                      help="vary one code dimension, counted from 0, of a few test images: 3 standard deviations of "
                           "the prior either way for a variational autoencoder, the range of the test codes for others")
    tests.add_argument("--method", choices=("spherical", "linear"), default="spherical", help="of the interpolation")
    tests.add_argument("--steps", type=cli.integer(2, 40), default=9, metavar="N", help="images from end to end")
    tests.add_argument("--dataset", type=dataset_type, metavar="SET",
                       help="name or path of the images (default: those of the run)")
    tests.add_argument("--data-root", type=Path, help="where the images are (default: where the run found them)")

    own = parser.add_argument_group("your own picture")
    mode.add_argument("--input", type=Path, metavar="FILE",
                      help="reconstruct, or denoise, this picture; a digit is prepared the way MNIST was, a picture "
                           "for a model of your own images is resized as they were")
    own.add_argument("--invert", choices=("auto", "on", "off"), default="auto",
                     help="whether the ink is darker than the paper; auto compares it with the picture's border")
    return parser
# fmt: on


def mode_of(args: argparse.Namespace) -> str:
    """The kind of picture that the flags select; UsageError for a flag that does not apply to it."""
    mode = next((name for name in ("interpolate", "walk", "input") if getattr(args, name) is not None), "sample")
    for flag, modes in _MODES_OF.items():
        if mode not in modes and getattr(args, flag) != parser().get_default(flag):
            names = {"sample": "new images"}
            wanted = " or ".join(names.get(name, f"--{name}") for name in modes)
            raise UsageError(f"--{flag.replace('_', '-')} is for {wanted}, not for {names.get(mode, f'--{mode}')}")
    return mode


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    mode = mode_of(args)
    photo = read_picture(args.input) if mode == "input" else None

    # What imports torch is imported once the flags and the picture are known to be good.
    from autoencoders.runtime.device import pick_device
    from autoencoders.training import generation
    from autoencoders.training.checkpoint import load_run

    run = load_run(args.run, pick_device(args.device))
    if photo is not None:
        photo = photo if generation.is_known_set(run) else read_picture(args.input, keep_levels=True)
        picture = generation.own_picture(run, photo, args.invert)
    elif mode == "sample":
        picture = generation.samples(run, args.num, args.temperature, args.seed)
    else:
        images = run.load_images(args.dataset, args.data_root)
        if mode == "interpolate":
            picture = generation.interpolation(run, images, args.interpolate, args.method, args.steps, args.seed)
        else:
            picture = generation.traverse(run, images, args.walk, args.steps, args.seed)
    (name, png, text), folder = picture, prepare_folder(args.output_dir or args.run)
    write_atomic(folder / name, png)
    print(f"{text}\nWrote {folder / name} ({run.title})")


if __name__ == "__main__":
    cli.run(main)
