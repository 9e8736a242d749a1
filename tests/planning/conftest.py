"""Programs compiled for eight simulated devices, in a process of its own."""

from __future__ import annotations

import pytest

from tests.planning.eight import run_on_eight


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> dict[str, str]:
    """Name to optimised HLO of each of ``eight_devices.PROGRAMS``."""
    folder = tmp_path_factory.mktemp("hlo")
    run_on_eight("tests.planning.eight_devices", str(folder))
    return {path.stem: path.read_text() for path in folder.glob("*.hlo")}
