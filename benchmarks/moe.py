"""What a train step of a mixture of experts costs, against the same written otherwise.

    python benchmarks/moe.py [--quick] [--jobs natural forced layers] [--steps 9]

`natural` and `forced` are a small Mixtral: our step, the same by hand in plain JAX with experts in
blocks, by `jax.lax.ragged_dot` and by one-hot products (moe_by_hand.py), and `transformers`' on
PyTorch, where that is installed. Its router chooses by itself, or even use is forced on it. All
take steps in turn in one process, beside one dense product of as many FLOPs. Seconds are of the
processor (all threads), medians over steps; ratios are medians of those step by step. Losses of
the first step, and gradients where it is JAX, are compared. Peak memory is that of one process
more, for some. `layers` are single layers of experts by every way to dispatch (`jscale bench
kernels moe_layer`): on a GPU those of Qwen3-30B-A3B and Mixtral-8x7B, with the fraction of the
chip's peak.

Results are kept in benchmarks/results/moe-<device>.json, those of other jobs stay as they were;
`--quick` keeps none.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from moe_by_hand import Sizes
from step import Competitor, compared, machine, rounded

RESULTS = Path(__file__).parent / "results"
FULL = Sizes(2048, 256, 2, 4, 256, length=256, batch=4, experts=16, choices=4)
TINY = Sizes(64, 32, 2, 2, 32, length=16, batch=2, experts=4, choices=2)
JOBS = ("natural", "forced", "layers")
OURS, DENSE = "jscale", "dense product"
HAND = {"blocks": "by hand, blocks", "ragged": "by hand, ragged_dot", "one_hot": "one-hot products"}
TORCH = {"eager": "transformers, a loop", "grouped_mm": "transformers, grouped_mm"}
WEIGHED = OURS, HAND["blocks"], TORCH["eager"]  # whose peak memory is taken


def batch_of(sizes: Sizes) -> tuple[Any, Any]:
    """Tokens as unequally frequent as words are."""
    import numpy as np

    law = 1 / np.arange(1, sizes.vocab + 1)
    shape = sizes.batch, sizes.length + 1
    x = np.random.default_rng(0).choice(sizes.vocab, shape, p=law / law.sum()).astype(np.int32)
    return x[:, :-1], x[:, 1:]


def task(sizes: Sizes, forced: bool) -> Any:
    """Our task for these sizes, without a term for balance."""
    from jscale import train
    from jscale.losses import NextToken
    from jscale.mesh import Layout, make_mesh
    from jscale.models import Mixtral, Model
    from jscale.models.gates import Balance, Forced, TopK
    from jscale.models.sparse import Experts
    from jscale.optim import AdamW, Constant

    choice = Forced(sizes.choices) if forced else TopK(sizes.choices, "softmax_of_chosen")
    config = Mixtral(
        *(sizes.vocab, sizes.dim, sizes.layers, sizes.heads, sizes.heads, sizes.hidden),
        rope=10_000.0,
        remat="none",
        experts=Experts(sizes.experts, choice, balance=Balance(0.0)),
    )
    model = Model(config)
    optimizer = AdamW(1e-3, Constant()).build(model.axes, model.shapes, 1000)
    return train.Task(model, optimizer, NextToken(), Layout(make_mesh()))


def even(sizes: Sizes) -> Any:
    """The experts of all tokens where even use is forced on them."""
    import jax.numpy as jnp

    from jscale.models.gates import Forced

    tokens = sizes.batch * sizes.length
    scores, real = jnp.zeros((tokens, sizes.experts)), jnp.ones(tokens, bool)
    return Forced(sizes.choices)(scores, real, training=True).experts


def ours(sizes: Sizes, forced: bool) -> tuple[Competitor, int]:
    """Our step as it comes, and bytes of its temporaries."""
    import jax
    import jax.numpy as jnp
    from moe_by_hand import weights_of

    from jscale import train
    from jscale.compiled import memory_of

    here = task(sizes, forced)
    inputs, targets = batch_of(sizes)
    where = train.sharding_of(here.layout)
    batch = {"inputs": inputs, "targets": targets, "weights": jnp.ones(targets.shape)}
    batch = {n: jax.device_put(x, where(n, x.shape)) for n, x in batch.items()}
    held = [train.init(here, jax.random.key(0)), None]
    program = train.make_step(here).lower(held[0], batch).compile()

    def step() -> None:
        held[0], held[1] = program(held[0], batch)

    def values() -> dict[str, Any]:
        moment = held[0].optimizer[1][0].mu
        return {"loss": float(held[1]["loss"]), "grads": jax.device_get(weights_of(moment))}

    return Competitor(step, lambda: jax.block_until_ready(held), values), memory_of(
        program
    ).temporaries


def by_hand(sizes: Sizes, forced: bool, way: str, params: Any) -> tuple[Competitor, int]:
    """The step by hand with experts computed in a way, and bytes of its temporaries."""
    import by_hand
    import jax
    import moe_by_hand

    from jscale.compiled import memory_of

    batch, chosen = batch_of(sizes), even(sizes) if forced else None
    held = [by_hand.start(moe_by_hand.weights_of(params)), None]
    run = getattr(moe_by_hand, way)
    if way == "one_hot":
        slots = moe_by_hand.slots_needed(sizes, chosen, held[0][0], batch[0])
        run = run(sizes.batch, slots)
    program = moe_by_hand.make_step(sizes, run, chosen).lower(held[0], *batch).compile()

    def step() -> None:
        held[0], held[1] = program(held[0], *batch)

    def values() -> dict[str, Any]:
        return {"loss": float(held[1][0]), "grads": jax.device_get(held[0][1])}

    return Competitor(step, lambda: jax.block_until_ready(held), values), memory_of(
        program
    ).temporaries


def in_torch(sizes: Sizes, forced: bool, experts: str, params: Any) -> tuple[Competitor, None]:
    """The same model and weights in transformers, with torch's AdamW."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.dim,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        num_local_experts=sizes.experts,
        num_experts_per_tok=sizes.choices,
        max_position_embeddings=sizes.length,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        use_cache=False,
    )
    torch.set_num_threads(1)  # more of them spin while they wait, in seconds that would count
    model = MixtralForCausalLM(config)
    model.set_experts_implementation(experts)
    experts_to_torch(model, params)
    if forced:
        force(model, even(sizes))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    scales = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    inputs, targets = (torch.from_numpy(x.astype("int64")) for x in batch_of(sizes))
    found: list[float] = []

    def step() -> None:
        logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())

    return Competitor(step, lambda: None, lambda: {"loss": found[0]}), None


