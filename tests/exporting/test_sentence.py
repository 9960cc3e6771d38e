"""What a sentence-transformers folder says of its pooling."""

import json

import pytest

from optimizer.errors import BadInput
from optimizer.exporting.sentence import pooling_of
from optimizer.tasks.feature_extraction import POOLINGS


def folder(tmp_path, pooling=None, modules=()):
    (tmp_path / "1_Pooling").mkdir()
    if pooling is not None:
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if modules:
        listed = [
            {"path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(modules)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(listed))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (None, "mean"),
        ({"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_each_pooling_has_its_name(config, pooling, tmp_path):
    assert pooling_of(folder(tmp_path, config)) == (pooling, [])
    assert pooling in POOLINGS


def test_two_poolings_at_once_are_not_passed_over(tmp_path):
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    pooling, (warning,) = pooling_of(folder(tmp_path, both))
    assert pooling == "none"
    assert "pooling_mode_cls_token and pooling_mode_mean_tokens" in warning


def test_a_projection_behind_the_pooling_is_said_to_be_missing(tmp_path):
    pooling, (warning,) = pooling_of(folder(tmp_path, modules=("Transformer", "Pooling", "Dense", "Normalize")))
    assert pooling == "mean"
    assert warning.startswith("Dense (2_Dense)")


def test_a_broken_file_is_named(tmp_path):
    folder(tmp_path, {})
    (tmp_path / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"1_Pooling/config\.json cannot be read"):
        pooling_of(tmp_path)
