"""The smallest score network that has every part, for tests that train or store one."""

from typing import Any

TINY: dict[str, Any] = {
    "node_embed_size": 16,
    "edge_embed_size": 8,
    "embed": {"index_embed_size": 8},
    "ipa": {
        "num_blocks": 1,
        "no_heads": 2,
        "c_hidden": 4,
        "no_qk_points": 2,
        "no_v_points": 2,
        "c_skip": 8,
        "seq_tfmr_num_heads": 2,
        "seq_tfmr_num_layers": 1,
    },
}
