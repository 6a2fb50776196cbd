"""Whether names of files say that they are scans of one study: what a scan is called, apart from whose it is."""

import re
from collections import Counter
from collections.abc import Iterable

_SEQUENCES = (
    *"t1 t1w t1c t1ce t1gd t1n t1km t2 t2w t2f t2star t2s flair dwi adc dti swi swan gre pd pdw mra mrv tof asl".split(),
    *"cbf cbv mtt ttp tmax perf perfusion dsc dce mprage mp2rage mpr bravo space cube vibe stir tirm tse fse ffe".split(),
    *"tfe epi bold ciss fiesta trace ep2d diff diffusion phase mag magnitude qsm angio haste blade propeller".split(),
    *"psir fisp trufi spgr se ir dark fluid fs fatsat sat fat water dixon 3d 2d scout localizer survey".split(),
)
_PLANES = tuple("ax axial tra trans transverse sag sagittal cor coronal obl oblique".split())
_CONTRAST = tuple("pre post gd gad gado ce contrast native nativ noncontrast arterial venous portal delayed".split())
_CT = (
    *"ct cta ctp ncct cect hu plain thin thick bone soft tissue brain blood subdural stroke head standard std".split(),
    *"sharp smooth mip recon kernel window lung mediastinum cspine".split(),
)
_VALUES = (r"b0", r"b50", r"b\d{3,4}", r"(?:te|ti|tr|fa)\d+", r"[bhj]\d\d[fs]")
_WORD = re.compile(f"(?:{'|'.join([*_SEQUENCES, *_PLANES, *_CONTRAST, *_CT, *_VALUES])})+")
_NUMBERED = frozenset("s se ser series im img run rep e echo acq v vol r tra ax".split())
_MASK = frozenset("seg segs segmentation segmentations mask masks label labels labelmap roi rois brainmask".split())


def is_called_mask(name: str) -> bool:
    """Whether a file's name says that it holds labels of voxels rather than a scan."""
    return not _MASK.isdisjoint(_tokens(name))


def are_scan_names(names: Iterable[str]) -> bool:
    """Whether there are several names, and every one is that of a scan and of nothing else, all different."""
    split = [_split(name) for name in names]
    return len({scan for scan, _ in split}) == len(split) > 1 and all(scan and not rest for scan, rest in split)


def doubt_one_study(names: list[str]) -> str:
    """
    Why files of these names may be of several patients; empty where the names are those of the scans of one.

    Names fall into words of scans (`AX_T2`, `bone`) and the rest, of which what all names share says nothing. Several patients
    they may be where one scan stands under several rests, where rests are a word with several numbers, and where no name has a
    word of a scan.
    """
    if len(names) < 2:
        return ""
    split = [_split(name) for name in names]
    shared = set.intersection(*(set(rest) for _, rest in split))
    scans = [scan for scan, _ in split]
    own = [tuple(word for word in rest if word not in shared) for _, rest in split]
    if not any(scans):
        return "no name says which sequence it is"
    plain = any(scan and not rest for scan, rest in zip(scans, own))
    counts = Counter(scan for scan in scans if scan)
    for scan, count in counts.items():
        rests = {rest for found, rest in zip(scans, own) if found == scan}
        repeats = plain and all(re.fullmatch(r"\d{1,3}", word) for rest in rests for word in rest)
        if count > 1 and not repeats:
            return f"{count} of them are called {' '.join(scan)}"
    numbered: dict[str, set[str]] = {}
    for word in {word for rest in own for word in rest}:
        stem = word.rstrip("0123456789")
        if len(stem) < len(word) and stem not in _NUMBERED and (stem or len(word) > 4):
            numbered.setdefault(stem, set()).add(word)
    return "their names hold several numbers" if any(len(words) > 1 for words in numbered.values()) else ""


def _tokens(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def _split(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words of the scan, and the rest."""
    words = _tokens(name)
    return tuple(word for word in words if _WORD.fullmatch(word)), tuple(w for w in words if not _WORD.fullmatch(w))
