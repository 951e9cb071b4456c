"""What a train step costs, against the same model written by hand in plain JAX, and in PyTorch.

    python benchmarks/step.py [--quick] [--jobs dense fsdp deep loop torch] [--steps 5]
    python benchmarks/step.py --write-docs        # docs/performance.md from the kept results

Each job runs in a process of its own, in which the competitors take steps in turn, so that what
else the machine does meets all of them; peak memory is taken from one more process each. Seconds
are of the processor (all threads), medians over steps; ratios are the median of those step by
step. Losses and gradients of the first step are compared. Results are kept in
benchmarks/results/step.json, those of jobs that did not run stay as they were; `--quick` keeps
none.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from by_hand import Sizes

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "step.json"
PAGE = ROOT / "docs" / "performance.md"
D1 = Sizes(vocab=32_000, dim=512, layers=8, heads=8, hidden=1408, length=512, batch=8)
DEEP = Sizes(vocab=256, dim=16, layers=128, heads=2, hidden=32, length=8, batch=2)
SMALL = Sizes(vocab=4096, dim=192, layers=4, heads=4, hidden=512, length=128, batch=8)
TINY = Sizes(vocab=256, dim=32, layers=2, heads=2, hidden=64, length=32, batch=8)
JOBS = {"dense": D1, "fsdp": D1, "deep": DEEP, "loop": SMALL, "torch": D1}
DEVICES = {"fsdp": 8}


class Competitor(NamedTuple):
    """A compiled step as a function of nothing, and what its last call gave."""

    step: Callable[[], Any]  # takes a step, returns when it is dispatched
    wait: Callable[[], None]
    values: Callable[[], dict[str, Any]]  # loss and gradients (up to AdamW's clipping) of step 1


def processor() -> float:
    """Seconds of the processor that this process has used, in all threads."""
    return time.process_time()


def task(sizes: Sizes, axes: dict[str, int]) -> Any:
    """Our task for these sizes."""
    from jscale import train
    from jscale.losses import NextToken
    from jscale.mesh import Layout, make_mesh
    from jscale.models import Llama, Model
    from jscale.optim import AdamW, Constant

    config = Llama(
        *(sizes.vocab, sizes.dim, sizes.layers, sizes.heads, sizes.heads, sizes.hidden),
        remat="none",
    )
    model = Model(config)
    optimizer = AdamW(1e-3, Constant()).build(model.axes, model.shapes, 1000)
    return train.Task(model, optimizer, NextToken(), Layout(make_mesh(**axes)))


def batch_of(sizes: Sizes) -> tuple[Any, Any]:
    import numpy as np

    x = np.random.default_rng(0).integers(0, sizes.vocab, (sizes.batch, sizes.length + 1), np.int32)
    return x[:, :-1], x[:, 1:]


def lowered(step: Any, *arguments: Any) -> tuple[Any, float]:
    """A compiled step and the processor seconds of tracing, lowering and compiling it."""
    start = processor()
    program = step.lower(*arguments).compile()
    return program, processor() - start


def ours(sizes: Sizes, devices: int) -> tuple[Competitor, Callable[[], float]]:
    """Our step, and a function that compiles it anew and gives the seconds."""
    import jax
    import jax.numpy as jnp
    from by_hand import weights_of

    from jscale import train

    here = task(sizes, {} if devices == 1 else {"fsdp": devices})
    inputs, targets = batch_of(sizes)
    where = train.sharding_of(here.layout)
    batch = {"inputs": inputs, "targets": targets, "weights": jnp.ones(targets.shape)}
    batch = {n: jax.device_put(x, where(n, x.shape)) for n, x in batch.items()}
    held = [train.init(here, jax.random.key(0)), None]
    program, _ = lowered(train.make_step(here), held[0], batch)

    def step() -> None:
        held[0], held[1] = program(held[0], batch)

    def values() -> dict[str, Any]:
        moment = held[0].optimizer[1][0].mu
        return {"loss": float(held[1]["loss"]), "grads": jax.device_get(weights_of(moment))}

    shapes = train.shapes(here)
    again = lambda: lowered(train.make_step(here), shapes, batch)[1]
    return Competitor(step, lambda: jax.block_until_ready(held), values), again


def theirs(sizes: Sizes, devices: int, params: Any) -> tuple[Competitor, Callable[[], float]]:
    """The step by hand, and a function that compiles it anew and gives the seconds."""
    import by_hand
    import jax

    mesh = (
        None
        if devices == 1
        else jax.make_mesh((devices,), ("fsdp",), (jax.sharding.AxisType.Auto,))
    )
    batch = batch_of(sizes)
    if mesh is not None:
        where = jax.NamedSharding(mesh, jax.P("fsdp"))
        batch = tuple(jax.device_put(x, where) for x in batch)
    held = [by_hand.start(by_hand.weights_of(params), mesh), None]
    program, _ = lowered(by_hand.make_step(sizes, mesh), held[0], *batch)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), held[0]
    )

    def step() -> None:
        held[0], held[1] = program(held[0], *batch)

    def values() -> dict[str, Any]:
        return {"loss": float(held[1][0]), "grads": jax.device_get(held[0][1])}

    again = lambda: lowered(by_hand.make_step(sizes, mesh), shapes, *batch)[1]
    return Competitor(step, lambda: jax.block_until_ready(held), values), again


def in_torch(sizes: Sizes, params: Any) -> Competitor:
    """The same model and weights in transformers, with torch's AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.dim,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.length,
        use_cache=False,
    )
    torch.set_num_threads(os.cpu_count() or 1)
    model = LlamaForCausalLM(config)
    copy_to_torch(model, params)
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

    return Competitor(step, lambda: None, lambda: {"loss": found[0]})


