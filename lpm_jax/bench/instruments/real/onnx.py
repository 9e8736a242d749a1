"""An ONNX file as an instrument: what it must look like, what is said where it is missing, how it runs.

ONNX files are graphs of known operators: reading one executes nothing, unlike a pickle. They are not in this
repository and are not downloaded: their licences are the user's to accept.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lpm_jax.errors import InputError, one_line


@dataclasses.dataclass(frozen=True)
class Spec:
    """A network's conventions, as its project publishes them."""

    file: str  # its name in the folder of weights
    source: str  # the project, and what it calls the file
    feeds: str  # what cannot be measured without it
    shape: tuple[int | None, ...]  # of its only input; None: any
    outputs: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # of 0..255, in the network's order of channels
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    order: str = "RGB"

    def missing(self, folder: Path) -> str:
        """The line for a folder without the file."""
        return f"no {self.file} in {str(folder)!r}: {self.feeds} are left out (from {self.source})"


class Network:
    """A loaded file. ``shape`` is its input's, with None where it takes any size.

    Raises:
      InputError: no onnxruntime; the file is no ONNX model, or its input or outputs are not the spec's.
    """

    def __init__(self, folder: str | Path, spec: Spec):
        self.path, self.spec = Path(folder) / spec.file, spec
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        # Networks take turns: threads that wait must not keep the others' cores busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        able = runtime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in able]
        try:
            self._session = runtime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # the runtime's errors have no common class
            raise InputError(f"{self.path}: expected an ONNX model, found {one_line(error, 120)}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != spec.outputs:
            raise InputError(
                f"{self.path}: expected 1 input and {spec.outputs} outputs, found {len(inputs)} and {len(outputs)}"
            )
        self._name = inputs[0].name
        found = tuple(size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape)
        pairs = zip(found, spec.shape, strict=False)
        if len(found) != len(spec.shape) or any(a != b for a, b in pairs if a is not None and b is not None):
            raise InputError(f"{self.path}: input: expected {_words(spec.shape)}, found {_words(found)}")
        if inputs[0].type != "tensor(float)":
            raise InputError(f"{self.path}: input: expected float32, found {inputs[0].type}")
        self.shape = found

    def pixels(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 3 h w"]:
        """RGB pictures as the network takes them."""
        x = pictures if self.spec.order == "RGB" else pictures[..., ::-1]
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32)
        x -= np.float32(self.spec.mean)[:, None, None]
        x /= np.float32(self.spec.std)[:, None, None]
        return x

    def run(self, items: np.ndarray, batch: int = 8) -> list[np.ndarray]:
        """Every output for all ``items``, as many at a time as the file allows.

        Raises:
          InputError: the network fails, or answers something else than an entry for each item.
        """
        step = self.shape[0] or batch
        parts = []
        for at in range(0, len(items), step):
            part = np.asarray(items[at : at + step], np.float32)
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)]) if self.shape[0] else part
            answers = self._answers(filled)
            if any(x.ndim == 0 or len(x) != len(filled) for x in answers):
                found = ", ".join(_words(x.shape) for x in answers)
                raise InputError(f"{self.path}: outputs: expected {len(filled)} entries each, found {found}")
            parts.append([x[: len(part)] for x in answers])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def run_one(self, item: np.ndarray) -> list[np.ndarray]:
        """Every output for one item, whatever its shape. Raises InputError where the network fails."""
        return self._answers(np.asarray(item, np.float32)[None])

    def fingerprint(self) -> str:
        """The beginning of the file's SHA-256."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def _answers(self, x: np.ndarray) -> list[np.ndarray]:
        try:
            return self._session.run(None, {self._name: x})
        except Exception as error:
            raise InputError(
                f"{self.path}: expected a model that takes {_words(x.shape)}, found {one_line(error, 120)}"
            ) from None


def onnxruntime():
    """The package. Raises InputError where the extra is not installed."""
    try:
        import onnxruntime as package
    except ImportError:
        raise InputError(
            "--instruments real: expected the extra 'real' (uv sync --extra real), found no onnxruntime"
        ) from None
    return package


def _words(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
