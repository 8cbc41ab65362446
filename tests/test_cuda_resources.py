"""What the kernels for short lines cost, read from what nvcc made of them; no GPU is needed."""

import re

import pytest

from bench import sass
from loupe_ext import _C

pytestmark = pytest.mark.skipif(sass.cuobjdump() is None, reason="cuobjdump was not found")

REGISTERS = {16: 128, 32: 168, 64: 255}  # at most, by the longest line: room for four, three or two blocks


def check(kernels: dict[str, dict[str, int]]) -> None:
    for name, use in kernels.items():
        assert use["STACK"] == use["LOCAL"] == 0, f"{name}: expected everything in registers, got {use}"
        longest = int(re.search(r"pairwise_short_kernel\w*?Li(\d+)E", name)[1])
        assert use["REG"] <= REGISTERS[longest], f"{name}: expected at most {REGISTERS[longest]} registers, got {use}"


@pytest.mark.skipif(not _C.has_cuda, reason="built without CUDA")
def test_no_kernel_for_short_lines_spills():
    kernels = {name: use for name, use in sass.resources(_C.__file__).items() if "pairwise_short_kernel" in name}
    assert kernels
    assert len(kernels) % 18 == 0  # three types, three lengths, forward and backward, for each architecture
    check(kernels)


@pytest.mark.skipif(not _C.has_cuda, reason="built without CUDA")
def test_kernels_for_short_lines_of_sides_spill_no_more_than_what_a_loop_keeps():
    kernels = {name: use for name, use in sass.resources(_C.__file__).items() if "sides_short_kernel" in name}
    assert kernels
    assert len(kernels) % 6 == 0  # three lengths, forward and backward, for each architecture
    for name, use in kernels.items():
        longest = int(re.search(r"sides_short_kernel\w*?Li(\d+)E", name)[1])
        assert use["REG"] <= REGISTERS[longest], f"{name}: expected at most {REGISTERS[longest]} registers, got {use}"
        assert use["STACK"] <= 128, f"{name}: expected at most 128 bytes of stack, got {use}"
        assert use["LOCAL"] == 0, f"{name}: expected no local memory, got {use}"


@pytest.mark.skipif(not _C.has_cuda, reason="built without CUDA")
def test_kernels_over_longer_lines_keep_them_in_registers():
    found = {}
    for name, use in sass.resources(_C.__file__).items():
        if kind := re.search(r"(pairwise|sides|credit)_kernelI([fd]Li\d+)E", name):
            found[name] = use, {"fLi64": 128, "dLi64": 128, "fLi1024": 168}.get(kind[2], 255)
    assert found
    assert len(found) % 24 == 0  # forward and backward, for each architecture
    for name, (use, most) in found.items():
        assert use["REG"] <= most, f"{name}: expected at most {most} registers, got {use}"
        assert use["LOCAL"] == 0, f"{name}: expected no local memory, got {use}"
        assert use["STACK"] <= 512, f"{name}: expected few spills, got {use}"


@pytest.mark.skipif(sass.nvcc() is None, reason="nvcc was not found")
@pytest.mark.parametrize("line", ["RegisterLine<32, 8, float>", "RegisterLine<32, 8, double>", "MergedLine<9, float>"])
def test_no_comparator_of_a_long_line_branches(line):
    text = f"""
    __global__ void sort_line(const decltype({line}::key[0].x)* from, {line}* to) {{
      {line} line = to[threadIdx.x];
      for (int t = 0; t < {line}::items; ++t) line.key[t] = {{from[threadIdx.x * {line}::items + t], t}};
      line.sort(threadIdx.x);
      to[threadIdx.x] = line;
    }}
    """
    ((_, counts),) = sass.instructions(sass.cubin(text, 90)).items()
    assert counts["SHFL"] or counts["LDS"] or counts["LD"]  # it is the sort
    assert counts["BSSY"] <= 2, f"expected no divergent branches but the search's, got {counts}"


@pytest.mark.skipif(not _C.has_cuda, reason="built without CUDA")
@pytest.mark.parametrize(
    ("kernel", "registers", "stack"),
    [
        ("(coalitions|permutations)_kernel", 64, 0),  # the words of a draw are not in local memory
        ("moments.*(parts|total|backward)_kernel", 168, 0),  # three blocks on a multiprocessor, as the next two
        ("region_kernelIf", 168, 64),
        ("region_kernelId", 168, 192),
        ("maxima_kernel", 64, 0),
    ],
)
def test_other_kernels_leave_room_for_several_blocks(kernel, registers, stack):
    found = {name: use for name, use in sass.resources(_C.__file__).items() if re.search(kernel, name)}
    assert found
    for name, use in found.items():
        assert use["REG"] <= registers, f"{name}: expected at most {registers} registers, got {use}"
        assert use["STACK"] <= stack, f"{name}: expected at most {stack} bytes of stack, got {use}"
        assert use["LOCAL"] == 0, f"{name}: expected no local memory, got {use}"


@pytest.mark.parametrize("change", [{"STACK": 8}, {"REG": 129}])
def test_a_spill_is_seen(change):
    with pytest.raises(AssertionError, match=r"expected (everything in|at most 128) registers"):
        check({"_Z21pairwise_short_kernelIfLi16ELb0EE": {"REG": 128, "STACK": 0, "LOCAL": 0, **change}})


def test_opcodes_are_counted_by_unit():
    counts = sass.by_unit(sass.collections.Counter({"FMNMX": 4, "FFMA": 3, "STS": 2, "BAR": 1}))
    assert counts == {"all": 10, "compare": 4, "float": 3, "memory": 2, "other": 1}
