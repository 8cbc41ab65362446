"""An sdist that builds, a small wheel that runs anywhere, a build that says what it lacks."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import loupe_ext
from loupe_ext.extras import PACKAGES, needs, require
from loupe_ext.train.report import TRACKERS

ROOT = Path(__file__).parent.parent


def run(*command: object, **options: object) -> subprocess.CompletedProcess:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done


with_wheel = pytest.mark.xdist_group("wheel")  # one worker builds it, for all its tests


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the sdist, as a package index would serve it (without CUDA, to be quick)."""
    folder = tmp_path_factory.mktemp("wheel")
    script = f"import scikit_build_core.build as b; print(b.build_sdist({str(folder)!r}))"
    run(sys.executable, "-c", script, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    objects = f"build-dir={folder / 'objects'}"
    run(*pip, "-C", objects, "-w", folder, sdist, env={**os.environ, "LOUPE_CUDA": "OFF"})
    return next(folder.glob("*.whl"))


@with_wheel
def test_wheel_is_small_and_holds_the_packages_alone(wheel):
    assert wheel.stat().st_size < 10e6
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"loupe_ext", "loupe_experiments"}
    assert {"loupe_ext/train/presets/paper.yaml", "loupe_experiments/report.html"} <= set(names)
    assert any(name.startswith("loupe_ext/_C.") and name.endswith(".so") for name in names)


@with_wheel
def test_wheel_works_away_from_the_sources(wheel, tmp_path):
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path / 'site'), *sys.path]!r}\n"
        "import torch, loupe_ext as l; x = torch.randn(9, 5, 7); a = l.pairwise_interactions(x)\n"
        "for t in l._C.cpu_targets():\n"
        "    l._C.set_cpu_target(t); torch.testing.assert_close(l.pairwise_interactions(x), a)\n"
        "import loupe_experiments.rows; print(l.__file__, loupe_experiments.__file__)"
    )
    # -S: an editable installation would otherwise answer the import.
    places = run(sys.executable, "-S", "-c", code, cwd=tmp_path).stdout.split()
    assert [place.startswith(str(tmp_path)) for place in places] == [True, True]


@with_wheel
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 has several SIMD targets")
@pytest.mark.parametrize("target", ["avx2", "avx512"])
def test_wide_simd_code_stays_in_its_own_functions(target, wheel):
    """An inline function that every object defines would be linked once, perhaps from here, and stop older machines."""
    objects = list((wheel.parent / "objects").rglob(f"loupe_cpu_{target}.dir/**/*.o"))
    assert {path.name.split(".")[0] for path in objects} == {path.stem for path in (ROOT / "csrc/cpu").glob("*.cpp")}
    for built in objects:
        symbols = [line.split(maxsplit=2)[1:] for line in run("nm", "-C", "--defined-only", built).stdout.splitlines()]
        shared = [name for kind, name in symbols if kind in "WVu" and not name.startswith("DW.ref")]
        assert shared == []
        assert all(name.startswith(f"loupe::{target}::") for kind, name in symbols if kind == "T")


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess:
    pybind = run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    command = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        folder,
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind}",
        *options,
    ]
    env = {"PATH": path, "HOME": str(folder), "CUDACXX": "/nowhere/nvcc", "CUDA_PATH": "/nowhere"}
    return subprocess.run([str(x) for x in command], capture_output=True, text=True, env=env)


def test_cuda_asked_for_and_absent_is_an_error(tmp_path):
    done = configure(tmp_path, "-DLOUPE_CUDA=ON")
    assert done.returncode != 0
    assert "LOUPE_CUDA=ON, and no CUDA compiler was found" in done.stderr
    assert configure(tmp_path / "auto", "-DLOUPE_CUDA=AUTO").returncode == 0


def test_unknown_cuda_option_is_an_error(tmp_path):
    done = configure(tmp_path, "-DLOUPE_CUDA=maybe")
    assert done.returncode != 0
    assert "expected AUTO, ON or OFF, got 'maybe'" in " ".join(done.stderr.split())


