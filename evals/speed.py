"""Training speed of HOPE and of a transformer with as many channel-mixer parameters, interleaved.

    python evals/speed.py                                              # a CPU: about 4 minutes
    python evals/speed.py --lengths=512,1024,2048,4096 --depths=2,4,8 --output=speed.json
    python evals/speed.py --models=transformer,attention_1 --batch=32  # writes in context
    python evals/speed.py --memorize=attention_1,selfmod_1             # writing against reading
    python evals/speed.py --preset=pilot                               # a GPU

All models (4 small ones, if nothing is said) are compiled first: into an empty persistent cache,
then once more from it. Then they take turns, one each in every round, so that what slows the
machine down slows all of them. Random tokens, one document a sequence.
"""

import os
from pathlib import Path
import statistics
import tempfile
import time

from absl import app, flags
import flax
import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from hope_jax import config as configs
from hope_jax.model import checks, lm, plan, sharding
from hope_jax.reading import reader
from hope_jax.reports.tables import markdown
from hope_jax.runtime import metrics, program
from hope_jax.scoring import results
from hope_jax.training import costs, steps

FLAGS = flags.FLAGS
PRESETS = {  # vocabulary, width, layers, heads, sequence, batch, dtype
    "small": dict(vocab=4096, dim=256, layers=4, heads=4, seq=512, batch=4, dtype="float32"),
    "pilot": dict(vocab=32_768, dim=512, layers=12, heads=8, seq=2048, batch=6, dtype="bfloat16"),
}
# periods of four levels that write while they read
PILOT, SPARSE = (1, 4, 32, 128), (8, 32, 128, 512)
MODELS = {  # config.PRESETS, selfmod.memory, periods, what it is compared with
    "transformer": ("transformer", None, None, "transformer"),
    # as many parameters as the hybrids
    "transformer_wide": ("transformer", None, None, "transformer_wide"),
    "hope_attention": ("hope_attention", None, None, "transformer"),
    "selfmod_linear": ("hope_selfmod", "linear", None, "transformer"),
    "selfmod_mlp": ("hope_selfmod", "mlp", None, "transformer"),
    "attention_1": ("hope_attention", None, PILOT, "transformer"),
    "attention_8": ("hope_attention", None, SPARSE, "transformer"),
    "selfmod_1": ("hope_selfmod", "linear", PILOT, "transformer"),
    "selfmod_8": ("hope_selfmod", "linear", SPARSE, "transformer"),
    "hybrid_1": ("hope_hybrid", None, PILOT, "transformer_wide"),
    "hybrid_8": ("hope_hybrid", None, SPARSE, "transformer_wide"),
    "gated_deltanet": ("gated_deltanet", None, None, "transformer"),
    "samba": ("samba", None, None, "transformer"),
    "titans_lmm": ("titans_lmm", None, None, "transformer"),
    "titans_mac": ("titans_mac", None, None, "transformer"),
    "titans_mag": ("titans_mag", None, None, "transformer"),
    "titans_mal": ("titans_mal", None, None, "transformer"),
}
# channel.hidden of models without levels, such that parameters are equal; of the others 4, or 1 in
# each of four levels that write
HIDDEN = {"transformer": 8 / 3, "transformer_wide": 5.0, "gated_deltanet": 7 / 3,
          "samba": 7 / 3, "titans_lmm": 2.2, "titans_mac": 1.2, "titans_mag": 1.2,
          "titans_mal": 1.2}
WINDOWED = ("samba", "titans_mag", "titans_mal")  # their attention sees WINDOW tokens
WINDOW = 128


def configuration(name: str, **changes):
  """A model of the preset's size, some of it changed."""
  if name not in MODELS:
    raise ValueError(f"no model {name}: choose from {', '.join(MODELS)}")
  size = PRESETS[FLAGS.preset] | ({"batch": FLAGS.batch} if FLAGS.batch else {}) | changes
  c = configs.base()
  kind, memory, periods, _ = MODELS[name]
  c.model.update(configs.PRESETS[kind])
  if memory:
    c.selfmod.memory = memory
  c.channel.kind = "swiglu" if name in HIDDEN else "cms"
  c.channel.hidden = HIDDEN.get(name, 4.0)
  if kind in WINDOWED:
    c.attention.window = WINDOW
  if periods:
    c.channel.levels = tuple(configs.Level(f"every{period}", period) for period in periods)
    c.channel.hidden, c.channel.in_context, c.titan.hidden = 1.0, True, 1.0
    c.teach.chunk = c.data.align = FLAGS.chunk
  for field, value in size.items():
    (c.data if field in ("seq", "batch") else c.model)[field] = value
  checks.validate(c)
  return c


