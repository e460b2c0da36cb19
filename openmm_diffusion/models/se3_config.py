"""Configuration of the SE(3) score network: the seed's keys and defaults, unknown keys refused."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..diffusion.se3_config import plain
from ..errors import SettingError, validation_sentence


class EmbedConfig(BaseModel):
    """What the first node and edge embeddings are made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index_embed_size: int = Field(default=32, ge=2, multiple_of=2, description="width of each sinusoidal embedding")
    num_bins: int = Field(default=22, ge=2, description="bins of the self-conditioning CA distogram")
    min_bin: float = Field(default=1e-5, gt=0, description="lower edge of the first bin, Angstrom")
    max_bin: float = Field(default=20.0, gt=0, description="lower edge of the last bin, Angstrom")
    embed_self_conditioning: bool = Field(default=True, description="read sc_ca_t")
    embed_residue_type: bool = Field(default=False, description="read aatype")
    relative_frames: bool = Field(default=False, description="embed relative frames, finely along the chain")

    @model_validator(mode="after")
    def _bins_ascend(self) -> "EmbedConfig":
        if self.max_bin <= self.min_bin:
            raise ValueError(f"embed.max_bin is {self.max_bin}; expected above embed.min_bin, {self.min_bin}")
        return self


class IpaConfig(BaseModel):
    """Sizes of the blocks of `IpaScore`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_blocks: int = Field(default=4, ge=1, description="blocks of point attention and sequence transformer")
    no_heads: int = Field(default=12, ge=1, description="heads of the point attention")
    c_hidden: int = Field(default=16, ge=1, description="scalar channels of a head")
    no_qk_points: int = Field(default=4, ge=1, description="query and key points of a head")
    no_v_points: int = Field(default=8, ge=1, description="value points of a head")
    c_skip: int = Field(default=64, ge=1, description="width of the skip connection from the first node embedding")
    seq_tfmr_num_heads: int = Field(default=4, ge=1, description="heads of the sequence transformer")
    seq_tfmr_num_layers: int = Field(default=2, ge=1, description="layers of the sequence transformer")


class ScoreNetworkConfig(BaseModel):
    """Sizes and options of a `ScoreNetwork`; the defaults are the first seed's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node_embed_size: int = Field(default=256, ge=1, description="width of the node embedding (c_s)")
    edge_embed_size: int = Field(default=128, ge=4, description="width of the edge embedding (c_z)")
    embed: EmbedConfig = Field(default_factory=EmbedConfig)
    ipa: IpaConfig = Field(default_factory=IpaConfig)
    precondition: bool = Field(default=True, description="scale updates by the noise, and embed its logarithm")

    @model_validator(mode="before")
    @classmethod
    def _same_sizes(cls, values: Any) -> Any:
        """Published configurations repeat the two widths inside `ipa`; they must agree, and are not kept."""
        if not isinstance(values, Mapping) or not isinstance(values.get("ipa"), Mapping):
            return values
        ipa = dict(values["ipa"])
        for short, long in (("c_s", "node_embed_size"), ("c_z", "edge_embed_size")):
            size = values.get(long, cls.model_fields[long].default)
            if short in ipa and ipa.pop(short) != size:
                raise ValueError(f"ipa.{short} differs from {long} {size}; leave it out or make them equal")
        return {**values, "ipa": ipa}

    @model_validator(mode="after")
    def _heads_divide(self) -> "ScoreNetworkConfig":
        width, heads = self.node_embed_size + self.ipa.c_skip, self.ipa.seq_tfmr_num_heads
        if width % heads:
            raise ValueError(f"node_embed_size + ipa.c_skip is {width}; expected a multiple of {heads} heads")
        return self

    @classmethod
    def of(cls, config: Any = None) -> "ScoreNetworkConfig":
        """The configuration in a mapping (OmegaConf's included), None for the defaults, or an instance as it is.

        Raises
        ------
        SettingError
            For an unknown key or a value out of range.
        """
        if isinstance(config, cls):
            return config
        if config is not None and not isinstance(config, Mapping):
            raise SettingError(f"the network's configuration is a {type(config).__name__}; expected a mapping")
        try:
            return cls.model_validate(plain(config or {}))
        except ValidationError as error:
            raise SettingError(validation_sentence(error, cls)) from error

    def to_dict(self) -> dict[str, Any]:
        """All values as plain Python."""
        return self.model_dump()
