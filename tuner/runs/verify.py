"""`tuner verify` as a library function: whether a best.json still does, here and now, what it promises.

The held-out questions behind the file are asked again, of the pruned and of the unpruned model, with the
model, settings and number format that the file names, on this device and with the packages that are installed
here. No stored answer and no stored vision feature is used. Nothing is chosen by the result: it is no look at
the held-out videos and is recorded nowhere. docs/statistics.md says when a file holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from pipeline.answering import matches
from pipeline.checkpoint import find_checkpoint
from pipeline.errors import ModelError
from pipeline.finding import Finding
from pipeline.layout import Layout
from pipeline.production import locate, method_of
from pipeline.question import Scoring
from tuner.errors import UserError
from tuner.evaluation.call_loop import CallLoop
from tuner.evaluation.description import ModelDescription
from tuner.evaluation.evaluator import EvaluatorSpec
from tuner.evaluation.loop import hashed
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.scoring import judge
from tuner.evaluation.tasks import Call
from tuner.export.best_file import AnswerNumbers, Best, Checkpoint, read, versions
from tuner.planning.planner import Planner, fingerprint_base
from tuner.records.values import RecordedAnswer, StoredQuestion, asked_hash
from tuner.reporting.from_records import shape_from
from tuner.runs.run import InterruptedRunError, RunOptions, check_options, executor_for, worker_spec
from tuner.runs.workers import Workers
from tuner.statistics import paired
from tuner.statistics.values import Measured
from tuner.study import Study, StudyQuestion
from tuner.study.values import Configuration, QuestionResult

# Share of the answers that may differ from the promised ones, rounded up to whole answers. Our choice: other
# devices, drivers and packages round otherwise, and answers near a tie change.
CHANGED = 0.01
# Level of the test where the file has none of its own: for a sample, and for questions it does not know.
LEVEL = 0.05
# What the FLOPs ratio may lie above the budget, as a share of it: plans follow from embeddings, which are
# rounded otherwise elsewhere.
BUDGET_ROOM = 0.01

Change = Literal["lost", "gained", "still right", "still wrong"]


@dataclass(frozen=True)
class ChangedAnswer:
    """A held-out question to which the pruned model answers otherwise than the file says."""

    question: str
    video: str
    asked: str
    promised: str
    now: str
    # The label, or the unpruned model's answer where there is none.
    right: str
    change: Change
    # Whether the question, its options or the video's bytes are others than those the file was measured on.
    other_input: bool


@dataclass(frozen=True)
class Verification:
    """What became of a file's promise. Accuracies and ratios are fractions."""

    file: str
    study: str
    trial: int
    findings: tuple[Finding, ...]
    changed: tuple[ChangedAnswer, ...]
    # Questions to which the unpruned model answers otherwise than the file says.
    unpruned_changed: tuple[str, ...]
    questions: int
    videos: int
    # False: every accuracy is agreement with the unpruned model.
    labelled: bool
    accuracy: float
    baseline: float
    # Paired, with the 95 % interval over videos.
    difference: Measured
    flops_ratio: float
    # Whether every question behind the file's numbers was asked.
    complete: bool
    # What is otherwise than at the export: (then, now) by name.
    environment: Mapping[str, tuple[str, str]]

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the file."""
        return all(finding.passed for finding in self.findings)


def verify(
    file: Path,
    study: Study,
    options: RunOptions,
    progress: Progress | None = None,
    *,
    questions: int | None = None,
    allow_changed: float = CHANGED,
) -> Verification:
    """Asks the file's held-out questions again and compares.

    options: workers, batch, threads and where they run; nothing else of them is used. questions: ask about
    so many only, of videos drawn the same way each time. allow_changed: share of the answers that may differ.
    Errors: UserError for a file, model, video or options that will not do; InterruptedRunError after Ctrl-C.
    """
    progress = progress or NoProgress()
    check_options(options)
    if questions is not None and questions < 1:
        raise UserError(f"a sample has 1 question or more, but got {questions}")
    if not 0 <= allow_changed <= 1:
        raise UserError(f"the share of changed answers is from 0 to 1, but got {allow_changed:g}")
    best = read(file)
    method = Configuration.from_method(method_of(file, asdict(best)))
    asked, own = _questions(best, study)
    wanted = asked if questions is None else _sample(asked, questions)
    spec = _spec(
        best,
        file,
        study.without({question.id for question in study.questions} - {question.id for question in wanted}),
        options,
    )
    with closing(Workers(executor_for(spec, options, progress), progress)) as workers:
        try:
            description = workers.describe()
            said = _ask(wanted, study, method, workers, progress)
        except KeyboardInterrupt:
            raise InterruptedRunError("Interrupted: what was verified so far is not kept.") from None
    compared = _Compared(
        best, method, study, tuple(wanted), said, description, own=own, sample=len(wanted) < len(asked)
    )
    return compared.verification(file, spec, allow_changed)


@dataclass(frozen=True)
class _Said:
    """Of the questions asked: both models' answers and the layouts by question, contents by video."""

    unpruned: dict[str, RecordedAnswer]
    pruned: dict[str, RecordedAnswer]
    layouts: dict[str, Layout]
    contents: dict[str, str]


