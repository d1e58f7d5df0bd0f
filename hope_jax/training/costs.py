"""What a model costs, untrained: parameters, fast state, FLOPs per token, memory, time to compile.

    print(costs.dry_run(config))
    python -m hope_jax.launch --config=configs/smoke.py --dry_run

Everything follows from shapes: no data is read and no array is built. FLOPs are those of matrix
products, 2 M N K each, counted in the program's jaxpr: masked entries of attention are computed and
count, element-wise work does not.
"""

import math
import time

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp

from hope_jax import config as configs
from hope_jax.model import checks, lm, sharding, state
from hope_jax.training import collectives, optimizer, steps

UNCOUNTED = ("conv_general_dilated", "ragged_dot_general", "triangular_solve", "pallas_call")


def count_flops(fn, *args) -> float:
  """FLOPs of the matrix products in fn(*args), arrays or ShapeDtypeStructs; nothing is computed.

  A scan counts its body once a step, a conditional its dearest branch; what no output needs is left
  out, as by the compiler. ValueError where the count is unknown: a while loop around products, or a
  product that is no dot_general.
  """
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  return float(_flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]))


def _flops(jaxpr) -> int:
  total = 0
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    name = eqn.primitive.name
    if name in UNCOUNTED:
      raise ValueError(f"cannot count the FLOPs of {name}: write it with jnp.einsum, or count it "
                       "by hand")
    if name == "dot_general":
      total += _dot_flops(eqn)
      continue
    inner = [_flops(sub) for value in eqn.params.values() for sub in _jaxprs(value)]
    if name == "while" and any(inner):
      raise ValueError("cannot count the FLOPs of a while loop, whose number of steps is unknown: "
                       "use jax.lax.scan, or jax.lax.fori_loop with constant bounds")
    repeats = (eqn.params["length"] if name == "scan" else eqn.params["mesh"].size
               if name == "shard_map" else 1)
    total += repeats * (max(inner) if name == "cond" else sum(inner))
  return total


def _jaxprs(value) -> list:
  """The jaxprs in one parameter of an equation: a body, branches, a called function."""
  values = value if isinstance(value, (tuple, list)) else [value]
  return [v for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]


def _dot_flops(eqn) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  return 2 * eqn.outvars[0].aval.size * depth


def param_shapes(config):
  """The parameters as ShapeDtypeStructs."""
  return jax.eval_shape(lambda key: lm.init_params(config, key), _key())


def parameters(config) -> tuple[int, int]:
  """How many: (all, all but the embedding)."""
  shapes = param_shapes(config)
  def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
  return count(shapes), count(shapes) - count(shapes["embed"])


def fast_bytes(config) -> int:
  """Bytes of fast state per stream."""
  return state.fast_bytes(jax.eval_shape(lambda: lm.init_fast(config, 1)))


def forward_flops(config) -> float:
  """FLOPs per token of the forward pass in training."""
  def forward(params, tokens):
    return lm.build(config).apply({"params": params}, tokens, None, jnp.ones_like(tokens),
                                  aligned=True)[0]
  return count_flops(forward, param_shapes(config), _tokens(1, config.data.seq)) / config.data.seq


def model_flops(config) -> float:
  """FLOPs per token of MFU: three forward passes; by convention recomputation does not count."""
  return 3 * forward_flops(config)


def training_flops(config) -> float:
  """FLOPs per token of a training step as it runs: forward, backward, recomputation, optimizer."""
  return count_flops(*train_program(config)) / (config.data.batch * config.data.seq)


def optimizer_flops(config) -> float:
  """FLOPs per token of the optimizer alone, spread over the batch: Muon's products, 0 for AdamW."""
  params, tx = param_shapes(config), optimizer.make(config)
  def update(*trees):
    return tx.update(*trees, labels=1, applied=0, last=False)
  return count_flops(update, params, jax.eval_shape(tx.init, params),
                     params) / (config.data.batch * config.data.seq)


def reading_flops(config, tokens: int) -> float:
  """FLOPs per token of a stream that reads so many in one call. 1: decoding, at any position."""
  def read(params, tokens_1xT, fast):
    return lm.build(config).apply({"params": params}, tokens_1xT, fast)[:2]
  fast = jax.eval_shape(lambda: lm.init_fast(config, 1))
  return count_flops(read, param_shapes(config), _tokens(1, tokens), fast) / tokens


def train_program(config, devices=None):
  """(train step, TrainState, batch), the last two as ShapeDtypeStructs, placed as for training.

  Args:
    devices: a list of them, instead of all.
  """
  mesh = sharding.mesh(config, devices)
  def place(s, where):
    return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
  state = jax.eval_shape(lambda key: steps.init_state(config, key), _key())
  rows = place(_tokens(config.data.batch, config.data.seq), sharding.by_stream(mesh))
  return (steps.make_train_step(config, mesh),
          jax.tree.map(place, state, sharding.of_state(state, mesh)),
          {name: rows for name in ("tokens", "labels", "segments")})


def compile_program(step, *args) -> tuple[jax.stages.Compiled, dict[str, float]]:
  """Compiles a jitted function; with it, the seconds it took to trace and to compile."""
  began = time.perf_counter()
  lowered = step.lower(*args)
  traced = time.perf_counter()
  compiled = lowered.compile()
  return compiled, {"trace_s": traced - began, "compile_s": time.perf_counter() - traced}


