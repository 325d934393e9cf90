"""From a study's files to its records: what is new is encoded, what changed is taken over.

Answers belong to what was asked, so that a corrected label, another tag or split, and added or removed
questions or videos cost what they add. Only a model that is asked in another way begins anew.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from pipeline.checkpoint import find_checkpoint
from pipeline.errors import ModelError, VideoError
from pipeline.layout import Layout
from pipeline.plan import pruning_layers
from pipeline.video import content_hash
from tuner.errors import UserError
from tuner.evaluation.progress import Progress
from tuner.evaluation.rederive import rederive
from tuner.planning.planner import fingerprint_base
from tuner.records.definition import definition
from tuner.records.store import Store
from tuner.records.values import StoredQuestion, StudyRecord, prompt_hash
from tuner.reporting.from_records import make_planner, setting_from
from tuner.reporting.wording import pooled
from tuner.runs.workers import Workers
from tuner.study import Study
from tuner.study.identity import describe_changes, study_identity
from tuner.study.values import Setting
from tuner.study.videos import leave_out


def define(
    study: Study,
    before: StudyRecord | None,
    store: Store,
    workers: Workers,
    progress: Progress,
    *,
    skip_bad_videos: bool,
) -> tuple[Study, StudyRecord]:
    """The study as the records keep it, and without what cannot be read. Whatever `before` knows is taken
    from there; videos with questions it does not know go through the vision tower.

    Errors: UserError when the model is asked in another way than before.
    """
    base = ""
    hashes: dict[str, str] = {}
    layouts: dict[str, Layout] = {}
    if before is not None:
        hashes = {video.name: _hash_or_nothing(video.path) for video in study.videos}
        still_bad = {
            entry["name"]: entry["reason"]
            for entry in before.skipped
            if hashes.get(entry["name"]) == entry["content"]
        }
        study = leave_out(study, still_bad, skip=skip_bad_videos)
        _refuse_other_model(study, before)
        base = fingerprint_base(before.encoding, study.scoring, study.max_new_tokens)
        # Another version may write other tokens into a prompt.
        layouts = _known_layouts(study, before, hashes) if base == before.fingerprint_base else {}
    bad = _encode(study, workers, layouts, hashes, progress)
    study = leave_out(study, bad, skip=skip_bad_videos)
    study = _keep_in_tune(study, store, hashes, progress)
    if before is None:
        encoding, identity = workers.describe().encoding, workers.describe().identity
    else:
        encoding, identity = before.encoding, before.parts["settings"]["model"]
    found = study_identity(study, model=identity, encoding=encoding, content_hashes=hashes)
    questions = tuple(
        StoredQuestion(
            question.id, question.video, study.split_of(question), layouts[question.id], dict(question.tags)
        )
        for question in study.questions
    )
    skipped = tuple(
        {"name": video.name, "reason": video.reason, "content": _hash_or_nothing(video.path)}
        for video in study.skipped
    )
    if before is not None:
        # The matching of free answers is among the settings, and may be another version's.
        setting = before.setting and {**before.setting, "labelled": study.labelled}
        return study, replace(
            before,
            hash=found.hash,
            parts=found.parts,
            setting=setting,
            fingerprint_base=base,
            skipped=skipped,
            questions=questions,
            definition=definition(study),
        )
    found_model = workers.describe()
    layers = found_model.shape["layers"]
    setting = asdict(
        Setting(
            model=study.model,
            model_revision=study.revision,
            model_identity=found_model.identity,
            text_encoder=study.text_encoder,
            text_encoder_revision=None,
            frames=study.frames,
            scoring=study.scoring,
            max_new_tokens=study.max_new_tokens,
            pruning_layers=tuple(pruning_layers(layers)),
            layers=layers,
            text_encoder_identity=found_model.encoder_identity,
            labelled=study.labelled,
            encoding=found_model.encoding,
            dtype=found_model.dtype,
            attention=found_model.attention,
            device=found_model.device,
            pooling=found_model.pooling,
            checkpoint_pooling=found_model.checkpoint_pooling,
        )
    )
    return study, StudyRecord(
        name=study.name,
        hash=found.hash,
        parts=found.parts,
        setting=setting,
        shape=found_model.shape,
        fingerprint_base=fingerprint_base(found_model.encoding, study.scoring, study.max_new_tokens),
        text_encoder_identity=found_model.encoder_identity,
        skipped=skipped,
        questions=questions,
        definition=definition(study),
    )


def _known_layouts(study: Study, before: StudyRecord, hashes: dict[str, str]) -> dict[str, Layout]:
    """By question id, of questions that were asked of the same bytes in the same words before."""
    contents = before.parts["videos"]
    asked = {part["id"]: (part["question"], part["options"]) for part in before.parts["questions"]}
    known = {
        (contents[question.video], prompt_hash(*asked[question.id])): question.layout
        for question in before.questions
    }
    keys = {
        question.id: (hashes[question.video], prompt_hash(question.text, question.options))
        for question in study.questions
    }
    return {question: known[key] for question, key in keys.items() if key in known}


def _encode(
    study: Study,
    workers: Workers,
    layouts: dict[str, Layout],
    hashes: dict[str, str],
    progress: Progress,
) -> dict[str, str]:
    """Adds to `layouts` (by question id) and `hashes` (by video) those of videos with a question without a
    layout: once through the vision tower each. What is wrong with those that cannot be read, by name.
    """
    asked: dict[str, list[str]] = {video.name: [] for video in study.videos}
    for question in study.questions:
        asked[question.video].append(question.id)
    new = [video for video in study.videos if any(question not in layouts for question in asked[video.name])]
    if not new:
        return {}
    paths = {video.name: str(video.path.absolute()) for video in new}
    encoded = workers.encode({paths[video.name]: asked[video.name] for video in new})
    bad = {}
    for video in new:
        found = encoded[paths[video.name]]
        if found.error is not None:
            bad[video.name] = found.error
        else:
            hashes[video.name] = found.content_hash
            layouts |= found.layouts
    described = workers.describe()
    if described.pooling is not None and layouts:
        cells = next(iter(layouts.values())).cells
        progress.message(pooled(described.pooling, described.checkpoint_pooling, cells))
    return bad


def _keep_in_tune(study: Study, store: Store, hashes: dict[str, str], progress: Progress) -> Study:
    """The study with every video in the tune split that has tuned it before, under whatever name: what chose
    a configuration must not also measure it.

    Errors: UserError where study.yaml names such a video as held out, or no video is left to hold out.
    """
    tuned = store.videos_that_tuned(study.name, {hashes[name] for name in study.held_out})
    back = sorted(name for name in study.held_out if hashes[name] in tuned)
    if not back:
        return study
    listed = ", ".join(back[:5]) + (f" and {len(back) - 5} more" if len(back) > 5 else "")
    rule = "a video that has tuned this study is never held out again: it would measure what it chose"
    if study.split.held_out_videos is not None:
        raise UserError(f"split.held_out_videos names {listed}, but {rule}", "Hold out other videos.")
    held_out = study.held_out - set(back)
    if not held_out:
        raise UserError(
            f"no video is left to hold out, for {rule}", "Add videos, or take the new split back."
        )
    progress.message(f"Kept in the tune split: {listed}, for {rule}.")
    return replace(study, held_out=held_out)


def revise(study: Study, before: StudyRecord, record: StudyRecord, store: Store, progress: Progress) -> None:
    """Takes a changed definition over; all answers that fit it are used again."""
    asked_otherwise = record.fingerprint_base != before.fingerprint_base
    if record.hash == before.hash and not asked_otherwise:  # no outcome depends on what changed
        store.revise(record)
        return
    store.register(record)
    found = rederive(study, store, make_planner(record))
    store.revise(record, found.trials, found.measured)
    changes = describe_changes(before.parts, record.parts)
    if asked_otherwise:
        changes.append("this version asks the model its questions otherwise")
    what = "; ".join(changes)
    progress.message(
        f"The study changed since it was last run: {what}. {found.found:,} of the {found.needed:,} answers "
        "that its baseline and its trials need are there already."
    )


def _refuse_other_model(study: Study, before: StudyRecord) -> None:
    """Errors: UserError where no answer to the study as it was fits the study as it is."""
    old = before.parts["settings"]
    what = [
        f"{name}: {old[name]} before, {now} now"
        for name, now in (
            ("frames", study.frames),
            ("scoring", study.scoring),
            ("max_new_tokens", study.max_new_tokens),
        )
        if old[name] != now
    ]
    setting = setting_from(before.setting)
    if setting is not None and (pooling := study.pooling or setting.checkpoint_pooling) != setting.pooling:
        what.append(f"pooling: {setting.pooling} before, {pooling} now")
    if _identity(study, study.model, study.revision) != old["model"]:
        what.append("the model is another one")
    if _identity(study, study.text_encoder, None) != before.text_encoder_identity:
        what.append("the text encoder is another one")
    if what:
        raise UserError(*_another_model(study, what))


def _another_model(study: Study, what: list[str]) -> tuple[list[str], str]:
    return (
        [
            f"the model of the study {study.name!r} is not asked as its records are: {mistake}"
            for mistake in what
        ],
        (
            f"`tuner archive --study {study.name}` puts the records aside and the next run begins anew; "
            "or take the change back and go on"
        ),
    )


def _identity(study: Study, checkpoint: str, revision: str | None) -> str:
    try:
        return find_checkpoint(checkpoint, revision, allow_pickle=study.allow_pickle).identity
    except ModelError as error:
        raise UserError(str(error)) from error


def _hash_or_nothing(path: Path) -> str:
    try:
        return content_hash(path)
    except VideoError:
        return ""