def compile_cold(config) -> tuple:
  """costs.compile_program of the training step, out of no cache, into the persistent one."""
  jax.clear_caches()
  for entry in Path(jax.config.jax_compilation_cache_dir).rglob("*"):
    if entry.is_file():
      entry.unlink()
  return costs.compile_program(*costs.train_program(config))


class Runner:
  """A compiled training step, its state and a batch."""

  def __init__(self, name: str, **changes):
    self.config = c = configuration(name, **changes)
    self.tokens = c.data.batch * c.data.seq
    self.step, self.cold = compile_cold(c)
    jax.clear_caches()  # of this process: what follows comes from the persistent cache
    program = costs.train_program(c)
    _, self.warm = costs.compile_program(*program)
    self.memory = costs.memory(self.step)
    self.flops = {"model": costs.model_flops(c), "training": costs.training_flops(c)}
    params = costs.param_shapes(c)
    self.parameters = count(params)
    self.channel = count([part for key, part in params["blocks"].items()
                          if key in ("mlp", "channel_norm", "cms")])
    self.seconds = []  # per step, one of each turn
    shardings = jax.tree.map(lambda s: s.sharding, program[1:])
    self.state = jax.jit(lambda key: steps.init_state(c, key),
                         out_shardings=shardings[0])(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (c.data.batch, c.data.seq), 0, c.model.vocab)
    batch = {"tokens": tokens, "labels": jnp.roll(tokens, -1, 1), "segments": jnp.ones_like(tokens)}
    self.batch = jax.device_put(batch, shardings[1])

  def turn(self, number: int) -> float:
    """Seconds per step, over this many."""
    began = time.perf_counter()
    for _ in range(number):
      # the state was donated: only the new one is good
      self.state, out = self.step(self.state, self.batch)
    jax.block_until_ready((self.state, out))
    return (time.perf_counter() - began) / number

  def numbers(self, rate: float) -> dict:
    """All that was measured; `rate`: FLOP/s of the device on a matrix product."""
    median = statistics.median(self.seconds)
    c = self.config
    return {"kind": configs.describe(c),
            "memory": c.selfmod.memory if "selfmod" in c.model.pattern else None,
            "layers": c.model.layers, "seq": c.data.seq, "batch": c.data.batch,
            "parameters": self.parameters,
            "channel_parameters": self.channel, "flops_per_token": self.flops,
            "step_s": self.seconds,
            "median_step_s": median, "min_step_s": min(self.seconds),
            "tokens_per_s": self.tokens / median,
            "share_of_rate": self.flops["model"] * self.tokens / median / rate,
            "compile_cold": self.cold, "compile_cached": self.warm, "memory_bytes": self.memory}


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def take_turns(runners: dict, label: str) -> None:
  """A warm-up step each, then the rounds."""
  with tqdm(total=len(runners) * (FLAGS.rounds + 1), desc=label, unit="turn", mininterval=1) as bar:
    for i in range(FLAGS.rounds + 1):
      for name, runner in runners.items():
        bar.set_postfix_str(str(name))
        seconds = runner.turn(FLAGS.steps if i else 1)
        if i:
          runner.seconds.append(seconds)
        bar.update()


def build(label: str, jobs: dict) -> dict:
  """Runners: {key: (model, changes)} -> {key: Runner}."""
  return {key: Runner(name, **changes)
          for key, (name, changes) in tqdm(jobs.items(), desc=label, unit="model")}


def check_parameters(runners: dict) -> None:
  """ValueError where a model and what it is compared with differ in parameters."""
  for name, runner in runners.items():
    base = runners[MODELS[name][3]]
    if abs(runner.parameters - base.parameters) > 0.07 * base.parameters:
      raise ValueError(f"{name} has {runner.parameters:,} parameters, {MODELS[name][3]} "
                       f"{base.parameters:,}: change channel.hidden in configuration()")


