"""YAML of `name: value` lines in sections, from whoever wrote it: read by its events, so that nothing can unfold."""

import re
from typing import Any

from loupe_ext._checks import shown
from loupe_ext.extras import needs

LONGEST = 2**16  # bytes of a text
DEEPEST = 3

Value = str | int | float | bool | None

_INT = re.compile(r"[-+]?[0-9][0-9_]{0,39}")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]{0,39}(\.[0-9_]{0,39})?|\.[0-9][0-9_]{0,39})([eE][-+]?[0-9]{1,9})?")
_WORDS: dict[str, Value] = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("null", "~", ""), None),
    **{sign + ".inf": float(sign + "inf") for sign in ("", "+", "-")},
    ".nan": float("nan"),
}


def read_yaml(name: str, text: str) -> dict[str, Any]:
    """The values of a text by their names, of a section as a dictionary; sections lie at most DEEPEST deep.

    A plain number is decimal, as people write it: 3e-3 is a float, and 010 is ten (to YAML 1.1 a string, and eight).

    Raises:
        ValueError: naming the argument `name`: the text is too long, is not YAML, or holds something else than distinct
            names of single values and of sections of such.
        ImportError: pyyaml is missing.
    """
    with needs("pyyaml"):
        import yaml
    if len(text) > LONGEST:
        raise ValueError(f"{name}: expected at most {LONGEST} characters of YAML, got more")
    values: dict[str, Any] = {}
    sections: list[dict[str, Any]] = []  # those that are open, the outermost first
    key = None
    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.MappingEndEvent):
                sections.pop()
            if not isinstance(event, yaml.NodeEvent):
                continue  # where documents begin and end
            line = f"(line {event.start_mark.line + 1})"
            kinds = {yaml.AliasEvent: "an alias", yaml.SequenceStartEvent: "list", yaml.MappingStartEvent: "mapping"}
            kind = "a tag" if getattr(event, "tag", None) else kinds.get(type(event))
            if not sections:
                if kind == "mapping" and not values:
                    sections.append(values)
                elif kind or event.value:
                    got = kind or shown(event.value)
                    raise ValueError(f"{name}: expected one mapping of names to values, got {got} {line}")
            elif key is None:
                if kind:
                    raise ValueError(f"{name}: expected a name, got {kind} {line}")
                key = event.value
                if key in sections[-1]:
                    raise ValueError(f"{name}: expected each name once, got {shown(key)} again {line}")
            else:
                if kind == "mapping" and len(sections) <= DEEPEST:
                    sections[-1][key] = {}
                    sections.append(sections[-1][key])
                elif kind:
                    raise ValueError(f"{shown(key)[1:-1]}: expected a single plain value, got {kind} {line}")
                else:
                    sections[-1][key] = event.value if event.style else plain(event.value)
                key = None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: expected YAML, got {_reason(error)}") from None
    return values


def write_yaml(values: dict[str, Any]) -> str:
    """The text from which `read_yaml` reads these values. Raises ImportError without pyyaml."""
    with needs("pyyaml"):
        import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain(text) == text else "'")

    Dumper.add_representer(str, represent)
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False))


def plain(text: str) -> Value:
    """The value that an unquoted text stands for."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


def _reason(error: Exception) -> str:
    """What is wrong, and in which line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"{problem[:100]}" + (f" (line {mark.line + 1})" if mark else "")
