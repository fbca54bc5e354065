"""From a YAML file and ``key=value`` words to a frozen Config.

Owns the merge (the schema's defaults, then the files named by ``base``, then the file, then the overrides) and the sentences that
tell a user what is wrong with a key or its value. What is wrong between keys is conf.checks' business.
Must not know Ray, torch or the engines.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.schema import Config

CONF_DIR = Path(__file__).parent
OmegaConf.clear_resolver("oc.env")  # settings are written down and shown around; what the environment holds is not
BASE_KEY = "base"  # names a parent file, relative to the file that holds it


class ConfigError(ValueError):
    """Settings that cannot be run; the message is one sentence that names the key and the values."""


def load_config(path_or_name: str, overrides: Sequence[str] = ()) -> Config:
    """Read a run's settings.

    Args:
        path_or_name: a YAML file, or the name of a shipped one (``quickstart``).
        overrides: ``key=value`` words that win over the file, with dotted keys; a key that only one section has may stand alone.

    Returns:
        The frozen settings, every reference resolved; conf.checks.check has yet to look at them.

    Raises:
        ConfigError: a missing or unreadable file, an unknown key, a value of the wrong type, a word without ``=``.
    """
    config = OmegaConf.structured(Config)
    for path in reversed(_with_bases(_find(path_or_name))):
        values = _read_yaml(path)
        values.pop(BASE_KEY, None)
        config = _merge(config, dict(_leaves(values)), origin=_shown(path))
    for word in overrides:
        config = _merge(config, dict(_leaves_below(*_parse_override(word))), origin=f"'{word}'")
    try:
        loaded = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        if "oc.env" in str(_raw(config, key)):
            raise ConfigError(
                f"{key} = {_raw(config, key)!r} reads the environment, which may hold secrets; settings are written down and shown, so"
                " write the value itself."
            ) from error
        raise ConfigError(f"{key} = {_raw(config, key)!r} refers to something that does not exist: {_first_line(error)}.") from error
    assert isinstance(loaded, Config)
    return loaded


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Change loaded settings.

    Args:
        config: as load_config returns it.
        overrides: ``key=value`` words, as for load_config.

    Returns:
        The frozen settings with these values.

    Raises:
        ConfigError: as load_config does.
    """
    changed = OmegaConf.structured(config)
    for word in overrides:
        changed = _merge(changed, dict(_leaves_below(*_parse_override(word))), origin=f"'{word}'")
    loaded = OmegaConf.to_object(changed)
    assert isinstance(loaded, Config)
    return loaded


def resolved_yaml(config: Config) -> str:
    """Write settings as YAML that load_config reads back to an equal Config.

    Args:
        config: of a run.

    Returns:
        Every key with its value, no references left.
    """
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def config_hash(*sections: object) -> str:
    """Name settings by their content, as the key of a cache.

    Args:
        sections: a Config, or the sections of it (dataclasses) that matter.

    Returns:
        16 hexadecimal digits, equal for equal settings on every machine.
    """
    for section in sections:
        if not dataclasses.is_dataclass(section) or isinstance(section, type):
            raise TypeError(f"config_hash takes settings, not {type(section).__name__}")
    plain = [{type(section).__name__: dataclasses.asdict(section)} for section in sections]  # type: ignore[call-overload]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=lambda choice: choice.value).encode()).hexdigest()[:16]


def shipped_names() -> list[str]:
    """Name the YAML files that come with the product.

    Returns:
        What load_config takes as a name, sorted.
    """
    return sorted(path.stem for path in [*CONF_DIR.glob("*.yaml"), *CONF_DIR.glob("experiment/*.yaml")])


