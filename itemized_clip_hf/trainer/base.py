"""What the parts of the Trainer share: the types of its model and arguments, the order of the studies, what is left out."""

from typing import Any

from torch.utils.data import Sampler
from transformers import Trainer

from ..data.studies.training_ids import ids_of
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from .card_callback import CardCallback
from .objectives import Objective
from .sampler import SeededSampler
from .study_scans import StudyScans
from .training_args import ItemizedCLIPTrainingArguments


class TrainerBase(Trainer):
    """The library's Trainer, with this package's model and arguments."""

    args: ItemizedCLIPTrainingArguments
    model: ItemizedCLIPModel
    objective: Objective
    card: CardCallback | None = None
    trained_on: tuple[list[str], str]
    """Ids of the studies, and the model that training started from."""

    @property
    def studies_left_out(self) -> int:
        """Studies of training and evaluation that could not be used at all; `quarantine.csv` says why."""
        if not isinstance(self.data_collator, StudyScans):
            return 0
        eval_datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        eval_ids = [study_id for dataset in eval_datasets.values() for study_id in ids_of(dataset)]
        return self.data_collator.studies_left_out([*self.trained_on[0], *eval_ids])

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        shuffle = self.args.train_sampling_strategy == "random"
        studies: Any = train_dataset if train_dataset is not None else self.train_dataset
        return SeededSampler(len(studies), seed, shuffle)
