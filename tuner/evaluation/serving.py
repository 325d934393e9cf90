"""What a configuration costs a server, measured with the study's model on held-out questions."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from pipeline import measure
from pipeline.break_even import Serving
from pipeline.errors import PipelineError
from pipeline.flops import plan_flops, unpruned_flops
from pipeline.methods import Method
from tuner.evaluation.evaluator import is_out_of_memory
from tuner.evaluation.progress import Progress
from tuner.planning.planner import Planner
from tuner.records.measurements import MeasuredServing, Profiled

if TYPE_CHECKING:
    from pipeline.clip import Clip
    from pipeline.question import Question
    from pipeline.runtime import Runtime
    from tuner.evaluation.evaluator import PipelineEvaluator

# Questions that are timed, and seconds after which no further question begins.
QUESTIONS = 5
PATIENCE = 30.0


def measure_serving(
    evaluator: PipelineEvaluator,
    planner: Planner,
    method: Method,
    progress: Progress,
    *,
    leave_out: Collection[str] = (),
) -> MeasuredServing:
    """Times a few held-out questions, spread over their planned FLOPs, and lets torch count the FLOPs of the
    median question. leave_out: ids of questions that are not asked.

    Errors: PipelineError if a video cannot be read any more or memory does not suffice.
    """
    asked = planner.spread(method, QUESTIONS, leave_out)
    progress.started("costs", len(asked))
    seconds: list[tuple[Serving, Serving]] = []
    profiled = None
    began = time.monotonic()
    for one in asked:
        if not seconds or time.monotonic() - began < PATIENCE:
            clip, question = evaluator.asked(one.id)
            try:
                seconds.append(measure.serving_seconds(evaluator.runtime, clip, question, method))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise PipelineError("memory does not suffice.") from error
            if len(seconds) == 1:
                profiled = _profiled(evaluator.runtime, clip, question, method)
        progress.advanced()
    if profiled is None:
        progress.message("torch.profiler's count was left out: its pass does not fit into memory.")
    baseline, best = zip(*seconds, strict=True)
    return MeasuredServing(
        device=measure.device_name(evaluator.runtime),
        questions=len(seconds),
        value_bytes=evaluator.runtime.family.dtype.itemsize,
        baseline=Serving.mean(baseline),
        best=Serving.mean(best),
        profiled=profiled,
    )


def _profiled(runtime: Runtime, clip: Clip, question: Question, method: Method) -> Profiled | None:
    layout, shape = runtime.layout(clip, question), runtime.shape
    try:
        return Profiled(
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
