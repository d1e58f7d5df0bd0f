"""Matrices by Muon (arXiv 2502.16982), one by one; all else by AdamW (optim.lr, section adamw).

Stacked layers, heads and memories are batch axes.
"""

FIELDS = {
    "lr": 1e-2,  # of matrices
}
WHOLE = True  # cut, they would be sent again in every product, and each computed by many devices


def make(config, rate, kind):
  """Newton-Schulz is symmetric in its axes: kernels are (in, out), memories (out, in)."""
  import jax
  from optax import contrib
  def by_path(function):
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: function(path), tree)
  axes = contrib.MuonDimensionNumbers(-2, -1)
  return contrib.muon(
      rate(config.muon.lr), consistent_rms=0.2, weight_decay=config.optim.weight_decay,
      weight_decay_mask=by_path(lambda path: kind(path) == "matrix"),
      muon_weight_dimension_numbers=by_path(lambda path: axes if kind(path) == "matrix" else None),
      adam_b1=config.adamw.b1, adam_b2=config.adamw.b2, adam_learning_rate=rate(config.optim.lr),
      adam_weight_decay=0.0)
