"""`jscale profile RECIPE`: where the time of a training step goes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscale.launch.commands.arguments import recipe_from, recipe_parser
from jscale.launch.quiet import quiet

if TYPE_CHECKING:
    from jscale.profile import Profile

COSTLIEST = 10


def main(arguments: Sequence[str]) -> int:
    """Train a few steps under the profiler; print what they cost and where the trace is."""
    parser = recipe_parser("profile", "Where the time of a training step goes, by named scope.")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="steps to trace (5)")
    parser.add_argument("--out", metavar="FOLDER", help="for the trace (profiles/<recipe's name>)")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="simulate N devices on the processor"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_intermixed_args(list(arguments))
    quiet()
    from jscale.launch.commands.train import check_devices
    from jscale.mesh import simulate
    from jscale.profile.record import check_folder, check_steps
    from jscale.run.runfolder import writing

    recipe = recipe_from(options).value
    folder = Path(options.out) if options.out else Path("profiles") / recipe.name
    check_steps(options.steps)
    check_folder(folder)
    if options.devices is not None:
        simulate(check_devices(options.devices))
    found = measure(recipe, options.steps, folder)
    text = json.dumps(as_data(found), indent=2)
    print(text) if options.json else show(found, folder)
    with writing(folder / "profile.json"):
        (folder / "profile.json").write_text(text + "\n", encoding="utf-8")
    return 0


def measure(recipe: Any, steps: int, folder: Path) -> "Profile":
    """The profile of a recipe's step; its trace and its program are written to `folder`."""
    import jax

    from jscale import train
    from jscale.data.feed import feed
    from jscale.mesh.hlo import read
    from jscale.prepare import real_mesh, task_of
    from jscale.profile import profile_of, read_trace, record
    from jscale.profile.trace import trace_file
    from jscale.run.runfolder import writing
    from jscale.run.session import open_corpus

    task = task_of(recipe, real_mesh(recipe)[0])
    with writing(folder):  # found before any work
        folder.mkdir(parents=True, exist_ok=True)
    corpus = open_corpus(recipe, None)
    where = train.sharding_of(task.layout)
    with feed(corpus.train, 0, where, workers=recipe.data.workers) as batches:
        state = train.init(task, jax.random.key(recipe.seed))
        recording = record(task, state, batches, steps, folder)
    text = recording.program.as_text()
    with writing(folder / "step.hlo.txt"):
        (folder / "step.hlo.txt").write_text(text, encoding="utf-8")
    return profile_of(read_trace(trace_file(folder)), read(text), recording.timing)


def as_data(profile: "Profile") -> dict[str, Any]:
    """The profile as plain values, times in seconds."""
    costs = [
        {"scope": c.scope.path, "backward": c.scope.backward, "seconds": c.seconds}
        for c in profile.costs
    ]
    return {**asdict(profile), "costs": costs}


def show(profile: "Profile", folder: Path) -> None:
    """Print a profile for a person."""
    from jscale.launch.commands.tables import show as table
    from jscale.profile.summary import UNATTRIBUTED

    ms = lambda seconds: f"{1e3 * seconds:,.3f}"
    share = lambda seconds: f"{seconds / profile.busy:.1%}" if profile.busy else ""
    # What belongs to no scope is told however little it is.
    told = [c for i, c in enumerate(profile.costs) if i < COSTLIEST or c.scope == UNATTRIBUTED]
    rest = [c for c in profile.costs if c not in told]
    rows = [(str(c.scope), ms(c.seconds), share(c.seconds)) for c in told]
    if rest:
        left = sum(cost.seconds for cost in rest)
        rows.append((f"({len(rest)} more)", ms(left), share(left)))
    rows.append(("busy", ms(profile.busy), share(profile.busy)))
    table(("scope", "ms a step", "of busy"), rows, numbers=("ms a step", "of busy"))
    print()
    for line in sentences(profile):
        print(line)
    print(f"\nthe trace is in {folder}. To look at it:")
    print(f"  xprof --logdir {folder}    (pip install xprof)")
    print(f"  https://ui.perfetto.dev    (open {newest(folder)})")


def newest(folder: Path) -> Path:
    """The trace that Perfetto reads."""
    return max(folder.glob("plugins/profile/*/perfetto_trace.json.gz"), key=lambda p: p.parent.name)


def sentences(profile: "Profile") -> list[str]:
    """What a profile says besides its scopes; times of one step, means over the devices."""
    ms = lambda seconds: f"{1e3 * seconds:,.3f} ms"
    hidden = profile.collectives - profile.exposed
    return [
        f"step          {ms(profile.step)} (mean of {profile.steps}, {profile.devices} device(s))",
        f"compile       {profile.compile:.1f} s, once",
        f"collectives   {ms(profile.collectives)}: {ms(hidden)} hidden behind other work,"
        f" {ms(profile.exposed)} exposed ({profile.exposed_share:.1%} of busy)",
        f"host gaps     {ms(profile.waiting)} in which the devices wait for the host"
        f" (which waits {ms(profile.data)} for data)",
        f"idle          {ms(profile.idle)} inside the step",
    ]