def copy_to_torch(model: Any, params: Any) -> None:
    """Our weights into a transformers Llama; its kernels are [out, in]."""
    import numpy as np
    import torch

    block = params["blocks"]["block"]
    give = lambda to, w: to.data.copy_(torch.from_numpy(np.array(w)))
    give(model.model.embed_tokens.weight, params["embed"]["table"])
    give(model.lm_head.weight, params["head"]["kernel"].T)
    give(model.model.norm.weight, params["norm"]["scale"])
    for i, layer in enumerate(model.model.layers):
        dim = layer.input_layernorm.weight.shape[0]
        for name in "qkv":
            kernel = getattr(layer.self_attn, f"{name}_proj").weight
            give(kernel, block["attend"][name][i].reshape(dim, -1).T)
        give(layer.self_attn.o_proj.weight, block["attend"]["o"][i].reshape(-1, dim).T)
        for name in ("gate", "up", "down"):
            give(getattr(layer.mlp, f"{name}_proj").weight, block["feed"][name][i].T)
        give(layer.input_layernorm.weight, block["attend_norm"]["scale"][i])
        give(layer.post_attention_layernorm.weight, block["feed_norm"]["scale"][i])


def fresh(sizes: Sizes) -> Any:
    import jax

    return task(sizes, {}).model.init(jax.random.key(0))


def alternate(first: Competitor, second: Competitor, steps: int) -> dict[str, Any]:
    """Steps in turn: medians in processor seconds, their ratio, time on the wall, values."""
    seconds: tuple[list[float], list[float]] = ([], [])
    walls: tuple[list[float], list[float]] = ([], [])
    for n in range(steps + 1):
        for i in (0, 1) if n % 2 else (1, 0):
            one = (first, second)[i]
            start, wall = processor(), time.perf_counter()
            one.step()
            one.wait()
            if n:  # the first warms up
                seconds[i].append(processor() - start)
                walls[i].append(time.perf_counter() - wall)
        if not n:
            close = compared(first.values(), second.values())
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    middle = statistics.median
    return {
        "seconds": [middle(s) for s in seconds],
        "wall_seconds": [middle(w) for w in walls],
        "ratio": ratio,
        "ratio_of_medians": middle(seconds[0]) / middle(seconds[1]),
        "steps": steps,
        **close,
    }


def compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """How far losses, and gradients where both give them, are from each other."""
    import numpy as np

    found = {"loss_off": abs(a["loss"] - b["loss"]) / abs(b["loss"])}
    if "grads" in a and "grads" in b:
        norm = lambda x: float(np.linalg.norm(np.asarray(x, np.float64)))
        pairs = [(a["grads"][n], b["grads"][n]) for n in b["grads"]]
        found["gradient_off"] = max(norm(x - y) / max(norm(y), 1e-30) for x, y in pairs)
    limits = {"loss_off": 1e-5, "gradient_off": 1e-4}
    for name, value in found.items():
        if not value <= limits[name]:
            raise SystemExit(f"the competitors do not compute the same: {name} is {value:.2g}")
    return found


def compile_times(first: Callable[[], float], second: Callable[[], float]) -> dict[str, Any]:
    """Processor seconds to trace, lower and compile, in turn; and the ratio."""
    pairs = [(first(), second()) for _ in range(3)]
    middle = [statistics.median(column) for column in zip(*pairs, strict=True)]
    ratio = statistics.median(a / b for a, b in pairs)
    return {"compile_seconds": middle, "compile_ratio": ratio}


def run_steps(sizes: Sizes, steps: int, devices: int = 1) -> dict[str, Any]:
    """Ours against by hand, on one device or with FSDP over several."""
    params = fresh(sizes)
    first, compile_first = ours(sizes, devices)
    second, compile_second = theirs(sizes, devices, params)
    del params
    found = alternate(first, second, steps)
    return {**found, **compile_times(compile_first, compile_second)}


def run_deep(sizes: Sizes, steps: int) -> dict[str, Any]:
    """Ours against by hand, and the host's milliseconds for a step of the trainer's program."""
    import jax

    from jscale import train
    from jscale.compiled import Compiled

    found = run_steps(sizes, max(steps, 200))  # short ones, whose times scatter widely
    here = task(sizes, {})
    program = Compiled(train.make_step(here), lambda compilation: None)
    state = train.init(here, jax.random.key(0))
    inputs, targets = (jax.device_put(x) for x in batch_of(sizes))
    batch = {"inputs": inputs, "targets": targets, "weights": jax.numpy.ones(targets.shape)}
    calls = []
    for n in range(40):
        start = time.perf_counter()
        state, metrics = program(state, batch)
        calls.append(time.perf_counter() - start)
        jax.block_until_ready((state, metrics))
        if n < 5:
            calls.clear()
    return {**found, "host_ms": 1e3 * statistics.median(calls)}


def run_loop(sizes: Sizes, steps: int) -> dict[str, Any]:
    """The trainer's whole loop (data, metrics, files) against its bare step on one batch."""
    import jax

    from jscale import Trainer, train
    from jscale.data import BytePairs, StandardLibrary, TextData
    from jscale.models import Llama
    from jscale.optim import AdamW, Constant
    from jscale.recipe import Recipe

    steps = max(steps, 30) if sizes == SMALL else steps
    model = Llama(sizes.vocab, sizes.dim, sizes.layers, sizes.heads, sizes.heads, sizes.hidden)
    with tempfile.TemporaryDirectory() as folder:
        data = TextData(
            StandardLibrary(), BytePairs(sizes.vocab), sizes.length, sizes.batch, cache=folder
        )
        optimizer = AdamW(1e-3, Constant())
        recipe = Recipe("loop", replace(model, remat="none"), data, optimizer, 2 * steps + 20)
        times: tuple[list[float], list[float]] = ([], [])
        with Trainer(recipe, Path(folder) / "run") as trainer:
            here = trainer.task
            loop, state = iter(trainer), train.init(here, jax.random.key(0))
            where = train.sharding_of(here.layout)
            rows = trainer.session.corpus.train.rows_of(0, 0, sizes.batch)
            batch = {n: jax.device_put(x, where(n, x.shape)) for n, x in rows.items()}
            program, _ = lowered(train.make_step(here), state, batch)
            for n in range(steps + 5):
                start = processor()
                next(loop)
                jax.block_until_ready(trainer.state)
                middle = processor()
                state, _ = program(state, batch)
                jax.block_until_ready(state)
                if n >= 5:
                    times[0].append(middle - start)
                    times[1].append(processor() - middle)
            loop.close()
    # Sums, since what the loop does it does not do in every step.
    found = [sum(t) / len(t) for t in times]
    return {"seconds": found, "ratio": found[0] / found[1], "steps": steps}


