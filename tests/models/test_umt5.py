"""The umT5 encoder equals transformers'; its tokenizer cleans, cuts, ends and pads as Wan's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from lpm_jax.errors import InputError
from lpm_jax.models import umt5
from lpm_jax.models.umt5 import Tokenizer, UMT5Config
from tests.golden import tensors

CASES = ["umt5_short_buckets", "umt5_xxl_buckets"]


def load(name: str, dtype=jnp.float32):
    theirs, weights, rest = tensors.read(name)
    config = UMT5Config(
        vocabulary=theirs["vocab_size"],
        width=theirs["d_model"],
        head_dim=theirs["d_kv"],
        ffn=theirs["d_ff"],
        layers=theirs["num_layers"],
        heads=theirs["num_heads"],
        buckets=theirs["relative_attention_num_buckets"],
        max_distance=theirs["relative_attention_max_distance"],
    )
    params, used = tensors.gather(umt5.names(config), umt5.abstract(config, dtype), weights)
    assert used == set(weights)
    return config, params, rest


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype, most", [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
def test_equals_transformers(name, dtype, most, record_property):
    config, params, golden = load(name, dtype)
    ours = umt5.encode(config, params, golden["ids"], golden["mask"])
    assert ours.dtype == dtype
    error = tensors.error(ours, golden["output"])
    record_property("error", error)
    assert error <= most
    np.testing.assert_array_equal(np.asarray(ours)[~golden["mask"]], 0)


@pytest.mark.parametrize("name", CASES)
def test_buckets_equal_transformers(name):
    config, _, golden = load(name)
    n = 701
    ours = umt5.relative_buckets(config, n)
    column = np.concatenate([ours[:, 0][:0:-1], ours[0]])  # distances -700 .. 700
    np.testing.assert_array_equal(golden["distances"], np.arange(-700, 701))
    np.testing.assert_array_equal(column, golden["buckets"])
    np.testing.assert_array_equal(ours[5, 2:9], column[700 - 3 : 700 + 4])


def test_padding_changes_nothing():
    config, params, golden = load(CASES[0])
    whole = umt5.encode(config, params, golden["ids"], golden["mask"])
    other = np.where(golden["mask"], golden["ids"], 7)
    np.testing.assert_array_equal(umt5.encode(config, params, other, golden["mask"]), whole)
    short = umt5.encode(config, params, golden["ids"][1:2, :21], golden["mask"][1:2, :21])
    np.testing.assert_allclose(short[0], whole[1, :21], atol=2e-5)


def test_fresh_parameters_have_the_abstract_shapes():
    config = UMT5Config(vocabulary=50, width=12, head_dim=4, ffn=20, layers=2, heads=2, tokens=8)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), umt5.abstract(config, jnp.bfloat16))
    params = umt5.init(config, jax.random.key(0), jnp.bfloat16)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
    layers = np.asarray(umt5.init(config, jax.random.key(0))["layers"]["out"]["kernel"])
    assert layers.std() == pytest.approx(20**-0.5, rel=0.2) and (layers[0] != layers[1]).all()


def test_the_defaults_are_umt5_xxl():
    shapes = jax.tree.leaves(umt5.abstract(UMT5Config()))
    # 256,384 x 4,096 words; 24 layers of 4 x 4,096^2 + 3 x 4,096 x 10,240 + 32 x 64 + 2 x 4,096; one norm.
    assert sum(np.prod(x.shape, dtype=np.int64) for x in shapes) == 5_680_910_336
    keys, permutation = umt5.names(UMT5Config())["layers/relative/bias"]
    assert keys[0] == "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
    assert permutation == (0, 1)


# ---- tokenizer: a tiny Unigram model in the file format of the real one

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁smile", "s", "▁nod", "▁&", "▁and", "a", "n", "d", "o"]


def write_tokenizer(path, pieces=PIECES):
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=pieces.index("<unk>"))
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = [piece for piece in pieces if piece.startswith("<")]
    tokenizer.add_special_tokens(marks)
    if "</s>" in pieces:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", pieces.index("</s>"))]
        )
    tokenizer.enable_padding(length=3)  # published files hold such settings; they must not count
    tokenizer.enable_truncation(2)
    tokenizer.save(str(path))
    return path


def ids_of(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def test_ids_end_and_padding(tmp_path):
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "tokenizer.json"), tokens=8)
    ids, mask = tokenizer(["smiles and nods", ""])
    assert ids.dtype == np.int32
    assert ids[0].tolist() == ids_of("▁smile", "s", "▁and", "▁nod", "s", "</s>") + [0, 0]
    assert mask[0].tolist() == [True] * 6 + [False] * 2
    assert ids[1].tolist() == [1] + [0] * 7 and mask[1].tolist() == [True] + [False] * 7


def test_long_text_is_cut_and_still_ends(tmp_path):
    write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path, tokens=4)  # the directory will do
    ids, mask = tokenizer(["smiles and nods and nods"])
    assert ids[0].tolist() == ids_of("▁smile", "s", "▁and", "</s>") and mask.all()


def test_text_is_cleaned(tmp_path):
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "tokenizer.json"), tokens=8)
    messy, _ = tokenizer(["  smiles\n\t&amp;amp;  nods "])
    assert messy[0].tolist() == ids_of("▁smile", "s", "▁&", "▁nod", "s", "</s>") + [0, 0]
    assert umt5.clean("\u00a0a\u3000 b\n") == "a b"


def test_bad_files_are_one_line(tmp_path):
    with pytest.raises(InputError, match="none.json: expected a tokenizer.json, found no file"):
        Tokenizer(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"version":\n "1.0"')
    with pytest.raises(InputError, match="broken.json: expected a tokenizer.json, found ") as broken:
        Tokenizer(tmp_path / "broken.json")
    assert "\n" not in str(broken.value)
    path = write_tokenizer(tmp_path / "endless.json", [piece for piece in PIECES if piece != "</s>"])
    with pytest.raises(InputError, match="endless.json: expected a vocabulary with </s>, found none"):
        Tokenizer(path)