def _questions(best: Best, study: Study) -> tuple[tuple[StudyQuestion, ...], bool]:
    """The questions to ask, and whether they are those that the file was measured on.

    A file that lists its answers names them. An older one means the held-out split of the study of that name.
    Of another study, which chose nothing here, all questions are asked.
    """
    known = {answer.question for answer in best.answers}
    found = tuple(question for question in study.questions if question.id in known)
    if found:
        return found, True
    if not known and study.name == best.provenance.study:
        held_out = study.without(best.quarantined).questions_of("held_out")
        if held_out:
            return held_out, True
    return study.questions, False


def _sample(questions: Sequence[StudyQuestion], count: int) -> list[StudyQuestion]:
    """So many questions of whole videos: encoding a video is what takes time."""
    drawn = sorted(questions, key=lambda question: hashed(question.video))[:count]
    chosen = {question.id for question in drawn}
    return [question for question in questions if question.id in chosen]


def _spec(best: Best, file: Path, study: Study, options: RunOptions) -> EvaluatorSpec:
    """The file's model, asked as the file says, about the study's questions and videos."""
    here = file.resolve().parent
    return replace(
        worker_spec(study, options, None),
        model=_place(best.model, here, study.model),
        revision=best.model.revision,
        text_encoder=_place(best.text_encoder, here, study.text_encoder),
        frames=best.frames,
        scoring=cast(Scoring, best.scoring),
        max_new_tokens=best.max_new_tokens,
        pooling=best.pooling,
        dtype=best.dtype or "auto",
        attention=best.attention,
    )


def _place(checkpoint: Checkpoint, here: Path, of_study: str) -> str:
    """Where the file's checkpoint is; the study's where the file names a folder that is not here."""
    found = locate(checkpoint.id, here)
    gone = Path(checkpoint.resolved).is_absolute() and not Path(found).is_dir()
    return of_study if gone else found


def _ask(
    questions: Sequence[StudyQuestion],
    study: Study,
    method: Configuration,
    workers: Workers,
    progress: Progress,
) -> _Said:
    said = _Said({}, {}, {}, {})
    by_video: dict[str, list[str]] = {}
    for question in questions:
        by_video.setdefault(question.video, []).append(question.id)
    paths = {str(video.path.absolute()): video.name for video in study.videos}
    tasks = []
    for path, name in paths.items():
        if ids := tuple(by_video.get(name, ())):
            # One worker encodes a video and asks all about it.
            answers = [
                Call("answer", {"configuration": which, "questions": ids, "references": {}})
                for which in (None, method.as_dict())
            ]
            tasks.append([Call("encode", {"video": path, "questions": ids}), *answers])
    unreadable: list[str] = []

    def take(call: Call, results: list[Any]) -> bool:
        if call.method == "encode":
            (found,) = results
            if found.error is not None:
                unreadable.append(found.error)
                return True
            said.layouts.update(found.layouts)
            said.contents[paths[call.arguments["video"]]] = found.content_hash
        else:
            into = said.unpruned if call.arguments["configuration"] is None else said.pruned
            into.update({result["question"]: RecordedAnswer.from_dict(result) for result in results})
        return False

    workers.run_whole(CallLoop("Verifying", "verifying", tasks, take, progress=progress))
    if unreadable:
        raise UserError(unreadable)
    return said


