"""Exports of a trained run: ONNX, or its weights as safetensors. Each is compared with PyTorch before it is written.

In ONNX, images are (batch, 784) float32 in [0, 1] on both sides: the conversion to the model's own range, and the
clipping of what it gives, are in the graph. Of an ensemble of S autoencoders all are exported, and codes and
reconstructions get a leading S. safetensors hold the state dict, for a model in its own ranges.
"""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoencoders.evaluation.metrics import to_pixels
from autoencoders.runtime.cli import VERSION
from autoencoders.runtime.errors import RunError
from autoencoders.training.trained import TrainedRun, UnitPixels, load_state

File = tuple[str, bytes, str]  # name, content, a line that describes it
TOLERANCE = 1e-5  # of an absolute difference; times the largest value, as of a code, where that is above 1
ODD_IMAGES = 1 / 500  # of a sparse code: where two features are equal up to rounding, either may be the k-th largest


class _Method(torch.nn.Module):
    """A module whose forward is the method `name` of another."""

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.module, self.name)(x)


def to_onnx(run: TrainedRun, images: Tensor) -> list[File]:
    """Encoder, decoder and both in one, compared over `images`, uint8 (n, 784), n >= 2; RunError if one differs."""
    unit, x = UnitPixels(run.model), to_pixels(images, "unit")
    with torch.no_grad():
        code = unit.encode(x)
    parts = {"encoder": ("encode", "images", "code", x), "decoder": ("decode", "code", "reconstruction", code),
             "autoencoder": ("forward", "images", "reconstruction", x)}  # fmt: skip
    return [_onnx_file(run, f"{name}.onnx", _Method(unit, method).eval(), source, target, example)
            for name, (method, source, target, example) in parts.items()]  # fmt: skip


def _onnx_file(run: TrainedRun, file: str, module: torch.nn.Module, source: str, target: str, example: Tensor) -> File:
    """`module` as the ONNX file `file` with one input and one output, whose batch axis is free."""
    import onnx

    axes = {example.ndim - 2: torch.export.Dim("batch")}
    program: Any = torch.onnx.export(module, (example[..., :2, :],), input_names=[source], output_names=[target],
                                     dynamic_shapes=(axes,), dynamo=True, verbose=False)  # fmt: skip
    graph = program.model_proto  # made anew each time
    ranges = {"images": "[0, 1]", "reconstruction": "[0, 1]", "code": "the recipe's own"}
    facts = metadata(run) | {"input_range": ranges[source], "output_range": ranges[target]}
    onnx.helper.set_model_props(graph, facts)
    onnx.checker.check_model(graph)
    data = graph.SerializeToString()
    found, shapes = _run_onnx(data, example)
    with torch.no_grad():
        text = compare(file, found, module(example).numpy())
    return file, data, f"{source} {shapes[0]} -> {target} {shapes[1]}, {text}"


def _run_onnx(data: bytes, x: Tensor) -> tuple[np.ndarray, list[str]]:
    """What ONNX Runtime gives for x, and the shapes of input and output as text."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    shapes = [f"({', '.join(map(str, node.shape))})" for node in (source, target)]
    return session.run(None, {source.name: x.numpy()})[0], shapes


def compare(file: str, found: np.ndarray, expected: np.ndarray) -> str:
    """The largest value and difference of two results (..., n, d), in words; RunError when they are too different."""
    differences, largest = np.abs(found - expected), float(np.abs(expected).max())
    per_image = differences.max(axis=-1).reshape(-1, expected.shape[-2]).max(axis=0)
    odd = int((~(per_image <= TOLERANCE * max(1, largest))).sum())  # nan is too different
    text = f"values up to {largest:.3g}, largest difference to PyTorch {differences.max():.1e}"
    if odd > ODD_IMAGES * len(per_image):
        raise RunError(f"{file}: {text}, too large for {odd} of {len(per_image):,} test images; nothing was written")
    return f"{text}, in {odd} images with a tie" if odd else text


def to_safetensors(run: TrainedRun, images: Tensor) -> list[File]:
    """The weights as one file, read back, and compared by their bits and by the model's outputs over `images`."""
    import safetensors.torch

    model, x = run.model, to_pixels(images, run.model.input_range)
    facts = metadata(run) | {"input_range": model.input_range, "output_range": model.output_range}
    data = safetensors.torch.save({name: weight.contiguous() for name, weight in model.state_dict().items()}, facts)
    file, hint = "autoencoder.safetensors", "nothing was written"
    weights = safetensors.torch.load(data)
    with torch.device("meta"):
        again = run.recipe.build()
    load_state(again, weights, run.folder / file, hint)
    with torch.no_grad():
        same = all(torch.equal(a, b) for a, b in zip(model(x), again.eval()(x)))
    if not (same and all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())):
        raise RunError(f"{file}: what was read back is not what was written; {hint}")
    return [(file, data, f"{len(weights)} tensors, read back bit for bit, with equal outputs")]


def metadata(run: TrainedRun) -> dict[str, str]:
    """The facts about a run that its exports carry; `settings` holds the recipe, for `Recipe.from_dict`."""
    with torch.no_grad():
        code = run.model.encode(torch.zeros(1, run.recipe.pixels))
    return {
        "suite": f"autoencoder suite {VERSION}", "recipe": run.recipe.name, "autoencoders": str(run.model.members),
        "image_size": str(run.recipe.image_size), "code_size": str(code.shape[-1]),
        "model_input_range": RANGES[run.model.input_range], "model_output_range": RANGES[run.model.output_range],
        "mean": "no mean is subtracted from the images", "dataset": run.record["dataset"]["title"],
        "weights_sha256": run.record["weights_sha256"], "settings": json.dumps(run.recipe.as_dict()),
    }  # fmt: skip


RANGES = {"unit": "[0, 1]", "signed": "[-1, 1]"}
FORMATS = {"onnx": to_onnx, "safetensors": to_safetensors}
