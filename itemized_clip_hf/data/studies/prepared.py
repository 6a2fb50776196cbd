"""What a folder of `prepare` was prepared for. Nothing heavy is imported here."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREPARED_FIELDS = (
    "domain",
    "fit",
    "in_plane_size",
    "spacing",
    "orientation",
    "thickest_axis_first",
    "windows",
    "percentiles",
)
"""Settings of the image processor that prepared scans depend on, besides the depth of "slices"."""


def prepared_fields(settings: Mapping[str, Any]) -> dict:
    """Those of the settings that prepared scans depend on, as JSON keeps them; what is not stated is left out."""
    found = {name: settings[name] for name in PREPARED_FIELDS if name in settings}
    if "fit" in settings and "scan_size" in settings:
        found["depth"] = settings["scan_size"][0] if settings["fit"] == "slices" else None
    return json.loads(json.dumps(found))


def require_prepared_for(folder: str | os.PathLike, wanted: Mapping[str, Any]) -> None:
    """
    Args:
        folder: of a data set; one that was not prepared passes.
        wanted: `prepared_fields` of an image processor, or a part of them.

    Raises:
        ValueError: the folder was prepared for other settings, which are named.
    """
    path = Path(folder) / "prepare.json"
    if not path.exists() or wanted.get("fit") == "picture":
        return
    made_for = json.loads(path.read_text())["image"]
    differing = {name: (made_for.get(name), wanted[name]) for name in wanted if made_for.get(name) != wanted[name]}
    if differing:
        listed = "; ".join(f"{name} {old} instead of {new}" for name, (old, new) in differing.items())
        raise ValueError(
            f"{folder} was prepared for other settings ({listed}): prepare it again with this recipe or model."
        )
