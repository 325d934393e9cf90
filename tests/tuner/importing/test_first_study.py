"""`tuner init`: a study that explains itself, with questions or label-free; nothing is overwritten."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.videos import moving_frames, write_video
from tuner.errors import UserError
from tuner.importing.first_study import PROMPTS, create_study
from tuner.importing.study_files import MODEL, TEXT_ENCODER, Settings
from tuner.study import load_study
from tuner.study.schema import SearchKeys, SplitKeys, StudyKeys

QUESTION = {"id": "q1", "video": "a.mp4", "question": "What?", "options": ["red", "blue"], "answer": "red"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos, one of them in a folder, and files that are none."""
    folder = tmp_path_factory.mktemp("material") / "clips"
    (folder / "more").mkdir(parents=True)
    write_video(folder / "a.mp4", moving_frames(8))
    write_video(folder / "more" / "b.webm", moving_frames(8), codec="libvpx")
    (folder / "notes.txt").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / ".hidden").write_text("nobody sees it")
    return folder


def definition(folder="studies/mydata"):
    return YAML(typ="safe").load(Path(folder, "study.yaml").read_text())


def test_a_folder_of_videos_becomes_a_label_free_study(clips):
    told = []
    created = create_study(
        "mydata", Settings(clips), looked_at=lambda done, files: told.append((done, files))
    )
    study = load_study("mydata")
    assert study == created.study
    assert not study.labelled
    assert [video.name for video in study.videos] == ["a.mp4", "more/b.webm"]
    assert [question.text for question in study.questions] == [*PROMPTS, *PROMPTS]
    assert len(created.left_out) == 2
    assert "empty.mp4 is empty" in created.left_out[0]
    assert "notes.txt is not a video file" in created.left_out[1]
    assert told == [(number, 4) for number in (1, 2, 3, 4)]
    assert sorted(Path("studies/mydata").iterdir()) == [
        Path("studies/mydata/questions.jsonl"),
        Path("studies/mydata/study.yaml"),
    ]


def test_a_study_may_read_videos_elsewhere_where_its_maker_named_them(clips):
    create_study("mydata", Settings(clips))
    assert definition()["allow_outside"] is True
    inside = Path("studies/other/videos")
    shutil.copytree(clips, inside)
    create_study("other", Settings(inside))
    assert "allow_outside" not in definition("studies/other")
    (inside / "c.mp4").symlink_to(clips / "a.mp4")
    Path("studies/other/study.yaml").unlink()
    Path("studies/other/questions.jsonl").unlink()
    create_study("other", Settings(inside))
    assert definition("studies/other")["allow_outside"] is True


def test_prompts_are_asked_about_each_video(clips):
    study = create_study("mydata", Settings(clips), prompts=["Who?", " Where? "]).study
    assert [(question.id, question.text) for question in study.questions] == [
        ("a.mp4-1", "Who?"),
        ("a.mp4-2", "Where?"),
        ("more/b.webm-1", "Who?"),
        ("more/b.webm-2", "Where?"),
    ]


@pytest.mark.quick
def test_questions_are_copied_and_their_mistakes_told_where_they_stand():
    for name in ("a.mp4", "b.mp4"):
        Path(name).write_bytes(b"video")
    lines = [QUESTION, QUESTION | {"id": "q2", "video": "b.mp4", "tags": {"type": "color"}}]
    Path("ours.jsonl").write_text("\n".join(map(json.dumps, lines)))
    study = create_study("mydata", Settings(Path()), questions=Path("ours.jsonl")).study
    copied = Path("studies/mydata/questions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in copied] == lines
    assert study.labelled
    lines[1] |= {"video": "gone.mp4"}
    Path("ours.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError) as caught:
        create_study("other", Settings(Path()), questions=Path("ours.jsonl"))
    assert caught.value.problems[0].startswith("ours.jsonl:2: video ")
    assert not Path("studies/other").exists()
    Path("ours.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"ours\.jsonl:1: id is missing"):
        create_study("other", Settings(Path()), questions=Path("ours.jsonl"))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"questions": Path("gone.jsonl")}, r"gone\.jsonl: there is no such file"),
        ({"questions": Path("gone.jsonl"), "prompts": ["What?"]}, "allowed is one of them"),
        ({"prompts": ["What?", " What? "]}, "given twice"),
        ({"prompts": [" "]}, "a --prompt is empty"),
        ({}, "has no video that can be read"),
    ],
)
def test_mistakes_write_nothing(arguments, reason):
    Path("empty").mkdir()
    with pytest.raises(UserError, match=reason):
        create_study("mydata", Settings(Path("empty")), **arguments)
    assert not Path("studies").exists()


@pytest.mark.quick
@pytest.mark.parametrize("name", ["", " ", ".", ".."])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UserError, match="the new study's name is"):
        create_study(name, Settings(Path()))


