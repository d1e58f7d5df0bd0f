"""Levels, their writes and teach signals against the arrays of a PyTorch implementation.

    python -m pytest tests/test_parity_writes.py

parity/README.md has the table: array, what reproduces it, and where the two differ. There one delta
is shared by the batch: here the batch is one stream whose tokens of a time stand side by side, so a
period holds p B tokens. Their loss of a period is ||level - stop(level) + teach||^2, so teach is
doubled. Their clip of training and their projector's context are put outside.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_peer as peer
from hope_jax.memory import inner_rules, level, level_write
from hope_jax.model import titan
from hope_jax.reading import reader

PARITY = pathlib.Path(__file__).parent / "parity"
RULES = {"plain": "momentum", "dmgd": "dmgd", "preconditioned": "preconditioned",
         "nl_l2_precond": "nl_l2_projector"}
CASES = {"plain_sgd": "sgd", "plain_mom": "momentum", "dmgd": "dmgd",
         "preconditioned": "preconditioned",
         **dict.fromkeys(("nl_l2_precond", "nl_l2_precond_b1", "two_levels", "flush", "noflush"),
                         "nl_l2_projector")}
TOLERANCE = {"nl_l2_projector": 1e-7}  # they add 1e-8 to the norm of the context
pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.slow]


def load(name):
  return dict(np.load(PARITY / f"{name}.npz"))


def close(actual, wanted, name, tolerance=1e-9):
  assert actual.shape == wanted.shape, name
  error = np.abs(np.asarray(actual) - wanted).max() / np.abs(wanted).max()
  assert error < tolerance, f"{name}: relative error {error:.1e}"


def close_level(params, arrays, prefix, tolerance=1e-9, suffix=""):
  """Compares every array of a level, `params` without or with a stream axis of 1."""
  params = jax.tree.map(np.squeeze, params)
  for name, p in peer.theirs(params).items():
    close(p, arrays[prefix + name + suffix], prefix + name + suffix, tolerance)


@functools.partial(jax.jit, static_argnums=0)
def step(clock, lr, params, state, x_BxCxD, teach_BxCxD, due_BxG, at_B):
  """One chunk of one level, all tokens open."""
  return level_write.write(clock, lr, params, state, x_BxCxD, teach_BxCxD,
                           jnp.ones(x_BxCxD.shape[:2], bool), due_BxG, at_B)


def columns(tree):
  """Vectors as kernels of one output."""
  return jax.tree.map(lambda g: g.reshape(g.shape[0], -1), tree)


@functools.partial(jax.jit, static_argnums=(0, 1))
def projected(lr, beta, gradient, state, total_D):
  """A step of nl_l2_projector, its context the level's mean input, where inputs are as wide."""
  seen = jax.tree.map(lambda g: inner_rules.Inputs(total_D, None, None) if len(g) == total_D.size
                      else None, gradient)
  update, state = inner_rules.make("nl_l2_projector", lr,
                                   beta).update(columns(gradient), state, inputs=seen)
  return jax.tree.map(lambda u, g: u.reshape(g.shape), update, gradient), state


def untouched(params):
  """The state of `projected` before the first step."""
  return inner_rules.make("nl_l2_projector", 0.0).init(columns(params))


class Writer:
  """One level of one stream, read and written a chunk at a time.

  nl_l2_projector is applied outside: write.write with sgd at rate 1 gives the gradient at each
  period's end.
  """

  def __init__(self, params, rule, lr, beta, period, chunk, hold):
    self.outside = rule == "nl_l2_projector"
    self.clock = level_write.Clock(period, chunk, "sgd" if self.outside else rule, beta, hold)
    self.params, self.lr, self.updates, self.total = params, lr, 0, 0.0
    self.average = untouched(params) if self.outside else None
    self.state = level_write.fresh(self.clock, params, 1, jnp.float64)

  def learn(self, x_1xCxD, teach_1xCxD, due, at):
    before = self.state
    self.state, stats = step(self.clock, 1.0 if self.outside else self.lr, self.params, before,
                             x_1xCxD, teach_1xCxD, np.array([[due]]), np.array([at]))
    self.updates += int(stats["updates"][0])
    self.total += np.sum(x_1xCxD, (0, 1))
    if self.outside and due:
      gradient = jax.tree.map(lambda a, b: np.asarray(a - b)[0], before.delta, self.state.delta)
      update, self.average = projected(self.lr, self.clock.beta, gradient, self.average, self.total)
      self.state = self.state.replace(delta=jax.tree.map(jnp.add, before.delta, update))
      self.total = 0.0

  def moment(self, name):
    found = optax.tree.get(self.average if self.outside else self.state.rule, name)
    return jax.tree.map(lambda m, p: np.reshape(m, p.shape), found, self.params)


