"""The table of token mixers that model.pattern may name, a line each (contract.py: the record)."""

from hope_jax.model import attention, gated_deltanet, gru, mamba, selfmod, titans
from hope_jax.model import titans_mac
from hope_jax.model.contract import Mixer, complete

TABLE = {
    "attention": attention.MIXER,  # softmax attention, full or sliding window
    "selfmod": selfmod.MIXER,  # self-modifying Titans
    "gru": gru.MIXER,  # gated recurrent unit
    "gated_deltanet": gated_deltanet.MIXER,  # the gated delta rule
    "mamba": mamba.MIXER,  # selective state space
    "titans_lmm": titans.LMM_MIXER,  # Titans' neural memory alone
    "titans_mac": titans_mac.MIXER,  # its answers are context of attention
    "titans_mag": titans.MAG_MIXER,  # it gates attention
    "titans_mal": titans.MAL_MIXER,  # it is a layer before attention
}
# sections of the configuration that some mixer reads
SECTIONS = tuple(dict.fromkeys(section for name, mixer in TABLE.items()
                               for section in mixer.sections or (name,)))


def of(config) -> dict[str, Mixer]:
  """The mixers of a pattern, by name. ValueError for a name that is none, or a record not whole."""
  unknown = [name for name in config.model.pattern if name not in tuple(TABLE)]
  if unknown or not config.model.pattern:
    raise ValueError(f"model.pattern={tuple(config.model.pattern)}: "
                     + (f"{unknown[0]} is no token mixer" if unknown else
                     "it is empty") + f"; choose from {', '.join(TABLE)}, e.g. ('attention',)")
  return {name: complete(name, TABLE[name]) for name in dict.fromkeys(config.model.pattern)}


def layers_of(config, name: str) -> list[int]:
  """Numbers of the layers that have this mixer: the pattern is repeated until model.layers."""
  pattern = config.model.pattern
  return [i for i in range(config.model.layers) if pattern[i % len(pattern)] == name]
