"""What a data set must satisfy before anything is trained on it, as pandera schemas over whole tables.

`files_schema` is for a table with a row for every file, with the reason if it was rejected; `Manifest` for one with a
row for every photo that is used. Errors stop the stage; warnings are printed and go into the validation report.
"""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Literal

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaErrors, SchemaWarning
from pandera.polars import PolarsData
from pydantic import Field

from components.config import Strict
from components.data.captions import MAX_LENGTH
from components.data.images import Rules
from components.data.photos import SPLITS

SHA256 = r"^[0-9a-f]{64}$"


class CheckConfig(Strict):
    """What counts as unusable, and what as worth a warning.

    bit_depth: bits that count in files with 16 bits a channel, one number for the whole data set; auto is 16, and
    warns if the values are those of fewer bits. max_imbalance: largest class over smallest, in the train split.
    """

    max_pixels: int = Field(100_000_000, ge=64)
    max_aspect: float = Field(10.0, ge=1)
    min_side: int = Field(8, ge=1)
    bit_depth: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = "auto"
    max_imbalance: float = Field(20.0, ge=1)

    def rules(self) -> Rules:
        return Rules(
            self.max_pixels, self.max_aspect, self.min_side, 16 if self.bit_depth == "auto" else self.bit_depth
        )


class Manifest(pa.DataFrameModel):
    """One row per photo, in the order of the packed pixels."""

    path: str = pa.Field(unique=True)
    sha256: str = pa.Field(str_matches=SHA256)
    pixels_sha256: str = pa.Field(str_matches=SHA256, unique=True)  # no duplicates, so no photo in two splits
    width: pl.Int32 = pa.Field(ge=1)
    height: pl.Int32 = pa.Field(ge=1)
    mode: str
    channels: pl.Int8 = pa.Field(isin=[1, 2, 3, 4])
    bytes: pl.Int64 = pa.Field(gt=0)
    format: str
    split: str = pa.Field(isin=list(SPLITS))
    label: str = pa.Field(nullable=True)
    caption: str = pa.Field(nullable=True, str_length={"min_value": 1, "max_value": MAX_LENGTH})
    notes: str
    offset: pl.Int64 = pa.Field(ge=0)
    packed_width: pl.Int32 = pa.Field(ge=1)
    packed_height: pl.Int32 = pa.Field(ge=1)
    packed_bytes: pl.Int64 = pa.Field(ge=1)
    labels: pl.List = pa.Field(dtype_kwargs={"inner": pl.String})  # all of them; `label` is null if they are several
    group: str = pa.Field(nullable=True)

    class Config:
        strict = True
        coerce = False
        name = "manifest"

    @pa.dataframe_check(name="packed end to end")
    def packed(cls, data: PolarsData) -> pl.LazyFrame:
        end = pl.col("offset") + pl.col("packed_bytes")
        return data.lazyframe.select((end.shift(1, fill_value=0) == pl.col("offset")).alias("packed"))


def files_schema(max_rejected: float) -> pa.DataFrameSchema:
    """Returns the schema of a table of all files: path, split, label, kind (of rejection, null if used), why."""
    is_used = pl.col("kind").is_null()
    rejected = 1 - is_used.mean()

    def split_has_rows(split: str) -> pl.Expr:
        return (is_used & (pl.col("split") == split)).any()

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
            check(split_has_rows("train"), "train split", "no usable photo in the train split"),
            check(split_has_rows("val"), "val split", "no usable photo in the val split", warn=True),
            check(split_has_rows("test"), "test split", "no usable photo in the test split", warn=True),
        ],
        strict=True,
        name="list of files",
    )


def validate(table: pl.DataFrame, schema: pa.DataFrameSchema | type[pa.DataFrameModel]) -> list[str]:
    """Returns the warnings. Raises ValueError with every failed check and its first cases."""
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
                else f"  {check}"  # a check of the whole table has no row to name
                for (check, column), group in cases.group_by("check", "column", maintain_order=True)
            ]
            name = schema.name if isinstance(schema, pa.DataFrameSchema) else schema.Config.name
            raise ValueError("\n".join([f"the {name} is not valid:", *lines])) from None
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, SchemaWarning)]
    return [match[1] if (match := re.search(r"<Check [^:]+: (.+?)>", text)) else text for text in messages]
