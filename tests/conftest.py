import pytest
import torch


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """torch.empty and its kin hand out NaN, so that an element that a kernel never writes is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
