"""What nvcc makes of the kernels for short lines, without a GPU: `python -m bench.sass [80 90 100]`.

Prints the registers, stack and static shared memory of every kernel of csrc/cuda/pairwise_short.cuh and
sides_short.cuh, and how many instructions one thread issues for one line, by unit. Cubins are kept in build/sass under
a hash of csrc.
"""

import collections
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "sass"
TYPES = {"float32": "float", "bfloat16": "BFloat16", "float16": "Float16"}
# Per multiprocessor and cycle, a unit of half the rate of issue takes two of its cycles for an instruction.
UNITS = {
    "compare": r"(FMNMX|FSET|FSETP|ISETP|FSEL|SEL|LOP3|IADD3|IADD|SHF|IMNMX|VIMNMX|PLOP3|PRMT|LEA|VIADD)\b",
    "float": r"(FADD|FMUL|FFMA|IMAD|I2F|I2FP)\b",
    "memory": r"(LDS|STS|LDG|STG|LDC|LD|ST)\b",
}
KERNEL = (
    "template __global__ void pairwise_short_kernel<{0}, {1}, {2}>(PairwiseCall, ShortLayout, const {0}*, {0}*, {0}*);"
)
SIDES_KERNEL = (
    "template __global__ void sides_short_kernel<{0}, {1}>(PairwiseCall, int, SidesShortLayout, Results, void*, void*);"
)
SIDES_LINE = """
template <int S>
__global__ void forward_line(const ShortLine* lines, float head, int where, int other, float* sums) {{
  LOUPE_DYNAMIC_SHARED(shared);
  const ShortLine line = lines[threadIdx.x];
  const auto weights = Shared<ShortSideWeights>::of(reinterpret_cast<ShortSideWeights*>(shared));
  const auto tile = Shared<float>::of(reinterpret_cast<float*>(shared) + where + threadIdx.x);
  WideKey key[S];
  float own = 0, all = 0, sum = 0;
  take_line<S, false>(key, tile, line);
  sweep_heights<S>(key, head, weights, tile, own, all);
  __syncthreads();
#pragma unroll 4
  for (int k = 0; k < line.n; ++k) sum += tile[other + k * line.step];
  sums[threadIdx.x] = own + all + sum;
}}
template <int S>
__global__ void backward_line(const ShortLine* lines, float own, float all, int where, float before) {{
  LOUPE_DYNAMIC_SHARED(shared);
  const ShortLine line = lines[threadIdx.x];
  const auto weights = Shared<ShortSideWeights>::of(reinterpret_cast<ShortSideWeights*>(shared));
  const auto tile = Shared<float>::of(reinterpret_cast<float*>(shared) + where + threadIdx.x);
  WideKey key[S];
  take_line<S, true>(key, tile, line);
  sweep_gradient<S>(key, weights, own, all, before, tile);
}}
template __global__ void forward_line<{0}>(const ShortLine*, float, int, int, float*);
template __global__ void backward_line<{0}>(const ShortLine*, float, float, int, float);
"""
LINE = """
template <class Key, int S>
__global__ void forward_line(const ShortLine* lines, Weights head, int where, int other) {{
  LOUPE_DYNAMIC_SHARED(shared);
  const ShortLine line = lines[threadIdx.x];
  const auto below = Shared<Weights>::of(reinterpret_cast<Weights*>(shared));
  const auto tile = Shared<float>::of(reinterpret_cast<float*>(shared) + where + threadIdx.x);
  Key key[S];
  float part[S], sum = 0;
  take_line<S, false>(key, tile, line);
  __syncthreads();
  sweep_forward<S>(key, head, below, tile, part);
  __syncthreads();
#pragma unroll 4
  for (int k = 0; k < line.n; ++k) sum += tile[other + k * line.step];
  __syncthreads();
  put_line<S>(key, part, sum, tile);
}}
template <class Key, int S>
__global__ void backward_line(const ShortLine* lines, int where, int other, float before) {{
  LOUPE_DYNAMIC_SHARED(shared);
  const ShortLine line = lines[threadIdx.x];
  const auto below = Shared<Weights>::of(reinterpret_cast<Weights*>(shared));
  const auto tile = Shared<float>::of(reinterpret_cast<float*>(shared) + where + threadIdx.x);
  Key key[S];
  const auto across = Shared<float>::of(reinterpret_cast<float*>(shared) + other);
  take_line<S, true>(key, tile, line);
  __syncthreads();
  sweep_backward<S>(key, below, below, tile, across, before, tile);
}}
template __global__ void forward_line<ShortKey<{0}>::Type, {1}>(const ShortLine*, Weights, int, int);
template __global__ void backward_line<ShortKey<{0}>::Type, {1}>(const ShortLine*, int, int, float);
"""


