"""One clip of one performer as a record: picture, two sounds, and the exact truth behind them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.schema import FPS, LATENT_STRIDE, REFERENCES
from data_pipeline.video import decode_mp4, encode_mp4

SIZE = 128  # pixels
CRF = 12


def frames_for(seconds: float) -> int:
    """The number of frames ``4 k + 1`` closest to ``seconds``, at least 5.

    >>> frames_for(4.0)
    97
    """
    return LATENT_STRIDE * max(1, round((seconds * FPS - 1) / LATENT_STRIDE)) + 1


def clip_seed(seed: int, split: str, index: int) -> int:
    """The seed of clip ``index`` of a split: independent of how many workers render and in which order."""
    return int(np.random.SeedSequence([seed, {"train": 0, "held_out": 1}[split], index]).generate_state(1)[0])


def make_sound(
    seed: int, seconds: float = 4.0, held_out: bool = False, kind: str | None = None, from_rest: bool = False
) -> dict[str, Any]:
    """What of :func:`make_clip`'s record needs no drawing: sounds, parameters, states, prompt, and what made them."""
    from data_pipeline.performers.conversation import make_scene
    from data_pipeline.performers.motion import perform
    from data_pipeline.performers.prompts import sample_prompt

    frames, keys = frames_for(seconds), _keys(seed)
    scene = make_scene(keys[1], frames, held_out, kind)
    prompt = sample_prompt(np.random.default_rng(keys[2]), held_out)
    speak, listen = (np.round(x * 32767).astype(np.int16) for x in (scene.speak, scene.listen))
    params, events, life = perform(scene.dry, to_float(speak), to_float(listen), prompt, frames, keys[3], from_rest)
    events = sorted([*events, *scene.events], key=lambda e: e[1])
    return {
        "speak": speak,
        "listen": listen,
        "params": params,
        "life": life,
        "states": scene.states,
        "prompt": prompt.text,
        "kind": scene.kind,
        "phonemes": _json([(round(a, 4), round(b, 4), ipa) for a, b, ipa in scene.dry.phonemes]),
        "events": _json([(name, round(float(at), 4), round(float(wait), 4)) for name, at, wait in events]),
        "voice": _json([v.to_json() for v in scene.voices]),
        "intention": _json({**prompt.to_json(), "turns": [(t.track, round(t.start, 3), t.text) for t in scene.turns]}),
        "seed": int(seed),
    }


def _keys(seed: int) -> list[int]:
    """Seeds of the character, the scene, the prompt, the performance and the references."""
    return [int(k) for k in np.random.SeedSequence(seed).generate_state(5)]


def make_clip(
    seed: int,
    seconds: float = 4.0,
    held_out: bool = False,
    style: str | None = None,
    kind: str | None = None,
    from_rest: bool = False,
) -> dict[str, Any]:
    """A record, the same for the same arguments.

    ``video`` MP4 bytes (H.264 4:4:4, 24 fps, 128 x 128, no sound); ``speak`` and ``listen`` int16 ``[frames * 1000]``
    at 24 kHz; ``params`` float32 ``[frames, len(PARAMS)]``; ``life`` float32 ``[frames, len(LIFE)]``; ``states`` int32
    ``[frames]`` (index into ``STATES``); ``regions`` float32 ``[frames, 3, 4]``; ``prompt`` and ``kind`` str;
    ``references`` a list of PNG bytes in the order of ``REFERENCES``, ``b""`` where missing (``global`` never is);
    ``character``, ``phonemes`` (start and end seconds, IPA), ``events``, ``voice``, ``intention`` JSON; ``seed`` int.
    ``held_out`` takes the character, voices, scripts and prompts that training never sees; ``style`` fixes the look
    of a held-out character. ``from_rest`` eases the prompt in, where else a clip does from its first frame on what it
    says.
    """
    from data_pipeline.performers.character import sample_held_out_character, sample_training_character
    from data_pipeline.performers.render import references, regions, render

    keys = _keys(seed)
    character = sample_held_out_character(keys[0], style) if held_out else sample_training_character(keys[0])
    record = make_sound(seed, seconds, held_out, kind, from_rest)
    dice = np.random.default_rng(keys[4])
    kept = [i == 0 or dice.random() < 0.5 for i in range(len(REFERENCES))]
    images = references(character, keys[4])
    return record | {
        "video": encode_mp4(render(character, record["params"], SIZE), crf=CRF),
        "regions": np.asarray(regions(character, record["params"]), np.float32),
        "references": [_png(images[name]) if keep else b"" for name, keep in zip(REFERENCES, kept, strict=True)],
        "character": _json(character.to_json()),
    }


def to_float(sound: np.ndarray) -> np.ndarray:
    """16-bit samples as float32 with full scale 1."""
    return sound.astype(np.float32) / 32767


def frames_of(record: dict[str, Any]) -> UInt8[np.ndarray, "frames height width 3"]:
    """The decoded picture of a record."""
    return decode_mp4(record["video"])


def references_of(record: dict[str, Any]) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """The references a record has, by name."""
    import cv2

    found = {name: data for name, data in zip(REFERENCES, record["references"], strict=True) if data}
    return {n: cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for n, d in found.items()}


def _png(image: np.ndarray) -> bytes:
    import cv2

    ok, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not ok:
        raise RuntimeError("a reference image could not be written as PNG")
    return data.tobytes()


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def render_job(job: tuple[int, float, bool, bool]) -> dict[str, Any]:
    """What a worker process does: ``make_clip`` for (seed, seconds, held_out, from_rest)."""
    seed, seconds, held_out, from_rest = job
    return make_clip(seed, seconds, held_out, from_rest=from_rest)


def sound_job(job: tuple[int, float, bool]) -> dict[str, Any]:
    """What a worker process does: ``make_sound`` for (seed, seconds, held_out)."""
    seed, seconds, held_out = job
    return make_sound(seed, seconds, held_out)


def start_worker() -> None:
    """One thread per worker: the pool already uses every core it was given."""
    import cv2

    cv2.setNumThreads(1)
