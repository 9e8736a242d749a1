"""Makes the cases of a suite: held-out performers, voices and scripts, and what a model should do with them.

The same suite always gives the same cases. Performers come from seeds of more than 32 bits, which no data set draws,
and from the held-out half of the characters, which no training seed can make.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from jaxtyping import Float

from data_pipeline.schema import FPS, SAMPLES_PER_FRAME
from lpm_jax.bench.cases import Case, Segment, Truth
from lpm_jax.bench.suites import Spec

SEGMENT = 4.0  # seconds that one prompt of a motion case lasts at least
SEGMENTS = 32  # prompts of one case at most
FADE = 0.5  # seconds from one prompt's pose to the next one's
TRAINED_STYLES = ("flat", "shaded", "creature")


def make_case(spec: Spec) -> Case:
    """The case of ``spec``. Needs the ``data`` extra."""
    from data_pipeline.performers.character import HELD_OUT_STYLE, sample_held_out_character
    from data_pipeline.performers.clip import to_float
    from data_pipeline.performers.motion import perform
    from data_pipeline.performers.render import references

    unseen = spec.kind == "generalisation"  # a way of drawing and words that no model was trained on
    style = HELD_OUT_STYLE if unseen else TRAINED_STYLES[spec.seed % len(TRAINED_STYLES)]
    character = sample_held_out_character(spec.seed, style)
    keys = [int(k) for k in np.random.SeedSequence(spec.seed).generate_state(3)]
    frames = round(spec.seconds * FPS) + 1  # the clip's first frame stands alone: the video starts after it
    scene = _scene(spec, frames)
    speak, listen = (to_float(np.round(x * 32767).astype(np.int16)) for x in (scene.speak, scene.listen))
    prompts = _prompts(np.random.default_rng(keys[1]), spec)
    played = [perform(scene.dry, speak, listen, p, frames, keys[2]) for p in prompts]
    length = spec.seconds / len(prompts)
    segments = tuple(
        Segment(round(i * length, 4), round((i + 1) * length, 4), p.text, p.emotion, p.intensity, p.action)
        for i, p in enumerate(prompts)
    )
    events = sorted([*played[0][1], *scene.events], key=lambda e: e[1])
    pictures = references(character, keys[0])
    late = 1 / FPS
    truth = Truth(
        character=json.loads(character.to_json()),
        params=_joined([params for params, *_ in played], length)[1:].astype(np.float32),
        phonemes=tuple((round(a - late, 4), round(b - late, 4), ipa) for a, b, ipa in scene.dry.phonemes if b > late),
        events=tuple((name, round(float(t) - late, 4), round(float(wait), 4)) for name, t, wait in events),
    )
    # Multiples of 2^-15, so that a file gives back the same numbers.
    tracks = [np.round(x[SAMPLES_PER_FRAME:] * 32767).astype(np.float32) / 32768 for x in (speak, listen)]
    return Case(
        id=spec.id,
        kind=spec.kind,
        character=f"held out {spec.seed:x}",
        style=style,
        prompt=segments,
        first=pictures.pop("global"),
        references=pictures,
        speak=tracks[0],
        listen=tracks[1],
        truth=truth,
    )


def _scene(spec: Spec, frames: int):
    """The first scene of this seed in which there is something to measure."""
    from data_pipeline.performers.conversation import make_scene

    for attempt in range(100):
        seed = int(np.random.SeedSequence([spec.seed, attempt]).generate_state(1)[0])
        scene = make_scene(seed, frames, held_out=True, kind=spec.scene)
        if attempt == 99 or _worthwhile(spec, scene, frames):
            return scene
    raise AssertionError("unreachable")


def _worthwhile(spec: Spec, scene, frames: int) -> bool:
    """Listeners have time to nod, and every other one hears laughter; in every other conversation somebody is
    interrupted and then keeps silent."""
    from data_pipeline.performers.reactions import reaction_events

    end = frames / FPS
    if spec.kind == "listening":
        seen = {name for name, at, _ in reaction_events(scene.listen) if at + 0.8 < end}
        return "nod" in seen and ("smile" in seen or spec.seed % 2 == 0)
    if spec.kind == "conversation" and spec.seed % 2 and spec.seconds > 3:
        stops = [at for name, at, _ in scene.events if name == "interrupted" and 0.5 < at < end - 1.2]
        return any(all(t.start > at + 1.0 or t.end <= at + 0.1 for t in scene.turns if t.track == 0) for at in stops)
    return True


def _prompts(rng: np.random.Generator, spec: Spec) -> list:
    """An emotion for who speaks or listens; an action, with or without one, for every segment of a motion case."""
    from data_pipeline.performers.prompts import sample_prompt

    def draw(wanted) -> object:
        while True:
            prompt = sample_prompt(rng, held_out=spec.kind == "generalisation")
            if wanted(prompt) and prompt.end > spec.seconds and prompt.start == 0:
                return dataclasses.replace(prompt, end=1e9)

    if spec.kind == "motion":
        return [draw(lambda p: p.action) for _ in range(min(SEGMENTS, max(1, int(spec.seconds // SEGMENT))))]
    return [draw(lambda p: not p.action)]


def _joined(played: list[Float[np.ndarray, "frames params"]], length: float) -> Float[np.ndarray, "frames params"]:
    """The performances of several prompts as one: each holds for ``length`` seconds and fades into the next."""
    t = np.arange(len(played[0]))[:, None] / FPS
    out = played[0].astype(np.float64)
    for i, params in enumerate(played[1:], 1):
        weight = 0.5 - 0.5 * np.cos(np.pi * np.clip((t - i * length - 1 / FPS) / FADE, 0, 1))
        out = out + weight * (params - out)
    return out
