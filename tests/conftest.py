from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# machines differ and tests share them: an example that takes its time is no failure
settings.register_profile("cxu", deadline=None)
settings.load_profile("cxu")

# a shell that starts tests in the background lets them ignore Ctrl-C, and so all that they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and rows that may not be committed."""
    if not _SHARED.is_dir():
        pytest.skip("needs the real images and rows in ../shared/data, which may not be committed")
    return _SHARED


@pytest.fixture(autouse=True, scope="session")
def _no_home_of_the_user():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CXU_HOME", raising=False)
        yield


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
