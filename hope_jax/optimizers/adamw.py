"""AdamW (arXiv 1711.05101); matrices alone are decayed."""

FIELDS = {
    "b1": 0.9,  # decay of the mean gradient
    "b2": 0.95,  # of the mean of its squares
}
WHOLE = False


def make(config, rate, matrices):
  """With optim.lr."""
  import optax
  o, own = config.optim, config.adamw
  return optax.adamw(rate(o.lr), own.b1, own.b2, weight_decay=o.weight_decay, mask=matrices)
