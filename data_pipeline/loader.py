"""Grain pipelines from records to training batches.

``pixel_batches`` feeds the autoencoder: a clip is decoded once and gives several short crops. ``latent_batches`` feeds
the diffusion stages from a cache of latents (``lpm_jax/training/latents.py``), whose windows carry everything a
conditioning branch reads. Both are seeded, shuffled, endless, and their iterators save and restore their position.

The order is that of one global stream. Where several processes train together, each is given the ``rows`` of every
global batch that it holds, and loads those: together they see what one process would, in the same places.
"""

from __future__ import annotations

import dataclasses

import grain
import numpy as np
from jaxtyping import Float, Shaped

from data_pipeline.schema import LATENT_STRIDE, REFERENCES, REGIONS, SAMPLES_PER_FRAME
from data_pipeline.video import decode_mp4

EPOCHS = 10**6  # endless; Grain's own endless repeat overflows its length when batches are of one


@dataclasses.dataclass(frozen=True)
class RegionWeights:
    """How much more a region's error counts than the background's."""

    mouth: float = 1.0
    eyes: float = 1.0
    face: float = 1.0


def weight_map(
    regions: Float[np.ndarray, "frames 3 4"], cells: tuple[int, int], weights: RegionWeights
) -> Float[np.ndarray, "frames h w"]:
    """Loss weights of ``cells`` (rows, columns): one that a region's box touches gets that region's weight, the largest
    wins."""
    across, down = (np.arange(count + 1) / count for count in reversed(cells))
    maps = np.ones((len(regions), *cells), np.float32)
    for name in ("face", "eyes", "mouth"):
        top, left, bottom, right = regions[:, REGIONS.index(name)].T[..., None]
        rows = (down[None, 1:] > top) & (down[None, :-1] < bottom)
        columns = (across[None, 1:] > left) & (across[None, :-1] < right)
        inside = rows[:, :, None] & columns[:, None, :]
        maps = np.where(inside, np.maximum(maps, getattr(weights, name)), maps)
    return maps


def group_max(values: Float[np.ndarray, "frames *rest"]) -> Float[np.ndarray, "latents *rest"]:
    """The largest value within each latent frame: frame 0 alone, then fours."""
    rest = values[1:].reshape(-1, LATENT_STRIDE, *values.shape[1:]).max(axis=1)
    return np.concatenate([values[:1], rest])


@dataclasses.dataclass(frozen=True)
class Crops(grain.transforms.RandomMap):
    """Record -> ``count`` crops: ``video`` uint8 ``[count, 4 k + 1, side, side, 3]`` and cell ``weights``."""

    count: int
    side: int
    latents: int
    weights: RegionWeights

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        frames = decode_mp4(record["video"])
        n, height, _, _ = frames.shape
        length = LATENT_STRIDE * (self.latents - 1) + 1
        cells, span = height // 8, self.side // 8
        maps = weight_map(record["regions"], (cells, cells), self.weights)
        video, weight = [], []
        for i in range(self.count):
            start = int(rng.integers(n - length + 1))
            if i % 2:  # every other crop looks at the mouth or the eyes
                box = record["regions"][start, rng.integers(2)]
                centre = (np.array([box[0] + box[2], box[1] + box[3]]) / 2) * cells
                corner = np.round(centre - span / 2 + rng.uniform(-2, 2, 2)).astype(int)
            else:
                corner = rng.integers(0, cells - span + 1, 2)
            y, x = np.clip(corner, 0, cells - span)
            video.append(frames[start : start + length, 8 * y : 8 * (y + span), 8 * x : 8 * (x + span)])
            weight.append(group_max(maps[start : start + length, y : y + span, x : x + span]))
        return {"video": np.stack(video), "weights": np.stack(weight)}


