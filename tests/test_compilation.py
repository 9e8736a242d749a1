"""Programs kept from one start to the next."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import jax, jax.numpy as jnp
from lpm_jax.compilation import keep_programs
print(keep_programs())
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).block_until_ready()
"""


def run(**environment) -> str:
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin", "HOME": "/nonexistent", "PYTHONPATH": root, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_programs_are_kept_for_the_user_alone(tmp_path):
    folder = tmp_path / "lpm_jax" / "xla"
    assert run(XDG_CACHE_HOME=str(tmp_path)) == str(folder)
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("jit__lambda*-cache")}
    assert kept and folder.stat().st_mode & 0o077 == 0
    run(XDG_CACHE_HOME=str(tmp_path))  # found again, not written again
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("jit__lambda*-cache")} == kept


def test_the_users_own_folder_stays(tmp_path):
    own = tmp_path / "own"
    assert run(JAX_COMPILATION_CACHE_DIR=str(own), XDG_CACHE_HOME=str(tmp_path)) == str(own)
    assert not (tmp_path / "lpm_jax").exists()


def test_nowhere_to_keep_them_is_no_error():
    assert run(XDG_CACHE_HOME="/proc/nowhere") == "None"
