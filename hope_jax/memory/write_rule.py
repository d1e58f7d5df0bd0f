"""The write rule of self-modifying Titans: options, step sizes, their bound (NL Eq. 90-93).

Per token, for a weight matrix with layer input x and inner gradient g = f x^T taken at the
chunk-start weights:

    W <- W (alpha I - step x x^T) - rate m,    m = momentum * m + g
    step = eta / (1 + eta ||x||^2)                      proximal: step ||x||^2 < 1 for every eta
    rate = step s / (s + step n),  s = (1 - mu) bound   n >= ||m||: running sum of ||f|| ||x||
    mu = max(alpha, step ||x||^2 - alpha)               the norm of the factor

so ||W||_2 <= mu ||W||_2 + (1 - mu) bound: the spectral norm never exceeds max(bound, its value at
the start), for any input, any width, any number of tokens. Linear memories share one transition
M <- M G; there the same rate is relative to M (s = 1 - mu), so ||M_t||_2 never exceeds its value
at the start.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

NORM_FLOOR = 1e-6
NOTHING = 1e-9  # what would move a matrix by less is written with a smaller rate, of finite slope


@dataclasses.dataclass(frozen=True)
class Rule:
  """The options, each an ablation; the fields of config.selfmod of the same names."""
  memory: str = "mlp"
  objective: str = "l2"
  factor: str = "layer"
  rank_one: bool = True
  alpha: bool = True
  momentum: float = 0.0
  target_gradient: bool = False
  unit_target: bool = True
  adaptive_q: bool = False
  bound: float = 0.0
  eta_scale: float = 1.0
  chunk_memory: int = 64
  chunk_generators: int = 64
  # controls: the fields of config.control of the same names
  sign: int = 1
  keys_as_queries: bool = False
  reset: bool = False

  def __post_init__(self):
    if self.factor == "input" and self.rank_one and self.bound:
      raise ValueError('selfmod.factor "input" takes whole steps, which no rate can bound; set '
                       'selfmod.bound to 0')

  @property
  def chunk(self) -> int:
    """Tokens processed at once: between two of them no weights that are read change."""
    return math.gcd(self.chunk_memory, self.chunk_generators)

  @property
  def grid(self) -> int:
    """Documents start at multiples of this many slots, where both kinds of chunk begin."""
    return math.lcm(self.chunk_memory, self.chunk_generators)

  @property
  def general(self) -> bool:
    """Whether gradients are more than one outer product per token."""
    return bool(self.momentum) or self.target_gradient


def from_config(selfmod, control=()) -> Rule:
  """The Rule in `config.selfmod`, under `config.control`."""
  return Rule(**{f.name: section[f.name] for section in (selfmod, control)
                 for f in dataclasses.fields(Rule) if f.name in section})


def length(x_IxC):
  """Euclidean norm over the features, with a zero instead of an infinite gradient at 0."""
  return jnp.sqrt(jnp.maximum(jnp.sum(x_IxC * x_IxC, -2), 1e-30))


def unit(x_IxC):
  """x / max(||x||, 1e-6)."""
  return x_IxC / jnp.maximum(length(x_IxC), NORM_FLOOR)[..., None, :]


def step_size(rule: Rule, eta_C, x_IxC):
  """Step of the rank-one factor for layer input x."""
  if rule.factor == "input":
    return eta_C
  return eta_C / (1 + eta_C * jnp.sum(x_IxC * x_IxC, -2))


def rate_size(step_C, size_C, x_IxC, alpha_C, forget_C, bound, factored=True):
  """The gradient's rate under that bound; `forget`: 1 - alpha without cancellation, `size`: n."""
  slack = forget_C
  if factored:
    slack = jnp.minimum(slack, 1 - step_C * jnp.sum(x_IxC * x_IxC, -2) + alpha_C)
  slack = slack * bound
  return step_C * slack / jnp.maximum(slack + step_C * size_C, NOTHING)  # 0 at padding


def running_size(rule: Rule, size_before, size_C, valid_C):
  """n_t = momentum * n_{t-1} + size_t over the valid tokens of a chunk."""
  if not rule.momentum:
    return size_C
  def step(n, inputs):
    size, valid = inputs
    n = jnp.where(valid, rule.momentum * n + size, n)
    return n, n
  return jax.lax.scan(step, size_before, (size_C, valid_C))[1]


def log_momentum(rule: Rule, valid_C, dtype):
  """log beta per token, 0 at padding; None without momentum."""
  if not rule.momentum:
    return None
  return jnp.where(valid_C, jnp.log(rule.momentum), 0.0).astype(dtype)
