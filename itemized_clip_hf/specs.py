"""
One strict reader for the YAML and JSON that people write: recipes, domains, protocols, cards, prompt files.

A file is text in UTF-8, of bounded size and depth, without duplicate keys; what it holds is checked against the annotations of
the dataclass that it becomes. Every fault is a ValueError that names the file, the key, what was found and what was expected.
"""

import difflib
import functools
import json
import math
import os
import re
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Built = TypeVar("Built")

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_VALUES = 200_000

_NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$")
"""Numbers that YAML 1.1 takes for texts."""
_DAMAGE = (ValueError, TypeError, OverflowError, AttributeError, KeyError, IndexError)


def read_text(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> str:
    """
    Text of a file.

    Raises:
        OSError: it cannot be opened; ValueError: it is too large, not in UTF-8, or holds NUL bytes.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path.name} is a folder, expected a text file.")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path.name} has more than {max_bytes:,} bytes, which is the limit for such a file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not text in UTF-8 (byte {error.start}); save it as UTF-8.") from None
    if "\0" in text:
        raise ValueError(f"{path.name} holds NUL bytes; expected text in UTF-8.")
    return text


def read_written(path: str | os.PathLike) -> Any:
    """What a YAML file, or a file whose name ends in `.json`, holds."""
    path = Path(path)
    content = read_json(path) if path.suffix.lower() == ".json" else parse_yaml(read_text(path), path.name)
    _bound(content, path.name)
    return content


def read_json(path: str | os.PathLike, kind: type = object, max_bytes: int = MAX_BYTES) -> Any:
    """
    What a JSON file holds.

    Args:
        kind: `dict` or `list` where only one will do.
    """
    path = Path(path)
    return parse_json(read_text(path, max_bytes), path.name, kind)


def parse_json(text: str, where: str, kind: type = object) -> Any:
    """A JSON text; duplicate keys are refused."""
    try:
        content = json.loads(text, object_pairs_hook=functools.partial(_pairs, where=where))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise ValueError(f"{where} cannot be read as JSON: it is nested too deeply.") from None
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except ValueError:
        raise ValueError(f"{where} cannot be read as JSON: it holds a number of too many digits.") from None
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise ValueError(f"{where} holds {describe(content)}, expected {expected}.")
    return content


class _RefusedError(ValueError):
    """What is wrong, in words of ours."""


def _pairs(pairs: list[tuple[str, Any]], where: str) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"{where}: duplicate key {_short(twice)}.")
    return content


def parse_yaml(text: str, where: str) -> Any:
    r"""
    A YAML text. Duplicate keys are refused, dates stay words, and `1e-4` is a number, as in JSON.

    >>> parse_yaml("rate: 1e-4\nday: 2020-01-02", "example")
    {'rate': 0.0001, 'day': '2020-01-02'}
    """
    import yaml

    try:
        return yaml.load(text, _yaml_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{where} is not valid YAML: {error.problem or error.context}{place}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ValueError(f"{where} cannot be read as YAML: it is nested too deeply.") from None
    except _DAMAGE:
        raise ValueError(f"{where} cannot be read as YAML: one of its values does not fit its tag.") from None


def write_yaml(value: Any) -> str:
    r"""
    A value as YAML that `parse_yaml` reads as it was: a text such as `1e5` is quoted.

    >>> write_yaml({"hash": "1e5"})
    "hash: '1e5'\n"
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


@functools.cache
def _yaml_loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"duplicate key {_short(key.value)}", key.start_mark
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))
    return Loader


def _bound(content: Any, where: str) -> None:
    """Refuses what aliases or nesting make larger than any such file has to be, and numbers that are not finite."""
    left, level, depth = MAX_VALUES, [content], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep.")
        below: list = []
        for value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{where} holds {value}, expected finite numbers.")
            if isinstance(value, dict):
                non_strings = [name for name in value if not isinstance(name, str)]
                if non_strings:
                    raise ValueError(
                        f"{where}: the key {describe(non_strings[0])} is not a name; put it in quotes if it is meant."
                    )
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, set)) else ()
            left -= len(inner)
            if left < 0:
                raise ValueError(f"{where} holds more than {MAX_VALUES:,} values.")
            below.extend(inner)
        level, depth = below, depth + 1


