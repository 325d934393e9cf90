"""Checks of a loaded model on the device where it will run: whether pruning it can be trusted there.

Published weights are not at hand where this program is developed; so it checks itself where they are. Each
check gives a figure and what is allowed. The limits are our choice, explained where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import Checkpoint
from pipeline.clip import Clip
from pipeline.encoders import load_whole_encoder
from pipeline.errors import PipelineError
from pipeline.finding import Finding
from pipeline.methods import AdaTP
from pipeline.packing import Pack
from pipeline.question import Question
from pipeline.ranking import Stage
from pipeline.runtime import Request, Runtime

# Of the largest logit, in steps of the number format: what two orders of the same sums may differ by.
ROUNDING_STEPS = 16
# Scores nearer to the last kept one than this share of it may fall on either side.
NEAR_TIE = 5e-3
# Between a frame's embedding by the model's tower and by the whole SigLIP. Published towers were trained on a
# little, which leaves them alike; those of another SigLIP share nothing.
ALIKE = 0.8
# A difference of log-probabilities below which half precision may choose another option than float32.
NEAR_OPTIONS = 0.5


def check_weights(runtime: Runtime) -> Finding:
    """Every weight is a finite number, and no matrix is constant."""
    wrong, count = [], 0
    for name, weight in runtime.model.named_parameters():
        count += weight.numel()
        if not bool(weight.isfinite().all()):
            wrong.append(f"{name} holds what is not a number")
        elif weight.ndim > 1 and bool((weight == weight.flatten()[0]).all()):
            wrong.append(f"{name} is constant")
    shown = "; ".join(wrong[:3]) + (f"; {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return Finding(
        "weights",
        not wrong,
        shown or f"{count:,} numbers",
        "finite, and no constant matrix",
        "The checkpoint's files are damaged or incomplete: fetch them again.",
    )


def check_prompt(runtime: Runtime, clip: Clip, question: Question) -> Finding:
    """The chat template writes the question, and after it the token that ends a turn, as a single token.

    A template of another model writes its marks as ordinary letters: then the model never sees the end of the
    question as it was trained to.
    """
    prompt, family = runtime.prompt(clip, question), runtime.family
    behind = prompt.ids[prompt.question.stop :]
    asked = family.tokenizer.decode(list(prompt.ids[prompt.question]), skip_special_tokens=False)
    alike = "".join(asked.split()) == "".join(question.text.split())
    ends = any(token in family.end_ids for token in behind)
    text = family.tokenizer.decode([*prompt.before, *prompt.after], skip_special_tokens=False)
    wrong = []
    if runtime.scoring != "letter" and not alike:
        wrong.append(f"the question reads {asked!r}")
    if not ends:
        wrong.append("no token that ends a turn stands behind the question")
    return Finding(
        "prompt",
        not wrong,
        f"{', '.join(wrong)}: {text!r}" if wrong else repr(text),
        "the question as it is written, then the token that ends a turn",
        "The chat template is not this model's: take chat_template.json (or .jinja) from its checkpoint.",
    )


@torch.inference_mode()
def check_untouched(runtime: Runtime, clip: Clip, questions: Sequence[Question]) -> Finding:
    """The model called by transformers alone, against this program's way with nothing pruned (p = 1)."""
    pairs = [
        (
            runtime.model(**runtime.inputs(clip, question), logits_to_keep=1).logits[0, -1],
            runtime.one_pass(clip, question, AdaTP(p=1.0)).logits(0),
        )
        for question in questions
    ]
    return _logits("untouched model against p = 1", pairs, runtime.family.dtype)


@torch.inference_mode()
def check_split(runtime: Runtime, clip: Clip, questions: Sequence[Question], method: AdaTP) -> Finding:
    """A prefill that starts from the stored prefix, against one pass that is made to keep the same tokens.

    Left alone, the two keep other tokens where near ties fall otherwise, in half precision in every prompt of
    a real length; and logits that follow from other tokens say nothing.
    """
    pairs, kept, otherwise = [], 0, list[torch.Tensor]()
    for question in questions:
        split = runtime.prefill(clip, question, method)
        whole = runtime.one_pass(clip, question, _replaying(method, split.tokens, otherwise))
        pairs.append((split.logits, whole.logits(0)))
        kept += sum(split.kept)
    found = _logits("split against single prefill", pairs, runtime.family.dtype)
    share = sum(map(int, otherwise)) / max(1, kept)
    alone = f"with the same tokens kept; {share:.2%} of them would not be, by the single prefill's own scores"
    return replace(found, found=f"{found.found} {alone}")


