"""Distillation from end to end on a cache of random latents: every stage, its files, and the model that comes out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.schema import SAMPLES_PER_FRAME
from lpm_jax import pretrained, sharding
from lpm_jax.base.sampler import Guided, integrate
from lpm_jax.checkpoint import load_weights, save_weights
from lpm_jax.config import DistillConfig, StreamConfig
from lpm_jax.errors import InputError
from lpm_jax.flow import add_noise
from lpm_jax.models import conditions, dit
from lpm_jax.pipeline import Pipeline
from lpm_jax.planning import programs
from lpm_jax.training import abstract, distill, latents, ode, online, stages, trajectories
from lpm_jax.training.loop import run_stage
from tests import tiny
from tests.scaling import fake
from tests.training.clips import batch_of

STAGE = {
    "batch": 2, "latents": 6, "steps": 2, "warmup": 0, "log_every": 1, "save_every": 2, "validate_every": 2,
    "token_keep": 1.0, "optimizer": "adamw", "learning_rate": 1e-3,
}  # fmt: skip
CONFIG = dataclasses.replace(
    fake.config(),
    stream=StreamConfig(chunk=2, sink=1, window=1, refine=0.3),
    distill=DistillConfig(
        rollout=3, gradient=2, switch=0.5, perceptual=0.5, windows=4, generator_every=1, critic_learning_rate=1e-3,
        text_scale=2.0, audio_scale=1.5,
    ),
    stages={name: STAGE for name in stages.ORDER[3:]},
)  # fmt: skip


def weights(config, seed=0) -> dict:
    return tiny.fill(conditions.abstract(config), seed)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    folder = fake.workdir(tmp_path / "run")
    cache = fake.cache(tmp_path / "clips")
    monkeypatch.setattr(latents, "build", lambda *_: cache)
    samples = (4 * fake.LATENTS - 3) * SAMPLES_PER_FRAME
    sounds = [(32767 * tiny.sound(samples, seed)).astype(np.int16) for seed in range(2 * fake.CLIPS)]
    records = [{"speak": speak, "listen": listen} for speak, listen in zip(sounds[::2], sounds[1::2], strict=True)]
    monkeypatch.setattr(latents, "open_clips", lambda *_: records)
    for name, seed in (("base.identity", 0), ("online.causal", 1)):
        save_weights(folder / name / "weights", "model", weights(CONFIG, seed))
    return folder


@pytest.mark.slow
def test_the_whole_recipe(workdir, tmp_path):
    start = load_weights(workdir / "online.causal" / "weights", "model")
    for stage in online.STAGES:
        stages.run(stage, CONFIG.for_stage(stage), workdir)
        lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        last = {k: v for line in lines for k, v in line.items()}
        assert np.isfinite(last["loss"]) and "skipped" not in last
        if stage in distill.STAGES:
            assert last["student/apart"] >= 0 and np.isfinite(last["critic/x0"])
            assert ("student/perceptual" in last) == (stage == distill.OFF)
        assert (workdir / stage / "validation" / "000002" / "sheet.png").is_file()
        made = load_weights(workdir / stage / "weights", "model")
        pair = stage in (distill.REFINE, distill.STREAM_AUDIO)
        assert ("refiner" in made) == pair
        learned = made["refiner"] if stage == distill.REFINE else made["dit"]
        change = np.abs(learned["head"]["projection"]["kernel"] - start["dit"]["head"]["projection"]["kernel"]).max()
        assert change > 1e-4
        if stage == distill.REFINE:  # the Backbone is as it was
            for a, b in zip(jax.tree.leaves(made["dit"]), jax.tree.leaves(start["dit"]), strict=True):
                np.testing.assert_array_equal(a, b)
        start = made
    # The pair as a model that streams.
    params = {name: jnp.asarray(x) if not isinstance(x, dict) else x for name, x in start.items()}
    pretrained.save(tmp_path / "model", CONFIG, params | {"vae": tiny.params()["vae"]}, jnp.float32)
    assert (tmp_path / "model" / "refiner-00001-of-00001.safetensors").is_file()
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    chunks = list(pipe.stream(tiny.picture(), audio=tiny.sound(24_000), seed=0, num_inference_steps=3))
    assert sum(len(c.frames) for c in chunks) == 24
    plain = dataclasses.replace(CONFIG, stream=dataclasses.replace(CONFIG.stream, refine=0.0))
    rest = {name: x for name, x in pipe.params.items() if name != "refiner"}
    other = list(Pipeline(plain, rest).stream(tiny.picture(), audio=tiny.sound(24_000), seed=0))
    assert np.abs(other[0].frames.astype(int) - chunks[0].frames).max() > 1  # the Refiner does something


def test_motions_that_were_never_measured_are_measured_by_the_first_stage(workdir):
    """By a rollout too: from_model gives a model that lacks them zeros, with which no picture would ever move."""
    cache = latents.build()
    moves = np.random.default_rng(0).normal(size=(fake.CLIPS, fake.LATENTS, 4, *CONFIG.cells, 2))
    np.save(cache / "moves.npy", moves.astype(np.float32))
    config = CONFIG.for_stage(online.on_policy.ROLLOUT)
    assert config.dit.warp
    fresh = weights(CONFIG, 3)
    fresh["warp"] |= {"motions": np.zeros_like(fresh["warp"]["motions"])}
    save_weights(workdir / "seed" / "weights", "model", fresh)
    stage = online.make_stage(online.on_policy.ROLLOUT, "seed", config, workdir)
    want = latents.principal_motions(latents.LatentSource(cache), config.dit.warp)
    np.testing.assert_allclose(stage.params["warp"]["motions"], want, atol=1e-5)
    coder = load_weights(workdir / "vae" / "weights", "model")
    np.testing.assert_array_equal(stage.params["warp"]["basis"], coder["basis"])
    measured = weights(CONFIG, 1)["warp"]  # what was measured stays
    stage = online.make_stage(online.on_policy.ROLLOUT, "online.causal", config, workdir)
    np.testing.assert_array_equal(stage.params["warp"]["motions"], measured["motions"])


@pytest.mark.slow
def test_low_rank_changes_alone_are_trained_and_kept(workdir):
    config = dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, lora=2))
    stage = online.make_stage(distill.ON, "online.causal", config.for_stage(distill.ON), workdir)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(stage.params)} == {"a", "b"}
    made = run_stage(stage, config.for_stage(distill.ON), workdir)
    start = weights(config, 1)
    assert jax.tree.structure(made) == jax.tree.structure(start)
    heads = [x["dit"]["head"]["projection"]["kernel"] for x in (made, start)]
    np.testing.assert_array_equal(*heads)
    kernels = [x["dit"]["blocks"]["speak"]["ffn_in"]["kernel"] for x in (made, start)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-5


def test_a_run_goes_on_beside_the_networks_that_it_began_with(workdir):
    """They are in no checkpoint: another teacher's weights, or another base of low-rank changes, is another run."""
    config = dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, lora=2)).for_stage(distill.ON)

    def fingerprint() -> str:
        return online.make_stage(distill.ON, "online.causal", config, workdir).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    found = {first}
    for stage in ("base.identity", "online.causal"):
        save_weights(workdir / stage / "weights", "model", weights(CONFIG, 7))
        found.add(fingerprint())
    assert len(found) == 3


