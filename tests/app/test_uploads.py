"""What arrives is laid into a folder of the session under names of its own making, and no more of it than the limits say."""

import zipfile

import pytest
from apps import write_dicom_zip, write_nifti, write_picture

from itemized_clip_hf.app.limits import Limits, check_texts
from itemized_clip_hf.app.uploads import safe_name, take_files

NASTY = [
    "../../../etc/passwd",
    "..\\..\\boot.ini",
    "/etc/shadow",
    "a/b\0c.nii",
    ".hidden",
    "..",
    "",
    "x" * 400 + ".nii.gz",
]


@pytest.fixture
def places(tmp_path):
    folder, uploads = tmp_path / "session", tmp_path / "uploads"
    folder.mkdir()
    uploads.mkdir()
    return folder, uploads


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NASTY)
def test_names_stay_inside(name):
    made = safe_name(name)
    assert made and len(made) <= 120 and not {"/", "\\", "\0"} & set(made) and not made.startswith(".")


def test_names_of_scans_stay_as_they_are():
    for name in ("AX T1 +C (2).nii.gz", "Schädel_größe.nii", "头部.nii.gz", "t1-0.5.nrrd"):
        assert safe_name(name) == name
    assert safe_name("<script>alert(1)</script>.nii.gz") == "script_.nii.gz"


def test_files_are_moved_and_repeats_get_numbers(places):
    folder, uploads = places
    files = [write_nifti(uploads / part / "t1.nii.gz", seed) for seed, part in enumerate("ab")]
    assert take_files(files, folder, uploads, Limits()) == folder
    assert below(folder) == ["t1-2.nii.gz", "t1.nii.gz"] and not list(uploads.iterdir())


def test_nothing_is_taken_from_elsewhere(places, tmp_path):
    folder, uploads = places
    secret = write_nifti(tmp_path / "secret.nii.gz")
    link = uploads / "link.nii.gz"
    link.symlink_to(secret)
    for path in (secret, uploads / ".." / "secret.nii.gz", link):
        with pytest.raises(ValueError, match="has to come through the page"):
            take_files([path], folder, uploads, Limits())
    assert secret.exists() and not below(folder)


def test_too_many_or_too_large(places):
    folder, uploads = places
    files = [write_nifti(uploads / f"{n}.nii.gz", n) for n in range(3)]
    with pytest.raises(ValueError, match="has 3 files, expected 2 at most"):
        take_files(files, folder, uploads, Limits(files=2))
    assert not list(uploads.iterdir()), "what is refused is deleted, too"
    (uploads / "large.nii").write_bytes(b"\0" * (1 << 20) + b"\0")
    with pytest.raises(ValueError, match="expected 1 MiB at most"):
        take_files([uploads / "large.nii"], folder, uploads, Limits(upload_mb=1))


def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def test_a_zip_of_volumes_is_unpacked_into_one_folder(places, tmp_path):
    folder, uploads = places
    content = write_nifti(tmp_path / "t1.nii.gz").read_bytes()
    entries = [("../../../evil/t1.nii.gz", content), ("../../../evil/flair.nii.gz", content), ("notes.txt", b"hello")]
    place = take_files([zipped(uploads / "study.zip", entries)], folder, uploads, Limits())
    assert place == folder / "study" and below(folder) == ["study/flair.nii.gz", "study/t1.nii.gz"]
    assert not list(tmp_path.parent.rglob("evil"))


def test_a_zip_of_several_folders_is_no_study(places, tmp_path):
    folder, uploads = places
    content = write_nifti(tmp_path / "t1.nii.gz").read_bytes()
    archive = zipped(uploads / "two.zip", [("anna/t1.nii.gz", content), ("ben/t1.nii.gz", content)])
    with pytest.raises(ValueError, match="in 2 folders, expected the files of one study"):
        take_files([archive], folder, uploads, Limits())


def test_a_zip_of_dicom_files_stays(places):
    folder, uploads = places
    place = take_files([write_dicom_zip(uploads / "mr.zip")], folder, uploads, Limits())
    assert place == folder / "mr.zip"


def test_zip_bombs(places):
    """A megabyte that claims to be gigabytes, by its content or by what its directory says; and a million names."""
    folder, uploads = places
    bomb = zipped(uploads / "bomb.zip", [(f"{n}.nii", b"\0" * (3 << 20)) for n in range(2)])
    assert bomb.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="holds 6 MiB when unpacked, expected 5 MiB at most"):
        take_files([bomb], folder, uploads, Limits(unpacked_mb=5))
    many = zipped(uploads / "many.zip", [(f"{n}.dcm", b"") for n in range(50)])
    with pytest.raises(ValueError, match="holds 50 files, expected 49 at most"):
        take_files([many], folder, uploads, Limits(files=49))


def test_a_zip_gives_no_more_than_its_directory_says(places):
    """A directory that understates a file: what is unpacked ends there, or the zip is called damaged."""
    folder, uploads = places
    archive = zipped(uploads / "liar.zip", [("a.nii", b"\0" * (4 << 20))])
    content = archive.read_bytes()
    archive.write_bytes(content.replace((4 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little")))
    try:
        take_files([archive], folder, uploads, Limits(unpacked_mb=1))
    except ValueError as error:
        assert "damaged" in str(error)
    assert all(path.stat().st_size <= 1 << 16 for path in folder.rglob("*.nii"))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"\0" * 500])
def test_damaged_zips(places, content):
    folder, uploads = places
    (uploads / "damaged.zip").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or not a zip file"):
        take_files([uploads / "damaged.zip"], folder, uploads, Limits())


def test_pictures(places):
    folder, uploads = places
    assert take_files([write_picture(uploads / "a.png")], folder, uploads, Limits()) == folder / "a.png"


def test_texts():
    limits = Limits(text=10)
    assert check_texts([" a  b ", "", "a b", "c"], 5, limits) == ["a b", "c"]
    for texts, words in (
        ([" "], "there are no findings"),
        (list("abcdef"), "6 findings, expected 5"),
        (["x" * 11], "11 char"),
    ):
        with pytest.raises(ValueError, match=words):
            check_texts(texts, 5, limits)
    with pytest.raises(ValueError, match="limit files is 0"):
        Limits(files=0)