def experts_to_torch(model: Any, params: Any) -> None:
    """Our weights into a transformers Mixtral; its kernels are [out, in]."""
    import numpy as np
    import torch

    give = lambda to, w: to.data.copy_(torch.from_numpy(np.array(w)))
    block = params["blocks"]["block"]
    attend, routed = block["attend"], block["feed"]["routed"]
    give(model.model.embed_tokens.weight, params["embed"]["table"])
    give(model.lm_head.weight, params["head"]["kernel"].T)
    give(model.model.norm.weight, params["norm"]["scale"])
    for i, layer in enumerate(model.model.layers):
        dim = layer.input_layernorm.weight.shape[0]
        for name in "qkv":
            kernel = getattr(layer.self_attn, f"{name}_proj").weight
            give(kernel, attend[name][i].reshape(dim, -1).T)
        give(layer.self_attn.o_proj.weight, attend["o"][i].reshape(-1, dim).T)
        give(layer.input_layernorm.weight, block["attend_norm"]["scale"][i])
        give(layer.post_attention_layernorm.weight, block["feed_norm"]["scale"][i])
        give(layer.mlp.gate.weight, routed["router"]["kernel"][i].T)
        gate, up, down = (
            np.asarray(routed["expert"][n]["kernel"][i]) for n in ("gate", "up", "down")
        )
        both = np.concatenate([gate, up], 2).swapaxes(1, 2)
        give(layer.mlp.experts.gate_up_proj, both)
        give(layer.mlp.experts.down_proj, down.swapaxes(1, 2))


