"""Configurations, and YAML from whoever wrote it."""

import dataclasses
import math
import typing

import numpy as np
import pytest

from loupe_ext.train import Config
from loupe_ext.train.config import ABOVE, BELOW, CHOICES, RANGES
from tests.training import SMALL


class TestConfig:
    def test_yaml_gives_back_what_was_written(self, tmp_path):
        config = SMALL.but(name="a: b", lr=1e-5, negatives=False)
        for path in (tmp_path / "config.yaml", str(tmp_path / "folder" / "config.yaml")):
            config.save(path)
            assert Config.load(path) == config
        assert Config.from_yaml("") == Config()
        assert Config.from_yaml("steps: 5\ncmc: 2") == Config(steps=5, cmc=2)

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("step: 5\nwidht: 3\nx: 1", ValueError, r"got step \(nearest: steps\), widht \(nearest: width\), x$"),
            ("[1, 2]", ValueError, "config: expected a mapping of names to values, got list"),
            ("hello", ValueError, "config: expected a mapping of names to values, got 'hello'"),
            ("steps: 5.0", TypeError, "steps: expected int, got 5.0"),
            ("steps: true", TypeError, "steps: expected int, got True"),
            ("lr: true", TypeError, "lr: expected float, got True"),
            ("lr: fast", TypeError, "lr: expected float, got 'fast'"),
            ("lr: '3e-3'", TypeError, "lr: expected float, got '3e-3'"),
            ("steps: 1:30", TypeError, "steps: expected int, got '1:30'"),  # YAML 1.1 has it for 90
            ("negatives: 1", TypeError, "negatives: expected bool, got 1"),
            ("name: 3", TypeError, "name: expected str, got 3"),
            ("precision: half", ValueError, "precision: expected .* got 'half'"),
            ("fsa_source: best", ValueError, r"fsa_source: expected one of \('exact', .* got 'best'"),
            ("unsil_targets: unsil", ValueError, r"unsil_targets: expected one of \('sampled', .* got 'unsil'"),
            ("width: 10", ValueError, "width: expected a multiple of 4, got 10"),
            ("scale: 61", ValueError, r"scale: expected at most scale_cap \(60.0\), got 61"),
            ("scale: 101\nscale_cap: 200", ValueError, "scale: expected .* at most 100, got 101"),
            ("{cmc: 0, region_phrase: 0, fsa: 0, boxes: 0}", ValueError, "cmc, .* boxes: expected one above 0"),
            ("train_size: 63", ValueError, r"train_size: expected at least a batch \(64\), got 63"),
            ("lr: 1e-3\nlr: 1e-2", ValueError, r"config: expected each name once, got 'lr' again \(line 2\)"),
            ("lr: 1\n---\nlr: 2", ValueError, "expected a single plain value, got mapping"),
            ("name: !!python/object:os.system x", ValueError, "name: expected a single plain value, got a tag"),
        ],
    )
    def test_bad_values_are_named(self, text, error, message):
        with pytest.raises(error, match=message):
            Config.from_yaml(text)

    @pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
    def test_every_field_has_a_range(self, name):
        kind = type(getattr(Config(), name))
        if kind is bool:
            bad: list[typing.Any] = [1, 0.0, "true", None]
        elif kind is str:
            bad = [3, None, ["tiny"], "a\nb", "\0", "a" * 5000]
            bad += ["other"] if name in CHOICES else ["2-0", "", "2-x", "9999"] if name == "swin_depths" else []
        else:
            least, most = RANGES[name]
            bad = [least - 1, -1, math.nan, math.inf, -math.inf, 10**400, 10**5000, "1", None, True]
            bad += [least] * (name in ABOVE) + [most] * (name in BELOW) + [most + 1] * (most < math.inf)
            bad += [1.5] * (kind is int)
        for value in bad:
            with pytest.raises((ValueError, TypeError), match=f"^{name}: expected .* got ") as caught:
                Config().but(**{name: value})
            assert len(str(caught.value)) < 300

    def test_numbers_of_any_library_are_kept_as_python_has_them(self):
        config = Config(steps=np.int64(5), lr=np.float32(0.5), cmc=2)
        assert (type(config.steps), type(config.lr), type(config.cmc)) == (int, float, float)
        assert Config.from_yaml(config.to_yaml()) == config

    @pytest.mark.parametrize(
        ("text", "changes"),
        [
            ("lr: 3e-3", {"lr": 3e-3}),
            ("lr: 3E-3\nclip: 1.", {"lr": 3e-3, "clip": 1}),
            ("lr: .5\nsteps: +7", {"lr": 0.5, "steps": 7}),
            ("train_size: 20_000\nseed: 010", {"train_size": 20_000, "seed": 10}),
            ("negatives: no\nlearn_scale: False", {"negatives": False, "learn_scale": False}),
            ("name: 2024-01-01  # a date\n", {"name": "2024-01-01"}),
            ("name: 'on'", {"name": "on"}),
            ("{cmc: 2, name: a}", {"cmc": 2.0, "name": "a"}),
        ],
    )
    def test_yaml_is_read_as_people_write_it(self, text, changes):
        assert Config.from_yaml(text) == Config(**changes)

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
        with pytest.raises(ValueError, match=r"config: expected names of Config's fields, got step \(nearest: steps\)"):
            Config().but(step=3)