def describe(value: Any) -> str:
    """A value for a message, cut, with its type."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list, tuple, set)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{_short(value)} ({type(value).__name__})"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """
    The known name that is meant, as far as its letters tell.

    >>> nearest("brian-mri", ["brain-mri", "chest-ct"])
    'brain-mri'
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'NAME'?` for the end of a message, or nothing."""
    found = nearest(name, known)
    return f" Did you mean {found!r}?" if found else ""


def find_written(what: str, name_or_path: str | os.PathLike, folder: Path, known: Collection[str]) -> Path:
    """The YAML file of a path, or of one of the names that stand in a folder; ValueError where there is none."""
    for path in (Path(name_or_path), folder / f"{name_or_path}.yaml"):
        if path.is_file():
            return path
    name = str(name_or_path)
    hint = did_you_mean(name, known)
    raise ValueError(f"there is no {what} {name!r}; choose one of {list(known)} or a YAML file.{hint}")


def check_keys(found: Collection[str], known: Collection[str], where: str, what: str = "known are") -> None:
    """Raises where keys are unknown, and names the nearest known one of each."""
    unknown = sorted(set(found) - set(known), key=str)
    if not unknown:
        return
    matches = {name: nearest(str(name), known) for name in unknown[:5]}
    hints = ", ".join(f"{match!r} instead of {_short(name)}" for name, match in matches.items() if match)
    shown = f"[{', '.join(map(_short, unknown[:5]))}]" + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    listed = f"; {what} {sorted(known)}" if len(known) <= 40 else ""
    raise ValueError(f"{where}: unknown keys {shown}{f' (perhaps {hints})' if hints else ''}{listed}.")


def check_section(content: Any, kinds: Mapping[str, Any], where: str, required: Collection[str] = ()) -> None:
    """
    Checks a dictionary against name -> annotation.

    Raises:
        ValueError: it is not one, has unknown keys, lacks one, or a value is of another type.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {describe(content)}, expected keys such as {', '.join(list(kinds)[:3])}.")
    check_keys(content, kinds, where)
    missing = sorted(set(required) - set(content))
    if missing:
        raise ValueError(f"{where} lacks {missing}.")
    for name, value in content.items():
        conform(value, kinds[name], f"{where}: {name}")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    `changes` over `base`, dictionaries within dictionaries too.

    >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    """
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def hints_of(kind: type) -> dict[str, Any]:
    """Annotations of a class; those that name what is not imported there are left unchecked."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {name: Any for parent in kind.__mro__ for name in getattr(parent, "__annotations__", {})}


def build(kind: type[Built], content: Any, where: str, **given: Any) -> Built:
    """
    A dataclass from what a file holds, checked against its annotations.

    Args:
        given: arguments that do not come from the file and may not stand there.
    """
    hints = hints_of(kind)
    known = {f.name: hints[f.name] for f in fields(kind) if f.name not in given}  # type: ignore[arg-type]
    needed = [
        f.name
        for f in fields(kind)  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING and f.name not in given
    ]
    check_section(content, known, where, needed)
    return kind(**given, **content)


def conform(value: Any, kind: Any, where: str, huge: bool = False) -> None:
    """Raises a ValueError where a value is not of the type that an annotation says; `huge` whole numbers are an exception."""
    if huge and type(value) is int and value > 0:
        return
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        _conform_to_one(value, arguments, where)
    elif origin in (list, tuple, Collection) or kind in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} is {describe(value)}, expected a list.")
        inner = [argument for argument in arguments if argument is not Ellipsis]
        for number, entry in enumerate(value if inner else ()):
            conform(entry, inner[0], f"{where}[{number}]")
    elif origin in (dict, Mapping) or kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {describe(value)}, expected names with values.")
        for name, entry in value.items() if arguments else ():
            conform(name, arguments[0], f"{where}: the name {_short(name)}")
            conform(entry, arguments[1], f"{where}.{str(name)[:40]}")
    elif origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {describe(value)}, expected one of {list(arguments)}.")
    elif not _is_of(value, kind):
        raise ValueError(f"{where} is {describe(value)}, expected {spell_kind(kind)}.")


def _conform_to_one(value: Any, kinds: tuple, where: str) -> None:
    faults = []
    for kind in kinds:
        try:
            return conform(value, kind, where)
        except ValueError as error:
            faults.append(str(error))
    inside = [fault for fault in faults if not fault.startswith(f"{where} is ")]
    expected = " or ".join(dict.fromkeys(map(spell_kind, kinds)))
    raise ValueError(inside[0] if inside else f"{where} is {describe(value)}, expected {expected}.")


def _is_of(value: Any, kind: Any) -> bool:
    if kind is Any or not isinstance(kind, type):
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, kind)


def spell_kind(kind: Any) -> str:
    """An annotation in words."""
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "nothing",
    }
    words |= {type(None): "nothing", list: "a list", dict: "names with values", tuple: "a list"}
    found = words.get(get_origin(kind) or kind)
    return found or str(getattr(kind, "__name__", kind))


def read_prompts(path: str | os.PathLike) -> dict[str, list[str]]:
    """
    Prompts of a file, by label.

    Args:
        path: YAML or JSON with label -> prompt or prompts, or a list of prompts, which are their own labels; or `.txt` with one
            prompt per line; or what `itemized-clip prompts` wrote, see `read_choice`.

    Raises:
        ValueError: it holds neither, no prompt at all, or one that is blank or not text.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        content: Any = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    else:
        content = _split_choice(read_written(path))[0]
    if not isinstance(content, (dict, list)) or not content:
        raise ValueError(
            f"{path.name} holds {describe(content)}, expected label -> prompt or prompts, or a list of prompts."
        )
    if isinstance(content, list):
        conform(content, list[str], path.name)
        content = {text: text for text in content}
    prompts = {label: [texts] if isinstance(texts, str) else texts for label, texts in content.items()}
    for label, texts in prompts.items():
        conform(texts, list[str], f"{path.name}: the prompts of {_short(label)}")
        if not texts or not all(text.strip() for text in texts):
            raise ValueError(f"{path.name}: {_short(label)} has no prompt, or a blank one.")
    return prompts


def read_choice(path: str | os.PathLike) -> dict[str, Any] | None:
    """How the prompts of a file were chosen, as `itemized-clip prompts` notes it under `chosen`; None where it does not say."""
    return None if Path(path).suffix.lower() == ".txt" else _split_choice(read_written(path))[1]


def _split_choice(content: Any) -> tuple[Any, dict[str, Any] | None]:
    """`prompts` and `chosen` of a file that has both, and no others; no label has a dictionary for its prompts."""
    if isinstance(content, dict) and set(content) == {"prompts", "chosen"}:
        prompts, chosen = content["prompts"], content["chosen"]
        if isinstance(prompts, dict) and isinstance(chosen, dict):
            return prompts, chosen
    return content, None