def compare(rate_of) -> tuple[dict, str]:
  """The models beside each other."""
  names = dict.fromkeys([*(MODELS[name][3] for name in FLAGS.models if name in MODELS),
                         *FLAGS.models])
  runners = build("compile", {name: (name, {}) for name in names})
  check_parameters(runners)
  take_turns(runners, "train")
  rate = rate_of()
  out, speeds, sizes = {}, [], []
  def total(seconds):
    return f"{sum(seconds.values()):.1f}"
  def millions(number):
    return f"{number / 1e6:,.1f}"
  for name, runner in runners.items():
    n = runner.numbers(rate)
    base = runners[MODELS[name][3]]  # each turn against its turn of the same round
    ratios = sorted(b / a for a, b in zip(runner.seconds, base.seconds))
    ratio = statistics.median(ratios)
    out[name] = n | {"speed_ratio": {"to": MODELS[name][3], "rounds": ratios, "median": ratio}}
    speeds.append([name, f"{n['tokens_per_s']:,.0f}", f"{1e3 * n['median_step_s']:,.1f}",
                   f"{1e3 * n['min_step_s']:,.1f}", MODELS[name][3],
                   f"{ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
                   f"{min(base.seconds) / min(runner.seconds):.3f}",
                   f"{100 * n['share_of_rate']:.1f}%"])
    flops = n["flops_per_token"]
    sizes.append([name, f"{n['parameters']:,}", f"{n['channel_parameters']:,}",
                  millions(flops["model"]),
                  millions(flops["training"]), f"{n['memory_bytes']['peak'] / 2**20:,.0f}",
                  total(n["compile_cold"]), total(n["compile_cached"])])
  return out, markdown(
      ["model", "tokens/s", "median step, ms", "min step, ms", "compared with",
       "speed ratio (min to max of rounds)",
       "by fastest steps", "share of matrix rate"], speeds) + "\n" + markdown(
           ["model", "parameters", "in channel mixers", "model MFLOP/token", "computed MFLOP/token",
            "peak MiB", "compile s", "cached s"], sizes)


def length_jobs() -> dict:
  """--lengths: {(name, length): (name, changes)}."""
  return {(name, length): (name, dict(seq=length, batch=FLAGS.length_batch))
          for name in FLAGS.swept for length in map(int, FLAGS.lengths)}


def by_length(jobs: dict, rate_of) -> tuple[list, str]:
  """Time per token against the length of the sequence."""
  runners = build("compile lengths", jobs)
  take_turns(runners, "train lengths")
  rate = rate_of()
  us = {key: 1e6 * statistics.median(runner.seconds) / runner.tokens
        for key, runner in runners.items()}
  lengths = sorted({length for _, length in jobs})
  rows = [[name, *(f"{us[name, length]:,.1f}" for length in lengths)] for name in FLAGS.swept]
  peak = {key: runner.memory["peak"] / 2**20 for key, runner in runners.items()}
  peaks = [[name, *(f"{peak[name, length]:,.0f}" for length in lengths)] for name in FLAGS.swept]
  return ([{"model": name} | runner.numbers(rate) for (name, _), runner in runners.items()],
          markdown([f"us per token, {FLAGS.length_batch} sequences of", *lengths], rows)
          + "\n" + markdown([f"peak MiB, {FLAGS.length_batch} sequences of", *lengths], peaks))


def by_depth() -> tuple[list, str]:
  """Time to compile against the number of layers."""
  out, rows = [], []
  for name in FLAGS.swept:
    rows.append([name])
    for depth in tqdm(FLAGS.depths, desc=f"compile depths, {name}", unit="model"):
      _, seconds = compile_cold(configuration(name, layers=int(depth)))
      out.append({"model": name, "layers": int(depth)} | seconds)
      rows[-1].append(f"{sum(seconds.values()):.1f}")
  return out, markdown(["seconds to trace and compile at layers", *FLAGS.depths], rows)


def by_size() -> tuple[list, str]:
  """Peak memory of the compiled training step against batch and length."""
  out, rows, lengths = ([], [], [int(length) for length in FLAGS.lengths]
                        or [PRESETS[FLAGS.preset]["seq"]])
  for name in FLAGS.swept:
    for batch in tqdm(list(map(int, FLAGS.batches)), desc=f"memory, {name}", unit="batch"):
      peaks = []
      for length in lengths:
        compiled, _ = costs.compile_program(
            *costs.train_program(configuration(name, batch=batch, seq=length)))
        peaks.append(costs.memory(compiled)["peak"])
        out.append({"model": name, "batch": batch, "seq": length, "peak_bytes": peaks[-1]})
      rows.append([name, batch, *(f"{peak / 2**20:,.0f}" for peak in peaks)])
  return (out,
          markdown(["peak MiB a device", "batch", *(f"sequence {length}" for length in lengths)],
                   rows))


