"""What a configuration costs a server, and how long ways to prune take: measured by a worker, with the
study's model, on held-out questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pipeline import measure
from pipeline.break_even import Serving
from pipeline.errors import PipelineError
from pipeline.flops import plan_flops, unpruned_flops
from pipeline.methods import Method, from_dict, to_dict
from tuner.evaluation.call_loop import CallLoop
from tuner.evaluation.memory import NO_MEMORY, is_out_of_memory
from tuner.evaluation.progress import Progress
from tuner.evaluation.tasks import Call, Work
from tuner.planning.planner import Planner
from tuner.records.measurements import MeasuredServing, Profiled, Timed

if TYPE_CHECKING:
    from pipeline.clip import Clip
    from pipeline.question import Question
    from pipeline.runtime import Runtime

Find = Callable[[str], "tuple[Clip, Question]"]
"""Gives a question by its id, with its encoded video. Errors: VideoError."""

File = Callable[[str], AbstractContextManager[str]]
"""Gives, by its path, a video's file that this machine can read. Errors: VideoError."""

# Questions that are timed, and seconds after which no further question begins: for what a server pays, and
# for ways to prune side by side.
QUESTIONS = 5
PATIENCE = 30.0
TIMED_QUESTIONS = 12
TIMED_PATIENCE = 60.0


# In a worker


def serve(
    runtime: Runtime,
    find: Find,
    file: File,
    question: str,
    configuration: Mapping[str, Any],
    *,
    profile: bool,
) -> dict[str, Any]:
    """Times one question, and with `profile` lets torch count its FLOPs; `error` says why that is not
    possible.
    """
    method = from_dict(configuration)
    try:
        clip, asked = find(question)
        with file(clip.path) as path:
            baseline, best = measure.serving_seconds(runtime, replace(clip, path=path), asked, method)
        return {
            "device": measure.device_name(runtime),
            "value_bytes": runtime.family.dtype.itemsize,
            "baseline": asdict(baseline),
            "best": asdict(best),
            "profiled": _profiled(runtime, clip, asked, method) if profile else None,
        }
    except Exception as error:  # noqa: BLE001 - raised again where nobody can act on it
        return _error(error)


def _profiled(runtime: Runtime, clip: Clip, question: Question, method: Method) -> dict[str, Any] | None:
    layout, shape = runtime.layout(clip, question), runtime.shape
    try:
        found = Profiled(
            question=question.id,
            counted_baseline=measure.profiled_flops(runtime, clip, question, None),
            counted_best=measure.profiled_flops(runtime, clip, question, method),
            planned_baseline=unpruned_flops(layout, shape),
            planned_best=plan_flops(method.plan(layout, shape.layers), layout, shape),
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return asdict(found)


def time_answers(
    runtime: Runtime, find: Find, question: str, configurations: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Times prefill and answer of one question with the unpruned model and under each configuration, in
    turns; `error` says why that is not possible.
    """
    methods = [from_dict(configuration) for configuration in configurations]
    try:
        clip, asked = find(question)
        seconds = measure.answer_seconds(runtime, clip, asked, (None, *methods))
        return {"device": measure.device_name(runtime), "seconds": seconds}
    except Exception as error:  # noqa: BLE001 - raised again where nobody can act on it
        return _error(error)


def _error(error: Exception) -> dict[str, Any]:
    """What the driver is told of an error that would come again; others are raised."""
    if is_out_of_memory(error):
        return {"error": NO_MEMORY}
    if isinstance(error, PipelineError):
        return {"error": str(error)}
    raise error


# In the driver


def measure_serving(
    run: Callable[[Work[Any]], None],
    planner: Planner,
    method: Method,
    progress: Progress,
    *,
    leave_out: Collection[str] = (),
) -> MeasuredServing:
    """Has a few held-out questions timed, spread over their planned FLOPs, and the FLOPs of the median
    question counted. run: runs work on workers. leave_out: ids of questions that are not asked.

    Errors: PipelineError if a video cannot be read any more or memory does not suffice.
    """
    asked = planner.spread(method, QUESTIONS, leave_out)
    configuration = to_dict(method)
    calls = [
        Call("serve", {"question": question.id, "configuration": configuration, "profile": index == 0})
        for index, question in enumerate(asked)
    ]
    found = _measured(run, "Measuring what a server would pay", "serving", calls, PATIENCE, progress)
    profiled = found[0]["profiled"]
    if profiled is None:
        progress.message("torch.profiler's count was left out: its pass does not fit into memory.")
    return MeasuredServing(
        device=found[0]["device"],
        questions=len(found),
        value_bytes=found[0]["value_bytes"],
        baseline=Serving.mean([Serving(**measured["baseline"]) for measured in found]),
        best=Serving.mean([Serving(**measured["best"]) for measured in found]),
        profiled=None if profiled is None else Profiled(**profiled),
    )


def measure_times(
    run: Callable[[Work[Any]], None],
    planner: Planner,
    methods: Sequence[Method],
    progress: Progress,
    *,
    leave_out: Collection[str] = (),
) -> list[Timed]:
    """Has a few held-out questions timed under each method, on one worker. The parameters, and what is
    raised: as of `measure_serving`.
    """
    asked = planner.spread(methods[0], TIMED_QUESTIONS, leave_out)
    configurations = tuple(to_dict(method) for method in methods)
    calls = [Call("time", {"question": question.id, "configurations": configurations}) for question in asked]
    found = _measured(run, "Timing", "timing", calls, TIMED_PATIENCE, progress)
    columns = zip(*(measured["seconds"] for measured in found), strict=True)
    baseline, *means = (sum(column) / len(found) for column in columns)
    return [Timed(found[0]["device"], len(found), mean, baseline) for mean in means]


def _measured(
    run: Callable[[Work[Any]], None],
    what: str,
    phase: str,
    calls: Sequence[Call],
    patience: float,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The results of calls that one worker makes in turn, until patience (seconds) is over."""
    found: list[dict[str, Any]] = []
    began = time.monotonic()

    def take(_: Call, results: list[dict[str, Any]]) -> bool:
        found.extend(results)
        return "error" in found[-1] or time.monotonic() - began >= patience

    def give_up(_: Call, reason: str) -> None:
        found.append({"error": reason})

    loop = CallLoop(what, phase, [calls], take, give_up=give_up, progress=progress)
    run(loop)
    for measured in found:
        if "error" in measured:
            raise PipelineError(measured["error"])
    return found
