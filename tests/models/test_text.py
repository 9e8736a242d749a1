"""The word encoder: stable ids, padding that does not count, two words of context."""

import jax
import jax.numpy as jnp
import numpy as np

from lpm_jax.config import TextConfig
from lpm_jax.models.text import START, TextEncoder, tokenize
from tests import tiny

CFG = TextConfig(vocabulary=64, tokens=8, width=16)


def test_ids_are_stable():
    # CRC-32 of the words: a model trained today reads tomorrow's prompts alike.
    assert tokenize(TextConfig(), "Smiles, nods").tolist()[:4] == [1, 2 + 0x8BB35899 % 2046, 2 + 0x71AB5D14 % 2046, 0]


def test_case_and_punctuation_do_not_matter():
    np.testing.assert_array_equal(tokenize(CFG, "Looks LEFT!"), tokenize(CFG, "looks   left"))
    assert tokenize(CFG, "looks left").tolist() != tokenize(CFG, "left looks").tolist()
    assert tokenize(CFG, "don't").tolist() != tokenize(CFG, "don t").tolist()


def test_length_is_fixed():
    for prompt in ("", "smiles", "one two three four five six seven eight nine ten"):
        ids = tokenize(CFG, prompt)
        assert ids.shape == (8,) and ids.dtype == np.int32
    assert tokenize(CFG, "").tolist() == [START] + [0] * 7
    words = "one two three four five six seven"
    np.testing.assert_array_equal(tokenize(CFG, words + " eight nine"), tokenize(CFG, words))


def test_ids_fit_the_table():
    ids = np.concatenate([tokenize(CFG, f"word{i} wörter{i}") for i in range(200)])
    words = ids[(ids != 0) & (ids != START)]
    assert words.min() >= 2 and words.max() < CFG.vocabulary


def test_a_word_knows_the_two_before_it_and_no_other():
    ids = jnp.asarray(tokenize(CFG, "a b c d e f"))[None]
    encoder = TextEncoder(CFG)
    weights = tiny.fill(jax.eval_shape(lambda: encoder.init(jax.random.key(0), ids)))
    whole, mask = encoder.apply(weights, ids)
    assert mask.tolist() == [[True] * 7 + [False]]
    changed, _ = encoder.apply(weights, ids.at[0, 2].set(7))
    same = [not tiny.differs(changed[0, i], whole[0, i], 1e-6) for i in range(8)]
    assert same == [True, True, False, False, False, True, True, True]