class Rows(grain.MapDataset):
    """Of every ``batch`` elements of ``parent`` only ``rows``, in their order."""

    def __init__(self, parent: grain.MapDataset, batch: int, rows: tuple[int, ...]):
        super().__init__(parent)
        self.whole, self.rows = batch, rows

    def __len__(self) -> int:
        return len(self._parent) // self.whole * len(self.rows)

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return self.slice(index)
        which, place = divmod(index, len(self.rows))
        return self._parent[which * self.whole + self.rows[place]]


def _rows(data: grain.MapDataset, batch: int, rows: tuple[int, ...] | None) -> tuple[grain.MapDataset, int]:
    """The elements that this process loads, and how many there are in its part of a batch."""
    if rows is None or rows == tuple(range(batch)):
        return data, batch
    return Rows(data, batch, rows), len(rows)


def _join(batch: list[dict]) -> dict:
    return {key: np.concatenate([item[key] for item in batch]) for key in batch[0]}


def pixel_batches(
    source,
    *,
    batch: int,
    count: int,
    side: int,
    latents: int,
    weights: RegionWeights,
    seed: int,
    threads: int,
    rows: tuple[int, ...] | None = None,
) -> grain.IterDataset:
    """Endless batches of ``batch`` crops for the autoencoder, ``count`` from each clip; of ``rows`` of them if given,
    which must be those of whole clips."""
    data = grain.MapDataset.source(source).seed(seed).shuffle().repeat(EPOCHS)
    data = data.random_map(Crops(count, side, latents, weights))
    clips = None
    if rows is not None:
        clips = tuple(sorted({row // count for row in rows}))
        if len(rows) != count * len(clips):
            raise ValueError(f"expected rows of whole clips of {count} crops, found {len(rows)} rows of {len(clips)}")
    data, size = _rows(data, max(batch // count, 1), clips)
    data = data.batch(size, batch_fn=_join)
    return data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


@dataclasses.dataclass(frozen=True)
class Window(grain.transforms.RandomMap):
    """Cached clip -> a training window of ``latents`` latent frames with everything a conditioning branch reads.

    The window follows a *first frame* encoded as a picture, as a stream follows its image. A frame of the clip shows
    already what the prompt asks for; a stream's picture does not (``picture``). Audio tokens cover ``history`` video
    frames before the window (silence before the clip) and the window itself.
    """

    latents: int
    history: int
    weights: RegionWeights
    first_frame: float  # share of windows that show their first frame
    extra: float  # share of windows that show view and expression references
    inside: float = 0.5  # share of windows whose global appearance is a frame of the clip itself, as a stream's may be
    mouth: bool = False  # with the cells that the mouth is in, and how far it is open in each video frame
    picture: float = 0.0  # share of windows that are a clip's beginning and follow the global reference, as streams do
    no_text: float = 0.0  # share of windows that are told nothing, where prompts come encoded
    params: bool = False  # with the performance's parameters in each video frame
    sound: int = 0  # with the clip's samples as ``speak_sound`` and ``listen_sound``, from so many before the window on

    def random_map(self, clip: dict, rng: np.random.Generator) -> dict:
        total = len(clip["latents"]) - 1
        stride = -(-total // len(clip["stills"]))
        index = int(rng.integers((total - self.latents) // stride + 1))
        picture = bool(self.picture) and rng.random() < self.picture
        index = 0 if picture else index
        start = index * stride
        window = slice(start + 1, start + 1 + self.latents)
        kinds = clip["reference_kinds"].copy()
        if rng.random() >= self.extra:
            kinds[1:] = -1
        else:  # any subset
            kinds[1:] = np.where(rng.random(len(kinds) - 1) < 0.5, kinds[1:], -1)
        extra = 1 + int(np.argmax(kinds[1:] >= 0)) if (kinds[1:] >= 0).any() else 1
        appearance, inside = clip["references"][0], rng.random() < self.inside
        if inside:
            appearance = clip["stills"][rng.integers(len(clip["stills"]))]
        first, shown = clip["stills"][index], rng.random() < self.first_frame
        if picture:
            first = appearance = clip["references"][0]
            shown, inside = True, False
        weight = np.ones(clip["mouth"].shape, np.float32)
        for name in ("face", "eyes", "mouth"):
            weight = np.maximum(weight, np.where(clip[name], getattr(self.weights, name), 1.0))
        frame = LATENT_STRIDE * start + 1
        out = {
            "latents": clip["latents"][window],
            # Slots: the first frame, the global reference and, where the stage shows any, one further reference.
            "references": np.stack([first, appearance, clip["references"][extra]]),
            "reference_kinds": np.array([0, 1, max(kinds[extra], 0)], np.int32),
            "reference_valid": np.array([shown, True, kinds[extra] >= 0]),
            "text": self.told(clip, rng),
            "weights": weight[window],
            "kind": clip["kind"],
        }
        frames = slice(frame, frame + LATENT_STRIDE * self.latents)
        if "moves" in clip:  # since the global reference
            out |= {"moves": clip["moves"][window], "moves_known": np.float32(not inside)}
        if "life" in clip:  # mean over a latent's video frames
            out["life"] = clip["life"][frames].reshape(self.latents, LATENT_STRIDE, -1).mean(axis=1)
        if self.params:
            out["params"] = clip["params"][frames]
        if self.mouth:
            out |= {"mouth": clip["mouth"][window], "aperture": clip["aperture"][frames]}
        if not self.extra:
            out |= {name: out[name][:2] for name in ("references", "reference_kinds", "reference_valid")}
        for name in ("speak", "listen"):
            missing = self.history - (len(clip[name]) - (LATENT_STRIDE * total + 1))  # encoders tell of it themselves
            mel = np.concatenate([np.repeat(self.silence(clip[name]), missing, axis=0), clip[name]])
            out[name] = mel[frame : frame + self.history + LATENT_STRIDE * self.latents]
            if self.sound:
                samples = np.pad(clip[f"{name}_sound"], (self.sound, 0))
                count = self.sound + SAMPLES_PER_FRAME * LATENT_STRIDE * self.latents
                out[f"{name}_sound"] = samples[SAMPLES_PER_FRAME * frame :][:count]
        return out

    def told(self, clip: dict, rng: np.random.Generator) -> Shaped[np.ndarray, "words *width"]:
        """The clip's prompt. Where prompts come encoded, the empty one has its own code: dropped here, not in the
        step."""
        return clip["empty"] if "empty" in clip and rng.random() < self.no_text else clip["text"]

    @staticmethod
    def silence(mel: Float[np.ndarray, "tokens features"]) -> Float[np.ndarray, "1 features"]:
        """Encoded silence: the floor of the log-mel scale."""
        return np.full((1, mel.shape[1]), SILENCE, mel.dtype)


def latent_batches(
    source, window: Window, *, batch: int, seed: int, threads: int, rows: tuple[int, ...] | None = None
) -> grain.IterDataset:
    """Endless batches of ``batch`` windows for the diffusion stages; of ``rows`` of them if given."""
    return clip_batches(source, batch=batch, seed=seed, threads=threads, rows=rows, window=window)


def clip_batches(
    source, *, batch: int, seed: int, threads: int, rows: tuple[int, ...] | None = None, window: Window | None = None
) -> grain.IterDataset:
    """Endless batches of whole clips, or of one ``window`` of each; of ``rows`` of them if given."""
    data = grain.MapDataset.source(source).seed(seed).shuffle().repeat(EPOCHS)
    data, size = _rows(data.random_map(window) if window else data, batch, rows)
    return data.batch(size).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * size))


SILENCE = (np.log(1e-4) + 3.0) / 6.0  # models/audio.py: log-mel of no sound

__all__ = [
    "REFERENCES",
    "RegionWeights",
    "Window",
    "clip_batches",
    "group_max",
    "latent_batches",
    "pixel_batches",
    "weight_map",
]
