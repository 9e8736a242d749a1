"""Small ONNX files in place of the published networks: the same inputs and outputs, with arithmetic that is known.

The detector finds marks that are red and not green; the embedding is what lies at the five places of an aligned face;
the pose is the one whose number the middle of the picture shows; the synchrony networks compare blue with loudness.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lpm_jax.bench.instruments.real import faces, identity, pose, sync

SIDES = np.array([7.0, 8.0, 9.0, 10.0], np.float32)  # of the detector's boxes around a cell's corner, in strides of 8
DOTS = np.array([(-3, 0), (3, 0), (0, 2.5), (-3, 5), (3, 5)], np.float32)  # its points, in strides of 8
LEVEL = 10  # of grey, from one pose to the next


class Graph:
    """Collects nodes and constants."""

    def __init__(self):
        self.nodes, self.constants, self.count = [], [], 0

    def __call__(self, op: str, *inputs, out: str = "", **attributes) -> str:
        """The name of a node's output; arrays among its inputs become constants."""
        names = []
        for x in inputs:
            if not isinstance(x, str):
                self.count += 1
                name = f"c{self.count}"
                self.constants.append(numpy_helper.from_array(np.asarray(x), name))
                x = name
            names.append(x)
        self.count += 1
        out = out or f"x{self.count}"
        self.nodes.append(helper.make_node(op, names, [out], **attributes))
        return out

    def save(self, path: Path, shape: list, outputs: list[str]) -> Path:
        value = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)  # noqa: E731
        graph = helper.make_graph(
            self.nodes, "standin", [value("input", shape)], [value(o, None) for o in outputs], self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, path)
        return path


def channel(g: Graph, x: str, k: int) -> str:
    return g("Slice", x, np.array([k]), np.array([k + 1]), np.array([1]))


def detector(folder: Path, outputs: int = 9, side: int | None = None) -> Path:
    g = Graph()
    red = g("Mul", g("Sub", channel(g, "input", 0), channel(g, "input", 1)), np.float32(0.5))
    columns = {"score": [], "box": [], "dots": []}
    for stride in faces.STRIDES:
        mean = g("AveragePool", red, kernel_shape=[stride, stride], strides=[stride, stride])
        rows = g("Transpose", mean, perm=[0, 2, 3, 1])
        both = g("Concat", rows, g("Mul", rows, np.float32(0.9)), axis=3)  # two anchors, the first one surer
        score = g("Reshape", both, np.array([-1, 1]), out=f"score{stride}")
        nothing = g("Mul", score, np.float32(0))
        columns["score"].append(score)
        columns["box"].append(g("Add", nothing, SIDES[None], out=f"box{stride}"))
        columns["dots"].append(g("Add", nothing, DOTS.reshape(1, 10), out=f"dots{stride}"))
    names = sum(columns.values(), [])[:outputs]
    return g.save(folder / faces.SPEC.file, [1, 3, side or "h", side or "w"], names)


def embedding(folder: Path, side: int = identity.SIDE) -> Path:
    """Mean colours of 3 x 3 pixels at each of the five places: 15 numbers."""
    g = Graph()
    parts = []
    for x, y in np.round(identity.PLACES).astype(int):
        patch = g("Slice", "input", np.array([y - 1, x - 1]), np.array([y + 2, x + 2]), np.array([2, 3]))
        parts.append(g("Flatten", g("GlobalAveragePool", patch)))
    g("Concat", *parts, axis=1, out="embedding")
    return g.save(folder / identity.SPEC.file, ["n", 3, side, side], ["embedding"])


def poses(folder: Path, bins: np.ndarray, batch: int | str = "n", points: int = pose.POINTS) -> Path:
    """``bins``: [poses, 68, 2], where the face's points lie."""
    g = Graph()
    width, height = pose.WIDTH, pose.HEIGHT
    table = np.zeros((len(bins), points, 2), np.int64)
    table[:, pose.FACE if points == pose.POINTS else slice(None)] = bins
    middle = g("Slice", "input", np.array([height // 2, width // 2]), np.array([height // 2 + 1, width // 2 + 1]),
               np.array([2, 3]))  # fmt: skip
    grey = g("Add", g("Mul", channel(g, middle, 0), np.float32(pose.SPEC.std[0])), np.float32(pose.SPEC.mean[0]))
    number = g("Cast", g("Round", g("Mul", grey, np.float32(1 / LEVEL))), to=TensorProto.INT64)
    number = g("Clip", g("Reshape", number, np.array([-1])), np.int64(0), np.int64(len(bins) - 1))
    for axis, (name, size) in enumerate((("simcc_x", width), ("simcc_y", height))):
        rows = g("Gather", table[:, :, axis], number, axis=0)
        g("OneHot", rows, np.array([2 * size]), np.array([0, 0.8], np.float32), axis=-1, out=name)
    return g.save(folder / pose.SPEC.file, [batch, 3, height, width], ["simcc_x", "simcc_y"])


def blue_and_loud(folder: Path, sound_numbers: int = 5) -> tuple[Path, Path]:
    """Lips: the mean of the first channel in each of the five frames, over 10. Sound: log energy at five moments, the
    first column of the cepstra."""
    g = Graph()
    first = channel(g, "input", 0)
    g("Flatten", g("Mul", g("ReduceMean", first, axes=[3, 4], keepdims=0), np.float32(0.1)), out="lips")
    lips = g.save(folder / sync.LIPS.file, ["n", 3, 5, 224, 224], ["lips"])
    g = Graph()
    energy = g("Slice", "input", np.array([0]), np.array([1]), np.array([2]))
    moments = g("Gather", energy, np.array([1, 5, 9, 13, 17][:sound_numbers]), axis=3)
    g("Flatten", moments, out="sound")
    return lips, g.save(folder / sync.SOUND.file, ["n", 1, 13, 20], ["sound"])
