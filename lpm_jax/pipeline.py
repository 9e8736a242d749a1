"""The one object a user holds: ``Pipeline.from_pretrained(...).stream(...)`` yields frames in chunks."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.schema import FPS, SAMPLE_RATE
from lpm_jax import pretrained
from lpm_jax.config import Config, MeshConfig, StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.media import check_prompt, load_audio
from lpm_jax.models import conditions, text, vae
from lpm_jax.nn.quantized import restored
from lpm_jax.pictures import load_image, reference_kind
from lpm_jax.streaming import generator, layout
from lpm_jax.streaming.lanes import Lanes
from lpm_jax.streaming.shared import Shared
from lpm_jax.streaming.whole import Whole

#: What Linux calls a processor's products in bfloat16, and the first jax in which they are faster than float32's: with
#: AVX-512 alone a chunk takes 0.77 of its time in jax 0.12 and 1.22 in 0.10 (docs/streaming.md).
PRODUCTS = {"amx_bf16": (0, 0), "avx512_bf16": (0, 12)}
SPEECH_FLOOR = 1e-3  # RMS below which half a second of sound counts as silence


def native_dtype(cpus: Path = Path("/proc/cpuinfo")) -> Any:
    """bfloat16 where the machine multiplies it faster: GPUs, TPUs, processors with AMX or, with a jax that knows how,
    AVX-512's; else float32."""
    if jax.default_backend() != "cpu":
        return jnp.bfloat16
    known = _flags(cpus)
    fast = any(name in known and jax.__version_info__ >= since for name, since in PRODUCTS.items())
    return jnp.bfloat16 if fast else jnp.float32


