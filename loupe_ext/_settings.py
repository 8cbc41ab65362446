"""Settings: frozen dataclasses whose fields have ranges, which nest, and which dotted names change."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from loupe_ext._checks import check_int, check_number, shown

S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    unit: int = 1,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of `Settings`. A number lies from `least` to `most` (with `above` or `below`, strictly inside that bound)
    and is a multiple of `unit`; a text is one of `choices`, if there are any."""
    limits = {"least": least, "most": most, "above": above, "below": below, "unit": unit, "choices": choices}
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Settings:
    """Checks each field by its range and by the type of its default.

    A field that is `Settings` itself may be given as a mapping of what differs from its default, and, if it has a
    weight, as a number: that weight.

    Raises:
        TypeError, ValueError: naming the field, what was expected and what came.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))

    def but(self: S, changes: Mapping[str, Any] | None = None, **more: Any) -> S:
        """The same with other values of some fields: `config.but({"fsa.temperature": 0.1}, lr=1e-3, fsa=0)`.

        A name is that of a field, here or in a section below, or a dotted path to it whose head may be left out if what
        remains says which one is meant.

        Raises:
            ValueError: no field or several have that name; or as on construction.
        """
        paths = _paths(self)
        nested: dict[str, dict[str, Any]] = {}
        direct: dict[str, Any] = {}
        for name, value in {**(changes or {}), **more}.items():
            head, *tail = _resolved(name, paths)
            if tail:
                nested.setdefault(head, {})[".".join(tail)] = value
            else:
                direct[head] = value
        for head, inner in nested.items():
            direct[head] = _checked(_field(self, head), direct.get(head, getattr(self, head))).but(inner)
        return replace(self, **{name: _given(getattr(self, name), value) for name, value in direct.items()})

    def to_dict(self) -> dict[str, Any]:
        """Names to plain values, of sections to dictionaries."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: x.to_dict() if isinstance(x, Settings) else x for name, x in values.items()}

    def flat(self) -> dict[str, Any]:
        """Dotted names to plain values."""
        return flat(self.to_dict())


def flat(values: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{head}{name}.") if isinstance(value, dict) else {head + name: value}
    return found


def _field(settings: Settings, name: str) -> Any:
    return next(each for each in fields(settings) if each.name == name)


def _paths(settings: Settings) -> list[tuple[str, ...]]:
    """Of all fields here and below, sections among them."""
    paths: list[tuple[str, ...]] = []
    for each in fields(settings):
        value = getattr(settings, each.name)
        paths += [
            (each.name,),
            *((each.name, *rest) for rest in (_paths(value) if isinstance(value, Settings) else ())),
        ]
    return paths


def _resolved(name: object, paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The path whose end `name` is; the shortest, if several are."""
    given = tuple(name.split(".")) if isinstance(name, str) else ()
    found = [path for path in paths if path[-len(given) :] == given]
    shortest = [path for path in found if len(path) == min(map(len, found))]
    if len(shortest) == 1:
        return shortest[0]
    if shortest:
        several = ", ".join(".".join(path) for path in shortest[:5])
        raise ValueError(f"config: expected the name of one field, got {shown(name)}, which may be {several}")
    near = difflib.get_close_matches(str(name)[:100], {x for p in paths for x in (p[-1], ".".join(p))}, 1)
    hint = f" (nearest: {near[0]})" if near else ""
    raise ValueError(f"config: expected names of its fields, got {shown(name)[1:-1]}{hint}")


def _given(current: Any, value: Any) -> Any:
    """A mapping changes the section that is there; a number, its weight."""
    if isinstance(current, Settings) and isinstance(value, Mapping):
        return current.but(value)
    if isinstance(current, Settings) and isinstance(value, int | float) and not isinstance(value, bool):
        return current.but({"weight": value})
    return value


def _checked(each: Any, value: Any) -> Any:
    name, limits = each.name, each.metadata
    default = each.default_factory() if callable(each.default_factory) else each.default
    kind = type(default)
    if is_dataclass(kind):
        try:
            value = _given(default, value)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}.{error}") from None
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {kind.__name__} or its fields, got {shown(value)}")
        return value
    if kind in (int, float):
        try:
            if kind is int:
                number: Any = check_int(name, value, int(limits["least"]), int(limits["most"]))
            else:
                number = check_number(name, value, limits["least"], limits["most"], above=limits["above"])
        except TypeError:
            raise TypeError(f"{name}: expected {kind.__name__}, got {shown(value)}") from None
        if limits["below"] and number == limits["most"]:
            raise ValueError(f"{name}: expected a number below {limits['most']:g}, got {number}")
        if kind is int and number % limits["unit"]:
            raise ValueError(f"{name}: expected a multiple of {limits['unit']}, got {number}")
        return number
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {shown(value)}")
    if limits.get("choices") and value not in limits["choices"]:
        raise ValueError(f"{name}: expected one of {limits['choices']}, got {shown(value)}")
    if isinstance(value, str) and (len(value) > 4096 or not value.isprintable()):
        raise ValueError(f"{name}: expected at most 4096 printable characters, got {shown(value)}")
    return value
