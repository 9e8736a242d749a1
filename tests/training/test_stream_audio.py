"""``online.stream_audio``: rollouts hear samples exactly as a stream does, and Backbone and Refiner learn together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.loader import RegionWeights, Window
from lpm_jax.checkpoint import save_weights
from lpm_jax.config import DistillConfig, StreamConfig
from lpm_jax.models import conditions
from lpm_jax.models.audio import FFT, STRIDE, TOKEN, log_mel
from lpm_jax.streaming import generator
from lpm_jax.training import latents, on_policy, online, rollout
from tests import tiny
from tests.scaling import fake
from tests.training.clips import batch_of

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    dit=dataclasses.replace(tiny.CONFIG.dit, depth=2),
    stream=StreamConfig(chunk=1, sink=1, window=1, refine=0.25),
    distill=DistillConfig(rollout=3, gradient=2),
)
CHUNKS = 3


def with_sound(config, chunks: int = CHUNKS) -> dict:
    """A batch of windows with samples, whose features are of other sound."""
    count = generator.history_samples(config) + chunks * generator.chunk_samples(config)
    sound = {
        f"{name}_sound": jnp.asarray([(32767 * tiny.sound(count, seed + i)).astype(np.int16) for i in range(2)])
        for name, seed in (("speak", 0), ("listen", 10))
    }
    return batch_of(config, chunks * config.stream.chunk) | sound


def tokens(told) -> list[np.ndarray]:
    return [np.asarray(getattr(told, name).tokens, np.float32) for name in ("speak", "listen")]


@pytest.mark.parametrize(
    "config", [CONFIG, pytest.param(tiny.LARGE, marks=pytest.mark.slow)], ids=["log-mel", "wav2vec"]
)
def test_a_rollout_hears_what_a_stream_hears(config):
    """Chunk after chunk, the same tokens as a stream's that is given the same samples."""
    params, batch = tiny.params(config), with_sound(config)
    player = rollout.Player(config, batch)
    state = player.start(params, jax.random.key(0))
    before, size = generator.history_samples(config), generator.chunk_samples(config)
    sound = {name: batch[f"{name}_sound"].astype(jnp.float32) / 32768 for name in ("speak", "listen")}
    state = state._replace(**{name: x[:, :before] for name, x in sound.items()})
    heard = jax.jit(generator.hear, static_argnums=0)
    told = jax.jit(player.told)
    for n in range(CHUNKS):
        new = {name: x[:, before + n * size : before + (n + 1) * size] for name, x in sound.items()}
        state, want = heard(config, params, state, new["speak"], new["listen"])
        for a, b in zip(tokens(told(params, n)), tokens(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_an_encoder_that_looks_around_hears_something_else_in_a_whole_clip():
    """Why there is such a stage: of wav2vec the same tokens are others through a window, of log-mel they are not."""
    for config, same in ((CONFIG, True), (tiny.LARGE, False)):
        params, batch = tiny.params(config), with_sound(config)
        encoder = conditions.audio_features(config.audio)
        whole = encoder(params.get("audio", {}), batch["speak_sound"].astype(jnp.float32) / 32768)
        other = batch_of(config, CHUNKS * config.stream.chunk) | {"speak": whole, "listen": whole}
        last = CHUNKS - 1
        (a, _), (b, _) = (tokens(rollout.Player(config, x).told(params, last)) for x in (batch, other))
        assert tiny.differs(a, b, 1e-4) != same


def test_windows_carry_the_samples_of_their_frames(tmp_path):
    """Log-mel of a window's samples is the window's log-mel, from the cache's clip and the data set's record."""
    rng = np.random.default_rng(0)
    frames = 4 * fake.LATENTS - 3
    sounds = rng.integers(-9000, 9000, (fake.CLIPS, 2, frames * TOKEN)).astype(np.int16)
    folder = fake.cache(tmp_path / "clips")
    padded = np.pad(sounds.astype(np.float32) / 32768, ((0, 0), (0, 0), (FFT, 0)))
    mel = log_mel(CONFIG.audio, padded, np).astype(np.float16)
    for i, name in enumerate(("speak", "listen")):
        np.save(folder / f"{name}.npy", mel[:, i])
    records = [{"speak": list(speak), "listen": list(listen)} for speak, listen in sounds]
    source = latents.WithSound(latents.LatentSource(folder, ("idle",)), records)
    assert len(source) == 3 and repr(source) == "WithSound(LatentSource(clips, 3))"
    history = conditions.history_tokens(CONFIG.audio)
    before = generator.history_samples(CONFIG)
    window = Window(3, history, RegionWeights(), first_frame=1.0, extra=0.0, sound=before)
    starts = set()
    for seed in range(6):
        out = window.random_map(source[seed % 3], np.random.default_rng(seed))
        for name in ("speak", "listen"):
            sound = out[f"{name}_sound"]
            assert sound.dtype == np.int16 and len(sound) == before + 3 * STRIDE * TOKEN
            found = log_mel(CONFIG.audio, sound.astype(np.float32) / 32768, np)
            silent = int((sound[FFT:] == 0).reshape(-1, TOKEN).all(1).sum())  # before the clip begins
            np.testing.assert_allclose(found[silent:], out[name][silent:], atol=2e-3)
            starts.add(silent)
    assert len(starts) > 1


@pytest.mark.slow
def test_the_loss_is_that_of_a_rollout_that_hears_the_samples():
    """With log-mel the tokens are a clip's own, so the loss is online.rollout's; features beside them are not heard."""
    config = rollout.backbone_only(CONFIG)
    params, batch = tiny.params(CONFIG), with_sound(CONFIG)
    loss = jax.jit(on_policy.make_loss(config))
    sound = {name: batch[f"{name}_sound"].astype(jnp.float32) / 32768 for name in ("speak", "listen")}
    own = {name: conditions.audio_features(config.audio)({}, x) for name, x in sound.items()}
    features = {name: x for name, x in batch.items() if not name.endswith("_sound")}
    key = jax.random.key(3)
    value, plain, other = (float(loss(params, x, key)[0]) for x in (batch, features | own, features))
    assert value == pytest.approx(plain, rel=1e-4)
    assert abs(value - other) > 1e-3 * value


def test_a_pair_starts_from_a_pair_or_from_the_backbone_twice(tmp_path):
    weights = {name: x for name, x in tiny.params(CONFIG).items() if name not in ("vae", "refiner")}
    save_weights(tmp_path / "online.rollout" / "weights", "model", weights)
    save_weights(tmp_path / "online.refine" / "weights", "model", weights | {"refiner": tiny.params(CONFIG, 1)["dit"]})
    for stage, seed in (("online.rollout", 0), ("online.refine", 1)):
        found = online.starting_pair(CONFIG, tmp_path, stage)
        for name, tree in (("dit", weights["dit"]), ("refiner", tiny.params(CONFIG, seed)["dit"])):
            for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(tree), strict=True):
                np.testing.assert_array_equal(a, b)
    assert "refiner" not in online.starting_pair(rollout.backbone_only(CONFIG), tmp_path, "online.rollout")


@pytest.mark.slow
def test_backbone_and_refiner_learn_side_by_side():
    """The Backbone's gradients, and those of what encodes sound and text, are its own stage's; the Refiner's are of its
    result alone."""
    params = {name: x for name, x in tiny.params(CONFIG).items() if name != "vae"}
    params["refiner"] = jax.tree.map(lambda x: 0.9 * x, params["dit"])
    batch, key = batch_of(CONFIG, CHUNKS), jax.random.key(1)
    alone = rollout.backbone_only(CONFIG)
    pair, metrics = jax.jit(jax.grad(on_policy.make_loss(CONFIG), has_aux=True))(params, batch, key)
    own, _ = jax.jit(jax.grad(on_policy.make_loss(alone), has_aux=True))(params, batch, key)
    names = ("dit", "speak", "listen", "text")
    for a, b in zip(*(jax.tree.leaves([x[name] for name in names]) for x in (pair, own)), strict=True):
        np.testing.assert_allclose(3 * a, 2 * b, rtol=1e-3, atol=1e-5 * float(jnp.abs(b).max() + 1e-6))
    assert {"x0_at_1", "x0_at_0.5", "x0_refined"} <= set(metrics)
    k_warm, k_roll = jax.random.split(key)
    warm = jax.random.randint(k_warm, (), 0, 2)
    made = jax.jit(
        lambda refiner: rollout.roll(
            rollout.Player(CONFIG, batch), params | {"refiner": refiner}, warm, 2, jnp.full(2, 2), k_roll
        )
    )

    def mean_square(refiner):
        window = rollout.cut(CONFIG, batch, warm, 2)
        truth = rollout.dit.patchify(CONFIG.dit, window["latents"].astype(jnp.float32))
        channels = jnp.tile(params["prior"]["weight"], truth.shape[-1] // CONFIG.dit.channels)
        return jnp.mean(jnp.square(made(refiner) - truth) * channels)

    assert float(metrics["x0_refined"]) == pytest.approx(float(mean_square(params["refiner"])), rel=1e-3)
    step = jax.tree.map(lambda p, g: p - 1e-3 * g / (jnp.linalg.norm(g) + 1e-9), params["refiner"], pair["refiner"])
    assert float(mean_square(step)) < float(mean_square(params["refiner"]))