def convolves_by_tiles(dtype: Any, cpus: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the decoder convolves as Winograd does: on CPU, where that is faster. Not in bfloat16 with AMX, where it
    was not measured."""
    return jax.default_backend() == "cpu" and (dtype == jnp.float32 or "amx_bf16" not in _flags(cpus))


def _flags(cpus: Path) -> list[str]:
    """What a processor can do, as Linux tells."""
    return cpus.read_text().split() if cpus.is_file() else []


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What one step produced."""

    frames: UInt8[np.ndarray, "frames height width 3"]
    time: float  # seconds of stream before this chunk
    state: str  # "silence", "speak", "listen" or "both"
    seconds: float  # from when it was asked for until it was there


class Sent(NamedTuple):
    """A chunk on its way."""

    made: Any  # with ``get``: the frames
    time: float
    state: str
    began: float

    def get(self) -> Chunk:
        """Waits for it."""
        frames = self.made.get()[0]
        return Chunk(frames, self.time, self.state, time.perf_counter() - self.began)


class Pipeline:
    """A model ready to perform. See :meth:`from_pretrained`, :meth:`stream` and :meth:`open`."""

    def __init__(
        self,
        config: Config,
        params: dict | None,
        prompts: Callable[[str], np.ndarray] | None = None,
        lanes: Lanes | None = None,
        slots: int = 0,
    ):
        """``prompts`` makes ids of a prompt; by default the small encoder's. With ``lanes``, which have the weights,
        streams run on their devices; with ``slots``, so many are computed in one program."""
        self.config = config
        self.prompts = prompts or text.reader(config.text)
        self.params = lanes.whole if lanes else generator.stored(config, jax.tree.map(jnp.asarray, params))
        if not lanes and convolves_by_tiles(self.params["dit"]["embed"]["patch"]["kernel"].dtype):
            self.params = self.params | {"vae": vae.prepared(config.vae, self.params["vae"])}
        self.machine = lanes or (Shared(config, self.params, slots) if slots else Whole(config, self.params))
        self.size = config.pixels  # height and width
        self.fps = FPS
        self.sample_rate = SAMPLE_RATE
        self.chunk_frames = config.stream.chunk * config.vae.group
        self.compile_seconds = 0.0
        self._warm = False

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = "toy",
        dtype: Any = None,
        stream: Mapping[str, Any] | None = None,
        mesh: MeshConfig | None = None,
        decoder: int = 0,
        slots: int = 0,
    ) -> Pipeline:
        """A bundled model by name, or a directory with ``config.json`` and safetensors that :meth:`save` wrote.

        Args:
          dtype: of weights, activations and cache; None: :func:`native_dtype`.
          stream: changes to the config's ``stream``, such as ``{"cache": "int8", "chunk": 6}``.
          mesh: of the Generator's devices, such as ``MeshConfig(tensor=4)``; None: everything on one device.
            Where there are as many again, the Refiner has its own (:func:`lpm_jax.streaming.layout.spread`).
          decoder: devices of the VAE's own.
          slots: streams of one device that are computed in one program, those that are asked for at the same time as
            one batch (:mod:`lpm_jax.streaming.shared`); 0: they take turns. A stream leaves its slot when it is closed.

        Raises:
          InputError: there is no such model, its files do not fit its config, or ``stream`` or the devices do not.
        """
        known = [field.name for field in dataclasses.fields(StreamConfig)]
        for name in stream or {}:
            if name not in known:
                raise InputError(f"stream: expected settings among {', '.join(known)}, found {name!r}")
        folder = pretrained.locate(name_or_dir)
        config = pretrained.read_config(folder)
        config = dataclasses.replace(config, stream=dataclasses.replace(config.stream, **stream or {}))
        dtype, prompts = dtype or native_dtype(), text.reader(config.text, folder)
        if mesh is None and not decoder:
            return cls(config, pretrained.load(folder, dtype)[1], prompts, slots=slots)
        if slots:
            raise InputError(f"slots: expected on one device, found {slots} beside a mesh")
        mesh = mesh or MeshConfig(fsdp=1)
        mesh = dataclasses.replace(mesh, fsdp=1) if mesh.fsdp == -1 else mesh  # what is left: a stream has one clip
        to = layout.spread(config, jax.devices(), mesh, decoder)
        params = pretrained.load(folder, dtype, layout.loading(config, to, mesh))[1]
        return cls(config, None, prompts, Lanes(config, params, to.generator, mesh, to.decoder, refiner=to.refiner))

    @property
    def together(self) -> bool:
        """Whether chunks that several streams ask for at the same time are computed at once."""
        return isinstance(self.machine, Shared)

    def save(self, directory: str | Path, dtype=jnp.bfloat16) -> None:
        """Writes ``config.json`` and safetensors shards (each under 15 MiB) into ``directory``."""
        params = restored(self.params)
        pretrained.save(directory, self.config, params | {"vae": vae.plain(params["vae"])}, dtype)

    def warm_up(self) -> None:
        """Compiles everything a stream needs; ``compile_seconds`` tells how long it took."""
        if self._warm:
            return
        began = time.perf_counter()
        grey = np.full((*self.size, 3), 128, np.uint8)
        stream = self.open(grey)
        stream.step(None, None)
        stream.take_back()
        stream.set_prompt("smiles")
        stream.step(None, None)
        stream.close()
        self.compile_seconds = time.perf_counter() - began
        self._warm = True

    def open(self, image, prompt: str = "", seed: int = 0, references: Mapping[str, object] | None = None) -> Stream:
        """A live stream of the character in ``image`` (path, PIL image or uint8 array).

        ``references`` maps names such as ``"view/left"`` or ``"expression/happy"`` to further pictures of it.
        """
        return Stream(self, image, prompt, seed, dict(references or {}))

    def stream(
        self,
        image,
        audio=None,
        listen=None,
        prompt: str = "",
        seed: int = 0,
        references: Mapping[str, object] | None = None,
        *,
        seconds: float | None = None,
        num_inference_steps: int | None = None,
        chunk_size: int | None = None,
    ) -> Iterator[Chunk]:
        """Yields the performance chunk by chunk until the longer sound ends (or for ``seconds``).

        ``audio`` is what the character says, ``listen`` what it hears: paths or float32 mono arrays at 24 kHz. The last
        chunk is cut so that the video lasts as long as the sound. ``num_inference_steps`` and ``chunk_size`` (frames)
        must be what the student was trained for, if given.

        Raises:
          InputError: an input that cannot be used, named with what was expected.
        """
        evaluations = len(self.config.stream.levels) + bool(self.config.stream.refine)
        trained = {"num_inference_steps": evaluations, "chunk_size": self.chunk_frames}
        asked = {"num_inference_steps": num_inference_steps, "chunk_size": chunk_size}
        for name, value in asked.items():
            if value is not None and value != trained[name]:
                raise InputError(f"{name}: this model was distilled for {trained[name]}, found {value}")
        if seconds is not None and not 0 < seconds < float("inf"):
            raise InputError(f"seconds: expected a positive length, found {seconds}")
        tracks = [np.zeros(0, np.float32) if x is None else load_audio(x) for x in (audio, listen)]
        samples = max(len(track) for track in tracks) if seconds is None else round(seconds * SAMPLE_RATE)
        if not samples:
            raise InputError("audio: expected speech, listening audio or a length in seconds, found none")
        total = -(-samples * FPS // SAMPLE_RATE)
        step = self.chunk_frames * SAMPLE_RATE // FPS
        live = self.open(image, prompt, seed, references)

        def chunks() -> Iterator[Chunk]:
            sent: deque[Sent] = deque()  # each lane works on a chunk of its own
            try:
                for start in range(0, total, self.chunk_frames):
                    at = start * SAMPLE_RATE // FPS
                    sent.append(live.send(*(track[at : at + step] for track in tracks)))
                    last = start + self.chunk_frames >= total
                    while len(sent) >= (1 if last else self.machine.ahead):
                        chunk = sent.popleft().get()
                        left = total - round(chunk.time * FPS)
                        yield dataclasses.replace(chunk, frames=chunk.frames[:left])
            finally:
                live.close()

        return chunks()  # inputs were checked before the first chunk is asked for


class Stream:
    """One conversation: its state lives on the device and moves a chunk at a time."""

    def __init__(self, pipeline: Pipeline, image, prompt: str, seed: int, references: dict):
        self.pipeline = pipeline
        config = pipeline.config
        slots = config.stream.references
        if len(references) > slots:
            raise InputError(f"references: expected at most {slots}, found {len(references)}")
        picture = load_image(image, pipeline.size)
        pictures, kinds, valid = [picture, picture], [conditions.FIRST_FRAME, conditions.GLOBAL], [True, True]
        for name, source in references.items():
            kinds.append(reference_kind(name))
            pictures.append(load_image(source, pipeline.size))
            valid.append(True)
        for _ in range(slots - len(references)):
            pictures.append(picture)
            kinds.append(conditions.VIEWS)
            valid.append(False)
        references = np.stack(pictures)[None], np.array([kinds], np.int32), np.array([valid])
        self._on = pipeline.machine.begin(*references, self._ids(prompt), jax.random.key(seed))
        self._samples = generator.chunk_samples(config)
        self._undo: Any = None
        self.time = 0.0

    @property
    def _state(self) -> generator.StreamState:
        """Of a stream that is alone on one device."""
        return self._on.state

    @_state.setter
    def _state(self, state: generator.StreamState) -> None:
        self._on.state = state

    def _ids(self, prompt: str) -> np.ndarray:
        return self.pipeline.prompts(check_prompt(prompt))[None]

    def set_prompt(self, prompt: str) -> None:
        """Takes effect at the next chunk; motion goes on."""
        self._on.set_prompt(self._ids(prompt))

    def take_back(self) -> None:
        """Undoes the last :meth:`step`, once: the stream is where it was before, bit for bit, with the prompt that it
        has now. For a chunk that was made but never shown.

        Raises:
          RuntimeError: there is no step to take back.
        """
        if self._undo is None:
            raise RuntimeError("take_back: expected a step since the beginning or the last one taken back, found none")
        self._on.take_back(self._undo)
        self._undo, self.time = None, self.time - self.pipeline.chunk_frames / FPS

    def close(self) -> None:
        """Ends the stream: its place is free for another."""
        self._on.close()

    def step(
        self, speak: Float[np.ndarray, " n"] | None = None, listen: Float[np.ndarray, " m"] | None = None
    ) -> Chunk:
        """The next chunk. Tracks shorter than a chunk are padded with silence; None is silence."""
        return self.send(speak, listen, undo=True).get()

    def send(
        self,
        speak: Float[np.ndarray, " n"] | None = None,
        listen: Float[np.ndarray, " m"] | None = None,
        undo: bool = False,
    ) -> Sent:
        """:meth:`step` that doesn't wait for the frames; only with ``undo`` it can be taken back."""
        began = time.perf_counter()
        kept, self._undo = self._on.before() if undo else None, None
        tracks, active = [], []
        for track in (speak, listen):
            padded = np.zeros(self._samples, np.float32)
            if track is not None:
                # A value that is no number would stay in the cache for good.
                padded[: min(len(track), self._samples)] = np.nan_to_num(np.float32(track)[: self._samples])
            tracks.append(padded[None])
            active.append(float(np.sqrt(np.mean(padded**2))) > SPEECH_FLOOR)
        made = self._on.step(*tracks)
        self._undo = kept
        at, self.time = self.time, self.time + self.pipeline.chunk_frames / FPS
        state = {(0, 0): "silence", (1, 0): "speak", (0, 1): "listen", (1, 1): "both"}[tuple(map(int, active))]
        return Sent(made, at, state, began)
