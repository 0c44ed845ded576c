"""Templates of every kind: a name, parameters, and a builder that returns a config.

A template file (``workflows/templates/<kind>/<name>.yaml``) has ``parameters`` and a ``config``. A parameter has a ``default``, a
``description`` and optionally ``choices``, which map names to values. In the config, a text that is one ``{{placeholder}}`` becomes
the parameter's value, and a placeholder inside a longer text becomes the value's text. A mapping with the keys ``from_template``
(``kind/name``) and optionally ``parameters`` becomes the config of that template, so templates are composed of templates. A function
that is registered with `register_template` is a template too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yggdrasill.errors import InvalidArgument, InvalidConfig, format_options, unknown_message, unknown_name
from yggdrasill.foundation.config import check_version, read_document, read_model
from yggdrasill.foundation.kinds import kind_names

__all__ = ["TEMPLATE_FOLDER", "FileTemplate", "register_template", "render_template", "template_names"]

Builder = Callable[..., Mapping[str, Any]]

TEMPLATE_FOLDER = Path(__file__).resolve().parent.parent / "workflows" / "templates"

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_registered: dict[tuple[str, str], Builder] = {}


def register_template(level: str, name: str, builder: Builder) -> None:
    """Register ``builder(**parameters) -> config`` as the template ``name`` of a kind; it replaces a template of that name.

    Raises:
        InvalidArgument: an unknown kind or a blank name.
    """
    if level not in kind_names():
        raise InvalidArgument(f"Unknown level {level!r}. Available: {format_options(kind_names(), near=str(level))}.")
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgument(f"A template name must be a non-empty string, got {name!r}")
    _registered[level, name] = builder


def template_names(level: str) -> list[str]:
    """Return the names of the templates of a kind, sorted."""
    shipped = (file.stem for file in (TEMPLATE_FOLDER / level).glob("*.yaml"))
    return sorted({*shipped, *(name for kind, name in _registered if kind == level)})


def render_template(level: str, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a template with these parameters.

    Raises:
        UnknownName: (a KeyError) an unknown template or parameter.
        InvalidArgument: a value that is not one of a parameter's choices.
        InvalidConfig: a template file that cannot be read.
    """
    return _render(level, name, parameters, ())


def _render(level: str, name: str, parameters: Mapping[str, Any], inside: tuple[str, ...]) -> dict[str, Any]:
    """Do the work of `render_template` within the templates ``inside``, outermost first."""
    place = f"{level}/{name}"
    if place in inside:
        raise InvalidConfig(f"template {place!r} contains itself: {' -> '.join((*inside, place))}; remove one from_template of this cycle")
    builder = _registered.get((level, name))
    if builder is None:
        if name not in template_names(level):
            raise unknown_name(f"{level} template", name, template_names(level))
        return FileTemplate(TEMPLATE_FOLDER / level / f"{name}.yaml").fill(parameters, (*inside, place))
    return dict(builder(**parameters))


class FileTemplate:
    """A template in a YAML or JSON file. Calling it with parameters returns a config."""

    def __init__(self, path: str | Path) -> None:
        from yggdrasill.foundation.schemas import TemplateModel

        self.path = Path(path)
        document = read_document(self.path)
        where = f"template {str(self.path.name)!r}"
        check_version(document, "1.0", where)
        model = read_model(TemplateModel, document, where)
        self.name = self.path.stem
        self.description = model.description
        self.parameters = model.parameters
        self._config = model.config

    def __call__(self, **given: Any) -> dict[str, Any]:
        """Return the config with every placeholder filled."""
        return self.fill(given)

    def fill(self, given: Mapping[str, Any], inside: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the config for these parameters; ``inside`` names the templates around this one, so that a cycle is detected."""
        for name in given:
            if name not in self.parameters:
                raise unknown_name(f"parameter of template {self.name!r}", name, self.parameters)
        values = {name: self._value(name, given) for name in self.parameters}
        config: dict[str, Any] = self._fill(self._config, values, (), inside)
        return config

    def _value(self, name: str, given: Mapping[str, Any]) -> Any:
        parameter = self.parameters[name]
        value = given.get(name, parameter.default)
        if parameter.choices is None:
            return copy.deepcopy(value)
        if not isinstance(value, str) or value not in parameter.choices:
            raise InvalidArgument(
                f"template {self.name!r}: parameter {name!r} is {value!r}. Available: {format_options(parameter.choices)}."
            )
        return copy.deepcopy(parameter.choices[value])

    def _fill(self, part: Any, values: Mapping[str, Any], open_names: tuple[str, ...], inside: tuple[str, ...]) -> Any:
        if isinstance(part, dict):
            filled = {key: self._fill(value, values, open_names, inside) for key, value in part.items()}
            return self._part(filled, inside) if "from_template" in part and set(part) <= {"from_template", "parameters"} else filled
        if isinstance(part, list):
            return [self._fill(value, values, open_names, inside) for value in part]
        if not isinstance(part, str):
            return part
        whole = _PLACEHOLDER.fullmatch(part)
        if whole:
            name = self._known(whole.group(1), open_names)
            # A choice may contain placeholders; a value that a caller passes is not searched for them.
            return self._fill(values[name], values, (*open_names, name), inside) if self.parameters[name].choices else values[name]
        return _PLACEHOLDER.sub(lambda match: str(values[self._known(match.group(1), open_names)]), part)

    def _part(self, part: Mapping[str, Any], inside: tuple[str, ...]) -> dict[str, Any]:
        """Return the config of ``{from_template, parameters?}``."""
        place, parameters = part["from_template"], part.get("parameters", {})
        level, _, name = place.partition("/") if isinstance(place, str) else ("", "", "")
        if level not in kind_names() or not name:
            raise InvalidConfig(
                f"template {self.name!r}: from_template is {place!r}; write it level/name. Available levels: {format_options(kind_names())}."
            )
        if not isinstance(parameters, Mapping):
            raise InvalidConfig(f"template {self.name!r}: the parameters of {place!r} are {parameters!r}; they must be a mapping by name")
        return _render(level, name, parameters, inside)

    def _known(self, name: str, open_names: tuple[str, ...]) -> str:
        if name not in self.parameters:
            raise InvalidConfig(f"template {self.name!r} uses {{{{{name}}}}}: {unknown_message('parameter', name, self.parameters)}")
        if name in open_names:
            raise InvalidConfig(f"template {self.name!r}: parameter {name!r} contains itself")
        return name
