"""Windows whose picture, sound and references line up; weights that follow the face; iterators that can be resumed."""

import numpy as np
import pytest

from data_pipeline.loader import (
    SILENCE,
    Crops,
    RegionWeights,
    Window,
    group_max,
    latent_batches,
    pixel_batches,
    weight_map,
)
from data_pipeline.video import encode_mp4

LATENTS, HISTORY, CLIP = 6, 8, 19  # latent frames of a window; audio tokens before it; latent frames of a clip


def make_clip(number: int = 0) -> dict[str, np.ndarray]:
    """A cached clip whose every value says where it is from: latent frame, audio token, still, reference slot."""
    tokens = 4 * (CLIP - 1) + 1
    cells = np.zeros((CLIP, 4, 4, 2), np.float32)
    return {
        "latents": cells + np.arange(CLIP, dtype=np.float32)[:, None, None, None],
        "stills": cells[:6] + 100 + np.arange(0, 18, 3, dtype=np.float32)[:, None, None, None],
        "references": cells[:5] + 1000 + np.arange(5, dtype=np.float32)[:, None, None, None],
        "reference_kinds": np.array([1, 3, 7, -1, -1], np.int32),
        "text": np.array([1, number, 0], np.int32),
        "speak": np.repeat(np.arange(tokens, dtype=np.float32)[:, None], 3, 1),
        "listen": np.repeat(500 + np.arange(tokens, dtype=np.float32)[:, None], 3, 1),
        "mouth": np.zeros((CLIP, 4, 4), bool),
        "eyes": np.zeros((CLIP, 4, 4), bool),
        "face": np.zeros((CLIP, 4, 4), bool),
        "kind": np.int32(number % 4),
    }


def windows(
    count: int = 60, extra: float = 0.0, first_frame: float = 1.0, inside: float = 0.0, clip: dict | None = None
) -> list[dict]:
    window = Window(LATENTS, HISTORY, RegionWeights(4.0, 2.5, 1.5), first_frame, extra, inside)
    return [window.random_map(clip or make_clip(), np.random.default_rng(seed)) for seed in range(count)]


def test_sound_belongs_to_its_frames():
    """Frame 0 is latent 0, frames 4 j - 3 .. 4 j are latent j; token i is heard during frame i."""
    starts = set()
    for out in windows():
        indices = out["latents"][:, 0, 0, 0].astype(int)
        start = indices[0] - 1
        starts.add(int(start))
        assert indices.tolist() == list(range(start + 1, start + 1 + LATENTS))
        for kind, offset in (("speak", 0), ("listen", 500)):
            tokens = out[kind][:, 0]
            assert len(tokens) == HISTORY + 4 * LATENTS
            for j, latent in enumerate(indices):
                frames = [4 * latent - 3, 4 * latent - 2, 4 * latent - 1, 4 * latent]
                at = HISTORY + 4 * j
                assert tokens[at : at + 4].tolist() == [offset + f for f in frames]
            for i in range(HISTORY):  # the tokens before, and silence where there were none
                frame = 4 * start + 1 - HISTORY + i
                assert tokens[i] == (offset + frame if frame >= 0 else np.float32(SILENCE))
    assert starts == {0, 3, 6, 9, 12}  # every place where a still stands and a whole window follows


def test_first_frame_is_the_frame_before_the_window():
    for out in windows():
        assert out["references"][0, 0, 0, 0] == 100 + out["latents"][0, 0, 0, 0] - 1
        assert out["speak"][HISTORY - 1, 0] == 4 * (out["latents"][0, 0, 0, 0] - 1)
        assert out["references"][1, 0, 0, 0] == 1000
        assert out["reference_kinds"].tolist() == [0, 1]
        assert out["reference_valid"].tolist() == [True, True]


def test_windows_may_follow_the_picture():
    """Its latent stands for the first frame and the appearance, as in a stream; the other windows stay as they are."""
    window = Window(LATENTS, HISTORY, RegionWeights(), 0.5, 0.0, picture=0.6)
    made = [window.random_map(make_clip(), np.random.default_rng(seed)) for seed in range(300)]
    first, appearance = np.stack([out["references"][:, 0, 0, 0] for out in made]).T
    follows = first == 1000
    assert 0.5 < follows.mean() < 0.7
    assert (appearance[follows] == 1000).all()
    begins = np.array([out["latents"][0, 0, 0, 0] for out in made]) == 1
    assert begins[follows].all() and not begins[~follows].all()
    assert all(out["reference_valid"].all() for out, yes in zip(made, follows, strict=True) if yes)
    shown = [bool(out["reference_valid"][0]) for out, yes in zip(made, follows, strict=True) if not yes]
    assert 0.35 < np.mean(shown) < 0.65
    assert all(
        out["references"][0, 0, 0, 0] == 99 + out["latents"][0, 0, 0, 0]
        for out in made
        if out["references"][0, 0, 0, 0] != 1000
    )


