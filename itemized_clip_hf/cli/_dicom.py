"""Options of verbs that write results as DICOM."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def dicom_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dicom` and what belongs to it; the verb gets them as `dicom`, a `DicomOutput` or None."""

    @click.option(
        "--dicom",
        "dicom_folder",
        type=click.Path(file_okay=False),
        metavar="OUT",
        help="Also write DICOM objects, of studies read from DICOM: scores as a structured report, heat maps as parametric "
        "maps, pictures as secondary captures, in the patient, study and space of the source; a folder per study.",
    )
    @click.option(
        "--threshold",
        type=float,
        metavar="T",
        help="With --dicom: segmentations of where the attention is at least T times its mean, instead of parametric maps.",
    )
    @click.option(
        "--anonymous",
        is_flag=True,
        help="With --dicom: without patient, dates and numbers, and with new UIDs, so that nothing leads back to the source.",
    )
    @click.option(
        "--dicomweb",
        "server",
        metavar="URL",
        help="Send the DICOM objects to this DICOMweb service (STOW-RS), with --dicom or without. ITEMIZED_CLIP_DICOMWEB_AUTH "
        "in the environment holds USER:PASSWORD or Bearer TOKEN for it.",
    )
    @wraps(function)
    def with_output(
        *arguments: Any,
        dicom_folder: str | None,
        threshold: float | None,
        anonymous: bool,
        server: str | None,
        **options: Any,
    ) -> Any:
        dicom = plan_output(dicom_folder, threshold, anonymous, server)
        return function(*arguments, dicom=dicom, **options)

    return with_output


def plan_output(folder: str | None, threshold: float | None, anonymous: bool, server: str | None) -> Any:
    """
    A `DicomOutput`, or None where nothing is to be written; said before a model is loaded.

    Raises:
        click.UsageError: an option is there without the one that it belongs to.
        ImportError, ValueError: what is needed is not installed, or an option's value cannot work.
    """
    if folder is None and server is None:
        if threshold is not None or anonymous:
            raise click.UsageError("--threshold and --anonymous belong to --dicom OUT or --dicomweb URL.")
        return None
    from itemized_clip_hf.data.files import require_writable
    from itemized_clip_hf.explain.dicom import DicomOutput

    if folder is not None:
        require_writable(folder)
    return DicomOutput(None if folder is None else Path(folder), threshold, anonymous, server)