@pytest.mark.slow
def test_fresh_noise_stands_in_for_a_trajectory():
    """With a share of one nothing is read of the states; the loss is that of the sample with noise at their levels."""
    config = CONFIG.for_stage("online.ode")
    # With this key a chunk at T0 follows one at T1 in both clips: states are read as history alone.
    params, batch, key = weights(config), batch_of(config, 6), jax.random.key(7)
    size = (2, len(config.stream.levels), *batch["latents"].shape[1:])
    found = {}
    for share in (0.0, 1.0):
        own = dataclasses.replace(config, distill=dataclasses.replace(config.distill, fresh=share))
        loss = jax.jit(lambda states, own=own: ode.make_loss(own)(params, batch | {"states": states}, key)[0])
        noise = jax.random.split(key, 4)[2], jax.random.key(9)
        truth = dit.patchify(config.dit, batch["latents"].astype(jnp.float32))
        shape = truth.shape
        kept = jnp.asarray(config.stream.levels)[:, None, None, None]
        mixed = [(1 - kept) * truth[:, None] + kept * jax.random.normal(k, shape)[:, None] for k in noise]
        mixed = [dit.unpatchify(config.dit, x.reshape(-1, *shape[1:]), *config.cells).reshape(size) for x in mixed]
        found[share] = [float(loss(states)) for states in mixed]
    assert abs(found[0.0][0] - found[0.0][1]) > 3e-4 * found[0.0][0]
    assert found[1.0][0] == found[1.0][1] == pytest.approx(found[0.0][0], rel=1e-4)


@pytest.mark.slow
def test_trajectories_go_from_noise_to_the_sample():
    """Each kept state lies between the noise and the next ones as the flow says, and the end is the sampler's."""
    config = CONFIG.for_stage("online.ode")
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, steps=3, shift=1.0))
    grid = trajectories.grid(config)
    np.testing.assert_allclose(grid, [1, 2 / 3, 0.5, 1 / 3, 0], atol=1e-6)
    params, batch = weights(config), batch_of(config, 6)
    end, states = jax.jit(lambda p, b: trajectories.trajectory(config, p, b, jax.random.key(0)))(params, batch)
    assert end.shape == (2, 6, 4, 4, 8) and states.shape == (2, 2, 6, 4, 4, 8)
    noise = jax.random.normal(jax.random.key(0), (2, 6, 4, 32))
    denoise = Guided(distill.guided(config), params, distill.judge_window(config, batch), 6)
    np.testing.assert_allclose(dit.patchify(config.dit, states[:, 0]), noise, atol=1e-6)
    want = jax.jit(lambda n: integrate(denoise, n, grid, jnp.ones((2, 6))))(noise)
    np.testing.assert_allclose(dit.patchify(config.dit, end), want, atol=1e-4)
    half = jax.jit(lambda n: integrate(denoise, n, grid[:3], jnp.ones((2, 6))))(noise)
    np.testing.assert_allclose(dit.patchify(config.dit, states[:, 1]), half, atol=1e-4)
    assert float(jnp.std(add_noise(want, noise, jnp.full((2, 6), 0.5)))) > 0.3


