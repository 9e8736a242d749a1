"""A case: what a model is given (first frame, references, sound, prompt) and, where it is known, what is true.

A folder of cases has a sub-folder for each with ``case.json`` and the files that it names:

    {"id": "speaking-000", "kind": "speaking", "seconds": 5.0, "character": "...", "style": "flat",
     "prompt": [{"start": 0.0, "end": 5.0, "text": "She smiles.", "emotion": "happy", "intensity": 0.7, "action": ""}],
     "first": "first.png", "references": {"view/left": "view-left.png"}, "speak": "speak.flac", "listen": "listen.flac",
     "truth": {"params": "truth.npy", "character": {...}, "phonemes": [[0.1, 0.2, "a"]], "events": [...]}}

or, where the truth is a recording, ``"truth": {"video": "truth.mp4"}``: then what the instruments read of it is true.

Only ``first`` and one of ``speak``, ``listen`` and ``seconds`` are needed: that is how own photographs and recordings
are added. Sound and truth start with frame 0 of the video that is asked for; both tracks are as long as it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.schema import FPS, PARAM_INDEX, PARAMS, REFERENCES, SAMPLES_PER_FRAME
from lpm_jax.bench.files import copy, read_picture, read_video, write_flac, write_picture
from lpm_jax.bench.schema import KINDS
from lpm_jax.errors import InputError, one_line
from lpm_jax.media import check_prompt, load_audio

BLOCK = 240  # frames that are drawn, written or read at a time


@dataclasses.dataclass(frozen=True)
class Segment:
    """What is asked for during ``start`` to ``end`` seconds: in words and, where it is known, as an intention."""

    start: float
    end: float
    text: str
    emotion: str = ""
    intensity: float = 0.0
    action: str = ""


@dataclasses.dataclass(frozen=True)
class Truth:
    """The performance behind a drawn case, exactly."""

    character: dict[str, Any]
    params: Float[np.ndarray, "frames params"]
    phonemes: tuple[tuple[float, float, str], ...]
    events: tuple[tuple[str, float, float], ...]

    def __getitem__(self, name: str) -> Float[np.ndarray, " frames"]:
        """One of the parameters."""
        return self.params[:, PARAM_INDEX[name]]

    def video(self) -> Iterator[UInt8[np.ndarray, "frames 128 128 3"]]:
        """The true frames, a block at a time."""
        from data_pipeline.performers.character import Character
        from data_pipeline.performers.render import render

        who = Character.from_json(json.dumps(self.character))
        for at in range(0, len(self.params), BLOCK):
            yield render(who, self.params[at : at + BLOCK])


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A truth of which only the video is known: what was performed is what the instruments read of it."""

    path: Path
    frames: int

    def video(self) -> Iterator[UInt8[np.ndarray, "frames 128 128 3"]]:
        """The video at the benchmark's rate and size, a block at a time."""
        return read_video(self.path, self.frames)

    def as_read(self, read: dict[str, Float[np.ndarray, " frames"]]) -> Truth:
        """The performance by its readings. What is not read never moves, so that nothing is measured against it."""
        params = np.zeros((self.frames, len(PARAMS)), np.float32)
        for name, values in read.items():
            names = [part for part in PARAMS if part.startswith("brow_")] if name == "brow" else [name]
            for part in names:
                if part in PARAM_INDEX:
                    params[:, PARAM_INDEX[part]] = values
        return Truth({}, params, (), ())


@dataclasses.dataclass(frozen=True)
class Case:
    """See the module. Tracks are float32 at 24 kHz, full scale 1, ``frames`` times 1,000 samples each."""

    id: str
    kind: str
    character: str
    style: str
    prompt: tuple[Segment, ...]
    first: UInt8[np.ndarray, "height width 3"]
    references: dict[str, UInt8[np.ndarray, "_ _ 3"]]
    speak: Float[np.ndarray, " samples"]
    listen: Float[np.ndarray, " samples"]
    truth: Truth | Recorded | None = None

    @property
    def frames(self) -> int:
        return len(self.speak) // SAMPLES_PER_FRAME

    @property
    def seconds(self) -> float:
        return self.frames / FPS

    @property
    def text(self) -> str:
        """The prompt in one line."""
        return " | ".join(segment.text for segment in self.prompt if segment.text)


# --- files -------------------------------------------------------------------------------------------------------


def find_cases(folder: str | Path) -> list[Path]:
    """The sub-folders that hold a case, by name.

    Raises:
      InputError: there is none.
    """
    paths = sorted(path.parent for path in Path(folder).glob("*/case.json"))
    if not paths:
        raise InputError(f"{folder}: expected a folder of cases (NAME/case.json), found none")
    return paths


