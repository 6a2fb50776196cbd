"""What a run was begun with is remembered when it goes on."""

import json

import pytest

from itemized_clip_hf.trainer.from_recipe import strategies_of_steps
from itemized_clip_hf.trainer.run_record import FILE, RunRecord

BEGUN = RunRecord("brain-mri", "tiny", {"max_steps": 20, "text.hidden_size": 32}, {"items_column": "findings"})


def test_what_is_stated_again_wins(tmp_path):
    BEGUN.write(tmp_path)
    read = RunRecord.read(tmp_path)
    assert read == BEGUN
    stated = RunRecord("brain-mri", None, {"max_steps": 40}, {"layout": "study"})
    assert stated.continued(read) == RunRecord(
        "brain-mri",
        "tiny",
        {"max_steps": 40, "text.hidden_size": 32},
        {"items_column": "findings", "layout": "study"},
    )
    assert stated.differences(read) == ["layout: study instead of None", "max_steps: 40 instead of 20"]
    assert not BEGUN.differences(read)


def test_another_variant_is_another_run():
    with pytest.raises(ValueError, match="begun with the variant 'tiny', not 'paper'"):
        RunRecord("brain-mri", "paper").continued(BEGUN)
    with pytest.raises(ValueError, match="begun with no variant, not 'tiny'"):
        RunRecord("brain-mri", "tiny").continued(RunRecord("brain-mri"))
    assert RunRecord("brain-mri", "tiny").continued(BEGUN).settings == BEGUN.settings


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": "a", "other": 1}'])
def test_a_damaged_record_is_named(tmp_path, content):
    assert RunRecord.read(tmp_path) is None
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match="run.json is not the record of a run: remove it"):
        RunRecord.read(tmp_path)


def test_no_paths_of_data_are_kept(tmp_path):
    BEGUN.write(tmp_path)
    assert set(json.loads((tmp_path / FILE).read_text())) == {"recipe", "variant", "settings", "options"}


def test_numbers_of_steps_take_effect():
    assert strategies_of_steps({"save_steps": 5, "eval_steps": 2}) == {
        "save_strategy": "steps",
        "eval_strategy": "steps",
    }
    assert strategies_of_steps({"save_steps": 5, "save_strategy": "steps"}) == {"save_strategy": "steps"}
    assert strategies_of_steps({"save_strategy": "epoch"}) == {}
    with pytest.raises(ValueError, match="save_steps=5 has no effect with save_strategy=epoch"):
        strategies_of_steps({"save_steps": 5, "save_strategy": "epoch"})
