import signal

import pytest
import torch

from tests.backends import GPU


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """torch.empty and its kin hand out NaN, so that an element that a kernel never writes is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a script runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "gpu: a test that runs on a GPU, or on whatever device stands in for one")


def pytest_collection_modifyitems(items):
    for item in items:
        if (
            item.get_closest_marker("gpu") is None
            and hasattr(item, "callspec")
            and item.callspec.params.get("backend") in GPU
        ):
            item.add_marker(pytest.mark.gpu)