def test_first_frame_is_shown_to_its_share():
    shown = [bool(out["reference_valid"][0]) for out in windows(300, first_frame=0.7)]
    assert 0.6 < np.mean(shown) < 0.8
    assert all(out["reference_valid"][1] for out in windows(20, first_frame=0.0))


def test_global_appearance_from_outside_or_inside_the_clip():
    shown = [float(out["references"][1, 0, 0, 0]) for out in windows(400, inside=0.5)]
    inside = [value for value in shown if value != 1000]
    assert 0.4 < len(inside) / len(shown) < 0.6
    assert set(inside) == {100, 103, 106, 109, 112, 115}  # any still
    assert all(out["reference_kinds"].tolist() == [0, 1] for out in windows(5, inside=1.0))


def test_further_references():
    picked = []
    for out in windows(200, extra=1.0):
        assert out["references"].shape[0] == len(out["reference_kinds"]) == len(out["reference_valid"]) == 3
        kind, valid = int(out["reference_kinds"][2]), bool(out["reference_valid"][2])
        picked.append(kind if valid else None)
        if valid:  # the picture is the one of its kind
            assert (kind, out["references"][2, 0, 0, 0]) in ((3, 1001), (7, 1002))
    assert set(picked) == {3, 7, None}
    assert 0.15 < np.mean([p is None for p in picked]) < 0.35  # any subset of two: neither in a quarter of the cases
    some = [bool(out["reference_valid"][2]) for out in windows(300, extra=0.3)]
    assert 0.12 < np.mean(some) < 0.33


def test_a_clip_without_further_references():
    clip = make_clip() | {"reference_kinds": np.array([1, -1, -1, -1, -1], np.int32)}
    assert not any(out["reference_valid"][2] for out in windows(20, extra=1.0, clip=clip))
    assert clip["reference_kinds"].tolist() == [1, -1, -1, -1, -1]  # the cache is not written to


def test_window_weights_are_the_heaviest_region():
    clip = make_clip()
    clip["face"][:, 1:] = True
    clip["eyes"][:, 1, 1] = True
    clip["mouth"][7, 2, 2] = True
    for out in windows(30, clip=clip):
        weights = out["weights"]
        assert weights.shape == (LATENTS, 4, 4)
        assert (weights[:, 0] == 1).all() and (weights[:, 3] == 1.5).all() and (weights[:, 1, 1] == 2.5).all()
        assert weights[:, 2, 2].tolist() == [4.0 if i == 7 else 1.5 for i in out["latents"][:, 0, 0, 0]]


def test_weight_map_by_hand():
    regions = np.zeros((2, 3, 4), np.float32)  # top, left, bottom, right of mouth, eyes and face
    regions[0] = [[0.5, 0.25, 0.75, 0.5], [0.25, 0.25, 0.3, 0.6], [0.2, 0.0, 0.9, 1.0]]
    maps = weight_map(regions, (4, 4), RegionWeights(mouth=5.0, eyes=3.0, face=2.0))
    assert maps[0].tolist() == [
        [2, 2, 2, 2],  # the face's box begins at 0.2, inside the first row
        [2, 3, 3, 2],
        [2, 5, 2, 2],  # a box that ends on an edge does not touch the next cell
        [2, 2, 2, 2],
    ]
    assert (maps[1] == 1).all()  # boxes without area weigh nothing


def test_overlapping_regions_keep_the_larger_weight():
    regions = np.broadcast_to(np.array([0.0, 0, 1, 1], np.float32), (1, 3, 4))
    assert (weight_map(regions, (2, 2), RegionWeights(mouth=1.0, eyes=7.0, face=2.0)) == 7).all()


def test_group_max():
    assert group_max(np.array([9.0, 1, 2, 3, 4, 8, 7, 6, 5])).tolist() == [9, 4, 8]
    assert group_max(np.zeros((5, 2, 3))).shape == (2, 2, 3)