def force(model: Any, chosen: Any) -> None:
    """Let its routers choose these experts."""
    import numpy as np
    import torch

    index = torch.from_numpy(np.array(chosen).astype("int64"))

    class Router(torch.nn.Module):
        def __init__(self, weight: Any):
            super().__init__()
            self.weight = weight

        def forward(self, x: Any) -> Any:
            scores = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), self.weight)
            return scores, torch.softmax(scores.gather(1, index), -1), index

    for layer in model.model.layers:
        layer.mlp.gate = Router(layer.mlp.gate.weight)


def contenders(sizes: Sizes, forced: bool) -> dict[str, Callable[[], tuple[Competitor, Any]]]:
    """Who competes, each made when it is called."""
    import jax

    params = task(sizes, forced).model.init(jax.random.key(0))
    found: dict[str, Any] = {OURS: lambda: ours(sizes, forced)}
    for way, name in HAND.items():
        found[name] = lambda way=way: by_hand(sizes, forced, way, params)
    if find_spec("torch") and find_spec("transformers"):
        for experts, name in TORCH.items():
            found[name] = lambda experts=experts: in_torch(sizes, forced, experts, params)
    return found


def left_out() -> dict[str, str]:
    """Who does not compete, and why."""
    here = find_spec("torch") and find_spec("transformers")
    return {} if here else dict.fromkeys(TORCH.values(), "torch or transformers is not installed")


def flops_of(sizes: Sizes) -> float:
    """Of a step: six for each weight that a token uses, and attention's, whose half is masked."""
    expert = 3 * sizes.dim * sizes.hidden
    block = 4 * sizes.dim**2 + sizes.dim * sizes.experts + sizes.choices * expert
    weights = sizes.layers * block + sizes.dim * sizes.vocab
    tokens, pairs = sizes.batch * sizes.length, sizes.batch * sizes.length * (sizes.length + 1) / 2
    return 6.0 * weights * tokens + 12.0 * sizes.layers * pairs * sizes.dim


def run_model(sizes: Sizes, forced: bool, steps: int) -> dict[str, Any]:
    """All who compete take steps in turn: values of the first, then times and ratios."""
    import jax

    from jscale.launch.bench.ceiling import product, side_of
    from jscale.launch.bench.measure import Clock, clock_of, take_turns
    from jscale.launch.bench.subject import Program

    clock = clock_of(jax.default_backend())
    clock = Clock(clock.now, clock.kind, 0.0, steps, float("inf"))
    made = {name: make() for name, make in contenders(sizes, forced).items()}
    values = {}
    for name, (one, _) in made.items():
        one.step()
        one.wait()
        values[name] = one.values()
        print(f"  {name}: ready", file=sys.stderr, flush=True)
    off = {n: compared(v, values[HAND["ragged"]]) for n, v in values.items()}
    programs = {n: Program(one.step, lambda _, one=one: one.wait()) for n, (one, _) in made.items()}
    flops, side = flops_of(sizes), side_of(flops_of(sizes), jax.default_backend())
    programs[DENSE] = product(side, "float32")
    times = take_turns(programs, clock)
    share = 2 * side**3 / flops  # of the step's FLOPs that the product has
    tokens = sizes.batch * sizes.length
    figures = {
        name: {
            "seconds": times[name].middle,
            "ratio": times[name].ratio(times[OURS]),
            "tokens_per_second": tokens / times[name].middle,
            "of_dense": 1 / (times[name].ratio(times[DENSE]) * share),
            "temporaries": made[name][1],
            **off[name],
        }
        for name in made
    }
    dense = {"seconds": times[DENSE].middle / share, "flops": flops}
    return {"clock": clock.kind, "steps": steps, "dense": dense, "contenders": figures}


