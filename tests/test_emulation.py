"""The emulator that runs CUDA kernels on the CPU finds the mistakes that it is there to find."""

from pathlib import Path

import numpy as np
import pytest

from tests import emulation

PLANTED = Path(__file__).parent / "emulation" / "planted.cpp"


def run(kernel: str, **environment: str) -> list[int]:
    return np.frombuffer(emulation.run(PLANTED, kernel.encode(), environment), dtype=np.int32).tolist()


def test_barriers_shared_memory_and_shuffles():
    # The two shuffles undo each other where both have a source lane: not in a warp's first and last four lanes.
    for order in ("forward", "reversed"):
        got = run("reversed_through_shared", EMULATED_ORDER=order)
        assert got[4:28] == [63 - k for k in range(4, 28)]
        assert got[36:60] == [63 - k for k in range(36, 60)]


def test_a_tensor_core_multiplies():
    i, j, k = np.arange(16), np.arange(8), np.arange(16)
    product = (7 * i[:, None] + 3 * k) % 5 @ ((5 * k[:, None] + 11 * j) % 7)
    got = np.array(run("product")).reshape(2, 8, 4)  # warp, row, columns 2 n and 2 n + 1
    for half in range(2):
        want = np.add(product[8 * half : 8 * half + 8].reshape(8, 4, 2), [1 + 2 * half, 2 + 2 * half])
        assert (got[half] == want[..., 0] + 1000 * want[..., 1]).all()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", "threads can never meet"),
        ("shuffle_without_a_lane", "threads can never meet"),
        ("shared_overflow", "heap-buffer-overflow"),
        ("global_overflow", "heap-buffer-overflow"),
    ],
)
def test_planted_mistakes_end_the_program(kernel, message):
    with pytest.raises(RuntimeError, match=message):
        run(kernel)


def test_a_missing_barrier_shows_when_threads_run_the_other_way_round():
    assert run("missing_barrier") != run("missing_barrier", EMULATED_ORDER="reversed")


@pytest.mark.parametrize(("kernel", "cycles"), [("one_bank", 32), ("all_banks", 1), ("one_word", 1)])
def test_bank_conflicts_are_counted(kernel, cycles, tmp_path):
    run(kernel, EMULATED_BANKS=str(tmp_path / "banks"))
    assert (tmp_path / "banks").read_text().split() == ["2", str(2 * cycles)]  # of two warps


def test_a_program_is_built_once_and_again_when_a_header_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(emulation, "BUILT", tmp_path / "built")
    main = '#include <cstdio>\n#include "number.h"\nint main() { std::printf("%d", NUMBER); }'
    (tmp_path / "main.cpp").write_text(main)
    programs = []
    for number in (1, 1, 2):
        (tmp_path / "number.h").write_text(f"#define NUMBER {number}\n")
        emulation.build.cache_clear()  # as in another process
        assert emulation.run(tmp_path / "main.cpp", b"") == b"%d" % number
        (program,) = (tmp_path / "built").glob("main-*")
        programs.append((program, program.stat().st_mtime_ns))
    assert programs[0] == programs[1]
    assert programs[1][0] != programs[2][0]
