"""The options that a run was begun with, kept in its folder. Nothing heavy is imported here: the shell looks first."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

FILE = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """
    Names and settings of a run, no data and no paths of data.

    >>> begun = RunRecord("brain-mri", "tiny", {"max_steps": 20, "seed": 1})
    >>> RunRecord("brain-mri", None, {"max_steps": 40}).continued(begun)
    RunRecord(recipe='brain-mri', variant='tiny', settings={'max_steps': 40, 'seed': 1}, options={})

    Args:
        recipe, variant: names, or a path.
        settings: of `--set`.
        options: others of the command, by their names.
    """

    recipe: str
    variant: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "RunRecord | None":
        """That of a run's folder; None where there is none, as in folders of older versions."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(
                f"{path} is not the record of a run: remove it, and repeat all options of the run with --resume."
            ) from None

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Into the folder of the run, which exists."""
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def continued(self, begun: "RunRecord | None") -> "RunRecord":
        """
        What a run that goes on does: the options it was begun with, and those stated now in their place.

        Raises:
            ValueError: it was begun with another variant.
        """
        if begun is None:
            return self
        if self.variant not in (None, begun.variant):
            was = f"the variant {begun.variant!r}" if begun.variant else "no variant"
            raise ValueError(
                f"the run was begun with {was}, not {self.variant!r}: leave --variant out to go on with it, or choose another "
                "output folder."
            )
        stated = {name: value for name, value in self.options.items() if value not in (None, [], ())}
        return replace(
            self,
            variant=begun.variant,
            settings={**begun.settings, **self.settings},
            options={**begun.options, **stated},
        )

    def differences(self, begun: "RunRecord | None") -> list[str]:
        """Settings and options that are other than at the beginning, one line each."""
        if begun is None:
            return []
        before = {"recipe": begun.recipe, **begun.options, **begun.settings}
        now = {"recipe": self.recipe, **self.options, **self.settings}
        return [f"{name}: {now[name]} instead of {before.get(name)}" for name in now if now[name] != before.get(name)]
