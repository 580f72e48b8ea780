"""What a data set must satisfy before anything is trained on it, said once, as pandera schemas over whole tables.

`Intake` has a row for every file that was offered, with the reason where it was rejected; `Manifest` one for every
picture that is used. Errors stop the stage; warnings are for a person to weigh, and go into the validation report.
"""

from __future__ import annotations

import re
import warnings

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors, SchemaWarning
from pandera.polars import PolarsData
from pydantic import Field

from components.config import Strict
from components.data.images import Limits
from components.data.photos import SPLITS

SHA256 = r"^[0-9a-f]{64}$"


class CheckConfig(Strict):
    """What counts as unusable, and what as worth a warning."""

    max_pixels: int = Field(100_000_000, ge=64)
    max_aspect: float = Field(10.0, ge=1)
    min_side: int = Field(8, ge=1)
    max_imbalance: float = Field(20.0, ge=1)  # largest class over smallest, in the train split

    def limits(self) -> Limits:
        return Limits(self.max_pixels, self.max_aspect, self.min_side)


class Manifest(pa.DataFrameModel):
    """One row a picture, in the order of its pixels."""

    path: str = pa.Field(unique=True)
    sha256: str = pa.Field(str_matches=SHA256)
    pixels_sha256: str = pa.Field(str_matches=SHA256, unique=True)  # no duplicates, so no picture in two splits
    width: pl.Int32 = pa.Field(ge=1)
    height: pl.Int32 = pa.Field(ge=1)
    mode: str
    channels: pl.Int8 = pa.Field(isin=[1, 2, 3, 4])
    bytes: pl.Int64 = pa.Field(gt=0)
    format: str
    split: str = pa.Field(isin=list(SPLITS))
    label: str = pa.Field(nullable=True)
    caption: str = pa.Field(nullable=True, str_length={"min_value": 1, "max_value": 2000})
    notes: str
    offset: pl.Int64 = pa.Field(ge=0)
    packed_width: pl.Int32 = pa.Field(ge=1)
    packed_height: pl.Int32 = pa.Field(ge=1)
    packed_bytes: pl.Int64 = pa.Field(ge=1)

    class Config:
        strict = True
        coerce = False
        name = "manifest"

    @pa.dataframe_check(name="packed end to end")
    def packed(cls, data: PolarsData) -> pl.LazyFrame:
        end = pl.col("offset") + pl.col("packed_bytes")
        return data.lazyframe.select((end.shift(1, fill_value=0) == pl.col("offset")).alias("packed"))


def intake_schema(config: CheckConfig, max_rejected: float) -> pa.DataFrameSchema:
    """The data set as a whole, over every file offered: path, split, label, kind (of rejection, null if used), why."""
    used = pl.col("kind").is_null()
    rejected = 1 - used.mean()
    per_class = pl.col("label").filter(used & (pl.col("split") == "train")).drop_nulls().value_counts()
    sizes = per_class.struct.field("count")

    def split_has_rows(split: str) -> pl.Expr:
        return (used & (pl.col("split") == split)).any()

    def check(expression: pl.Expr, name: str, error: str, *, warn: bool = False) -> pa.Check:
        def run(data: PolarsData) -> pl.LazyFrame:
            return data.lazyframe.select(expression.alias("ok"))

        return pa.Check(run, name=name, error=error, raise_warning=warn)

    return pa.DataFrameSchema(
        {
            "path": pa.Column(str, unique=True),
            "split": pa.Column(str, pa.Check.isin(SPLITS), nullable=True),
            "label": pa.Column(str, nullable=True),
            "kind": pa.Column(str, nullable=True),
            "why": pa.Column(str, nullable=True),
        },
        checks=[
            check(
                rejected <= max_rejected,
                "share rejected",
                f"more than data.max_rejected {max_rejected:g} rejected; remove what is named below, or allow more",
            ),
            check(split_has_rows("train"), "train split", "no usable picture in the train split"),
            check(split_has_rows("val"), "val split", "no usable picture in the val split", warn=True),
            check(split_has_rows("test"), "test split", "no usable picture in the test split", warn=True),
            check(
                (sizes.max().fill_null(1) <= config.max_imbalance * sizes.min().fill_null(1)),
                "class balance",
                f"the largest class is over {config.max_imbalance:g} times the smallest",
                warn=True,
            ),
        ],
        strict=True,
        name="intake",
    )


def validate(table: pl.DataFrame, schema: pa.DataFrameSchema | type[pa.DataFrameModel]) -> list[str]:
    """The warnings. Raises ValueError with every failed check and its first cases."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SchemaWarning)
        try:
            schema.validate(table, lazy=True)
        except SchemaErrors as errors:
            cases = errors.failure_cases.select(
                pl.col("check").cast(str),
                pl.when(pl.col("schema_context") == "Column").then(pl.col("column").cast(str)).alias("column"),
                pl.col("failure_case").cast(str),
            )
            lines = [
                f"  {column}: {check} ({len(group)}, the first: {str(group['failure_case'][0])[:80]})"
                if column
                else f"  {check}"  # of the table as a whole: no row is to blame
                for (check, column), group in cases.group_by("check", "column", maintain_order=True)
            ]
            name = schema.name if isinstance(schema, pa.DataFrameSchema) else schema.Config.name
            raise ValueError("\n".join([f"the {name} is not valid:", *lines])) from None
    said = [str(warning.message) for warning in caught if issubclass(warning.category, SchemaWarning)]
    return [found[1] if (found := re.search(r"<Check [^:]+: (.+?)>", text)) else text for text in said]