class Cases(Sequence):
    """The cases in some folders, each read when it is asked for: a thousand of them would not fit into memory.

    Raises:
      InputError: one cannot be read.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._read = functools.lru_cache(maxsize=2)(read_case)

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, i: int) -> Case:
        return self._read(self.folders[i])


def write_case(case: Case, folder: str | Path) -> Path:
    """Writes a case as ``folder/ID``, ``case.json`` last: what was cut off is no case."""
    from lpm_jax.checkpoint import write_json

    here = Path(folder) / case.id
    here.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {key: getattr(case, key) for key in ("id", "kind", "seconds", "character", "style")}
    data["seconds"] = round(case.seconds, 4)
    data["prompt"] = [dataclasses.asdict(segment) for segment in case.prompt]
    data |= {"first": "first.png", "references": {k: k.replace("/", "-") + ".png" for k in case.references}}
    write_picture(here / "first.png", case.first)
    for name, picture in case.references.items():
        write_picture(here / data["references"][name], picture)
    for name in ("speak", "listen"):
        write_flac(here / f"{name}.flac", getattr(case, name))
        data[name] = f"{name}.flac"
    if isinstance(case.truth, Recorded):
        data["truth"] = {"video": "truth.mp4"}
        copy(case.truth.path, here / "truth.mp4")
    elif case.truth:
        np.save(here / "truth.npy", case.truth.params)
        rest = {k: getattr(case.truth, k) for k in ("character", "phonemes", "events")}
        data["truth"] = {"params": "truth.npy"} | rest
    write_json(here / "case.json", data)
    return here


def read_case(folder: str | Path) -> Case:
    """The case in ``folder``.

    Raises:
      InputError: ``case.json`` or a file that it names is missing or not what was expected.
    """
    here = Path(folder)
    path = here / "case.json"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found {one_line(error, 80)}") from None
    if not isinstance(data, dict) or not isinstance(data.get("first"), str):
        raise InputError(f"{path}: expected an object with 'first', the picture's file name, found none")
    name = str(data.get("id") or here.resolve().name)
    check_id(name, f"{path}: id")
    tracks = {k: load_audio(here / data[k]) if data.get(k) else np.zeros(0, np.float32) for k in ("speak", "listen")}
    frames = -(-max(map(len, tracks.values())) // SAMPLES_PER_FRAME)
    if data.get("seconds") is not None:
        if not isinstance(data["seconds"], (int, float)) or not 0.1 <= data["seconds"] <= 24 * 3600:
            raise InputError(f"{path}: seconds: expected 0.1 to 86,400, found {data['seconds']!r}")
        frames = round(data["seconds"] * FPS)
    if not frames:
        raise InputError(f"{path}: expected speak, listen or seconds, found none of them")
    length = frames * SAMPLES_PER_FRAME
    spoken, heard = (len(tracks[k]) > 0 for k in ("speak", "listen"))
    otherwise = "conversation" if spoken and heard else "speaking" if spoken else "listening" if heard else "motion"
    kind = data.get("kind", otherwise)
    if kind not in KINDS:
        raise InputError(f"{path}: kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    references = data.get("references") or {}
    for view in references:
        if view not in REFERENCES[1:]:
            raise InputError(f"{path}: references: expected of {', '.join(REFERENCES[1:])}, found {view!r}")
    return Case(
        id=name,
        kind=kind,
        character=str(data.get("character") or here.resolve().name),
        style=str(data.get("style") or ""),
        prompt=_segments(data.get("prompt", ""), frames / FPS, path),
        first=read_picture(here / data["first"]),
        references={view: read_picture(here / file) for view, file in references.items()},
        speak=np.pad(tracks["speak"][:length], (0, max(0, length - len(tracks["speak"])))),
        listen=np.pad(tracks["listen"][:length], (0, max(0, length - len(tracks["listen"])))),
        truth=_read_truth(here, data["truth"], frames) if data.get("truth") else None,
    )


def check_id(name: str, where: str) -> None:
    """Raises InputError for what cannot be a case's name: it becomes a file's."""
    if not re.fullmatch(r"[\w.-]{1,100}", name) or not name.strip("."):
        raise InputError(f"{where}: expected letters, digits, '.', '_' and '-', found {name[:80]!r}")


def _segments(prompt: Any, seconds: float, path: Path) -> tuple[Segment, ...]:
    if isinstance(prompt, str):
        return (Segment(0.0, seconds, check_prompt(prompt)),)
    try:
        found = tuple(Segment(**{"start": 0.0, "end": seconds} | entry) for entry in prompt)
        ordered = all(a.start < b.start for a, b in zip(found, found[1:], strict=False))
    except TypeError as error:
        raise InputError(f"{path}: prompt: expected text or segments with start, end, text: {error}") from None
    if not found or not ordered or found[0].start != 0:
        raise InputError(f"{path}: prompt: expected segments in order, the first at 0, found {len(found)} segments")
    return tuple(dataclasses.replace(s, text=check_prompt(s.text)) for s in found)


def _read_truth(here: Path, data: dict[str, Any], frames: int) -> Truth | Recorded:
    if isinstance(data.get("video"), str):
        if not (here / data["video"]).is_file():
            raise InputError(f"{here / 'case.json'}: truth: expected the video {data['video']!r}, found none")
        return Recorded(here / data["video"], frames)
    path = here / str(data.get("params", "truth.npy"))
    try:
        params = np.load(path, allow_pickle=False)
        rest = [tuple(tuple(row) for row in data.get(name, ())) for name in ("phonemes", "events")]
        character = data["character"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a truth that can be read, found {one_line(error, 80)}") from None
    if params.shape != (frames, len(PARAMS)):
        raise InputError(f"{path}: expected {[frames, len(PARAMS)]}, found {list(params.shape)}")
    return Truth(character, params.astype(np.float32), *rest)
