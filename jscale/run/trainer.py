"""The trainer: a recipe in a folder, and the loop, which is a plain `for`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jscale import train
from jscale.audit import idle, is_square, judge
from jscale.checkpoint.agreement import all_come, first_decides
from jscale.compiled import Compilation, Compiled
from jscale.data.feed import feed
from jscale.errors import ConfigError, NumericError
from jscale.evaluation.heldout import heldout_means
from jscale.evaluation.subject import Subject
from jscale.evaluation.task import EvaluationTask, Questions, Result
from jscale.evaluation.trained import subject_of
from jscale.experts.counts import is_load, layers
from jscale.experts.journal import Journal
from jscale.flops import flops_per_token
from jscale.generate import Sampling
from jscale.metrics.fetch import Pending
from jscale.metrics.jsonl import json_number
from jscale.metrics.peak import find_peak
from jscale.metrics.progress import Progress
from jscale.metrics.throughput import Throughput
from jscale.metrics.writers import Writers
from jscale.models.model import Params
from jscale.recipe import Recipe, Samples
from jscale.run.clock import Clock
from jscale.run.events import Callback, Evaluated, Event, Examined, Noted, Sampled, Saved, Stepped
from jscale.run.peers import is_lost_peer
from jscale.run.runfolder import atomic_write, writing
from jscale.run.samples import write_samples
from jscale.run.session import Session
from jscale.run.starts import Starts
from jscale.run.stops import Stops
from jscale.score import score
from jscale.signals import Signals, Stopped
from jscale.text import check_several, continue_texts, shown

SHOWN = ("loss", "tokens_per_second", "mfu", "eta_seconds")


class Record(NamedTuple):
    """One step: its number (from 1) and its metrics, on the device until somebody reads them."""

    step: int
    metrics: Mapping[str, Array]


class Trainer:
    """A run: opened, restored if it was begun before, and ready to go on.

        with Trainer(recipe) as trainer:
            for step, metrics in trainer:
                ...

    or, in one call, `trainer.fit()`. Everything is kept in `folder`, by default
    `runs/<recipe.name>`: open it again and it goes on from the last checkpoint. Leaving the `with`
    saves the step that was reached, unless by an error.

    Raises:
        UserError: the recipe, its data, or what is in the folder cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(recipe, Recipe):
            hint = ": call it" if callable(recipe) else ""
            raise ConfigError(f"a Trainer takes a Recipe, not a {type(recipe).__name__}{hint}")
        self.recipe, self.callbacks, self._progress = recipe, list(callbacks), progress
        self._closed = False
        self._clock = Clock()
        self._throughput: Throughput | None = None
        self._values: dict[str, float] = {}  # the newest, by name
        self._journal: Journal | None = None  # of experts; the first process keeps it
        self._signals = Signals()
        path = Path(folder) if folder is not None else Path("runs") / recipe.name
        with ExitStack() as undo:
            work = progress.work if progress else None
            with self._signals, self._signals.at_once():
                self.session = Session(recipe, path, self._phase, work)
            undo.callback(self.session.close)
            self.state, self.step = self.session.state, int(self.session.state.step)
            self._opened = self.step
            self._saved = self.step  # a fresh state is as good as saved: its seed makes it again
            self._recall()
            self._writers = self._open_writers()
            undo.callback(self._writers.close)
            self._held = undo.pop_all()
        spent = sum(self.seconds.values())
        self._starts = Starts(self.session.folder.starts, self.step, self.session.about, spent)
        self._program = Compiled(train.make_step(self.task), self._compiled, self._compiling)
        self._roomy = None  # the step without bounds, if there are any and it was needed
        several = jax.process_count() > 1
        self._pending = Pending(early=not several)  # what is read decides how all of them go on
        self._asked: int | None = None  # the signal that all processes stop on
        for note in self.session.notes:
            self.tell(Noted(note))

    @property
    def task(self) -> train.Task:
        """What is trained and how."""
        return self.session.task

    @property
    def evaluation_params(self) -> Params:
        """The parameters to evaluate, generate and export with."""
        return train.evaluation_params(self.task.model, self.recipe.optimizer, self.state)

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of this start by phase, with "other" for the rest: they are all of them."""
        return self._clock.seconds

    def tell(self, event: Event) -> None:
        """Pass an event on to the display and the callbacks."""
        if isinstance(event, Noted) and self._progress:
            self._progress.note(event.text)
        for callback in self.callbacks:
            callback(event)

    def __iter__(self) -> Iterator[Record]:
        """Train, step by step, up to the recipe's steps; evaluate, sample and save on the way.

        A loop that is left may be entered again: it goes on with the next step.

        Raises:
            Stopped: by Ctrl-C or SIGTERM; everything is saved.
            NumericError: too many steps in a row whose loss or gradient was not finite.
        """
        self._check_open()
        if self.step >= self.recipe.steps and not self._owed:
            return
        begun, skipped = self.step, self._counts["skipped"]
        self._asked = None
        with self._signals:
            try:
                yield from self._steps()
            except Stopped as stopped:
                if jax.process_count() > 1:  # before its first step: there is nothing to save
                    raise
                self._asked = stopped.signum
            self._finish()
            if self._asked is not None and (self._owed or self.step < self.recipe.steps):
                raise Stopped(self._asked, self.step or None)
        if self.step > begun and self._counts["skipped"] - skipped == self.step - begun:
            raise NumericError(
                f"not one of the {self.step - begun} steps could be applied: the loss or its"
                " gradient was never finite. Look at the loss and at the data"
            )

    def _steps(self) -> Iterator[Record]:
        stream, workers = self.session.corpus.train, self.recipe.data.workers
        sharding_of = train.sharding_of(self.task.layout)
        with feed(stream, self.step, sharding_of, workers=workers) as batches, self._training:
            self._throughput = self._measure()
            stops = Stops(self._signals, self.session.mesh)
            if self._owed:
                self._every(self.step)
            while self.step < self.recipe.steps and not self._stop(stops):
                metrics = self._advance(self._next(batches))
                self.step, self._owed = self.step + 1, True
                numbers = {n: m for n, m in metrics.items() if not is_load(n)}
                kept = self._journal is not None and self._journal.due(self.step)
                self._pending.push(self.step, metrics if kept else numbers)
                self._report(self._pending.ready())
                yield Record(self.step, numbers)
                self._every(self.step)

    def _advance(self, batch: PyTree) -> train.Metrics:
        """One step; done again without bounds where tokens found no room within them."""
        self.state, metrics = self._program(self.state, batch)
        if self.task.model.limited and float(metrics["moe_overflow"]):
            metrics = self._again(batch, metrics)
        if not self.step:
            self._audit(jax.device_get(metrics))
        return {name: value for name, value in metrics.items() if not is_square(name)}

    def _again(self, batch: PyTree, void: train.Metrics) -> train.Metrics:
        """The step that was void, by a program without bounds; it is compiled when first needed.

        What found no room is told as it was counted.
        """
        if self._roomy is None:
            again = train.make_step(self.task.replay)
            self._roomy = Compiled(again, self._compiled, self._compiling)
        self.state, metrics = self._roomy(self.state, batch)
        return {**metrics, **{n: m for n, m in void.items() if n.endswith("overflow")}}

    def _audit(self, metrics: Mapping[str, Any]) -> None:
        """See that all that should learn has a gradient."""
        squares = {name: value for name, value in metrics.items() if is_square(name)}
        if metrics["skipped"]:  # told by the guard
            return
        for note in judge(list(idle(squares)), list(layers(metrics)), self.recipe.guard.idle):
            self.tell(Noted(note))

    @property
    def _training(self) -> AbstractContextManager[None]:
        """The time of the steps, with what the caller does between them."""
        return self._clock.phase("training steps")

    def _stop(self, stops: Stops) -> bool:
        self._asked = stops.asked()
        return self._asked is not None

    def fit(self) -> dict[str, Any]:
        """Train to the end; what `summary.json` says."""
        for _ in self:
            pass
        return self.summary()

    def evaluate(self, batches: int | None = None) -> dict[str, float]:
        """The mean loss and metrics over the held-out rows, or over so many batches of them.

        Raises:
            ConfigError: the recipe holds nothing out.
        """
        return heldout_means(self.task, self.evaluation_params, self.session.corpus, batches)

    def examine(self, task: EvaluationTask) -> Result:
        """What comes out of a task: its numbers, and what was predicted for each question.

        Raises:
            DataError: its file cannot be read, or a question does not fit.
        """
        tokenizer, length = self.session.corpus.tokenizer, self.recipe.data.length
        return task.open(tokenizer, length).ask(self._subject)

    @property
    def _subject(self) -> Subject:
        tokenizer = self.session.corpus.tokenizer
        return subject_of(self.recipe, self.task, self.evaluation_params, tokenizer)

    def predict(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For each text, the log-probability of every token after its first."""
        check_several(texts)
        rows = self.session.corpus.tokenizer.encode_documents(list(texts))
        return score(self.task.model, self.evaluation_params, rows, self.task.layout)

    def generate(
        self,
        prompts: Sequence[str],
        length: int = 64,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> list[str]:
        """A continuation of each prompt, up to `length` tokens or the end of the document.

        Of an encoder-decoder it is what it makes of each prompt, a source.
        """
        return continue_texts(
            self.task.model,
            self.evaluation_params,
            self.session.corpus.tokenizer,
            prompts,
            length=length,
            sampling=sampling,
            layout=self.task.layout,
            seed=seed,
        )

    def start_from(self, params: PyTree[Any]) -> None:
        """Put these parameters in the place of a new run's random ones, and begin to save that.

        Raises:
            ConfigError: the run has begun.
        """
        if self.session.store.latest() is not None or self.step:
            raise ConfigError(
                f"{self.session.folder.path} has begun: only a new run can start from"
            )
        key = jax.random.key(self.recipe.seed)
        self.state = train.start_from(self.task, key, params)
        self._saved = -1
        self.save()

    def save(self) -> None:
        """Begin to save the state of this step, unless that has been done.

        Raises:
            CheckpointError: this save or the one before failed; earlier steps are intact.
        """
        self._check_open()
        if self._saved == self.step:
            return
        self._report(self._pending.drain())  # what is saved has its numbers in the files
        with self._phase("saving"):
            data = self.session.corpus.train.fingerprint
            note = {"data": data, "next_batch": self.step, "owed": self._owed}
            self.session.store.save(self.step, self.state, note)
        self._saved = self.step
        self._starts.write(self.step, self.seconds)
        self.tell(Saved(self.step, self.session.folder.checkpoints / str(self.step)))

    def summary(self) -> dict[str, Any]:
        """Where the run stands: steps, newest values, seconds by phase of this start.

        `owed` tells that the evaluation or the samples of this step were broken off.
        """
        return {
            "name": self.recipe.name,
            "step": self.step,
            "steps": self.recipe.steps,
            "owed": self._owed,
            "parameters": self.task.model.size,
            "values": self._values,
            "seconds": self.seconds,
        }

    def close(self) -> None:
        """Write what is pending, wait for the last save, and give the folder back."""
        self._closed = True
        with self._held:
            self._report(self._pending.drain())

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this trainer is closed and its folder given back: make a new one")

    def __repr__(self) -> str:
        where = f"step {self.step} of {self.recipe.steps}, {self.session.choice.shape}"
        return f"<Trainer of {self.recipe.name!r}: {where}, in {self.session.folder.path}>"

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:  # what is pending may be what went wrong
            self._closed = True
            if not is_lost_peer(error):  # else a save under way would wait for the one that is gone
                self._held.close()
            return
        if not self._closed:
            with self._held:
                if self._saved != self.step:  # a loop left by `break` loses nothing
                    self._finish()
        self._closed = True

    def _recall(self) -> None:
        """What the folder and the state know of the run up to now."""
        watch, path = self.state.watch, self.session.folder.summary
        counted = ("skipped", "spikes", "replays")
        self._counts = {name: int(getattr(watch, name)) for name in counted}
        self._owed = bool(self.session.note.get("owed"))  # `_every` of this step is to be done
        was = first_decides(lambda: read_summary(path)) if self.step else {}
        if was.get("step") == self.step:
            self._values = was["values"]
            self._owed = bool(was["owed"])

    def _open_writers(self) -> Writers:
        """Files of numbers, cut back to this step; the first process writes them."""
        folder, step, opened = self.session.folder, self.step, list[Writers]()

        def open_first() -> None:
            with writing(folder.path):
                write_samples(folder.samples, step + (not self._owed), ())
                opened.append(self.recipe.logging.open(folder.path, step))
                every = self.recipe.logging.every
                self._journal = Journal(folder.experts, step, self.recipe.steps, every)

        first_decides(open_first)
        return opened[0] if opened else Writers(folder.path, step, ())

    def _at_once(self) -> AbstractContextManager[None]:
        """A block in which a process may stop by itself: it is alone, or no step has been taken.

        Else the others would wait for it, and it for them to save.
        """
        free = jax.process_count() == 1 or self.step == self._opened
        return self._signals.at_once() if free else nullcontext()

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        with self._phase("compiling the train step"), self._at_once():
            yield

    def _next(self, batches: Iterator[PyTree]) -> PyTree:
        with self._clock.phase("waiting for data"), self._at_once():
            return next(batches)

    def _every(self, step: int) -> None:
        """What is done every so many steps."""
        self.session.store.poll()
        evaluation, samples = self.recipe.evaluation, self.recipe.samples
        last = step >= self.recipe.steps
        try:
            if evaluation and (last or step % evaluation.every == 0):
                if self.session.corpus.heldout:
                    self._evaluate(step, evaluation.batches)
                for title, questions in self.session.questions.items():
                    self._examine(step, title, questions)
            if samples and (last or step % samples.every == 0):
                self._sample(step, samples)
        except Exception:
            # What fails here does not cost what was trained, unless on one process of several: the
            # others wait for it, and nothing can be saved.
            if all_come(f"failure at step {step}", seconds=5.0):
                self.save()
            raise
        self._owed = False
        if last or self.session.store.due(step):
            self.save()

    def _evaluate(self, step: int, batches: int | None) -> None:
        self._report(self._pending.drain())  # in order, and they are waited for in any case
        with self._phase("evaluating"), self._at_once():
            values = self.evaluate(batches)
        self._write(step, "heldout", values)
        self.tell(Evaluated(step, values))
        self.tell(Noted(f"step {step}: held-out loss {values['loss']:.4f}"))

    def _examine(self, step: int, title: str, questions: Questions) -> None:
        self._report(self._pending.drain())
        with self._phase(f"task {title}"), self._at_once():
            values = questions.ask(self._subject).values
        self._write(step, "task", {f"{title}/{name}": value for name, value in values.items()})
        self.tell(Examined(step, title, values))
        if "acc" in values:
            self.tell(Noted(f"step {step}: {title} accuracy {values['acc']:.4f}"))

    def _sample(self, step: int, samples: Samples) -> None:
        self._report(self._pending.drain())
        with self._phase("sampling"), self._at_once():
            texts = self.generate(samples.prompts, samples.length, samples.sampling, seed=step)
        pairs = tuple(zip(samples.prompts, texts, strict=True))
        if jax.process_index() == 0:
            with writing(self.session.folder.samples):
                read = [(prompt, shown(self.task.model, prompt, text)) for prompt, text in pairs]
                write_samples(self.session.folder.samples, step, read)
                for prompt, text in read:
                    self._writers.text(step, f"sample/{prompt}", text)
        self.tell(Sampled(step, pairs))

    def _report(self, fetched: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Show and write metrics that have arrived, and stop where they say that all is lost."""
        for step, values in fetched:
            assert self._throughput is not None
            self._keep(step, values)
            values = {name: value for name, value in values.items() if not is_load(name)}
            self._throughput.step(int(values["tokens"]))
            rates, remaining = self._throughput.rates(), self.recipe.steps - step
            more = rates.values(remaining) if rates else {}
            if not remaining:
                more.pop("eta_seconds", None)
                self._values.pop("train/eta_seconds", None)
            rate = self.recipe.optimizer.rate(step - 1, self.recipe.steps)
            self._warn(step, values)
            values = {**values, "rate": rate, **more}
            self.tell(Stepped(step, values))
            if self._progress:
                self._progress.step(step, {k: values[k] for k in SHOWN if k in values})
            if self.recipe.logging.due(step) or not remaining:
                self._write(step, "train", values)
            if values["streak"] >= self.recipe.guard.abort_after:
                raise NumericError(
                    f"the loss or its gradient was not finite for {int(values['streak'])} steps in"
                    f" a row, up to step {step}; the state before them is kept. Try a lower"
                    " optimizer.peak, or look at the data of these steps"
                )

    def _keep(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep what experts had to do."""
        if self._journal is not None and (found := list(layers(values))):
            with writing(self.session.folder.path):
                self._journal.write(step, found)

    def _warn(self, step: int, values: Mapping[str, float]) -> None:
        more = {name for name in self._counts if values[name] > self._counts[name]}
        if "replays" in more:
            lost = f"{values['moe_overflow']:,.0f} choices of experts"
            self.tell(
                Noted(f"step {step}: {lost} found no room, and it was done again without bounds")
            )
        if more - {"replays"}:
            what = "is a spike" if "spikes" in more else "was not finite"
            left_out = " and was left out" if "skipped" in more else ""
            self.tell(Noted(f"step {step} {what}{left_out} (loss {values['loss']:.4g})"))
        self._counts = {name: int(values[name]) for name in self._counts}

    def _write(self, step: int, group: str, values: Mapping[str, float]) -> None:
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._values |= named
        with writing(self.session.folder.path):
            self._writers.scalars(step, named)

    def _finish(self) -> None:
        """Everything on disk: the last metrics, this step, the summary."""
        self._report(self._pending.drain())
        self.save()
        if not self.session.store.poll():
            with self._phase("waiting for the save"):
                self.session.store.wait()
        self._starts.write(self.step, self.seconds)
        if jax.process_index() == 0:
            values = {name: json_number(value) for name, value in self._values.items()}
            text = json.dumps({**self.summary(), "values": values}, indent=2, allow_nan=False)
            atomic_write(self.session.folder.summary, text + "\n")

    def _measure(self) -> Throughput:
        """The speedometer, with this model's arithmetic and these devices' peak."""
        flops = flops_per_token(self.task.model, self.recipe.data.length)
        with self._phase("measuring the machine"):
            peak = find_peak(self.recipe.precision.compute)
        self._starts.know(peak=peak._asdict(), flops_per_token=flops)
        return Throughput(flops, peak.flops * self.session.mesh.devices.size)

    def _compiled(self, compilation: Compilation) -> None:
        self._starts.compiled(compilation)
        self._starts.write(self.step, self.seconds)
        self.tell(compilation)
        if compilation.changed:
            changes = "; ".join(compilation.changed)
            self.tell(Noted(f"compiled again ({compilation.seconds:.1f} s), because {changes}"))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A block of time that is no training, shown and added up by its name."""
        with ExitStack() as stack:
            stack.enter_context(self._clock.phase(name))
            if self._progress:
                stack.enter_context(self._progress.phase(name))
            if self._throughput:
                stack.enter_context(self._throughput.pause())
            yield


def read_summary(path: Path) -> dict[str, Any]:
    """What an earlier start wrote of the run; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not (isinstance(found, dict) and {"step", "owed", "values"} <= found.keys()):
        return {}
    try:
        return {**found, "values": {k: float(value) for k, value in found["values"].items()}}
    except (TypeError, ValueError, AttributeError):
        return {}