def peak(sizes: Sizes, forced: bool, name: str) -> dict[str, Any]:
    """GiB of a process in which this one takes two steps."""
    one, _ = contenders(sizes, forced)[name]()
    for _ in range(2):
        one.step()
        one.wait()
    return {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def run_layers(quick: bool) -> dict[str, Any]:
    """Single layers by every way that computes them, and the part of the chip's peak."""
    import jax

    from jscale.launch.bench.case import measure
    from jscale.launch.bench.ceiling import ceiling_of
    from jscale.launch.bench.measure import clock_of
    from jscale.launch.bench.rows.moe_layer import SUBJECT
    from jscale.mesh.machines import speed_of
    from jscale.pallas_kernels.device import device

    where = device()
    clock, found = clock_of(where.platform, quick), []
    speed = speed_of(where.kind)
    for case in SUBJECT.cases(where.platform, quick):
        ceiling = ceiling_of(where.platform, case.dtype, clock, quick)
        one = measure(SUBJECT, case, ["forward", "training"], ceiling, clock, where)
        figures = one["passes"]["training"]["contenders"]
        for each in figures.values():
            peak = None if speed is None else speed.sixteen * case.devices
            each["mfu"] = None if peak is None else each["rate"] / peak
        found.append(one)
    return {"clock": clock.kind, "devices": jax.device_count(), "cases": found}


def child(job: str, sizes: Sizes, steps: int, quick: bool) -> dict[str, Any]:
    """What a process of its own does."""
    from jscale.mesh.devices import skip_absent

    skip_absent()
    name, _, who = job.partition(":")
    if name == "layers":
        return run_layers(quick)
    return peak(sizes, name == "forced", who) if who else run_model(sizes, name == "forced", steps)


def spawn(job: str, sizes: Sizes, steps: int, quick: bool) -> dict[str, Any]:
    """The answer of a process of its own."""
    words = [sys.executable, __file__, "--child", job, json.dumps(asdict(sizes)), str(steps)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    words += ["--quick"] if quick else []
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the job {job} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def job_of(name: str, sizes: Sizes, steps: int, quick: bool) -> dict[str, Any]:
    """All figures of one job; peak memory of the model with its own choices alone."""
    print(f"{name} …", file=sys.stderr, flush=True)
    found = spawn(name, sizes, steps, quick)
    if name == "layers":
        return rounded(found)
    if name == "natural" and not quick:
        for who in (n for n in WEIGHED if n in found["contenders"]):
            print(f"{name}, memory: {who} …", file=sys.stderr, flush=True)
            found["contenders"][who]["gib"] = spawn(f"{name}:{who}", sizes, steps, quick)["gib"]
    return {"sizes": asdict(sizes), **rounded(found), "left_out": left_out()}


def where() -> dict[str, Any]:
    """The machine, by a process that may look for its devices."""
    code = "import jax; from jscale.mesh.devices import skip_absent; skip_absent();"
    code += "d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    platform, _, kind = done.stdout.strip().partition("|")
    return {**machine(), "platform": platform or "cpu", "device": kind or "cpu"}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each competitor")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; keeps nothing")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job, sizes, steps = options.child
        print(json.dumps(child(job, Sizes(**json.loads(sizes)), int(steps), options.quick)))
        return
    from jscale.pallas_kernels.tiles.table import file_name

    found, here = {}, where()
    kept = RESULTS / f"moe-{file_name(here['device'])}.json"
    for name in options.jobs:
        found[name] = job_of(name, TINY if options.quick else FULL, options.steps, options.quick)
        found[name]["machine"] = here
        if not options.quick:
            before = json.loads(kept.read_text())["jobs"] if kept.exists() else {}
            kept.write_text(json.dumps({"jobs": {**before, name: found[name]}}, indent=1) + "\n")
    print(json.dumps({"jobs": found}, indent=1))


if __name__ == "__main__":
    main()