@dataclass(frozen=True, eq=False)
class _Compared:
    """What was answered now, against what the file says."""

    best: Best
    method: Configuration
    study: Study
    questions: tuple[StudyQuestion, ...]
    said: _Said
    description: ModelDescription
    # Whether these are the questions that the file was measured on, and whether not all were asked.
    own: bool
    sample: bool

    def verification(self, file: Path, spec: EvaluatorSpec, allow_changed: float) -> Verification:
        """All that is found. allow_changed: as of `verify`."""
        before, after = self._results
        right, right_before = [answer.correct for answer in after], [answer.correct for answer in before]
        videos = [answer.video for answer in after]
        findings = [*self._identities(spec), *self._missing(), self._answers(allow_changed)]
        findings += [self._accuracy(right, right_before, videos), *self._compute()]
        return Verification(
            file=str(file),
            study=self.study.name,
            trial=self.best.provenance.trial,
            findings=tuple(findings),
            changed=self._changed,
            unpruned_changed=tuple(
                answer.question
                for answer in self._promised.values()
                if not self._same(
                    answer.question, answer.unpruned or answer.text, self.said.unpruned[answer.question].text
                )
            ),
            questions=len(after),
            videos=len(set(videos)),
            labelled=self.study.labelled,
            accuracy=sum(right) / len(right),
            baseline=sum(right_before) / len(right),
            difference=paired.difference(right, right_before if self.study.labelled else None, videos),
            flops_ratio=self._flops_ratio,
            complete=self._complete,
            environment=self._environment(),
        )

    @cached_property
    def _results(self) -> tuple[list[QuestionResult], list[QuestionResult]]:
        """Of the unpruned and of the pruned model, judged by the study's labels as they are now."""
        unpruned, pruned = self.said.unpruned, self.said.pruned
        return (
            [judge(question, "held_out", unpruned[question.id]) for question in self.questions],
            [
                judge(question, "held_out", pruned[question.id], unpruned[question.id])
                for question in self.questions
            ],
        )

    @cached_property
    def _promised(self) -> dict[str, AnswerNumbers]:
        """By question, of those that were asked."""
        asked = {question.id for question in self.questions}
        return {answer.question: answer for answer in self.best.answers if answer.question in asked}

    @property
    def _complete(self) -> bool:
        if self.sample or not self.own:
            return not self.sample
        return len(self.questions) == self.best.measured.questions

    def _same(self, question: str, one: str, other: str) -> bool:
        options = self.study.question(question).options
        return one == other if options is not None else matches(one, other)

    @cached_property
    def _changed(self) -> tuple[ChangedAnswer, ...]:
        found = []
        for name, promised in self._promised.items():
            now = self.said.pruned[name].text
            if self._same(name, promised.text, now):
                continue
            question = self.study.question(name)
            right = question.answer
            was_right = self._same(name, promised.text, right or promised.unpruned or promised.text)
            right = right or self.said.unpruned[name].text
            is_right = self._same(name, now, right)
            change: Change = "still right" if is_right else "still wrong"
            if is_right != was_right:
                change = "gained" if is_right else "lost"
            other = promised.asked != asked_hash(question, self.said.contents[question.video])
            found.append(
                ChangedAnswer(name, question.video, question.text, promised.text, now, right, change, other)
            )
        return tuple(found)

    def _identities(self, spec: EvaluatorSpec) -> list[Finding]:
        here = self.description
        parts = (
            ("model", self.best.model, spec.model, spec.revision, here.identity),
            ("text encoder", self.best.text_encoder, spec.text_encoder, None, here.encoder_identity),
        )
        findings = []
        for name, part, place, revision, identity in parts:
            same = part.identity in (None, identity)
            if not same:
                try:
                    checkpoint = find_checkpoint(place, revision, allow_pickle=spec.allow_pickle)
                    same = checkpoint.is_identified_by(part.identity or "")
                except ModelError:  # loaded on another host, whose files are not here
                    same = False
            found = f"{place}{'' if same else ' is another one: ' + identity}"
            named = self.study.model if name == "model" else self.study.text_encoder
            if not self._is_same(named, place, revision, identity):
                found += f"; the study names another one, {named}, which was not asked"
            findings.append(
                Finding(
                    name,
                    same,
                    found,
                    f"the measured one, {part.identity}" if part.identity else "not recorded in the file",
                    "The numbers in the file are about another checkpoint: run `tuner run` with this one.",
                )
            )
        return findings

    def _is_same(self, named: str, asked: str, revision: str | None, identity: str) -> bool:
        """Whether the checkpoint that the study names may be the one that was asked; nothing is fetched."""
        if not Path(named).is_dir():
            return named == asked and (
                None in (revision, self.study.revision) or revision == self.study.revision
            )
        if Path(asked).is_dir() and Path(named).samefile(asked):
            return True
        try:
            return find_checkpoint(named, allow_pickle=self.study.allow_pickle).is_identified_by(identity)
        except ModelError:
            return False

    def _missing(self) -> list[Finding]:
        """Questions of the file that the study has no more; none are known of a file without answers."""
        gone = [answer.question for answer in self.best.answers if answer.question not in self._promised]
        if not self.own or self.sample or not gone:
            return []
        named = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        return [
            Finding(
                "questions",
                False,
                f"{len(gone)} of the file's {len(self.best.answers)} questions are not in the study: {named}",
                "all of them",
                "Verify with the study that was exported, or a sample of it (--questions).",
            )
        ]

    def _answers(self, share: float) -> Finding:
        """The pruned model's answers against the promised ones."""
        name, advice = "answers", "The answers that changed are listed."
        if self._promised:
            other = sum(answer.other_input for answer in self._changed)
            changed = len(self._changed) - other
            allowed = _allowed(share, len(self._promised))
            found = f"{changed} of {len(self._promised)} differ from the file's"
            if other:
                found += f", {other} more where the question or the video's bytes are not what they were"
            return Finding(name, changed <= allowed, found, f"at most {allowed}", advice)
        if not self.own:
            return Finding(name, True, "none of these questions is in the file", "nothing to compare with")
        measured = self.best.measured
        if not self._complete:
            found = (
                f"the file lists none, and {len(self.questions)} of {measured.questions} questions were asked"
            )
            return Finding(name, True, found, "nothing to compare with")
        then, now = (
            round(measured.accuracy * measured.questions),
            sum(result.correct for result in self._results[1]),
        )
        allowed = _allowed(share, measured.questions)
        return Finding(
            name,
            abs(then - now) <= allowed,
            f"{now} of {measured.questions} are right, {then} at the export (an older file lists no answers)",
            f"at most {allowed} more or fewer",
            "Which ones changed is not known: a file that is exported today lists its answers.",
        )

    def _accuracy(self, right: list[bool], before: list[bool], videos: list[str]) -> Finding:
        """What pruning loses here: shown again where all was asked, else only not contradicted."""
        best = self.best
        shown = best.verdict == "shown" and best.margin is not None
        margin = best.margin if shown else None
        if margin is None:
            low, _ = best.measured.intervals.get("difference", (-1.0, 1.0))
            margin = -low if self.own else best.margin or -low
        test = next((trial for trial in best.tested if trial.trial == best.provenance.trial), None)
        level = test.level if shown and self.own and test is not None else LEVEL
        found = paired.non_inferiority(right, before, videos, margin, level=level)
        lost = sum(was and not now for was, now in zip(before, right, strict=True))
        gained = sum(now and not was for was, now in zip(before, right, strict=True))
        labelled = self.study.labelled
        name = "accuracy against the unpruned model" if labelled else "agreement with the unpruned model"
        told = f"{100 * found.difference:+.1f} points "
        told += f"({lost} lost, {gained} gained)" if labelled else f"({lost} of {len(right)} answers differ)"
        if self._complete and shown:
            return Finding(
                name,
                found.shown,
                f"{told}, at worst {100 * found.bound:+.1f}",
                f"no worse than {-100 * margin:+.3g}"
                + ("" if test is None or not self.own else f"; the file: {100 * test.bound:+.1f}"),
                "What the file shows is not shown here: fewer tokens or answers than it takes.",
            )
        # The best that these questions leave possible.
        if labelled:
            highest = -float(paired.lower_bounds([before], right, videos, level=LEVEL)[0])
        else:
            interval = paired.difference(right, None, videos, level=1 - 2 * LEVEL).interval
            highest = 0.0 if interval is None else interval.high
        reason = "a sample cannot show more" if not self._complete else "the file shows no more"
        return Finding(
            name,
            highest >= -margin,
            f"{told}, at best {100 * highest:+.1f}",
            f"a loss beyond {100 * margin:.3g} points is not certain ({reason})",
            "Pruning loses more here than the file says.",
        )

    @cached_property
    def _flops_ratio(self) -> float:
        """Of the language model's prefill, planned from the embeddings as they come out here."""
        asked = tuple(
            StoredQuestion(question.id, question.video, "held_out", self.said.layouts[question.id])
            for question in self.questions
        )
        base = fingerprint_base(self.description.encoding, self.best.scoring, self.best.max_new_tokens)
        planner = Planner(asked, shape_from(self.description.shape), base)
        return planner.cost(self.method.build()).compute["held_out"].flops_ratio

    def _compute(self) -> list[Finding]:
        if not self._complete:  # the budget binds the sum over all questions
            return []
        budget = self.best.budget
        return [
            Finding(
                "LLM prefill FLOPs",
                self._flops_ratio <= budget * (1 + BUDGET_ROOM),
                f"{self._flops_ratio:.4f} of the unpruned model's",
                f"the budget {budget:g}, and {100 * BUDGET_ROOM:g} % of it for rounding",
                "These videos need more compute than those of the study at the same knobs.",
            )
        ]

    def _environment(self) -> dict[str, tuple[str, str]]:
        here = self.description
        now: dict[str, str | None] = dict(versions())
        then: dict[str, str | None] = dict(self.best.provenance.versions)
        now |= {"device": here.device, "dtype": here.dtype, "attention": here.attention}
        then |= {name: getattr(self.best, name) for name in ("device", "dtype", "attention")}
        if (serving := self.best.serving) is not None and serving.device is not None:
            now["machine"], then["machine"] = here.machine, serving.device
        for name in ("optuna", "ray", "mlflow"):  # no answer depends on them
            then.pop(name, None), now.pop(name, None)
        return {
            name: (then.get(name) or "-", now.get(name) or "-")
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        }


def _allowed(share: float, count: int) -> int:
    return math.ceil(share * count - 1e-9)
