"""What the kernels for short lines cost, read from what nvcc made of them; no GPU is needed."""

import pytest

from bench import sass
from loupe_ext import _C

pytestmark = pytest.mark.skipif(sass.cuobjdump() is None, reason="cuobjdump was not found")


def check(kernels: dict[str, dict[str, int]]) -> None:
    for name, use in kernels.items():
        assert use["STACK"] == use["LOCAL"] == 0, f"{name}: expected everything in registers, got {use}"


@pytest.mark.skipif(not hasattr(_C, "pairwise_cuda"), reason="built without CUDA")
def test_no_kernel_of_the_build_spills():
    check({k: v for k, v in sass.resources(_C.__file__).items() if "pairwise" in k})


@pytest.mark.skipif(sass.nvcc() is None, reason="nvcc was not found")
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_longest_lines_fit_a_threads_registers(arch):
    (use,) = sass.resources(sass.cubin(sass.KERNEL.format("float", 64, "false"), arch)).values()
    check({f"sm_{arch}": use})
    assert 64 < use["REG"] <= 168  # three blocks of 128 threads to a multiprocessor


def test_a_spill_is_seen():
    with pytest.raises(AssertionError, match="expected everything in registers"):
        check({"planted": {"REG": 255, "STACK": 8, "LOCAL": 0}})


def test_opcodes_are_counted_by_unit():
    counts = sass.by_unit(sass.collections.Counter({"FMNMX": 4, "FFMA": 3, "STS": 2, "BAR": 1}))
    assert counts == {"all": 10, "compare": 4, "float": 3, "memory": 2, "other": 1}