@pytest.mark.parametrize(
    "stage, changes, message",
    [
        (distill.ON, {"distill": {"rollout": 7}}, "--distill.rollout: expected windows of up to 12 latent frames"),
        (distill.REFINE, {"stream": {"refine": 0.0}}, "--stream.refine: expected T2"),
        (distill.STREAM_AUDIO, {"train": {"voices": 0.5}}, "--train.voices: expected 0, for samples are heard as they"),
        (online.ODE, {"train": {"latents": 7}}, "--train.latents: expected whole chunks of 2, found 7"),
    ],
)
def test_settings_that_do_not_fit_are_named(stage, changes, message):
    config = CONFIG.for_stage(stage)
    for part, values in changes.items():
        config = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})
    with pytest.raises(InputError, match=message):
        online.check(config, stage, 12)


def test_a_missing_teacher_is_named(workdir):
    config = dataclasses.replace(CONFIG, distill=dataclasses.replace(CONFIG.distill, teacher="base.speak"))
    with pytest.raises(InputError, match="expected the finished weights of base.speak, found none"):
        online.make_stage(distill.ON, "online.causal", config.for_stage(distill.ON), workdir)


def test_distill_settings():
    for wrong in ({"low": 0.9, "high": 0.1}, {"rollout": 2, "gradient": 3}, {"generator_every": 0}, {"windows": 0}):
        with pytest.raises(InputError, match=r"distill\."):
            DistillConfig(**wrong)


@pytest.mark.parametrize("rank", [0, 2])
def test_networks_that_stay_are_as_light_as_the_computation(rank):
    """In a run as in a plan; what is measured of latents, and the autoencoder, stay in float32."""
    config = CONFIG.for_stage(distill.OFF)
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, dtype="bfloat16"),
        distill=dataclasses.replace(config.distill, lora=rank),
    )
    for params in (weights(config), conditions.abstract(config)):
        resting = online.Players(distill.OFF, config, params, params, tiny.params()["vae"]).resting()
        for name in ("teacher", *["student"] * bool(rank)):
            dtypes = {part: {x.dtype for x in jax.tree.leaves(tree)} for part, tree in resting[name].items()}
            assert dtypes.pop("prior") == dtypes.pop("warp") == {jnp.dtype("float32")}
            assert all(found == {jnp.dtype("bfloat16")} for found in dtypes.values())
        assert {x.dtype for x in jax.tree.leaves(resting["vae"])} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("stage", online.STAGES)
def test_a_step_can_be_traced_from_shapes_alone(stage):
    """What a plan compiles."""
    config = CONFIG.for_stage(stage)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    step, arguments = abstract.train_program(config, stage, mesh)
    assert len(arguments) == (4 if stage in distill.STAGES else 3)
    assert "while" in step.lower(*arguments).as_text() or stage in (online.ODE, distill.OFF)


def test_operations_follow_the_rollout():
    """Student and critic each roll out: a longer rollout costs both the mean of what it adds; terms of guidance cost a
    pass over the window each."""
    config = CONFIG.for_stage(distill.ON)
    more = dataclasses.replace(config, distill=dataclasses.replace(config.distill, rollout=5))
    chunk = config.train.batch * programs.pass_flops(config, programs.CHUNK)
    count = programs.model_flops(config, distill.ON)
    assert programs.model_flops(more, distill.ON) - count == pytest.approx(2 * chunk * 2 * 1, rel=1e-6)
    plain = dataclasses.replace(config.distill, text_scale=1.0, audio_scale=1.0)
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, latents=4))
    window = programs.pass_flops(short, "base.identity")
    cheaper = programs.model_flops(dataclasses.replace(config, distill=plain), distill.ON)
    assert count - cheaper == pytest.approx(2 * window, rel=1e-6)
    # Regressed, a rollout has one network: two evaluations a chunk, three times as dear where gradients reach.
    count, grown = (programs.model_flops(x, programs.ROLLOUT) for x in (config, more))
    assert grown - count == pytest.approx(chunk * 2 * 1, rel=1e-6)
    assert count == pytest.approx(chunk * 2 * (0.5 + 3 * 2), rel=1e-6)
    # With a Refiner a third one, and its clean history's pass, which no gradient reaches.
    paired = programs.model_flops(config, programs.STREAM_AUDIO)
    assert paired - count == pytest.approx(chunk * ((0.5 + 3 * 2) + (0.5 + 2)), rel=1e-6)
    # A loop of unknown length counts as long as such a rollout's part without gradients is on average.
    assert [programs.turns(more, stage) for stage in (distill.ON, programs.ROLLOUT, distill.OFF)] == [2, 2, 1]