class Squares:
    """Clips of 17 frames: a white square of 8 pixels wanders over black; the mouth's box is the square."""

    def __len__(self) -> int:
        return 3

    def __repr__(self) -> str:
        return "Squares"

    def __getitem__(self, index: int) -> dict:
        frames = np.zeros((17, 64, 64, 3), np.uint8)
        regions = np.zeros((17, 3, 4), np.float32)
        for i in range(17):
            y, x = 8 * (i // 5 + index), 8 * (i % 8)
            frames[i, y : y + 8, x : x + 8] = 255
            regions[i, :2] = np.array([y, x, y + 8, x + 8]) / 64
        return {"video": encode_mp4(frames), "regions": regions}


@pytest.mark.parametrize("seed", range(3))
def test_crops_and_their_weights_line_up(seed):
    crops = Crops(count=6, side=32, latents=3, weights=RegionWeights(mouth=4.0))
    out = crops.random_map(Squares()[seed], np.random.default_rng(seed))
    assert out["video"].shape == (6, 9, 32, 32, 3) and out["video"].dtype == np.uint8
    assert out["weights"].shape == (6, 3, 4, 4)
    cells = out["video"].reshape(6, 9, 4, 8, 4, 8, 3).mean((3, 5, 6)) > 128
    white = np.concatenate([cells[:, :1], cells[:, 1:].reshape(6, 2, 4, 4, 4).any(2)], axis=1)
    np.testing.assert_array_equal(out["weights"] > 1, white)
    assert white[1::2].any()  # every other crop looks at the mouth


def take(iterator, n: int) -> list[dict]:
    return [next(iterator) for _ in range(n)]


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


class Clips:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        return make_clip(index)

    def __repr__(self) -> str:
        return "Clips"


def make_latent(seed: int = 0, batch: int = 2, rows=None):
    window = Window(LATENTS, HISTORY, RegionWeights(), 0.5, 0.5)
    return latent_batches(Clips(), window, batch=batch, rows=rows, seed=seed, threads=2)


def make_pixel(seed: int = 0, batch: int = 4, rows=None):
    return pixel_batches(
        Squares(), batch=batch, rows=rows, count=2, side=16, latents=2, weights=RegionWeights(), seed=seed, threads=2
    )


@pytest.mark.parametrize("make", [make_latent, make_pixel])
def test_batches_are_seeded_and_resumable(make):
    iterator = iter(make())
    first = take(iterator, 2)
    state = iterator.get_state()
    rest = take(iterator, 3)
    assert_same(take(iter(make()), 5), first + rest)
    other = iter(make())
    other.set_state(state)
    assert_same(take(other, 3), rest)
    key = "latents" if "latents" in first[0] else "video"
    different = take(iter(make(seed=1)), 5)
    assert any((a[key] != b[key]).any() for a, b in zip(first + rest, different, strict=True))


@pytest.mark.parametrize("make", [make_latent, make_pixel])
@pytest.mark.parametrize("shares", [
    [(0, 1, 2, 3), (4, 5, 6, 7)],
    [(0, 1, 4, 5), (2, 3, 6, 7)],  # as devices of a host may lie in a mesh
    [(0, 1, 2, 3, 4, 5, 6, 7)] * 2,  # processes that hold the same rows
])  # fmt: skip
def test_processes_together_read_the_batches_of_one(make, shares):
    """Each in its place: the same records, and the same random draws."""
    whole = iter(make(batch=8))
    parts = [iter(make(batch=8, rows=rows)) for rows in shares]
    for n in range(4):
        expected, found = next(whole), [next(part) for part in parts]
        for rows, part in zip(shares, found, strict=True):
            for key, value in part.items():
                np.testing.assert_array_equal(value, expected[key][list(rows)])
        assert [part.get_state() for part in parts] == [whole.get_state()] * 2, n  # a position fits every process


def test_half_a_clip_cannot_be_read():
    with pytest.raises(ValueError, match="expected rows of whole clips of 2 crops, found 3 rows of 2"):
        make_pixel(rows=(0, 1, 2))


def test_batches_visit_every_clip_in_an_epoch():
    iterator = iter(make_latent())
    numbers = np.concatenate([batch["text"][:, 1] for batch in take(iterator, 10)])
    assert sorted(numbers[:5]) == sorted(numbers[5:10]) == list(range(5))
    assert numbers[:5].tolist() != numbers[5:10].tolist()  # in another order


def test_batch_shapes():
    batch = next(iter(make_latent()))
    assert batch["latents"].shape == (2, LATENTS, 4, 4, 2)
    assert batch["speak"].shape == (2, HISTORY + 4 * LATENTS, 3)
    assert batch["kind"].tolist() == [n % 4 for n in batch["text"][:, 1]]
    assert next(iter(make_pixel()))["video"].shape == (4, 5, 16, 16, 3)