def run_torch(sizes: Sizes, steps: int) -> dict[str, Any]:
    """PyTorch and transformers against ours; the ratio is theirs to ours."""
    params = fresh(sizes)
    return alternate(in_torch(sizes, params), ours(sizes, 1)[0], steps)


def peak(name: str, sizes: Sizes, devices: int) -> dict[str, Any]:
    """GiB of a process that takes two steps."""
    if name == "ours":
        one, _ = ours(sizes, devices)
    else:
        one = (
            in_torch(sizes, fresh(sizes))
            if name == "torch"
            else theirs(sizes, devices, fresh(sizes))[0]
        )
    for _ in range(2):
        one.step()
        one.wait()
    return {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def child(job: str, sizes: Sizes, steps: int) -> dict[str, Any]:
    """What a process of its own does."""
    from jscale.mesh import simulate

    name, _, who = job.partition(":")
    devices = DEVICES.get(name, 1)
    if devices > 1:
        simulate(devices)
    if who:
        return peak(who, sizes, devices)
    runs = {"deep": run_deep, "loop": run_loop, "torch": run_torch}
    return runs[name](sizes, steps) if name in runs else run_steps(sizes, steps, devices)


def spawn(job: str, sizes: Sizes, steps: int) -> dict[str, Any]:
    """The answer of a process of its own."""
    words = [sys.executable, __file__, "--child", job, json.dumps(asdict(sizes)), str(steps)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the job {job} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(job: str, sizes: Sizes, steps: int) -> dict[str, Any]:
    """All figures of one job."""
    print(f"{job} …", file=sys.stderr, flush=True)
    found = spawn(job, sizes, steps)
    who = {"dense": ["ours", "hand"], "fsdp": ["ours", "hand"], "torch": ["torch"]}.get(job, [])
    memory = {name: spawn(f"{job}:{name}", sizes, steps)["gib"] for name in who}
    found = {n: rounded(x) for n, x in found.items()}
    return {"sizes": asdict(sizes), **found, **({"gib": rounded(memory)} if memory else {})}


def rounded(x: Any) -> Any:
    if isinstance(x, dict):
        return {n: rounded(v) for n, v in x.items()}
    if isinstance(x, list):
        return [rounded(v) for v in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    from importlib.metadata import PackageNotFoundError, version

    from jscale.run.environment import versions

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    more = {}
    for name in ("torch", "transformers"):
        try:
            more[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "platform": "cpu",
        "processor": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "versions": {**versions(), **more},
    }


def main() -> None:
    """Measure, print, keep."""
    from page import write

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=None)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each competitor")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; keeps nothing")
    parser.add_argument("--write-docs", action="store_true", help="docs/performance.md, no run")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job, sizes, steps = options.child
        print(json.dumps(child(job, Sizes(**json.loads(sizes)), int(steps))))
        return
    if options.write_docs:
        PAGE.write_text(write(json.loads(RESULT.read_text())))
        return
    from importlib.util import find_spec

    jobs = options.jobs or [j for j in JOBS if j != "torch" or find_spec("transformers")]
    found = {}
    for job in jobs:
        sizes = TINY if options.quick else JOBS[job]
        found[job] = measure(job, sizes, options.steps)
        if not options.quick:
            before = json.loads(RESULT.read_text())["jobs"] if RESULT.exists() else {}
            kept = {"machine": machine(), "jobs": {**before, job: found[job]}}
            RESULT.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps({"machine": machine(), "jobs": found}, indent=1))


if __name__ == "__main__":
    main()
