"""Offline video of any length from Base: segments that begin with the tail of the one before.

A segment of ``4 k + 1`` frames (125 in the paper) is a picture and ``k`` generated latent frames. The first segment
starts from the character's image. Each later one starts ``overlap`` latent frames before the end of the one before:
these begin as that segment's latents, taken back to ``tail_level`` of noise, and are generated again together with what
follows; the two versions are blended linearly, in the latent, and the whole goes through the causal decoder in one
piece, so no seam comes from decoding. The clean global appearance is in every segment: nothing drifts from it.

The paper states segments, a prompt for each, tail-latent initialisation and the blend (SPEC section 2); the overlap of
two and the level are ours, see ``benchmarks/results/long_video.json``: any level from 0.25 up hides the joints there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.schema import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from lpm_jax import pretrained
from lpm_jax.base import sampler
from lpm_jax.config import Config, SampleConfig
from lpm_jax.errors import InputError
from lpm_jax.media import check_prompt, load_audio
from lpm_jax.models import conditions, life, text, vae
from lpm_jax.models.audio import STRIDE
from lpm_jax.pictures import load_image, reference_kind


class Base:
    """A Base model ready to perform offline. See :meth:`from_pretrained` and :meth:`generate`."""

    def __init__(self, config: Config, params: dict, prompts: Callable[[str], np.ndarray] | None = None):
        """``prompts`` makes ids of a prompt; by default the small encoder's."""
        self.config = config
        self.params = jax.tree.map(jnp.asarray, params)
        self.prompts = prompts or text.reader(config.text)

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path, dtype: Any = None, shardings: Callable | None = None) -> Base:
        """A model's directory, its weights in the files' dtype and on one device unless said otherwise
        (:func:`lpm_jax.pretrained.load`)."""
        config, params = pretrained.load(name_or_dir, dtype, shardings)
        return cls(config, params, text.reader(config.text, pretrained.locate(name_or_dir)))

    def generate(
        self,
        image,
        audio=None,
        listen=None,
        prompt: str | Sequence[str] = "",
        negative: str = "",
        seed: int = 0,
        references: Mapping[str, object] | None = None,
        *,
        seconds: float | None = None,
        size: tuple[int, int] | None = None,
        sample: SampleConfig | None = None,
    ) -> Iterator[UInt8[np.ndarray, "frames height width 3"]]:
        """Yields frames at 24 a second until the longer sound ends (or for ``seconds``); the first is the image.

        Args:
          audio, listen: what the character says and hears: paths or float32 mono arrays at 24 kHz.
          prompt: one, or one for each segment (the last goes on).
          references: maps names such as ``"view/left"`` or ``"expression/happy"`` to further pictures, any subset.
          size: height and width in pixels, multiples of a patch's; None: the model's own.
          sample: solver, guidance and segments; None: the config's.

        Raises:
          InputError: an input that cannot be used, named with what was expected.
        """
        config = dataclasses.replace(self.config, sample=sample or self.config.sample)
        segment_frames(config)  # refuses what cannot be
        height, width = size or config.pixels
        unit = config.vae.stride * config.dit.patch
        if height % unit or width % unit or min(height, width) < unit:
            raise InputError(f"size: expected multiples of {unit}, found {height} x {width}")
        tracks = [np.zeros(0, np.float32) if x is None else load_audio(x) for x in (audio, listen)]
        if seconds is not None and not 0 < seconds < float("inf"):
            raise InputError(f"seconds: expected a positive length, found {seconds}")
        samples = max(map(len, tracks)) if seconds is None else round(seconds * SAMPLE_RATE)
        if not samples:
            raise InputError("audio: expected speech, listening audio or a length in seconds, found none")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InputError("prompt: expected at least one, found none")
        ids = [self.prompts(check_prompt(one))[None] for one in prompts]
        pictures, kinds, valid = self._pictures(image, references or {}, (height, width))
        total = -(-samples * FPS // SAMPLE_RATE)
        segments = _Segments(config, self.params, tracks, ids, self.prompts(check_prompt(negative))[None])
        return segments.run(pictures, kinds, valid, total, jax.random.key(seed))  # inputs were checked before

    def _pictures(self, image, references: Mapping[str, object], size: tuple[int, int]):
        slots = self.config.stream.references
        if len(references) > slots:
            raise InputError(f"references: expected at most {slots}, found {len(references)}")
        picture = load_image(image, size)
        pictures, kinds = [picture, picture], [conditions.FIRST_FRAME, conditions.GLOBAL]
        for name, source in references.items():
            kinds.append(reference_kind(name))
            pictures.append(load_image(source, size))
        spare = slots - len(references)
        valid = [True] * len(pictures) + [False] * spare
        kinds += [conditions.VIEWS] * spare
        pictures += [picture] * spare
        return np.stack(pictures), np.array([kinds], np.int32), np.array([valid])


def segment_frames(config: Config) -> int:
    """Latent frames that a segment generates.

    Raises:
      InputError: the segment's frames are not ``4 k + 1``, or nothing is left of it beside the overlap.
    """
    group, sample = config.vae.group, config.sample
    count, rest = divmod(sample.segment - 1, group)
    if rest or count < 1:
        raise InputError(f"segment: expected {group} k + 1 frames, found {sample.segment}")
    if not 0 <= sample.overlap < count:
        raise InputError(f"overlap: expected 0 to {count - 1} latent frames, found {sample.overlap}")
    if not 0 <= sample.tail_level <= 1:
        raise InputError(f"tail_level: expected 0 to 1, found {sample.tail_level}")
    if sample.steps < 1:
        raise InputError(f"steps: expected at least 1, found {sample.steps}")
    return count


def blend(old: Float[np.ndarray, "n *rest"], new: Float[np.ndarray, "n *rest"]) -> Float[np.ndarray, "n *rest"]:
    """From ``old`` to ``new``, linearly: of ``n`` frames the ``i``-th is ``(i + 1) / (n + 1)`` new."""
    n = len(old)
    share = (np.arange(1, n + 1) / (n + 1)).reshape(-1, *[1] * (old.ndim - 1))
    return (old + share * (new - old)).astype(old.dtype)


def sound_window(track: Float[np.ndarray, " n"], start: int, stop: int) -> Float[np.ndarray, "1 m"]:
    """Samples ``start .. stop`` of a track that is silent before its beginning and after its end."""
    out = np.zeros((1, stop - start), np.float32)
    low, high = max(start, 0), min(stop, len(track))
    if low < high:
        out[0, low - start : high - start] = track[low:high]
    return out


@partial(jax.jit, static_argnums=0)
def _encode(config: Config, params: dict, pictures):
    return vae.encode(config.vae, params["vae"], vae.to_unit(pictures)[:, None])[0][None, :, 0]


@partial(jax.jit, static_argnums=0)
def _decode(config: Config, params: dict, latents, state):
    frames, state = vae.decode(config.vae, params["vae"], latents, state)
    return vae.to_pixels(frames[0]), state


@partial(jax.jit, static_argnums=0)
def _hear(config: Config, params: dict, samples):
    return conditions.audio_features(config.audio)(params.get("audio", {}), samples)


class _Segments:
    """One call of :meth:`Base.generate`, its inputs checked."""

    def __init__(self, config: Config, params: dict, tracks: list, ids: list, negative):
        self.config, self.params, self.tracks = config, params, tracks
        self.ids, self.negative = ids, negative
        self.frames = segment_frames(config)
        self.history = conditions.history_tokens(config.audio)
        while config.audio.wav2vec and (self.history + STRIDE * self.frames) % 3:  # whole samples at 16 kHz
            self.history += STRIDE

    def heard(self, first: int) -> dict:
        """Both tracks' features for latent frames from ``first`` on; the picture before them is video frame 0."""
        begin = (1 + STRIDE * first - self.history) * SAMPLES_PER_FRAME
        begin -= conditions.audio_features(self.config.audio).history
        end = (1 + STRIDE * (first + self.frames)) * SAMPLES_PER_FRAME
        names = ("speak", "listen")
        return {
            name: _hear(self.config, self.params, sound_window(track, begin, end))
            for name, track in zip(names, self.tracks, strict=True)
        }

    def latents(self, references, kinds, valid, needed: int, key) -> Iterator[np.ndarray]:
        """Final latent frames ``[n, h, w, c]``, segment by segment, ``needed`` of them in all."""
        overlap, made, segment = self.config.sample.overlap, 0, 0
        step = self.frames - overlap
        tail = np.zeros((1, overlap, *references.shape[2:]), np.float32)
        drawn_by = jax.random.fold_in(key, 2**31 - 1)  # no segment's
        told, living = None, life.begin(drawn_by, 1)
        while made < needed:
            # The image stands just before the first segment only.
            valid = valid & ((kinds != conditions.FIRST_FRAME) | (segment == 0))
            batch = self.heard(segment * step) | {
                "text": self.ids[min(segment, len(self.ids) - 1)], "negative": self.negative,
                "references": references, "reference_kinds": kinds, "reference_valid": valid,
            }  # fmt: skip
            if self.config.dit.life:
                count = self.frames if told is None else step
                living, drawn = life.onward(living, count, jax.random.fold_in(drawn_by, segment))
                told = drawn if told is None else jnp.concatenate([told[:, step:], drawn], axis=1)
                batch["life"] = told
            new = sampler.sample(
                self.config, self.params, batch, tail, jnp.asarray(segment > 0), self.frames,
                jax.random.fold_in(key, segment),
            )  # fmt: skip
            new = np.array(new[0])
            if segment:
                new[:overlap] = blend(tail[0], new[:overlap])
            tail = new[None, step:]
            last = made + self.frames >= needed
            yield new if last else new[:step]
            made += self.frames if last else step
            segment += 1

    def run(self, pictures, kinds, valid, total: int, key) -> Iterator[np.ndarray]:
        config, params = self.config, self.params
        references = _encode(config, params, pictures)
        frames, state = _decode(config, params, references[:, :1], None)
        yield np.asarray(frames)
        shown = 1
        needed = -(-(total - 1) // config.vae.group)
        for part in self.latents(references, kinds, valid, needed, key):
            for latent in part:
                if shown >= total:
                    return
                frames, state = _decode(config, params, latent[None, None], state)
                yield np.asarray(frames)[: total - shown]
                shown += len(frames)
