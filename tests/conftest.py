"""What all tests share: offline and quiet libraries, one thread, the folder of real data, a tiny checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

# How long an example takes depends on what else the machine does; pytest's own limit ends what hangs.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# For models this small a second thread costs more than it brings, ten times as much on a busy machine. It is set before
# torch is imported, and the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data sets, if this machine has them: $MMREASON_DATA, or `shared/data` beside the checkout."""
    folder = Path(os.environ.get("MMREASON_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set MMREASON_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random decoder with its tokenizer, as a checkpoint folder."""
    from mmreason.models.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))
