import numpy as np
import pytest
import torch

from pipeline.clip import Clip
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import Checkpoints, scenes, write_checkpoints

FRAMES = 8


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Checkpoints:
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def runtime(checkpoints) -> Runtime:
    return Runtime.load(str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES)


@pytest.fixture(scope="session")
def eager(checkpoints) -> Runtime:
    return Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, attention="eager"
    )


@pytest.fixture(scope="session")
def clip(runtime) -> Clip:
    return runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES) / 2)


@pytest.fixture(scope="session")
def question() -> Question:
    return Question("q1", "what color is the ring on brick?", ("red", "dark blue", "yellow", "top left"))