@pytest.mark.quick
def test_what_is_there_is_not_overwritten():
    Path("studies/mydata").mkdir(parents=True)
    Path("studies/mydata/study.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"study\.yaml is there already: nothing is overwritten"):
        create_study("mydata", Settings(Path()))
    assert Path("studies/mydata/study.yaml").read_text() == "mine"
    with pytest.raises(UserError, match="a study 'demo' ships with this program"):
        create_study("demo", Settings(Path()))


@pytest.mark.quick
def test_a_folder_that_cannot_be_written_is_one_message():
    Path("studies").write_text("a file")
    Path("a.mp4").write_bytes(b"video")
    Path("q.jsonl").write_text(json.dumps(QUESTION))
    with pytest.raises(UserError, match=r"^studies cannot be written: File exists$"):
        create_study("mydata", Settings(Path()), questions=Path("q.jsonl"))


# study.yaml


def created(settings, name="mydata"):
    for video in ("a.mp4", "b.mp4"):
        (settings.videos / video).write_bytes(b"video")
    Path("q.jsonl").write_text(
        "\n".join(json.dumps(QUESTION | {"id": v, "video": v}) for v in ("a.mp4", "b.mp4"))
    )
    return create_study(name, settings, questions=Path("q.jsonl")).study


@pytest.mark.quick
def test_every_key_is_explained_and_every_default_is_the_readers():
    created(Settings(Path()))
    text = Path("studies/mydata/study.yaml").read_text()
    shown = YAML(typ="safe").load(re.sub(r"^# ?((  )*\w+:)", r"\1", text, flags=re.MULTILINE))
    assert set(shown) == set(StudyKeys.model_fields)
    for key, value in shown.items():
        default = StudyKeys.model_fields[key].default
        if key in ("scoring", "max_new_tokens", "decode_timeout", "allow_pickle", "questions"):
            assert value == default, key
    assert shown["split"] == SplitKeys().model_dump(exclude={"held_out_videos"})
    assert shown["search"] == SearchKeys().model_dump()
    # Each key, or the first of a group, has the line that explains it in front.
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(
            r"(# )?(model|revision|text_encoder|frames|videos|questions|name|scoring|split|search):", line
        ):
            assert re.match(r"# [A-Z].*\.$", lines[number - 1]), line


@pytest.mark.quick
def test_the_defaults_are_the_published_checkpoints():
    study = created(Settings(Path()))
    assert (study.model, study.text_encoder, study.frames) == (MODEL, TEXT_ENCODER, 32)


@pytest.mark.quick
@pytest.mark.parametrize("videos", ["clips", "my clips: #1", "yes", "12", "ünï", "'quoted'", 'a "b"'])
def test_any_folder_of_videos_is_named_relative_to_the_study(videos):
    folder = Path(videos)
    folder.mkdir()
    study = created(Settings(folder))
    assert definition()["videos"] == f"../../{videos}"
    assert study.videos[0].path.read_bytes() == b"video"


@pytest.mark.quick
def test_a_study_at_a_path_finds_its_videos_through_links():
    Path("real/deep").mkdir(parents=True)
    Path("link").symlink_to(Path("real/deep"))
    Path("clips").mkdir()
    study = created(Settings(Path("clips")), name="link/mydata")
    assert definition("link/mydata")["videos"] == "../../../clips"
    assert study.videos[0].path.samefile("clips/a.mp4")


def checkpoint(name, config):
    Path(name).mkdir()
    Path(name, "config.json").write_text(json.dumps(config))


@pytest.mark.quick
def test_a_model_folder_says_which_siglip_or_it_must_be_named():
    tower = {"hidden_size": 1152, "patch_size": 14, "image_size": 384}
    checkpoint("model", {"model_type": "llava_onevision", "vision_config": tower})
    checkpoint("small", {"model_type": "llava_onevision", "vision_config": tower | {"hidden_size": 64}})
    checkpoint("siglip", {"model_type": "siglip"})
    study = created(Settings(Path(), model="model"))
    assert Path(study.model).samefile("model")
    assert study.text_encoder == TEXT_ENCODER
    with pytest.raises(UserError, match="name it with --text-encoder"):
        created(Settings(Path(), model="small"), name="other")
    study = created(Settings(Path(), model="small", text_encoder="siglip"), name="other")
    assert Path(study.text_encoder).samefile("siglip")
    assert definition("studies/other")["model"] == "../../small"


@pytest.mark.quick
def test_the_small_model_that_ships_is_named_by_its_study():
    shipped = load_study("demo")
    study = created(Settings(Path(), model="demo"))
    assert Path(study.model).samefile(shipped.model)
    assert Path(study.text_encoder).samefile(shipped.text_encoder)
    checkpoint("demo", {"model_type": "llava_onevision"})
    checkpoint("siglip", {"model_type": "siglip"})
    study = created(Settings(Path(), model="demo", text_encoder="siglip"), name="other")
    assert Path(study.model).samefile("demo")


@pytest.mark.quick
def test_a_model_that_is_none_says_so_and_leaves_nothing():
    with pytest.raises(UserError, match=r"--model is 'gone'; allowed is a folder that exists, or an id"):
        created(Settings(Path(), model="gone"))
    checkpoint("qwen", {"model_type": "qwen2"})
    with pytest.raises(UserError) as caught:
        created(Settings(Path(), model="qwen", text_encoder=TEXT_ENCODER))
    assert caught.value.problems[0].startswith("model folder ")
    assert not Path("studies").exists()
