"""Pictures from outside: odd ones work, bad ones are one line, and cuts keep the face."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lpm_jax.errors import InputError
from lpm_jax.pictures import BUCKETS, bucket, load_image, read_references, reference_kind
from tests.test_media import fails


def face(width: int, height: int) -> Image.Image:
    """Red left, green right, blue below the upper half."""
    x = np.zeros((height, width, 3), np.uint8)
    x[:, : width // 2, 0] = x[:, width // 2 :, 1] = 255
    x[height // 2 :, :, 2] = 255
    return Image.fromarray(x)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tiff"])
def test_picture_formats(tmp_path, name):
    face(200, 200).save(tmp_path / name)
    x = load_image(tmp_path / name)
    assert x.shape == (128, 128, 3) and x.dtype == np.uint8
    assert x[10, 10, 0] > 200 and x[10, 118, 1] > 200 and x[118, 10, 2] > 200


def test_large_picture(tmp_path):
    face(4000, 3000).save(tmp_path / "big.jpg", quality=90)
    x = load_image(tmp_path / "big.jpg", 128)
    assert x.shape == (128, 128, 3) and x[10, 10, 0] > 200 and x[10, 118, 1] > 200
    stripes = np.zeros((3000, 4000, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: grey, not moiré
    y = load_image(stripes)
    assert abs(float(y.mean()) - 127.5) < 3 and y.std() < 4


def test_crop_keeps_the_top_of_portraits():
    x = np.zeros((900, 300, 3), np.uint8)
    x[150:450] = 255  # centred a third from the top
    assert load_image(x).min() == 255
    wide = np.zeros((300, 900, 3), np.uint8)
    wide[:, 300:600] = 255
    assert load_image(wide).min() == 255


def test_alpha_over_grey_and_other_modes(tmp_path):
    Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (load_image(tmp_path / "clear.png") == 128).all()
    half = np.full((64, 64, 4), (255, 0, 0, 255), np.uint8)
    half[:, 32:, 3] = 0
    Image.fromarray(half).convert("RGBA").save(tmp_path / "half.png")
    x = load_image(tmp_path / "half.png", 64)
    assert tuple(x[5, 5]) == (255, 0, 0) and tuple(x[5, 60]) == (128, 128, 128)
    for mode in ("L", "LA", "P", "1", "CMYK"):
        image = face(64, 64).convert(mode)
        assert load_image(image).shape == (128, 128, 3)
    Image.fromarray(np.full((64, 64), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert abs(int(load_image(tmp_path / "deep.png").mean()) - 127) <= 1
    assert load_image(np.asarray(face(64, 64).convert("L"))).shape == (128, 128, 3)


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show
    face(200, 200).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    x = load_image(tmp_path / "turned.jpg").astype(int)
    assert x[10, 118, 0] > 200 and x[10, 118, 1] < 60  # the red upper-left corner is now upper right
    assert x[118, 118, 1] > 200 and x[10, 10, 2] > 200


def test_bad_pictures(tmp_path):
    (tmp_path / "text.png").write_text("not a picture\n")
    fails(lambda: load_image(tmp_path / "text.png"), "text.png", "picture")
    (tmp_path / "empty.png").write_bytes(b"")
    fails(lambda: load_image(tmp_path / "empty.png"), "empty.png", "0 bytes")
    fails(lambda: load_image(tmp_path / "none.png"), "none.png", "nothing there")
    fails(lambda: load_image(tmp_path), "directory")
    face(300, 20).save(tmp_path / "strip.png")
    fails(lambda: load_image(tmp_path / "strip.png"), "no face-sized image", "300x20")
    face(1, 1).save(tmp_path / "dot.png")
    fails(lambda: load_image(tmp_path / "dot.png"), "no face-sized image", "1x1")
    fails(lambda: load_image(np.zeros((128, 128, 3), np.float32)), "uint8")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    fails(lambda: load_image(tmp_path / "cut.png"), "cut.png", "damaged")
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(tmp_path / "bomb.png")
    fails(lambda: load_image(tmp_path / "bomb.png"), "pixels")
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    fails(lambda: load_image(tmp_path / "script.png"), "another kind of file")  # nothing that would be executed


def test_other_shapes_keep_the_top_and_the_middle():
    x = np.zeros((900, 300, 3), np.uint8)
    x[200:400] = 255  # where the face of a portrait is
    cut = load_image(x, (64, 96))
    assert cut.shape == (64, 96, 3) and cut.min() == 255  # 300 x 200 around row 300
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, 150:250] = 255
    assert load_image(wide, (96, 64)).min() == 255
    assert load_image(wide, (96, 384)).shape == (96, 384, 3)


def test_buckets_follow_the_picture(tmp_path):
    shapes = {(1280, 720): 0, (600, 900): 1, (500, 520): 2, (600, 480): 2, (1600, 900): 0}
    for resolution, sizes in BUCKETS.items():
        for (width, height), index in shapes.items():
            assert bucket(np.zeros((height, width, 3), np.uint8), resolution) == sizes[index], (width, height)
        assert all(h % 16 == w % 16 == 0 for h, w in sizes)
        areas = [h * w for h, w in sizes]
        assert max(areas) < 1.03 * min(areas)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (900, 600)).save(tmp_path / "turned.jpg", exif=exif)
    assert bucket(tmp_path / "turned.jpg", "480p") == (832, 480)
    assert bucket(tmp_path / "nowhere.png", "128x96") == (96, 128)
    for bad in ("360p", "x", "128x", "0x16", "ax16", "-16x16"):
        fails(lambda bad=bad: bucket(np.zeros((64, 64, 3), np.uint8), bad), "resolution", "480p", repr(bad))
    fails(lambda: bucket(tmp_path / "nowhere.png", "480p"), "nowhere.png", "nothing there")


def test_reference_kinds():
    assert reference_kind("view/front") == 2 and reference_kind("expression/neutral") == 6
    assert read_references(["view/left=a.png", "expression/sad=b=c.png"]) == {
        "view/left": "a.png", "expression/sad": "b=c.png"
    }  # fmt: skip
    for bad in (["global=a.png"], ["view/left"], ["view/left="], ["view/left=a", "view/left=b"]):
        fails(lambda bad=bad: read_references(bad), "--reference")
    with pytest.raises(InputError, match="expected one of view/front"):
        reference_kind("global")