def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def cuobjdump() -> str | None:
    """On PATH, beside nvcc, or the one that triton brings."""
    found = shutil.which("cuobjdump")
    if found is None and (compiler := nvcc()) is not None:
        found = shutil.which("cuobjdump", path=str(Path(compiler).resolve().parent))
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        found = shutil.which("cuobjdump", path=str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    return found


def cubin(text: str, arch: int) -> Path:
    """Compiled from `text` in the namespace of the kernels, for one architecture."""
    compiler = nvcc()
    assert compiler is not None
    headers = "".join(f'#include "cuda/{x}.cuh"\n' for x in ("pairwise_short", "sides_short", "lines"))
    source = f"{headers}namespace loupe {{ namespace {{\n{text}\n}} }}\n"
    command = [compiler, "-O3", "-std=c++17", "-include", "cmath", "-include", "string", f"-I{ROOT / 'csrc'}", "-cubin"]
    files = sorted(x for part in ("core", "cuda") for x in (ROOT / "csrc" / part).iterdir())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    made_from = [repr(command).encode(), version, source.encode(), *(x.read_bytes() for x in files)]
    name = f"{arch}-{hashlib.sha256(b''.join(made_from)).hexdigest()[:16]}"
    BUILT.mkdir(parents=True, exist_ok=True)
    path, unit, partial = (BUILT / f"{name}{end}" for end in (".cubin", ".cu", f".{os.getpid()}.cubin"))
    if not path.exists():
        unit.write_text(source)
        subprocess.run([*command, f"-arch=sm_{arch}", "-o", partial, unit], check=True, capture_output=True)
        partial.replace(path)
    return path


def resources(binary: str | Path) -> dict[str, dict[str, int]]:
    """Registers (REG), STACK, SHARED and LOCAL bytes of every kernel of a cubin, or of a library that holds some."""
    tool = cuobjdump()
    assert tool is not None
    command = [tool, "--dump-resource-usage", str(binary)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", text)
    assert found, f"{binary}: expected kernels, got none"
    return {
        f"{name} #{k}": {x: int(y) for x, y in re.findall(r"(\w+):(\d+)", use)} for k, (name, use) in enumerate(found)
    }


def instructions(binary: Path) -> dict[str, collections.Counter[str]]:
    """How many instructions of each opcode every kernel has."""
    tool = cuobjdump()
    assert tool is not None
    path = f"{Path(tool).parent}{os.pathsep}{os.environ['PATH']}"  # it calls nvdisasm
    command, environment = [tool, "-sass", str(binary)], {**os.environ, "PATH": path}
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    counts = {}
    for part in text.split("Function : ")[1:]:
        opcodes = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", part, re.MULTILINE)
        counts[part.split()[0]] = collections.Counter(x for x in opcodes if x not in ("NOP", "EXIT", "BRA"))
    return counts


def by_unit(counts: collections.Counter[str]) -> dict[str, int]:
    units: collections.Counter[str] = collections.Counter()
    for opcode, count in counts.items():
        units[next((unit for unit, names in UNITS.items() if re.match(names, opcode)), "other")] += count
    return {"all": counts.total(), **{x: units[x] for x in (*UNITS, "other")}}


def main(archs: list[int]) -> None:
    directions = {"false": "forward", "true": "backward"}
    kernels = {
        f"{op} <= {P} {direction}": text.format(*type_of, P, backward)
        for P in (16, 32, 64)
        for backward, direction in directions.items()
        for op, text, type_of in (
            *((f"pairwise {dtype}", KERNEL, (name,)) for dtype, name in TYPES.items()),
            ("sides", SIDES_KERNEL, ()),
        )
    }
    lines = {
        f"{op} {size}": text.format(*type_of, size)
        for size in (4, 8, 16, 32, 56, 64)
        for op, text, type_of in (
            *((f"pairwise {dtype}", LINE, (TYPES[dtype],)) for dtype in ("float32", "bfloat16")),
            ("sides", SIDES_LINE, ()),
        )
    }
    for arch in archs:
        for name, text in kernels.items():
            (use,) = resources(cubin(text, arch)).values()
            print(f"sm_{arch} kernel {name}: {use}", flush=True)
    for name, text in lines.items():
        for kernel, counts in instructions(cubin(text, archs[0])).items():
            direction = "backward" if "backward" in kernel else "forward"
            print(f"sm_{archs[0]} line {name} {direction}: {by_unit(counts)}", flush=True)


if __name__ == "__main__":
    main([int(x) for x in sys.argv[1:]] or [90, 80, 100])