def memory(compiled) -> dict[str, int]:
  """Bytes on each device while a compiled program runs.

  `peak` is what must fit: arguments, the arena of temporaries, and outputs that do not take a
  donated argument's place.
  """
  m = compiled.memory_analysis()  # its own peak_memory_in_bytes leaves the temporaries out on a CPU
  new = m.output_size_in_bytes - m.alias_size_in_bytes
  return {"arguments": m.argument_size_in_bytes, "outputs": m.output_size_in_bytes,
          "temporaries": m.temp_size_in_bytes,
          "peak": m.argument_size_in_bytes + new + m.temp_size_in_bytes}


def parameter_table(config) -> str:
  """Parameters by group: shapes, count and share."""
  groups = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
    parts = sharding.path_name(path).split("/")
    # the levels of a CMS are groups: each has its clock
    depth = min(3 if "cms" in parts else 2, len(parts) - 1)
    groups.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = leaf.shape
  counts = {name: sum(map(math.prod, leaves.values())) for name, leaves in groups.items()}
  total = sum(counts.values())
  def row(name, shape, count):
    return f"{name:28}{shape:>24}{count:>16,}{100 * count / total:>8.1f}%"
  lines = [f"{'parameters':28}{'shape':>24}{'count':>16}{'share':>9}"]
  for name, leaves in groups.items():
    indent = "  "
    if len(leaves) > 1:
      lines.append(row(name, "", counts[name]))
    else:
      indent = name + "/"
    lines += [row(indent + leaf, "x".join(map(str, shape)), math.prod(shape))
              for leaf, shape in leaves.items()]
  return "\n".join([*lines, row("without the embedding", "", total - counts["embed"]),
                    row("total", "", total)])


def devices_of(config) -> list:
  """The devices here; if config.mesh has another number, so many of the CPU's (startup.prepare)."""
  named, here = config.mesh.data * config.mesh.fsdp * config.mesh.tensor, jax.devices()
  return here if named in (0, len(here)) else jax.devices("cpu")


def dry_run(config) -> str:
  """All costs of a configuration as a text; the step is compiled for its mesh, here or not."""
  devices = devices_of(config)
  checks.validate(config, len(devices))
  c, tokens = config, config.data.batch * config.data.seq
  program, forward, update = train_program(c, devices), forward_flops(c), optimizer_flops(c)
  whole = count_flops(*program) / tokens
  compiled, seconds = compile_program(*program)
  own = collectives.count(compiled.as_text())
  mesh = " x ".join(f"{name} {n}" for name, n in zip(("data", "fsdp", "tensor"),
                                                     sharding.mesh_shape(c, len(devices))))
  def bytes_of(tree):
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
  def line(name, value, note=""):
    return f"{name:28}{value:>24}  {note}".rstrip()
  def flops(name, value, note=""):
    return line(name, f"{value / 1e6:,.2f} MFLOP", note)
  cache = lm.context_length(c)
  kind = configs.describe(c) + (f", {c.selfmod.memory} memories" if "selfmod" in c.model.pattern
                                else "")
  return "\n".join([
      f"{kind}: {c.model.layers} layers of {c.model.dim}, {c.model.heads} heads, vocabulary "
      f"{c.model.vocab:,}, {c.model.dtype}",
      "", parameter_table(c), "",
      line("state", "bytes"),
      line("parameters", _size(bytes_of(program[1].params))),
      line("optimizer", _size(bytes_of(program[1].opt_state)), c.optim.name),
      line("fast state per stream", _size(fast_bytes(c)),
           f"a cache of {cache:,} tokens" if cache else "after any number of tokens"), "",
      line("matrix products", "per token"),
      flops("forward", forward, f"in sequences of {c.data.seq:,}"),
      flops("model FLOPs", 3 * forward, "3 x forward: what MFU is measured in"),
      flops("training step", whole, f"{whole / forward:.2f} x forward: backward, recomputation and "
                                    "optimizer included"),
      flops("  of it the optimizer", update, f"once in {tokens:,} tokens"),
      flops("prefill", reading_flops(c, c.data.seq), f"{c.data.seq:,} tokens in one call"),
      flops("decoding", reading_flops(c, 1), "one token a call"),
      line("one step", f"{whole * tokens / 1e12:,.3f} TFLOP"),
      line("the run", f"{whole * tokens * c.train.steps / 1e15:,.3f} PFLOP",
           f"{c.train.steps:,} steps, {tokens * c.train.steps / 1e6:,.1f} million tokens"), "",
      line("training step, compiled", "per device",
           f"for {len(devices)} x {devices[0].device_kind} ({mesh}), "
           f"{c.data.batch} sequences of {c.data.seq:,} in all"),
      *[line(name, _size(size)) for name, size in memory(compiled).items()],
      *[line(f"sent by {name}", _size(round(own[name])), "in one step")
        for name in collectives.KINDS if own[name]],
      line("sent", _size(round(sum(own[name] for name in collectives.KINDS))),
           "to other devices, in one step"),
      *([line("matrix products", f"{own['flops'] / 1e12:,.3f} TFLOP", "in one step, of which "
              f"{whole * tokens / own['flops'] / len(devices):.0%} on no other device")]
        if devices[0].platform == "cpu" else []),
      line("time to compile", f"{sum(seconds.values()):.1f} s",
           "or to load, where the compilation cache has it")])


def _key():
  return jax.eval_shape(jax.random.key, 0)


def _tokens(batch: int, length: int):
  return jax.ShapeDtypeStruct((batch, length), jnp.int32)


def _size(count: int) -> str:
  unit = min((count.bit_length() - 1) // 10, 3) if count else 0
  return f"{count / 1024 ** unit:,.{2 if unit else 0}f} {('bytes', 'KiB', 'MiB', 'GiB')[unit]}"
