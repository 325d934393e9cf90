"""Study definitions: loading, splitting, checking videos, identity."""

from tuner.study.definition import CHOICES, Search, SkippedVideo, SplitSettings, Study, StudyQuestion, Video
from tuner.study.identity import StudyIdentity, describe_changes, study_identity
from tuner.study.loading import find_study, is_hugging_face_id, known_studies, load_study
from tuner.study.parsing import nearest
from tuner.study.split import hold_out
from tuner.study.videos import check_videos, leave_out

__all__ = [
    "CHOICES",
    "Search",
    "SkippedVideo",
    "SplitSettings",
    "Study",
    "StudyIdentity",
    "StudyQuestion",
    "Video",
    "check_videos",
    "describe_changes",
    "find_study",
    "hold_out",
    "is_hugging_face_id",
    "known_studies",
    "leave_out",
    "load_study",
    "nearest",
    "study_identity",
]
