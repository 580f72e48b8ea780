"""Strict and frozen configuration schemas, and the file params.yaml that holds the chosen settings."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

PARAMS = Path("params.yaml")
AUTO = "auto"


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the smaller number comes first")
    return pair


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
FractionRange = Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(_ascending)]


class InvalidError(ValueError):
    """Settings that are not valid: one line for each problem, with the section it stands in."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Auto:
    """Marks a setting that may say `auto`; `rule` computes its value from the data, as `fill_auto` hands them over.

    A parsed config never holds `auto`, only the value.
    """

    rule: Callable[[Any], int]


class Strict(BaseModel):
    """A value object: unknown keys are errors, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Python would take true for 1."""
        problems: list[InitErrorDetails] = [
            {"type": PydanticCustomError("boolean", f"cannot be {str(value).lower()}"), "loc": (name,), "input": value}
            for name, value in (values.items() if isinstance(values, dict) else ())
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool
        ]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return values


Schema = TypeVar("Schema", bound=Strict)


def section(name: str, path: Path = PARAMS) -> dict[str, Any]:
    """Returns one section of params.yaml, unchecked.

    Raises ValueError with the names of all sections if there is none of that name.
    """
    params = _load(path)
    if name not in params:
        raise ValueError(f"{path} has no section {name!r}; it has: {', '.join(params)}")
    return settings(params[name], f"{path}, section {name}")


def sections(path: Path = PARAMS) -> set[str]:
    return set(_load(path))


def settings(values: Any, source: str) -> dict[str, Any]:
    """Returns the settings of a section, {} for an empty one. Raises ValueError unless they are names with values.

    source: where the values come from, for the message.
    """
    if not isinstance(values, dict | None):
        raise ValueError(f"{source}: names and their values are needed; given: {values!r}")
    return values or {}


def methods(path: Path = PARAMS) -> list[str]:
    """Returns the methods to train. Raises ValueError if they are not a list of names, each of them once."""
    names = _load(path).get("methods")
    if not isinstance(names, list) or any(not isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path}, methods: a list of names is needed, each once; given: {names!r}")
    return names


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path} in {Path.cwd()}; run this in the project's folder")
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(params, dict):
        raise ValueError(f"{path} has no sections; given: {params!r}")
    return params


def known_names(name: str, names: Iterable[str]) -> str:
    """Returns the known names for an error message about an unknown one, and a similar one if there is any."""
    names = list(names)
    similar = get_close_matches(name, names, 1)
    return ", ".join(names) + (f"; did you mean {similar[0]}?" if similar else "")


def fill_auto(schema: type[Strict], values: dict[str, Any], data: Any) -> dict[str, Any]:
    """Returns `values` with each `auto` replaced by what the rule of its setting (see Auto) makes of `data`."""
    result = dict(values)
    for name, field in schema.model_fields.items():
        rules = [mark.rule for mark in field.metadata if isinstance(mark, Auto)]
        if rules and values.get(name) == AUTO:
            result[name] = rules[0](data)
    return result


def parse(schema: type[Schema], values: dict[str, Any], source: str | Callable[[str], str]) -> Schema:
    """Returns `values` as a checked `schema`.

    source: where the values come from, for messages; or a function that returns it for a top-level key.
    Raises InvalidError with, for each problem, the source, the key, what was given and what is allowed.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            location = source if isinstance(source, str) else source(key.partition(".")[0])
            message = f"{problem['msg'].removeprefix('Value error, ')}; given: {problem['input']!r}"
            if problem["type"] == "extra_forbidden":
                fields = _fields(schema, problem["loc"][:-1])
                message = f"no such setting; known here: {known_names(str(problem['loc'][-1]), sorted(fields))}"
            problems.append(f"{location}: {key}: {message}" if key else f"{location}: {message}")
        raise InvalidError(problems) from None


def read_section(name: str, schema: type[Schema], path: Path = PARAMS) -> Schema:
    """Returns one section of params.yaml, checked."""
    return parse(schema, section(name, path), f"{path}, section {name}")


def write_config(config: Strict, path: Path) -> None:
    """Write the settings of a run, all of them, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def _fields(schema: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """Returns the settings that exist at `loc` inside `schema`. In a union, `loc` names the member by its tag."""
    models: list[Any] = [schema]
    for part in loc:
        members: list[Any] = []
        for model in models:
            field = getattr(model, "model_fields", {}).get(part)
            members += _models(field.annotation) if field else [model]  # a tag: stay
        with_tag = [m for m in members if any(part in _tags(f) for f in m.model_fields.values())]
        models = with_tag or members
    return {name for model in models for name in model.model_fields}


def _tags(field: Any) -> tuple[Any, ...]:
    return getattr(field.annotation, "__args__", ())


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models(inner)]
