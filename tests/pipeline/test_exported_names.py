import subprocess
import sys

import pytest

import pipeline

pytestmark = pytest.mark.quick


def test_every_public_name_is_there():
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    assert set(pipeline.__all__) == set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'; it has AdaTP"):
        _ = pipeline.Nothing


def test_planning_imports_neither_torch_nor_transformers():
    code = (
        "import sys, pipeline, pipeline.methods, pipeline.keep_ratio, pipeline.flops, pipeline.clip;"
        "pipeline.AdaTP, pipeline.Plan, pipeline.Layout;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