def try_cuda(folder: Path, nvcc: str, *options: str, **env: str) -> tuple[int, str]:
    """Exit status and output of the CUDA part of a configuration, with `nvcc` a shell script."""
    script, source = folder / "bin" / "nvcc", folder / "source"
    for path in (script.parent, source):
        path.mkdir(parents=True)
    script.write_text(f"#!/bin/sh\n{nvcc}\n")
    script.chmod(0o755)
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(x CXX)\n"
        f'include("{ROOT}/cmake/cuda.cmake")\nmessage(STATUS "has CUDA: ${{LOUPE_HAS_CUDA}}")\n'
    )
    command = ["cmake", "-S", source, "-B", folder / "build", "-DLOUPE_CUDA=AUTO", *options]
    path = os.pathsep.join([str(script.parent), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
    done = subprocess.run(
        [str(x) for x in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": path, "HOME": str(folder), **env},
    )
    return done.returncode, " ".join(done.stdout.split())


FAILS = "echo '#error -- unsupported GNU version! gcc versions later than 9 are not supported!' >&2; exit 1"


def test_nvcc_that_fails_leaves_the_cpu(tmp_path):
    status, said = try_cuda(tmp_path / "auto", FAILS)
    assert status == 0
    assert "has CUDA: OFF" in said
    assert "Building for the CPU alone: " in said
    assert re.search(r"does not compile for the architectures 80;90;100: #error -- unsupported GNU version", said)
    status, said = try_cuda(tmp_path / "on", FAILS, "-DLOUPE_CUDA=ON")
    assert status != 0
    assert re.search("LOUPE_CUDA=ON, and .*/nvcc does not compile .*#error -- unsupported GNU version", said)


@pytest.mark.parametrize(
    ("options", "env", "tried"),
    [
        ([], {}, "80;90"),  # 100 is what this nvcc does not know
        ([], {"TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX 10.0a,12.0"}, "80-real;90;100a-real;120-real"),
        ([], {"TORCH_CUDA_ARCH_LIST": "8.0", "CUDAARCHS": "75;86-real"}, "75;86-real"),
        (["-DCMAKE_CUDA_ARCHITECTURES=87;90"], {"TORCH_CUDA_ARCH_LIST": "8.0", "CUDAARCHS": "75"}, "87;90"),
    ],
)
def test_cuda_architectures_are_those_asked_for_or_those_that_nvcc_knows(options, env, tried, tmp_path):
    lists = "if [ $1 = --list-gpu-arch ]; then printf 'compute_80\\ncompute_90\\ncompute_1000\\n'; else exit 1; fi"
    status, said = try_cuda(tmp_path, lists, *options, **env)
    assert status == 0
    assert f"nvcc for the architectures {tried} --" in said


def test_unknown_cuda_architectures_are_named(tmp_path):
    status, said = try_cuda(tmp_path / "torch", FAILS, "-DLOUPE_CUDA=ON", TORCH_CUDA_ARCH_LIST="8.0 Hopper")
    assert status != 0
    assert "TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0+PTX or 10.0a, got 'Hopper'" in said
    status, said = try_cuda(tmp_path / "old", "[ $1 = --list-gpu-arch ] && echo compute_70")
    assert status == 0
    assert "knows none of the architectures 80, 90 and 100" in said


NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_nvcc_that_refuses_an_architecture_builds_for_the_others(tmp_path):
    refusing = (
        'case "$*" in --list-gpu-arch) echo compute_80;;\n'
        '*_90*|*_100*) echo "nvcc fatal   : Unsupported gpu architecture" >&2; exit 1;;\n'
        f'*) exec {NVCC} "$@";; esac'
    )
    status, said = try_cuda(tmp_path, refusing)
    assert status == 0
    assert "nvcc for the architectures 80 --" in said
    assert "has CUDA: ON" in said


def test_sources_know_no_torch():
    for source in (ROOT / "csrc").rglob("*"):
        if source.is_file():
            assert not any(x in source.read_text() for x in ("torch/", "ATen/", "c10/")), source


FLOOR = {"_C", "_checks", "_dtypes", "_indices", "_io", "extras"}


@pytest.mark.parametrize(
    ("part", "below"),
    [("ops", {"triton"}), ("triton", {"ops"}), ("games.py", {"ops"}), ("explain", {"games", "ops"})],
)
def test_imports_run_downwards(part, below):
    path = ROOT / "loupe_ext" / part
    for source in [path] if path.is_file() else path.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = {f"{name}.".split(".")[1] for name in names if name.split(".")[0] == "loupe_ext"}
            assert used <= FLOOR | below | {path.stem}, source


def test_importing_needs_no_extra():
    """`import loupe_ext` touches none of the packages of the extras."""
    heavy = [
        "faster_coco_eval",
        "matplotlib",
        "sklearn",
        "PIL",
        "tensorboard",
        "rich",
        "safetensors",
        "sentence_transformers",
        "triton",
        "shapiq",
        "spacy",
        "transformers",
    ]
    code = (
        f"import sys, torch; old = set(sys.modules); import loupe_ext; print({set(heavy)} & (set(sys.modules) - old))"
    )
    assert run(sys.executable, "-c", code).stdout.strip() == "set()"


def test_every_optional_package_is_in_the_extra_that_its_message_names(monkeypatch):
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [path.read_text() for top in ("loupe_ext", "experiments") for path in (ROOT / top).rglob("*.py")]
    needed = {name for text in sources for name in re.findall(r'needs\("([^"]+)"\)', text)}
    assert needed | set(TRACKERS) == set(PACKAGES)
    for package, (_, extra) in PACKAGES.items():
        assert any(re.match(rf"{package}\b", requirement) for requirement in extras[extra]), (package, extra)
    with pytest.raises(ImportError, match=r"matplotlib is needed here: pip install 'loupe-ext\[plot\]' \(gone\)"):  # noqa: SIM117
        with needs("matplotlib"):
            raise ImportError("gone")
    # One needs a torch of its own, and the extra `dev` leaves two out.
    require(*PACKAGES.keys() - {"open-clip-torch", "trackio", "wandb"})
    monkeypatch.setitem(PACKAGES, "rich", ("nowhere_to_be_found", "train"))
    with pytest.raises(ImportError, match=r"rich is needed here: pip install 'loupe-ext\[train\]'"):
        require("scipy", "rich")


def test_subpackages_load_when_first_used():
    code = (
        "import sys, loupe_ext; lazy = {'losses', 'train', 'unsil', 'zeroshot'}\n"
        "assert not any(f'loupe_ext.{name}' in sys.modules for name in lazy), sys.modules\n"
        "assert lazy <= set(dir(loupe_ext)); loupe_ext.losses.cmc_loss, loupe_ext.unsil.Unsil, loupe_ext.train.train\n"
        "for name in loupe_ext.__all__: getattr(loupe_ext, name)\n"
        "try: loupe_ext.nothing\n"
        "except AttributeError as error: print(error)"
    )
    assert run(sys.executable, "-c", code).stdout.strip() == "module 'loupe_ext' has no attribute 'nothing'"


@with_wheel
def test_type_checkers_see_the_types(wheel):
    assert "loupe_ext/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert loupe_ext.__version__ == version("loupe-ext")
    assert sysconfig.get_config_var("EXT_SUFFIX").endswith(".so")


def test_constraints_pin_versions_and_name_no_place():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line), line
