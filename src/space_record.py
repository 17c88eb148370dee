"""results/space/space.json: what the space stage came to."""

from typing import Annotated, Literal

from pydantic import Field

from src.records import Digest, Record


class SpaceRecord(Record):
    """off, nothing (there is no release of the champion here), or made: a bundle lies in bundle/.

    serves: weights that are SAFE, the one that answers first. made_from: equal where the bundle would come out the
    same, so that nothing is made twice.
    """

    state: Literal["off", "nothing", "made"]
    why: str
    key: str | None  # the champion's promotion key
    version: Annotated[int, Field(ge=1)] | None
    serves: list[Literal["int8", "int4", "safetensors"]]
    made_from: Digest | None
