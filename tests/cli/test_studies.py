"""Studies and prompts as they are named on the command line."""

from pathlib import Path

import pytest

from itemized_clip_hf.cli._studies import Opener, _below, choose_prompts


def test_paths_are_told_from_the_common_folder_on_or_in_full():
    file = Path("/scans/first/AX_T1.nii.gz")
    assert _below(Path("/scans"), file) == "first/AX_T1.nii.gz"
    assert _below(Path("/"), file) == "/scans/first/AX_T1.nii.gz"  # inputs that share no folder
    assert _below(Path("/elsewhere"), file) == "AX_T1.nii.gz"


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a mass: large\n\n  midline shift \r\n# 2\n")
    prompts = choose_prompts((), str(file), None)
    assert prompts == {text: [text] for text in ("a mass: large", "midline shift", "# 2")}
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="prompts.txt holds a list of 0, expected"):
        choose_prompts((), str(file), None)


def test_what_cannot_be_used_is_said_and_the_rest_is_opened(tmp_path, write_volume, capsys):
    good, bad = write_volume("AX_T1.nii.gz"), tmp_path / "AX_T2.nii.gz"
    bad.write_bytes(b"no image")
    opener = Opener(domain="brain-mri")
    for images in ({"AX_T1": str(good), "AX_T2": str(bad)}, [str(good), str(bad)]):
        opened = opener({"id": "7", "images": images})
        assert len(opened) == 1
        said = capsys.readouterr().err
        assert "7: skipped AX_T2" in said and "cannot be read" in said
    with pytest.raises(ValueError, match=r"^AX_T2\.nii\.gz cannot be read"):  # the reason itself, where there is one
        opener({"id": "8", "images": {"AX_T2": str(bad)}})
    with pytest.raises(ValueError, match="none of the 2 scans of the study could be used; the last error: AX_T2"):
        opener({"id": "9", "images": {"AX_T1": str(bad), "AX_T2": str(bad)}})
