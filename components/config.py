"""Configuration is a strict and frozen schema beside the code that reads it, and one file that says what we chose."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

PARAMS = Path("params.yaml")


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("from the smaller to the larger is needed")
    return pair


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
FractionRange = Annotated[tuple[PositiveFraction, PositiveFraction], AfterValidator(_rising)]


class Strict(BaseModel):
    """A value object: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Python takes it for 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} cannot be {str(value).lower()}")
        return values


Schema = TypeVar("Schema", bound=Strict)


def section(name: str, path: Path = PARAMS) -> dict[str, Any]:
    """One section of params.yaml as it stands there.

    Raises ValueError naming the known sections if there is none of that name.
    """
    params = _load(path)
    if name not in params:
        raise ValueError(f"{path} has no section {name!r}; it has: {', '.join(params)}")
    return settings(params[name], f"{path}, section {name}")


def sections(path: Path = PARAMS) -> set[str]:
    return set(_load(path))


def settings(values: Any, where: str) -> dict[str, Any]:
    """What stands in a section, {} where nothing does. Raises ValueError if that is not names and values."""
    if not isinstance(values, dict | None):
        raise ValueError(f"{where}: names and their values are needed; given: {values!r}")
    return values or {}


def methods(path: Path = PARAMS) -> list[str]:
    """The rows of the table. Raises ValueError if they are no list of names, each of them once."""
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


def parse(schema: type[Schema], values: dict[str, Any], where: str) -> Schema:
    """`values` as a checked `schema`. Raises ValueError that says where, what was given and what is known."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [f"{where} is not valid:"]
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            said = f"  {key}: {problem['msg'].removeprefix('Value error, ')}; given: {problem['input']!r}"
            if problem["type"] == "extra_forbidden":
                known = ", ".join(sorted(_fields(schema, problem["loc"][:-1])))
                said = f"  {key}: no such setting; known here: {known}"
            lines.append(said)
        raise ValueError("\n".join(lines)) from None


def read(name: str, schema: type[Schema], path: Path = PARAMS) -> Schema:
    """One section of params.yaml, checked."""
    return parse(schema, section(name, path), f"{path}, section {name}")


def write(config: Strict, path: Path) -> None:
    """What ran, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def _fields(schema: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """The keys that are known at `loc` inside `schema` (a union's members are told apart by their tag in `loc`)."""
    models: list[Any] = [schema]
    for part in loc:
        below: list[Any] = []
        for model in models:
            field = getattr(model, "model_fields", {}).get(part)
            below += _models(field.annotation) if field else [model]  # a tag: stay
        tagged = [m for m in below if any(part in _tags(f) for f in m.model_fields.values())]
        models = tagged or below
    return {name for model in models for name in model.model_fields}


def _tags(field: Any) -> tuple[Any, ...]:
    return getattr(field.annotation, "__args__", ())


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models(inner)]
