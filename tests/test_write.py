"""Laws of levels that write while they read: against the definition, reference_write.py.

    python -m pytest tests/test_write.py
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reference_write as reference
from hope_jax import config
from hope_jax.memory import level, level_write, teach_signal
from hope_jax.memory.inner_rules import RULES
from hope_jax.model import checks, lm
from hope_jax.reading import reader
from reference_write import CHUNK, CHUNKS, STREAMS, WIDTH, noise, parameters, text

LR, BETA = 0.2, 0.7
VARIANTS = [("rms", "gelu", False), ("rms", "swiglu", False), ("layer", "gelu", True),
            ("layer", "swiglu", True)]
HOLDS = [(2, ""), (16, "tokens"), (16, "sums"), (1, ""), (4, ""), (8, ""), (32, "tokens"),
         (32, "sums")]
CASES = [(rule, *case) for rule in RULES
         for case in HOLDS[:3 if rule in ("preconditioned", "adagrad", "delta_momentum", "muon")
                           else None]]


def close(got, want, atol=1e-9, rtol=1e-9):
  chex.assert_tree_all_finite(want)
  chex.assert_trees_all_close(got, want, atol=atol, rtol=rtol)


def due_and_at(clock, chunks=CHUNKS):
  """Periods that end in each chunk, and where in its period it begins, without padding."""
  begins = np.broadcast_to(np.arange(chunks)[:, None] * CHUNK, (chunks, STREAMS))
  return np.repeat(((begins + CHUNK) % clock.period == 0)[..., None], clock.groups,
                   -1), begins % clock.period


def read(clock, params, state, *pieces):
  """(state, statistics) after chunks: x, teach, open, due, at. state None: from the start."""
  state = level_write.fresh(clock, params, pieces[0].shape[1],
                            pieces[0].dtype) if state is None else state
  return jax.lax.scan(lambda state, piece: level_write.write(clock, LR, params, state, *piece),
                      state, pieces)


def host(function, *first):
  """The function of the other arguments, compiled; NumPy arrays."""
  compiled = jax.jit(functools.partial(function, *first))
  return lambda *args: jax.device_get(compiled(*args))


def pick(tree, streams):
  return jax.tree.map(lambda a: a[np.array(streams)], tree)


def each_stream(tree, axis=0):
  """For every leaf and stream, whether it holds more than zeros."""
  leaves = (np.moveaxis(a, axis, 0) for a in jax.tree.leaves(tree))
  return np.stack([np.abs(a).reshape(len(a), -1).max(1) > 1e-4 for a in leaves])


@pytest.mark.parametrize("norm, activation, bias", VARIANTS)
def test_a_level_is_its_formula_and_forces_are_its_gradient(x64, norm, activation, bias):
  params, (x, signal, is_open) = parameters(norm, activation, bias), (a[1] for a in text())
  formula = jax.vmap(jax.vmap(reference.level, (None, 0)))
  def plain(params, x, delta):
    return formula(jax.tree.map(jnp.add, params, delta), x)
  def ours(params, x, delta=None, through=True):
    weights = None if delta is None else level.current(params, delta, through=through)
    return level.apply(params, x, weights, through=through)[0]

  def both(delta):
    past = functools.partial(ours, through=False)
    (got, our_pull), (_, past_pull), (want, pull) = (jax.vjp(f, params, x, delta)
                                                     for f in (ours, past, plain))
    force = level.forces(params, level.current(params, delta), x, signal)
    sums = [jax.tree.map(lambda f: level.gradient(f, w), force, is_leaf=level.is_force)
            for w in (None, 1.0 * is_open)]
    zero = jax.tree.map(jnp.zeros_like, delta)
    without = plain(params, x, zero)
    return ((sums, got, our_pull(signal), past_pull(signal), ours(params, x),
             ours(params, x, zero)),
            ([pull(signal)[2], pull(signal * is_open[..., None])[2]], want, pull(signal),
             pull(signal), without, without))

  got, want = host(both)(noise(params, 2, STREAMS))
  close(got, want)
  assert each_stream(got[0]).all()


def test_forces_may_come_from_a_backward_pass_that_goes_on(x64):
  """What `write` is given instead of its own forces: gradients of the zeros that were added."""
  params, (x, signal, _) = parameters(), (a[1] for a in text())
  def both(delta):
    weights, added = level.current(params, delta), level.zeros(params, *x.shape[:2])
    def loss(added):
      return (lambda y, inputs: (jnp.sum(jnp.sin(y) * signal),
                                 (y, inputs)))(*level.apply(params, x, weights, added))
    gradients, (y, inputs) = jax.grad(loss, has_aux=True)(added)
    return level.paired(inputs, gradients), level.forces(params, weights, x, jnp.cos(y) * signal)
  close(*host(both)(noise(params, 2, STREAMS)))


@pytest.mark.parametrize("rule, period, hold", CASES)
def test_writing_is_the_token_loop(x64, rule, period, hold):
  params, pieces = parameters(*VARIANTS[list(RULES).index(rule) % len(VARIANTS)]), text()
  clock = level_write.Clock(period, CHUNK, rule, BETA, hold)
  state, stats = host(read, clock, params)(None, *pieces, *due_and_at(clock))
  for b in range(STREAMS):
    one = [np.concatenate(a[:, b]) for a in pieces]
    weights, averages, updates = reference.run(rule, period, CHUNK, LR, BETA, params, *one)
    close(jax.tree.map(np.add, params, pick(state.delta, b)), weights)
    for ours, theirs in zip((optax.tree.get(state.rule, name) for name in ("trace", "nu")),
                            averages):
      close(pick(ours, b), theirs if ours is not None else None)
    assert state.updates_B[b] == updates == np.sum(stats["updates"], 0)[b]
  assert max(state.updates_B) == CHUNK * CHUNKS // period


@pytest.mark.parametrize("rule, period, hold", [("momentum", 2, ""), ("adagrad", 4, ""),
                                                ("nl_l2_precond", 16, "tokens"),
                                                ("sgd", 16, "sums")])
def test_the_last_kernel_alone_is_written(x64, rule, period, hold):
  """As the token loop that writes it and holds all else still."""
  params, pieces = parameters("rms", "swiglu"), text()
  clock = level_write.Clock(period, CHUNK, rule, BETA, hold, writes="down")
  state, _ = host(read, clock, params)(None, *pieces, *due_and_at(clock))
  assert state.delta.keys() == {"down"}
  for b in range(STREAMS):
    one = [np.concatenate(a[:, b]) for a in pieces]
    weights, _, _ = reference.run(rule, period, CHUNK, LR, BETA, params, *one, written=("down",))
    close(params["down"]["kernel"] + state.delta["down"]["kernel"][b], weights["down"]["kernel"])


@pytest.mark.parametrize("hold", ["tokens", "sums"])
def test_a_chunk_may_be_read_in_two_pieces(x64, hold):
  clock, params, (x, signal, is_open) = (level_write.Clock(16, CHUNK, "momentum", BETA, hold),
                                         parameters(), text())
  due, at = due_and_at(clock)
  run, early = host(read, clock, params), np.arange(CHUNK) < 5
  whole, _ = run(None, x, signal, is_open, due, at)
  x, signal, at = (np.repeat(a, 2, 0) for a in (x, signal, at))
  def halves(first, second):
    return np.stack([first, second], 1).reshape(2 * CHUNKS, *first.shape[1:])
  parts, _ = run(None, x, signal, halves(is_open & early, is_open & ~early),
                 halves(due & False, due), at)
  close((parts.delta, parts.rule, parts.updates_B), (whole.delta, whole.rule, whole.updates_B))


@pytest.mark.parametrize("rule, period",
                         [("sgd", 1), ("momentum", 2), ("nl_l2_projector", 4),
                          ("nl_l2_precond", 2)])
def test_closed_forms_are_the_updates_one_by_one(x64, monkeypatch, rule, period):
  clock, params, (x, signal, is_open) = (level_write.Clock(period, CHUNK, rule, BETA), parameters(),
                                         text(2))
  due = np.random.default_rng(5).random((2, STREAMS, clock.groups)) < 0.7
  due[0] = True

  def functional(params, x, signal):
    after, _ = read(clock, params, None, x, signal, is_open, due, np.zeros((2, STREAMS), int))
    learned = after.delta, optax.tree.get(after.rule, "trace")
    weighted = [jnp.sum(jnp.cos(1 + jnp.arange(a.size)).reshape(a.shape) * a)
                for a in jax.tree.leaves(learned)]
    return sum(weighted), (learned, after.updates_B)

  results = []
  for parallel in (True, False):
    assert clock.parallel == parallel
    def again(*args):
      return functional(*args)  # compiled again
    results.append(jax.jit(jax.value_and_grad(again, (0, 1, 2), has_aux=True))(params, x, signal))
    monkeypatch.setattr(level_write.Clock, "parallel", False)
  close(*results, atol=1e-8, rtol=1e-8)
  assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(results[0]))


def test_sgd_is_optax_multisteps(x64):
  params, (x, signal, _) = parameters(), text()

  def stream(k, x, signal):
    tx = optax.MultiSteps(optax.sgd(LR), lambda _: k, use_grad_mean=False,
                          accumulator_dtype=jnp.float64)
    def token(carry, g):
      updates, state = tx.update(g, carry[1], carry[0])
      return (optax.apply_updates(carry[0], updates), state), None
    def chunk(carry, piece):  # gradients at its start
      return jax.lax.scan(token, carry,
                          jax.vmap(reference.look, (None, 0, 0))(carry[0], *piece)[0])[0], None
    return jax.lax.scan(chunk, (params, tx.init(params)), (x, signal))[0][0]

  want = jax.jit(jax.vmap(stream, (None, 1, 1)))
  for clock in (level_write.Clock(k, CHUNK) for k in (2, 8, 16)):
    state, _ = host(read, clock, params)(None, x, signal, np.ones(x.shape[:3], bool),
                                         *due_and_at(clock))
    close(jax.tree.map(np.add, params, state.delta), want(clock.period, x, signal))


@pytest.mark.parametrize("rule, period, hold", [
    ("momentum", 2, ""), ("nl_l2_precond", 4, ""), ("preconditioned", 4, ""), ("muon", 8, ""),
    ("dmgd", 16, "tokens"), ("nl_l2_projector", 16, "sums")])
def test_closed_gates_change_nothing_and_streams_do_not_see_each_other(rule, period, hold):
  clock = level_write.Clock(period, CHUNK, rule, BETA, hold)
  run = host(read, clock, parameters())
  first, (x, signal, is_open, *when) = zip(*((a[:2], a[2:]) for a in (*text(), *due_and_at(clock))))
  state, _ = run(None, *first)
  assert (state.updates_B > 0).all()
  is_open[:, 1] = False
  after, stats = run(state, x, signal, is_open, *when)

  def lasting(s):
    return (s.delta, s.rule, s.updates_B, s.held.open_BxP if hold == "tokens" else s.held)
  chex.assert_trees_all_equal(lasting(pick(after, [1])), lasting(pick(state, [1])))
  assert each_stream(jax.tree.map(np.subtract, after.delta, state.delta))[:, [0, 2]].all()
  assert not any(a[:, 1].any() for a in stats.values())
  weight = np.array([1, 1e3, 1], x.dtype)[:, None, None]
  loud, _ = run(state, x * weight, signal * weight, is_open, *when)
  chex.assert_trees_all_equal((pick(loud, [0, 2]), lasting(loud)),
                              (pick(after, [0, 2]), lasting(after)))
  def of(order):
    return run(pick(state, order), *(a[:, order] for a in (x, signal, is_open, *when)))[0]
  chex.assert_trees_all_equal(of([2, 0, 1]), pick(after, [2, 0, 1]))
  close(of([0]), pick(after, [0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("period, hold", [(1, ""), (2, ""), (8, ""), (16, "tokens"), (16, "sums")])
def test_n_tokens_make_n_over_p_updates(x64, period, hold):
  lengths, begins = np.array([5, 8, 16, 21, 32]), np.arange(CHUNKS)[:, None] * CHUNK
  clock, params = level_write.Clock(period, CHUNK, "momentum", BETA, hold), parameters()
  x, signal = np.random.default_rng(0).standard_normal((2, CHUNKS, len(lengths), CHUNK, WIDTH))
  valid = begins[..., None] + np.arange(CHUNK) < lengths[:, None]
  begin = np.minimum(begins, lengths // CHUNK * CHUNK)  # a stream that has ended stays where it is
  run = host(read, clock, params)
  due = jax.jit(jax.vmap(lambda *place: reader.Place(*place).due(clock)))
  for flush in (False, True):
    ends = (begins < lengths) & (lengths <= begins + CHUNK) & flush
    state, stats = run(None, x, signal, valid, due(valid, begin, ends), begin % period)
    seen = np.minimum(begins + CHUNK, lengths)
    # after every chunk: never early
    want = seen // period + (flush & (seen == lengths) & (seen % period > 0))
    np.testing.assert_array_equal(np.cumsum(stats["updates"], 0), want)
    np.testing.assert_array_equal(state.updates_B,
                                  -(-lengths // period) if flush else lengths // period)
    np.testing.assert_array_equal(stats["moved"] > 0, stats["updates"] > 0)
    for b, n in enumerate(lengths):
      one = [np.concatenate(a[:, b])[:n] for a in (x, signal, valid)]
      weights, _, _ = reference.run("momentum", period, CHUNK, LR, BETA, params, *one, flush)
      close(jax.tree.map(np.add, params, pick(state.delta, b)), weights)


@pytest.mark.slow
@pytest.mark.parametrize("rule, period, hold", [
    (rule, *{"preconditioned": (8, ""), "dmgd": (16, "tokens"),
             "delta_momentum": (16, "sums")}.get(rule, (4, "")))
    for rule in RULES])
def test_gradients_through_writes_are_finite_at_zero(rule, period, hold):
  clock, params, chunks = level_write.Clock(period, CHUNK, rule, BETA,
                                            hold), parameters(), 4 if hold else 2
  x, signal, is_open = text(chunks)
  is_open[0, :, :5] = False  # a period without a token that writes

  def loss(params, x, signal, delta, lr):
    def step(state, piece):
      return level_write.write(clock, lr, params, state, *piece)
    state = level_write.fresh(clock, params, STREAMS, x.dtype).replace(delta=delta)
    after, stats = jax.lax.scan(step, state, (x, signal, is_open, *due_and_at(clock, chunks)))
    return sum(jnp.sum(d * d + d) for d in jax.tree.leaves(after.delta)) + jnp.sum(stats["moved"])

  grad, zero = (host(jax.grad(loss, range(5))),
                jax.tree.map(lambda p: np.zeros((STREAMS, *p.shape), p.dtype), params))
  for a, b in ((1, 0), (1, 1), (0, 0)):
    chex.assert_tree_all_finite(grad(params, a * x, b * signal, zero, LR))


def test_scaled_signals_are_capped_and_have_finite_gradients():
  signal = text()[1][0]
  def cap(signal, scale):
    return teach_signal.scaled(signal, teach_signal.factor(signal, scale, 1.5))
  size, cut = np.linalg.norm(signal, axis=-1, keepdims=True), np.asarray(cap(signal, 2.0))
  close(cut, signal / size * np.minimum(2 * size, 1.5), atol=1e-5)
  assert (2 * size > 1.5).any() and (2 * size < 1.5).any()
  grad = host(jax.grad(lambda signal, scale: jnp.sum(cap(signal, scale) * jnp.arange(WIDTH)),
                       (0, 1)))
  for scale in (0.0, 1e-6, 1.0):  # warm-up starts at 0; padding has no signal
    chex.assert_tree_all_finite([grad(signal, scale), grad(0 * signal, scale)])


def learned(fast):
  return {name: state.delta for name, state in fast.layers.levels.items()}


@functools.cache
def setup(connection, **options):
  """Of a tiny model: two functions of (fast, piece), the state after two pieces, two more pieces.

  The first returns (statistics, fast, change of what is learned), the second the loss's gradient.
  """
  c, rng = config.base(), np.random.default_rng(6)
  c.model.update(dict(config.PRESETS["hope_attention"], dim=8, layers=2, heads=2, vocab=11))
  c.channel.levels = tuple(config.Level(f"every_{p}", p, lr=1.0) for p in (2, 8, 16))
  c.channel.update(dict(connection=connection, in_context=True))
  c.data.update(dict(seq=32, align=CHUNK))
  c.teach.update(dict(chunk=CHUNK) | options)
  checks.validate(c)
  c.model.dtype = "float64"
  params = noise(jax.eval_shape(lambda: lm.init_params(c, jax.random.key(0))), 4)

  def loss(deltas, fast, piece):
    levels = {name: state.replace(delta=deltas[name]) for name, state in fast.layers.levels.items()}
    fast = fast.replace(layers=fast.layers.replace(levels=levels))
    logits = lm.build(c).apply({"params": params}, piece["tokens"], fast, piece["segments"],
                               aligned=True)[0]
    of_label = jnp.take_along_axis(jax.nn.log_softmax(logits),
                                   jnp.maximum(piece["labels"], 0)[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(piece["labels"] >= 0, of_label, 0))

  def run(fast, piece, strong):
    out, after, _ = reader.chunk(c, params, fast, piece, strong)
    return out["stats"], after, jax.tree.map(jnp.subtract, learned(after), learned(fast))

  run, gradient = host(run), host(lambda fast, piece: jax.grad(loss)(learned(fast), fast, piece))
  def chunk(fast, piece, **changes):
    return run(fast, piece, reader.strength(c)._replace(**changes))
  tokens, labels = rng.integers(0, 11, (2, 4, STREAMS, CHUNK), np.int32)
  labels[2, 0, 4:7] = -1
  pieces = [dict(tokens=a, labels=b, segments=np.ones_like(a)) for a, b in zip(tokens, labels)]
  def wide(a):
    # learned is as precise as parameters are: float32
    return a.astype(float) if a.dtype == np.float32 else a
  fast = jax.tree.map(wide, host(lambda: lm.init_fast(c, STREAMS))())
  for piece in pieces[:2]:
    fast = chunk(fast, piece, scale=0.05)[1]
  return chunk, gradient, fast, pieces[2:]


@pytest.mark.parametrize("connection", ["sequential", "independent"])
def test_what_is_written_is_the_gradient_of_the_loss(x64, connection):
  chunk, gradient, fast, pieces = setup(connection)
  for scale in (1.0, 0.1):  # the scale multiplies
    _, middle, change = chunk(fast, pieces[0], scale=scale)
    _, _, change_later = chunk(middle, pieces[1], scale=scale)
    first, second = gradient(fast, pieces[0]), gradient(middle, pieces[1])
    zero, both = jax.tree.map(np.zeros_like, first), jax.tree.map(np.add, first, second)
    for name in first:  # at the end of a period that is longer than the chunk, both
      now, later = (first, second) if name != "every_16" else (zero, both)
      want = jax.tree.map(lambda g: -scale * g, [now[name], later[name]])
      close([change[name], change_later[name]], want)
  assert each_stream(both, axis=1).all()


def test_mean_divides_and_clip_caps(x64):
  (chunk, _, fast, (piece, _)), (mean, *_) = (setup("sequential"),
                                              setup("sequential", clip=0.01, reduction="mean"))
  got, want = (f(fast, piece, scale=1e-3)[2] for f in (mean, chunk))  # nothing is clipped
  close(jax.tree.map(lambda a: a * STREAMS * CHUNK, got), want)
  for values in mean(fast, piece, scale=1e6)[0].values():  # every signal is clipped
    close(values["teach"][0], np.full(STREAMS, 0.01))


def test_a_threshold_closes_the_gate_where_surprise_is_below_it(x64):
  chunk, _, fast, (piece, _) = setup("sequential")
  ungated, after, _ = chunk(fast, piece)
  for name, stats in ungated.items():
    threshold = np.median(stats["surprise"])  # over layers and streams
    gated, some, _ = chunk(fast, piece, threshold=threshold)
    is_open = stats["surprise"] >= threshold
    np.testing.assert_array_equal(gated[name]["open"], is_open)
    np.testing.assert_array_equal(gated[name]["updates"], is_open * stats["updates"])
    for before, opened, got in zip(*(jax.tree.leaves(learned(f)[name])
                                     for f in (fast, after, some))):
      np.testing.assert_array_equal(got,
                                    np.where(is_open.reshape(2, STREAMS, *[1] * (got.ndim - 2)),
                                             opened, before))
