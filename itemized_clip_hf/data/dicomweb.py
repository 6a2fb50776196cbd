"""Studies of a DICOMweb server (PS3.18): images fetched by QIDO-RS and WADO-RS, objects stored by STOW-RS."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .study import Study

AUTH = "ITEMIZED_CLIP_DICOMWEB_AUTH"
"""Environment variable with `USER:PASSWORD` or `Bearer TOKEN` for the server."""
MODALITIES = ("CT", "MR")
"""Of the series that are fetched: results and reports of the study stay where they are."""
MAX_FILES = 20_000
MAX_BYTES = 8 << 30
_MAX_ANSWER = 64 << 20
"""Bytes of an answer to a search or a store."""
_UID = re.compile(r"\d+(\.\d+)+")


def is_study_url(source: Any) -> bool:
    """Whether an input is an address in the web rather than a file."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def split_study_url(url: str) -> tuple[str, str]:
    """
    Address of the service and UID of the study, of `http(s)://HOST/.../studies/UID`.

    Raises:
        ValueError: it is none, and why.
    """
    service, found, uid = url.rstrip("/").rpartition("/studies/")
    if not found:
        raise ValueError(
            f"{_shown(url)} does not name a study of a DICOMweb server: expected http(s)://HOST/.../studies/UID."
        )
    check_service(service)
    _check_uid(uid)
    return service, uid


