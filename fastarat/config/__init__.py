"""Every setting of a run, in one place: a file a part, the tree of all parts, recipes. Nothing here imports torch."""

from fastarat.config.published_code import published_code
from fastarat.config.tree import Config, Fidelity, by_flag, from_dict, load_config, to_json

__all__ = ["Config", "Fidelity", "by_flag", "from_dict", "load_config", "published_code", "to_json"]