def _replaying(method: AdaTP, kept: Sequence[torch.Tensor], otherwise: list[torch.Tensor]) -> AdaTP:
    """The method, but keeping what was kept before: the visual tokens left after each pruning.

    otherwise: gets, for each pruning, how many of them the method itself would not keep.
    """
    by_count = {len(tokens): tokens for tokens in kept}  # those that drop something leave ever fewer

    class Replaying(AdaTP):
        def select(
            self, stage: Stage, scores: torch.Tensor | None, tokens: torch.Tensor, seed: str
        ) -> torch.Tensor:
            wanted = by_count[stage.total]
            own = tokens[super().select(stage, scores, tokens, seed)]
            otherwise.append(torch.isin(wanted, own, invert=True).sum())
            return torch.searchsorted(tokens, wanted)

    return Replaying(**{item.name: getattr(method, item.name) for item in fields(method)})


def _logits(name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype) -> Finding:
    """Whether the logits (vocabulary,) of each pair differ by no more than rounding; no pair is no proof."""
    # numpy's maximum, unlike Python's, is NaN where any value is.
    largest = float(np.max([float((a.float() - b.float()).abs().max()) for a, b in pairs], initial=0.0))
    scale = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    allowed = ROUNDING_STEPS * torch.finfo(dtype).eps * scale
    return Finding(
        name,
        bool(pairs) and largest <= allowed,
        f"logits differ by at most {largest:.2g}",
        f"rounding: {allowed:.2g}",
        "The attention backend or the transformers release computes otherwise than this program expects.",
    )


@torch.inference_mode()
def check_scores(runtime: Runtime, clip: Clip, questions: Sequence[Question], method: AdaTP) -> Finding:
    """The scores that rank tokens, against float64 from the same queries and keys: which half is best."""
    compared, differing, errors = 0, 0, [0.0]

    def compare(
        scores: torch.Tensor,
        query: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        columns: torch.Tensor,
        after: int,
    ) -> None:
        nonlocal compared, differing
        exact = _exact(query, keys, scaling, after)[columns.cpu()]
        found = scores.double().cpu()
        errors.append(float(((found - exact).abs() / exact.clamp(min=1e-12)).max()))
        count = (len(exact) + 1) // 2
        cut = exact.sort(descending=True).values[count - 1]
        best, ours = (scores.argsort(descending=True, stable=True)[:count] for scores in (exact, found))
        other = set(best.tolist()) ^ set(ours.tolist())
        differing += sum(bool((exact[token] - cut).abs() > NEAR_TIE * cut) for token in other)
        compared += 1

    for question in questions:
        Pack(runtime.family, [runtime.pack_item(Request(clip, question, method))], on_scores=compare)
    worst = float(np.max(errors))  # unlike Python's, NaN where any is
    return Finding(
        "scores that rank tokens",
        compared > 0 and differing == 0 and math.isfinite(worst),
        f"{differing} tokens ranked otherwise in {compared} prunings; largest relative error {worst:.1g}",
        "none beyond near ties",
        "Queries and keys leave the number format's range or precision: use bfloat16 or float32.",
    )