def fetch_study(
    url: str,
    study_uid: str,
    folder: str | os.PathLike[str],
    auth: str | None = None,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """
    Writes the CT and MR images of a study into a folder, `000001.dcm` and so on, as the server has them.

    Args:
        url: of the service, http or https.
        study_uid: its StudyInstanceUID.
        folder: empty or new; what was written is removed again where an error is raised.
        auth: `USER:PASSWORD` or `Bearer TOKEN`; that of the environment variable `AUTH` if None.
        max_files, max_bytes: what is fetched at most.

    Returns:
        the folder, to be read as any DICOM folder.

    Raises:
        ImportError: dicomweb-client is not installed.
        ValueError: the address or UID is none, the folder holds something, there is no such study or image, or there are more
            than fit the limits.
        OSError: the server does not answer, or says no.
    """
    _check_uid(study_uid)
    client = _connect(url, auth, max_bytes)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise ValueError(f"the folder {place} is not empty: choose another one for the study.")
    written: list[Path] = []
    try:
        with _in_words(url):
            series = _list_series(client, study_uid)
            chosen = [uid for uid, modality in series.items() if modality in MODALITIES]
            for dataset in _images(client, study_uid, chosen):
                if len(written) >= max_files:
                    raise ValueError(f"the study has more than {max_files:,} images, the most that are fetched.")
                written.append(place / f"{len(written) + 1:06d}.dcm")
                dataset.save_as(written[-1], enforce_file_format=True)
        if not written:
            raise ValueError(_say_nothing(series))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return place


def open_study_url(url: str, auth: str | None = None) -> Study:
    """
    A study of a DICOMweb server by its address, read from a temporary folder that is there as long as one of its scans is.

    Raises:
        ImportError, ValueError, OSError: as `split_study_url`, `fetch_study` and the DICOM reader.
    """
    from .readers import dicom

    service, uid = split_study_url(url)
    place = TemporaryPlace()
    fetch_study(service, uid, place.path, auth)
    study = dicom.read(place.path)
    study.id = uid
    for scan in study.scans.values():
        scan.place = place
    return study


def send(url: str, files: Iterable[str | os.PathLike[str]], auth: str | None = None) -> int:
    """
    Stores DICOM files on a server, one after the other.

    Args:
        url: of the service, http or https.
        auth: as for `fetch_study`.

    Returns:
        how many there were.

    Raises:
        ImportError: dicomweb-client is not installed.
        ValueError: the address is none, or a file is not DICOM.
        OSError: the server does not answer, or refuses a file; those before are stored.
    """
    require_client()
    import pydicom

    stored = 0
    for file in files:
        client = _connect(url, auth, _MAX_ANSWER)
        try:
            dataset = pydicom.dcmread(file)
        except pydicom.errors.InvalidDicomError:
            raise ValueError(f"{Path(file).name} is not a DICOM file.") from None
        with _in_words(url):
            answer = client.store_instances([dataset])
        refused = answer.get("FailedSOPSequence") or []
        if refused:
            code = int(refused[0].get("FailureReason") or 0)
            raise OSError(
                f"the DICOMweb server at {_shown(url)} refused {Path(file).name} (failure reason {code:#06x}); {stored} files "
                "before it are stored."
            )
        stored += 1
    return stored


class TemporaryPlace:
    """A temporary folder, `path`, that is removed with the last reference to it; copies in other processes only name it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="itemized-clip-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, True)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path, (str(self.path),)


class _Budget:
    """Bounds what the answers of a server hold, all together, before it is in memory."""

    def __init__(self, most: int):
        self.most = self.left = most

    def __call__(self, response: Any, *args: Any, **settings: Any) -> Any:
        read = response.iter_content

        def bounded(*arguments: Any, **options: Any) -> Iterator[bytes]:
            for block in read(*arguments, **options):
                self.left -= len(block)
                if self.left < 0:
                    raise ValueError(f"the server sends more than {self.most:,} bytes, the most that are fetched.")
                yield block

        response.iter_content = bounded
        return response


def _connect(url: str, auth: str | None, most: int) -> Any:
    """A client whose answers together hold no more than `most` bytes."""
    require_client()
    import requests
    from dicomweb_client.api import DICOMwebClient

    check_service(url)
    session = requests.Session()
    auth = os.environ.get(AUTH, "") if auth is None else auth
    if auth and not auth.lower().startswith("bearer "):
        if ":" not in auth:
            raise ValueError(
                f"the credentials for the DICOMweb server ({AUTH}) are neither USER:PASSWORD nor Bearer TOKEN."
            )
        auth = f"Basic {base64.b64encode(auth.encode()).decode()}"
    if auth:
        session.headers["Authorization"] = auth
    client = DICOMwebClient(
        url.rstrip("/"), session=session, callback=_Budget(most), permissive_uid=True, timeout=(10, 120)
    )
    client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=250)
    return client


def _list_series(client: Any, study_uid: str) -> dict[str, str]:
    """SeriesInstanceUID -> modality, page by page: servers may give a few at a time."""
    found: dict[str, str] = {}
    while True:
        page = client.search_for_series(study_uid, offset=len(found) or None)
        known = len(found)
        for one in page:
            uid = str(_value(one, "0020000E"))
            _check_uid(uid)
            found[uid] = str(_value(one, "00080060"))
        if len(found) == known:
            return found


def _value(one: dict[str, Any], tag: str) -> Any:
    return next(iter(one.get(tag, {}).get("Value") or []), "")


def _images(client: Any, study_uid: str, series: list[str]) -> Iterator[Any]:
    from .readers.dicom.study import quiet

    for uid in series:
        with quiet():
            yield from client.iter_series(study_uid, uid, media_types=(("application/dicom", "*"),))


def _say_nothing(series: dict[str, str]) -> str:
    if not series:
        return "the DICOMweb server has no such study, or shows none of it to this user."
    kinds = ", ".join(sorted({kind if re.fullmatch("[A-Z]{2,16}", kind) else "unknown" for kind in series.values()}))
    return f"the study has no CT or MR images on the DICOMweb server: its {len(series)} series are of modality {kinds}."


@contextlib.contextmanager
def _in_words(url: str) -> Iterator[None]:
    """What goes wrong between here and a server, in words."""
    import pydicom
    import requests

    where = f"the DICOMweb server at {_shown(url)}"
    try:
        yield
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        advice = {401: f": set {AUTH}", 403: f": set {AUTH}", 404: ": there is no such study, or no DICOMweb service"}
        raise OSError(f"{where} answers with status {status}{advice.get(status, '')}.") from None
    except requests.Timeout:
        raise OSError(f"{where} does not answer in time.") from None
    except requests.RequestException as error:
        raise OSError(f"{where} cannot be reached, or its answer is not DICOMweb ({type(error).__name__}).") from None
    except (pydicom.errors.InvalidDicomError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise OSError(f"the answer of {where} is damaged, or not DICOMweb ({type(error).__name__}).") from None


def require_client() -> None:
    """
    Raises:
        ImportError: dicomweb-client or pydicom is not installed; with the name of the extra.
    """
    try:
        import dicomweb_client  # noqa: F401  only whether they are there
        import pydicom  # noqa: F401
    except ImportError:
        raise ImportError("DICOMweb needs dicomweb-client: pip install 'itemized-clip-hf[dicomweb]'.") from None


def check_service(url: str) -> None:
    """
    Raises:
        ValueError: it is not the address of a service, or holds a password.
    """
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port or True)
    except ValueError:
        named = False
    if not is_study_url(url) or not named:
        raise ValueError(f"{_shown(url)} is not the address of a DICOMweb server: expected http(s)://HOST/...")
    if parts.username or parts.password:
        raise ValueError(
            f"the address of the DICOMweb server holds a user or password, which others could see: set {AUTH} instead."
        )
    if parts.query or parts.fragment:
        raise ValueError(f"the address {_shown(url)} goes on behind its path: expected http(s)://HOST/...")


def _check_uid(uid: str) -> None:
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise ValueError(
            "what names the study (or a series) is not a UID: expected up to 64 digits and dots, such as 1.2.840.1."
        )


def _shown(url: str) -> str:
    """An address without user and password, query, and what stands behind the study."""
    service = url.partition("/studies")[0]
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", service)[0])