def run(levels, rule, lr, beta, x_BxTxD, teach_BxTxD, train=True, flush=False, hold="smaller"):
  """Levels {name: (period, parameters)} in turn, shortest period first: (x + added, Writers)."""
  B, T, D = x_BxTxD.shape
  base = min(period for period, _ in levels.values())
  memories = {name: Writer(params, rule, lr, beta, period * B, base * B, hold)
              for name, (period, params) in levels.items()}
  def pooled(a):
    return np.swapaxes(a, 0, 1).reshape(1, -1, D)
  out = []
  for at in range(0, T, base):
    x, teach = pooled(x_BxTxD[:, at:at + base]), pooled(teach_BxTxD[:, at:at + base])
    for name, (period, params) in levels.items():
      added, scale = peer.read(params, x, memories[name].state.delta, train)
      due = (at + base) % period == 0 or flush and at + base == T
      memories[name].learn(x, np.array(2 * scale * teach), due, at % period * B)
      x = np.array(x + added)
    out.append(x)
  return np.swapaxes(np.concatenate(out, 1).reshape(T, B, D), 0, 1), memories


def test_level_and_its_gradient():
  a = load("cms_block")
  params, x = peer.ours(peer.under(a, "w.")), a["x"]
  added, _ = jax.jit(level.apply)(params, x)
  close(x + added, a["out_eval_unclipped"], "out_eval_unclipped")
  # they clip in training, we never do
  assert np.abs(a["out_eval_unclipped"] - a["out_train_clipped"]).max() > 1e-3
  close(x + added * peer.clip(added), a["out_train_clipped"], "out_train_clipped")
  zero = jax.tree.map(lambda p: np.zeros((len(x), *p.shape)), params)
  force = jax.jit(level.forces)(params, level.current(params, zero), x,
                                a["g_out"] * peer.clip(added))
  close_level(jax.tree.map(lambda f: np.sum(level.gradient(f), 0), force, is_leaf=level.is_force),
              a, "grad.")


def test_one_update_is_their_gradient():
  a = load("cms_single_chunk_update")
  params, x = peer.ours(peer.under(a, "w.cms.blocks.l8.")), a["x"]
  clock = level_write.Clock(8, 8)
  state, _ = step(clock, 1.0, params, level_write.fresh(clock, params, len(x), x.dtype), x,
                  peer.read(params, x, train=True)[1] * a["teach"], np.ones((2, 1), bool),
                  np.zeros(2, int))
  close_level(jax.tree.map(lambda d: 2 * np.sum(d, 0), state.delta), a, "minus_grad.")


@pytest.mark.parametrize("hold", ["tokens", "sums"])
@pytest.mark.parametrize("case", CASES)
def test_stream_of_levels(case, hold):
  a, rule = load(f"cms_online_{case}"), CASES[case]
  c = json.loads(str(a["config_json"]))
  assert rule == (RULES[c["variant"]] if c["beta"]
                  else "sgd") and c["reduction"] == "sum" and c["beta2"] == 0.999
  levels = {f"l{p}": (p, peer.ours(peer.under(a, f"w.cms.blocks.l{p}."))) for p in c["periods"]}
  out, memories = run(levels, rule, c["lr"], c["beta"], a["x"], a["teach"], c["train"], c["flush"],
                      hold)
  tolerance, stats = TOLERANCE.get(rule, 1e-9), json.loads(str(a["fixed_stats_json"]))
  close(out, a["fixed_out"], "fixed_out", tolerance)
  for name, memory in memories.items():
    close_level(memory.state.delta, a, f"fixed_delta.{name}.", tolerance)
    if rule != "sgd":
      close_level(memory.moment("trace"), a, f"fixed_opt.{name}.", tolerance, ".grad_avg")
    if rule == "preconditioned":
      close_level(memory.moment("nu"), a, f"fixed_opt.{name}.", tolerance, ".sq_avg")
    assert memory.updates == stats[f"cms.{name}"]["updates_applied"]


def test_titan_memory_and_self_modifier():
  a = load("titan_memory_selfmodifier")
  w, query = peer.under(a, "w.titan."), a["query"]
  modifier = peer.modifier(peer.under(a, "w.selfmod."))
  close(jax.jit(titan.modify)(modifier, query, a["value"], a["error"]), a["selfmodifier_out"],
        "selfmodifier_out")
  for train in (False, True):
    name = "titan_out_train" if train else "titan_out_eval"
    close(peer.titan(w, query, train), a[name], name)


