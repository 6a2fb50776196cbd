"""Cards and uploads of a training run."""

from typing import cast

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..hub.push import push_folder
from .card_callback import CardCallback
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)


class PublishingTrainer(Trainer):
    """Uploads go through the package's own checks."""

    card: CardCallback | None

    def create_model_card(self, *args, **kwargs) -> None:
        """Of the output folder, where a model has been saved there; saving writes it too."""
        if self.card is not None and self.is_world_process_zero():
            self.card.write(cast(str, self.args.output_dir), self.args, self.state, self.model)

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """Saves and uploads what `hub.push.push_folder` publishes, after its checks; waits for the upload."""
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._push(cast(str, self.args.output_dir), commit_message, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._push(checkpoint_folder, message, None, None, None, test=False)  # the model of the end is tested
        except Exception as error:  # a hub that cannot be reached now is no reason to lose the run
            logger.warning(f"the checkpoint of step {self.state.global_step} was not uploaded: {error}")

    def _push(self, folder: str, message: str, token, revision, private, test: bool = True) -> dict:
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return push_folder(
            folder,
            cast(str, self.hub_model_id),
            bool(self.args.hub_private_repo if private is None else private),
            license=cast(ItemizedCLIPTrainingArguments, self.args).hub_license,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            message=message,
            test=test,
        )