def reading() -> tuple[list, str]:
  """Tokens/s of memorizing, writes and all, against a plain forward pass over whole sequences."""
  out, rows = [], []
  for name in tqdm(FLAGS.memorize, desc="memorize", unit="model"):
    c = configuration(name)
    devices = sharding.mesh(c)
    shape = (c.data.batch, c.data.seq)
    params = jax.jit(lambda key: lm.init_params(c, key),
                     out_shardings=sharding.replicated(devices))(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), shape, 0, c.model.vocab)
    batch = {"tokens": tokens, "labels": jnp.roll(tokens, -1, 1), "segments": jnp.ones_like(tokens)}
    batch = jax.device_put(batch, sharding.by_stream(devices))

    @jax.jit
    def forward(params, batch):
      logits, _, _ = lm.build(c).apply({"params": params}, batch["tokens"], None, batch["segments"],
                                       aligned=True)
      return reader.token_losses(logits, batch["labels"]).sum()

    @jax.jit
    def memorize(params, fast, batch):
      def read(fast, piece):
        loss, fast, _ = reader.chunk(c, params, fast, piece, reader.strength(c))
        return fast, loss["nats_BxC"].sum()
      return jax.lax.scan(read, fast, reader.scan_chunks(c, batch))

    fast, seconds = sharding.place_fast(lm.init_fast(c, c.data.batch),
                                        devices), {"forward": [], "memorize": []}
    calls = {"forward": lambda: forward(params, batch),
             "memorize": lambda: memorize(params, fast, batch)}
    for i in range(FLAGS.rounds + 1):
      for what, call in calls.items():
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds[what] += [time.perf_counter() - began] if i else []
    fastest = {what: shape[0] * shape[1] / min(s) for what, s in seconds.items()}
    flops = {"forward": costs.count_flops(forward, params, batch),
             "memorize": costs.count_flops(memorize, params, fast, batch)}
    out.append({"model": name, "chunk": plan.of(c).chunk, "seconds": seconds,
                "tokens_per_s": fastest, "flops": flops})
    rows.append([name, f"{fastest['forward']:,.0f}", f"{fastest['memorize']:,.0f}",
                 f"{fastest['memorize'] / fastest['forward']:.3f}",
                 f"{flops['forward'] / flops['memorize']:.3f}"])
  return out, markdown(["model", "forward tokens/s", "memorize tokens/s", "ratio, fastest of each",
                        "ratio of FLOPs"], rows)


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_enum("preset", "small", list(PRESETS), "Size of the models.", flag_values=values)
  flags.DEFINE_list("models", ["transformer", "hope_attention", "selfmod_linear", "selfmod_mlp"],
                    f"Of {', '.join(MODELS)}.", flag_values=values)
  flags.DEFINE_integer("batch", None, "Sequences in a batch, instead of the preset's.",
                       flag_values=values)
  flags.DEFINE_list("memorize", [], "Reading with writes against reading alone, of these models.",
                    flag_values=values)
  flags.DEFINE_list("swept", ["selfmod_linear", "selfmod_mlp"], "Models of --lengths and --depths.",
                    flag_values=values)
  flags.DEFINE_list("lengths", [], "Time per token at these sequence lengths.", flag_values=values)
  flags.DEFINE_list("batches", [], "Only peak memory of the step, at these batches and "
                    "--lengths; nothing runs.", flag_values=values)
  flags.DEFINE_integer("chunk", 128, "Tokens between two writes, where a model writes in context.",
                       flag_values=values)
  flags.DEFINE_integer("length_batch", 4, "Sequences in every batch of --lengths.",
                       flag_values=values)
  flags.DEFINE_list("depths", [], "Time to compile at these numbers of layers.", flag_values=values)
  flags.DEFINE_integer("rounds", 8, "Turns of each model.", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("steps", 2, "Training steps a turn.", lower_bound=1, flag_values=values)
  program.define_path("output", "All numbers, as JSON.", flag_values=values)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}: lists are written with commas, "
                         "--lengths=512,1024")
  device, dtype = jax.devices()[0], PRESETS[FLAGS.preset]["dtype"]
  jobs, rates = length_jobs(), []

  def rate_of() -> float:
    """The best matrix-product rate so far, measured between parts: the machine may be busy."""
    metrics.matmul_rate.cache_clear()
    rates.append(metrics.matmul_rate(dtype))
    return max(rates)

  report = results.stamp("evals/speed.py") | results.machine(flax, optax) | {
      "preset": PRESETS[FLAGS.preset], "rounds": FLAGS.rounds, "steps_per_turn": FLAGS.steps}
  if FLAGS.output:
    results.ready(FLAGS.output)
  parts = []
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    rate_of()
    if FLAGS.batches:
      report["memory"], text = by_size()
      parts.append(text)
    elif FLAGS.memorize:
      report["memorize"], text = reading()
      parts.append(text)
    else:
      report["models"], text = compare(rate_of)
      parts.append(text)
    if jobs and not FLAGS.batches:
      report["lengths"], text = by_length(jobs, rate_of)
      parts.append(text)
    if FLAGS.depths:
      report["depths"], text = by_depth()
      parts.append(text)
  report["device"] |= {"load_after": os.getloadavg(), "matrix_flops_per_s": rates}
  print(f"{device.device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {dtype} "
        f"matrix products at {max(rates) / 1e9:,.0f} GFLOP/s; {report['preset']}\n")
  print("\n".join(parts))
  if FLAGS.output:
    results.write(FLAGS.output, report)


if __name__ == "__main__":
  program.start(main, define_flags)
