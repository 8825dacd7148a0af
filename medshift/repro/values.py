"""Values that people write: YAML files and `-p` pairs; one clear error, never a key that is silently taken twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medshift.errors import DataError, ParameterError


class _OnceLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML silently takes the last; a date is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ParameterError(f"{twice[0]!r} stands there twice, again in line {node.start_mark.line + 1} or after.")
        return super().construct_mapping(node, deep)


def parse_pairs(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """``-p name value`` pairs, values read as YAML; ParameterError for a name given twice."""
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in values:
            raise ParameterError(f"Parameter {name!r} is given twice; give it once.")
        try:
            values[name] = yaml.load(text, Loader=_OnceLoader) if text else ""  # noqa: S506, a safe loader
        except (yaml.YAMLError, ValueError):
            values[name] = text
        if values[name] is None:
            values[name] = text
    return values


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping.

    Raises:
        DataError: no such file, or it cannot be read as text.
        ParameterError: it is no YAML (tabs, say), empty, a list, or names a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)  # noqa: S506, a safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a YAML file.") from None
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        tabs = " It holds a tab; YAML indents with spaces." if "\t" in path.read_text(encoding="utf-8") else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise ParameterError(f"{path}{where}: {problem}.{tabs}") from None
    except ValueError as error:
        raise ParameterError(f"{path}: {error}.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        kind = "empty" if values is None else f"a {type(values).__name__}"
        raise ParameterError(f"{path} is {kind}; expected lines `name: value`.")
    return values
