"""How an app is set up."""

from dataclasses import dataclass, field
from pathlib import Path

from .limits import Limits

__all__ = ["AppSettings", "Limits"]


@dataclass(frozen=True)
class AppSettings:
    """
    What an app offers and asks for.

    Args:
        title: of the page.
        folder: of studies on the server that everybody who sees the page may choose from; none without it.
        dicomweb: address of a DICOMweb service that studies can be fetched from, and results stored on; none without it.
        password: that the page asks for; nobody is asked without it.
        hosts: names that browsers may call the app by; any if None. The verb names this machine's while it listens there alone.
        limits: sizes, numbers and times.
        device, tokenizer: of models that are loaded by name, see `models.load.load`.
    """

    title: str = "ItemizedCLIP"
    folder: Path | None = None
    dicomweb: str | None = None
    password: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] | None = None
    limits: Limits = Limits()
    device: str = "auto"
    tokenizer: str | None = None

    def __post_init__(self):
        if self.folder is not None and not Path(self.folder).is_dir():
            raise FileNotFoundError(f"there is no folder of studies {self.folder}.")
        if self.dicomweb is not None:
            from ..data.dicomweb import check_service, require_client

            check_service(self.dicomweb)
            require_client()
        if self.password is not None and not self.password:
            raise ValueError("the password is empty.")