def _exact(query: torch.Tensor, keys: torch.Tensor, scaling: float, after: int) -> torch.Tensor:
    """(n,) attention of the rows, mean over heads and rows, float64 on the CPU."""
    heads, rows = query.shape[1:3]
    seen = keys[0, :, : keys.shape[2] - after].double().cpu()
    seen = seen.repeat_interleave(heads // seen.shape[0], dim=0)
    total = torch.zeros(keys.shape[2], dtype=torch.float64)
    for row in range(rows):
        end = seen.shape[1] - rows + row + 1
        logits = torch.einsum("hd,hnd->hn", query[0, :, row].double().cpu(), seen[:, :end]) * scaling
        total[:end] += logits.softmax(dim=-1).mean(dim=0) / rows
    return total


def check_counts(runtime: Runtime, clip: Clip, questions: Sequence[Question], method: AdaTP) -> Finding:
    """Tokens kept, layer by layer, against the plan, of which FLOPs are counted."""
    name, allowed = "tokens kept", "as planned at every layer"
    try:
        kept = [runtime.answer(clip, question, method).kept for question in questions]
    except PipelineError as error:
        return Finding(name, False, str(error), allowed, "No FLOPs figure holds here: report this.")
    share = kept[0][-1] / (clip.frames * clip.cells)
    return Finding(name, True, f"planned = kept for {len(kept)} questions, {share:.0%} at the end", allowed)


@torch.inference_mode()
def check_generate(runtime: Runtime, clip: Clip, question: Question, method: AdaTP) -> Finding:
    """Transformers' `generate` from a pruned prefill, against this program's own answer."""
    name, allowed = "generate() against answer()", "the same text"
    free = Question(question.id, question.text)
    prefill = runtime.prefill(clip, free, method)
    try:
        inputs = prefill.inputs
    except PipelineError as error:
        return Finding(name, True, f"not offered here: {error}", allowed)
    out = runtime.model.generate(
        **inputs, max_new_tokens=runtime.max_new_tokens, do_sample=False, num_beams=1
    )
    ids = out[0, len(prefill.ids) :].tolist()
    said = runtime.family.tokenizer.decode(ids, skip_special_tokens=True).strip()
    answer = runtime.answer(clip, free, method).text
    return Finding(
        name,
        said == answer,
        repr(said) if said == answer else f"{said!r} against {answer!r}",
        allowed,
        "generation_config.json may set a repetition penalty or forbid tokens; or two tokens nearly tie.",
    )


@torch.inference_mode()
def check_frame_embeddings(runtime: Runtime, siglip: Checkpoint, frames: NDArray[np.uint8]) -> Finding:
    """Embeddings by the model's tower and the SigLIP's last part, against the whole SigLIP's own.

    frames: (n, H, W, 3) RGB. The whole SigLIP is loaded for it, in float32.
    """
    family = runtime.family
    encoded = family.encode_frames(frames)
    ours = runtime.encoder.embed_frames(frames, encoded.tower_features)
    whole = load_whole_encoder(siglip, family.device).embed_frames(frames, encoded.tower_features)
    alike = torch.nn.functional.cosine_similarity(ours, whole, dim=1)
    lowest = float(alike.min())
    return Finding(
        "frame embeddings against the whole SigLIP",
        lowest >= ALIKE,
        f"cosine at least {lowest:.4f} over {len(frames)} frames",
        f"{ALIKE} or more",
        "text_encoder in study.yaml is not the SigLIP that the model's vision tower was made from.",
    )


def check_precision(runtime: Runtime, other: Runtime, clip: Clip, questions: Sequence[Question]) -> Finding:
    """Answers of the unpruned model in its number format against another one, float32 among the two."""
    exact, rough = (runtime, other) if runtime.dtype == "float32" else (other, runtime)
    changed, far, largest = 0, 0, 0.0
    for question in questions:
        a, b = (runtime.answer(clip, question, None) for runtime in (exact, rough))
        if a.option_logprobs is None or b.option_logprobs is None:
            changed += a.text != b.text
            continue
        pairs = zip(a.option_logprobs, b.option_logprobs, strict=True)
        largest = max(largest, *(abs(x - y) for x, y in pairs))
        if a.option != b.option and b.option is not None:
            changed += 1
            far += max(a.option_logprobs) - a.option_logprobs[b.option] > NEAR_OPTIONS
    return Finding(
        f"{rough.dtype} against float32",
        far == 0,
        f"{changed} of {len(questions)} answers differ; log-probabilities by at most {largest:.2g}",
        f"no option preferred by more than {NEAR_OPTIONS} in float32 is lost",
        f"{rough.dtype} changes answers of this model: study and serve it in float32, or in bfloat16.",
    )
