"""Matrices by Muon (arXiv 2502.16982), one by one; all else by AdamW (optim.lr, section adamw).

Layers, heads, q, k and v, and memories are batch axes.
"""

FIELDS = {
    "lr": 1e-2,  # of matrices
}
WHOLE = True  # cut, they would be sent again in every product, and each computed by many devices


def make(config, rate, matrices):
  """Newton-Schulz is symmetric in its axes: kernels are (in, out), memories (out, in)."""
  import jax
  from optax import contrib
  def axes(params):
    two = contrib.MuonDimensionNumbers(-2, -1)
    return jax.tree.map(lambda matrix: two if matrix else None, matrices(params))
  return contrib.muon(
      rate(config.muon.lr), consistent_rms=0.2, weight_decay=config.optim.weight_decay,
      weight_decay_mask=matrices, muon_weight_dimension_numbers=axes,
      adam_b1=config.adamw.b1, adam_b2=config.adamw.b2, adam_learning_rate=rate(config.optim.lr),
      adam_weight_decay=0.0)
