"""Configurations, and YAML from whoever wrote it."""

import dataclasses
import functools
import math
import typing

import numpy as np
import pytest

from loupe_ext.objective import FSA, TSA
from loupe_ext.train import Config
from tests.training import SMALL


class TestConfig:
    def test_yaml_gives_back_what_was_written(self, tmp_path):
        config = SMALL.but(name="a: b", lr=1e-5, negatives=False)
        for path in (tmp_path / "config.yaml", str(tmp_path / "folder" / "config.yaml")):
            config.save(path)
            assert Config.load(path) == config
        assert Config.from_yaml("") == Config()
        assert Config.from_yaml("optim:\n  steps: 5\nobjective:\n  cmc: 2") == Config().but(steps=5, cmc=2)
        assert Config.from_yaml("steps: 5\nfsa: {weight: 2, negatives: no}").objective.fsa == FSA(2.0, negatives=False)

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("step: 5", ValueError, r"got step \(nearest: steps\)"),
            ("optim: {widht: 3}", ValueError, r"config: expected names of its fields, got widht"),
            ("weight: 1", ValueError, r"name of one field, got 'weight', which may be objective.cmc.weight, "),
            ("optim: 3", ValueError, "config: expected names of its fields, got weight"),
            ("objective: {fsa: [1]}", ValueError, "fsa: expected a single plain value, got list"),
            ("a: {b: {c: {d: {e: 1}}}}", ValueError, "d: expected a single plain value, got mapping"),
            ("[1, 2]", ValueError, "config: expected one mapping of names to values, got list"),
            ("hello", ValueError, "config: expected one mapping of names to values, got 'hello'"),
            ("steps: 5.0", TypeError, "steps: expected int, got 5.0"),
            ("steps: true", TypeError, "steps: expected int, got True"),
            ("lr: true", TypeError, "lr: expected float, got True"),
            ("lr: fast", TypeError, "lr: expected float, got 'fast'"),
            ("lr: '3e-3'", TypeError, "lr: expected float, got '3e-3'"),
            ("steps: 1:30", TypeError, "steps: expected int, got '1:30'"),  # YAML 1.1 has it for 90
            ("negatives: 1", TypeError, "negatives: expected bool, got 1"),
            ("name: 3", TypeError, "name: expected str, got 3"),
            ("precision: half", ValueError, "precision: expected .* got 'half'"),
            ("fsa.source: best", ValueError, r"source: expected one of \('exact', .* got 'best'"),
            ("fsa.targets: unsil", ValueError, r"targets: expected one of \('sampled', .* got 'unsil'"),
            ("width: 10", ValueError, "width: expected a multiple of 4, got 10"),
            ("logit_scale: 61", ValueError, r"logit_scale: expected at most max_local_logit_scale \(60.0\), got 61"),
            (
                "logit_scale: 101\nmax_local_logit_scale: 200",
                ValueError,
                "logit_scale: .* at most 100, got 101",
            ),
            (
                "{cmc: 0, region_phrase: 0, proposal_phrase: 0, fsa: 0, boxes: 0}",
                ValueError,
                "cmc, .* boxes: expected a weight above 0",
            ),
            ("train_size: 63", ValueError, r"train_size: expected at least a batch \(64\), got 63"),
            ("lr: 1e-3\nlr: 1e-2", ValueError, r"config: expected each name once, got 'lr' again \(line 2\)"),
            ("lr: 1\n---\nlr: 2", ValueError, "expected one mapping of names to values, got mapping"),
            ("name: !!python/object:os.system x", ValueError, "name: expected a single plain value, got a tag"),
        ],
    )
    def test_bad_values_are_named(self, text, error, message):
        with pytest.raises(error, match=message):
            Config.from_yaml(text)

    @pytest.mark.parametrize("name", Config().flat())
    def test_every_field_has_a_range(self, name):
        *head, leaf = name.split(".")
        section = functools.reduce(getattr, head, Config())
        (field,) = (x for x in dataclasses.fields(section) if x.name == leaf)
        kind, limits = type(getattr(section, leaf)), field.metadata
        if kind is bool:
            bad: list[typing.Any] = [1, 0.0, "true", None]
        elif kind is str:
            bad = [3, None, ["tiny"], "a\nb", "\0", "a" * 5000]
            bad += ["other"] if limits["choices"] else ["2-0", "", "2-x", "9999"] if leaf == "swin_depths" else []
        else:
            least, most = limits["least"], limits["most"]
            bad = [least - 1, -1, math.nan, math.inf, -math.inf, 10**400, 10**5000, "1", None, True]
            bad += [least] * limits["above"] + [most] * limits["below"] + [most + 1] * (most < math.inf)
            bad += [1.5] * (kind is int)
        for value in bad:
            with pytest.raises((ValueError, TypeError), match=f"{leaf}: expected .* got ") as caught:
                Config().but({name: value})
            assert len(str(caught.value)) < 300

    def test_names_find_their_section(self):
        config = Config().but(
            {"fsa.temperature": 0.5, "tsa": {"weight": 2, "literal": True}}, lr=1, fsa=0, regions="patches"
        )
        assert (config.objective.fsa.temperature, config.objective.fsa.weight) == (0.5, 0)
        assert config.objective.tsa == TSA(2.0, literal=True)
        assert (config.optim.lr, config.objective.regions) == (1, "patches")
        assert Config().but({"objective.fsa": FSA(3.0)}).objective.fsa.weight == 3
        assert set(Config().flat()) > {"optim.lr", "objective.fsa.weight", "seed", "data.dataset"}
        assert Config().but(config.flat()) == config

    def test_numbers_of_any_library_are_kept_as_python_has_them(self):
        config = Config().but(steps=np.int64(5), lr=np.float32(0.5), cmc=2)
        values = config.optim.steps, config.optim.lr, config.objective.cmc.weight
        assert [type(value) for value in values] == [int, float, float]
        assert Config.from_yaml(config.to_yaml()) == config

    @pytest.mark.parametrize(
        ("text", "changes"),
        [
            ("lr: 3e-3", {"lr": 3e-3}),
            ("lr: 3E-3\nclip: 1.", {"lr": 3e-3, "clip": 1}),
            ("lr: .5\nsteps: +7", {"lr": 0.5, "steps": 7}),
            ("train_size: 20_000\nseed: 010", {"train_size": 20_000, "seed": 10}),
            ("negatives: no\nlearn_logit_scale: False", {"negatives": False, "learn_logit_scale": False}),
            ("name: 2024-01-01  # a date\n", {"name": "2024-01-01"}),
            ("name: 'on'", {"name": "on"}),
            ("{cmc: 2, name: a}", {"cmc": 2.0, "name": "a"}),
        ],
    )
    def test_yaml_is_read_as_people_write_it(self, text, changes):
        assert Config.from_yaml(text) == Config().but(changes)

    @pytest.mark.parametrize(
        "name", ["1e3", "08", "on", "~", ".nan", "1_0", "0x1", "1:30", "", " a ", "'", "é", "a: #b"]
    )
    def test_any_name_comes_back(self, name):
        assert Config.from_yaml(Config(name=name).to_yaml()).name == name

    @pytest.mark.parametrize(
        "text",
        [
            "\n".join([f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 9)}]" for i in range(9)]),
            "steps: " + "[" * 20_000,
            "{" * 20_000,
            "? " * 20_000,
            "steps: " + "9" * 20_000,
            "\n".join(f"k{i}: 1" for i in range(2000)),
            "name: [1",
            "name: @x",
            "\tname: x",
            "name: \0",
            "a" * 2**17,
        ],
    )
    def test_yaml_of_any_size_and_depth_is_refused_in_one_line(self, text, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        for read in (lambda: Config.from_yaml(text), lambda: Config.load(str(path))):
            with pytest.raises((ValueError, TypeError)) as caught:
                read()
            assert len(str(caught.value)) < 400
            assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    def test_files_that_are_no_text(self, tmp_path):
        (tmp_path / "bytes").write_bytes(b"name: \xff")
        with pytest.raises(ValueError, match=r"path: expected text in UTF-8, got other bytes in .*bytes"):
            Config.load(tmp_path / "bytes")
        with pytest.raises(OSError, match=str(tmp_path)):
            Config.load(tmp_path)

    def test_an_unknown_change_is_told_the_nearest(self):
        with pytest.raises(ValueError, match=r"config: expected names of its fields, got step \(nearest: steps\)"):
            Config().but(step=3)
