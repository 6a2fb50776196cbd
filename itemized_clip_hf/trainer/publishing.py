"""Cards and uploads of a training run."""

from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..hub.push import push_folder
from .base import TrainerBase
from .card_callback import CardCallback
from .objectives import objective_name

logger = logging.get_logger(__name__)


class PublishingTrainer(TrainerBase):
    """Uploads go through the package's own checks."""

    def _add_card(self) -> None:
        """The callback that knows what a card says of this run; models without a domain have no card."""
        config = self.model.config
        if not config.domain:
            return
        settings = {name: value for name, value in vars(self.objective).items() if isinstance(value, (int, float, str))}
        source = str(config.name_or_path or "")
        name_on_hub = source if source.count("/") == 1 and not Path(source).exists() else None
        studies = len(cast(Sized, self.train_dataset)) if self.train_dataset is not None else None
        self.card = CardCallback(config.domain, (objective_name(self.objective), settings), name_on_hub, studies)
        self.add_callback(self.card)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Of the output folder, where a model has been saved there; saving writes it too."""
        if self.card is not None and self.is_world_process_zero():
            self.card.write(cast(str, self.args.output_dir), self.args, self.state, self.model)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves and uploads what `hub.push.push_folder` publishes, after its checks; waits for the upload."""
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._push(
            cast(str, self.args.output_dir), commit_message or "End of training", token, revision, private
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._push(checkpoint_folder, message, None, None, None, test=False)  # the model of the end is tested
        except Exception as error:  # a hub that cannot be reached now is no reason to lose the run
            logger.warning(f"the checkpoint of step {self.state.global_step} was not uploaded: {error}")

    def _push(
        self,
        folder: str,
        message: str,
        token: str | None,
        revision: str | None,
        private: bool | None,
        test: bool = True,
    ) -> dict[str, Any]:
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return push_folder(
            folder,
            cast(str, self.hub_model_id),
            bool(self.args.hub_private_repo if private is None else private),
            license=self.args.hub_license,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            message=message,
            test=test,
        )