def test_teach_signal():
  a = load("teach_signal")

  def teach(tokens_BxT, last_B, labels):
    """d(mean loss) / d(hidden), the head's input, at the given logits."""
    labels_BxT = np.concatenate([tokens_BxT[:, 1:], last_B[:, None]], 1)
    def loss(h):
      return jnp.sum(reader.token_losses(a["logits"] + h @ a["head_weight"].T, labels_BxT))
    assert (labels_BxT >= 0).sum() == labels
    return jax.jit(jax.grad(loss))(np.zeros(a["teach"].shape)) / labels

  none = np.full(2, -1)
  close(teach(a["tokens"], none, 10), a["teach"], "teach")
  close(teach(a["tokens_ignore"], none, 8), a["teach_ignore"], "teach_ignore")
  close(teach(a["tokens"], a["next_tokens"], 12), a["teach_next"], "teach_next")
  assert a["ln_eps"] == peer.NORM_EPSILON
  def through(h, g):
    return jax.vjp(lambda h: peer.layer_norm(h, a["ln_weight"], a["ln_bias"]), h)[1](g)[0]
  close(jax.jit(through)(a["pre_norm"], a["teach"]), a["teach_through_layernorm"],
        "teach_through_layernorm")


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_model(kind):
  a, lr, beta, rule = load(f"model_hope_{kind}_fast"), 0.02, 0.9, "nl_l2_projector"
  labels = np.concatenate([a["tokens"][:, 1:], np.full((2, 1), -1)], 1)
  close(peer.forward(a, False)[0], a["logits_eval"], "logits_eval")

  def loss(probe):
    logits, seen = peer.forward(a, True, probe_LxBxTxD=probe)
    return jnp.sum(reader.token_losses(logits, labels)) / np.sum(labels >= 0), (logits, seen)

  shape = (2, *a["blockout.0"].shape)
  (value, (logits, seen)), teach = jax.jit(jax.value_and_grad(loss, has_aux=True))(np.zeros(shape))
  close(logits, a["logits_train"], "logits_train")
  close(value, a["loss"], "loss")
  for i in range(2):
    close(seen[i].out_BxTxD, a[f"blockout.{i}"], f"blockout.{i}")
    close(teach[i], a[f"teach.{i}"], f"teach.{i}")

  after = dict(a)  # the pass that writes: teach signals are those of the pass before

  def mixer(i, x):
    prefix = f"w.blocks.{i}.cms.blocks."
    params = [peer.ours(peer.under(a, f"{prefix}{name}.")) for name in peer.LEVELS]
    out, memories = run(dict(zip(peer.LEVELS, zip((1, 4), params))), rule, lr, beta, np.array(x),
                        np.array(teach[i]))
    for name, memory in memories.items():
      close_level(memory.state.delta, a, f"delta.{i}.{name}.", TOLERANCE[rule])
      for leaf, d in peer.theirs(jax.tree.map(lambda d: np.array(d[0]),
                                              memory.state.delta)).items():
        after[f"{prefix}{name}.{leaf}"] = a[f"{prefix}{name}.{leaf}"] + d
    return out

  logits, seen = peer.forward(a, True, mixer)
  close(logits, a["logits_update_pass"], "logits_update_pass", TOLERANCE[rule])
  for i, block in enumerate(seen if kind == "hybrid" else ()):
    w, taught = (peer.under(a, f"w.blocks.{i}.titan_memory."),
                 np.any(teach[i] != 0, -1, keepdims=True))
    modifier = peer.modifier(peer.under(a, f"w.blocks.{i}.self_modifier."))
    read, pull = jax.vjp(lambda w: peer.titan(w, block.attention_BxTxD, True), w)
    signal = titan.signal(modifier, np.sum(labels >= 0), block.attention_BxTxD, read, teach[i])
    gradient = {leaf: g.T for leaf, g in pull(signal * taught)[0].items()}  # inputs first, as here
    update, _ = projected(lr, beta, gradient, untouched(gradient),
                          np.sum(block.attention_BxTxD, (0, 1)))
    for leaf, u in update.items():
      close(u.T, a[f"delta.{i}.titan.{leaf}"], f"delta.{i}.titan.{leaf}", TOLERANCE[rule])
      after[f"w.blocks.{i}.titan_memory.{leaf}"] = w[leaf] + u.T
  close(peer.forward(after, True)[0], a["logits_after_update"], "logits_after_update",
        TOLERANCE[rule])