def _find(path_or_name: str) -> Path:
    """The file that is meant: itself, or a shipped one by its name."""
    path = Path(path_or_name)
    candidates = [path, CONF_DIR / "experiment" / f"{path_or_name}.yaml", CONF_DIR / f"{path_or_name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(f"There is no configuration file '{path_or_name}'; shipped ones, by name: {', '.join(shipped_names())}.")


def _with_bases(path: Path) -> list[Path]:
    """The file and its chain of parents, nearest first."""
    chain = [path]
    while (base := _read_yaml(chain[-1]).get(BASE_KEY)) is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{_shown(chain[-1])}: {BASE_KEY} = {base!r} is wrong, expected the name of a YAML file.")
        parent = chain[-1].parent / base
        if not parent.is_file():
            raise ConfigError(f"{_shown(chain[-1])}: {BASE_KEY} = {base!r} names a file that does not exist: {_shown(parent)}.")
        if parent.resolve() in {known.resolve() for known in chain}:
            raise ConfigError(f"{_shown(chain[-1])}: {BASE_KEY} = {base!r} leads back to a file that builds on this one.")
        chain.append(parent)
    return chain


def _read_yaml(path: Path) -> dict[str, typing.Any]:
    """A file's mapping, references unresolved; an empty file is an empty mapping."""
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ConfigError(f"{_shown(path)}, {where}: not YAML: {getattr(error, 'problem', None) or _first_line(error)}.") from error
    except (OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{_shown(path)} cannot be read as YAML: {_first_line(error)}.") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{_shown(path)} holds a list, expected 'section:' lines with 'key: value' lines below them.")
    values = OmegaConf.to_container(loaded, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _leaves(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys with their values; a mapping is a section, or the value of a key that takes one."""
    for key, value in values.items():
        yield from _leaves_below(f"{prefix}{key}", value)


def _leaves_below(key: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value and key not in _field_types():
        yield from _leaves(value, f"{key}.")
    else:
        yield key, value


def _parse_override(word: str) -> tuple[str, object]:
    """One ``key=value`` word; the value is YAML, except that a text needs no quotes."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{word}' is not an override, expected key=value, for example run.seed=2.")
    if "." not in key and key not in _section_names():
        key = _with_section(key, word)
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        assert isinstance(values, dict)
        value = values["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        if _field_types().get(key) is not str:
            raise ConfigError(f"{key} = {text!r} cannot be read: {getattr(error, 'problem', None) or _first_line(error)}.") from error
        value = text
    if _field_types().get(key) is str and not isinstance(value, str) and text not in ("null", "~"):
        value = text
    return key, value


def _with_section(name: str, word: str) -> str:
    """The dotted key of a bare name (``resume=true``), where only one section has it."""
    keys = [key for key in _field_types() if key.partition(".")[2] == name]
    if len(keys) > 1:
        raise ConfigError(f"'{word}': several sections have a key '{name}', name one of {', '.join(keys)}.")
    return keys[0] if keys else name


def _merge(config: DictConfig, leaves: Mapping[str, object], *, origin: str) -> DictConfig:
    """The settings with more values, by dotted keys; origin is the file or word that the messages name."""
    known = _field_types()
    values: dict[str, dict[str, object]] = {}
    for key, value in leaves.items():
        if key in known:
            section, name = key.split(".")
            values.setdefault(section, {})[name] = value
        elif key not in _section_names():
            raise ConfigError(f"{origin}: there is no key '{key}' (value {value!r}); {_suggestion(key)}")
        elif value:  # not "run:" with every line below it commented out
            raise ConfigError(f"{origin}: {key} = {value!r} is wrong, {key} is a section of keys like {_first_key_of(key)}.")
    try:
        merged = OmegaConf.merge(config, values)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        if len(leaves) > 1:  # find the one that is wrong
            for key, value in leaves.items():
                _merge(config, {key: value}, origin=origin)
            raise
        key, value = next(iter(leaves.items()))
        raise ConfigError(f"{origin}: {key} = {value!r} is wrong, expected {_expected(known[key])}.") from error
    assert isinstance(merged, DictConfig)
    return merged


@functools.cache
def _field_types() -> dict[str, typing.Any]:
    """Every dotted key with its annotated type."""
    sections = typing.get_type_hints(Config)
    return {f"{section}.{name}": hint for section, kind in sections.items() for name, hint in typing.get_type_hints(kind).items()}


def _section_names() -> list[str]:
    return list(typing.get_type_hints(Config))


def _first_key_of(section: str) -> str:
    return next(key for key in _field_types() if key.startswith(f"{section}."))


def _suggestion(key: str) -> str:
    """The nearest key that exists, or what there is, as the end of a sentence."""
    known = list(_field_types())
    name = key.rsplit(".", 1)[-1]
    same_name = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near_name = [c for c in known if difflib.SequenceMatcher(None, c.rsplit(".", 1)[-1], name).ratio() > 0.75]
    best = (same_name or near or near_name)[:1]
    return f"did you mean {best[0]}?" if best else f"the sections are {', '.join(_section_names())}."


def _expected(hint: typing.Any) -> str:
    """An annotated type in a user's words."""
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join("null" if part is type(None) else _expected(part) for part in arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    if typing.get_origin(hint) is list:
        return "a list of whole numbers like [2048, 8192]" if arguments == (int,) else "a list of texts like [first, second]"
    if typing.get_origin(hint) is dict:
        return "numbers by name like {first: 1, second: 2}"
    if typing.get_origin(hint) is tuple:
        return f"{len(arguments)} numbers like [{', '.join(['0.9', '0.99', '1.0'][: len(arguments)])}]"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint]


def _raw(config: DictConfig, key: str) -> object:
    """A value before its references are resolved, for messages."""
    section, _, name = key.partition(".")
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return plain.get(section, {}).get(name) if name else plain.get(section)


def _shown(path: Path) -> str:
    """A path as short as it stays clear."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
