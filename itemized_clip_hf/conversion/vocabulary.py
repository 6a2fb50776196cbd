"""Whether a tokenizer is the one that a checkpoint's word embeddings belong to: its size, its entries where they are known."""

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..domains import load_domain
from ..processing.processing_itemized_clip import list_vocabulary
from ..provenance import hash_text

logger = logging.get_logger(__name__)

OTHER_VOCABULARY = "other-vocabulary"
"""Code that accepts a vocabulary which is known to be another one."""

KNOWN = {
    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3": "BERT base uncased",
    "e30e57b6f1e47616982ef898d8922be24e535b4fa3d0110477b3a6f02ebbae7d": "CLIP",
}


def hash_vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the entries in the order of their ids, each followed by a line feed: that of a `vocab.txt`."""
    return hash_text("".join(f"{entry}\n" for entry in list_vocabulary(tokenizer)))


def required_file(domain: str) -> str:
    """What to look for, for messages."""
    vocabulary = load_domain(domain).text["vocabulary"]
    return f"{vocabulary['file']}, {vocabulary['size']:,} entries"


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, domain: str, size: int, accept: Collection[str] = ()) -> dict:
    """
    Args:
        size: rows of the checkpoint's word embeddings.
        accept: codes; `other-vocabulary` takes one that is known not to be the domain's.

    Returns:
        `size`, `sha256`, its `name` if it is known, and `confirmed`: whether it is known to be the checkpoint's.

    Raises:
        ValueError: for another size, and for a vocabulary that is known to be another one.
    """
    expected = load_domain(domain).text["vocabulary"]
    if len(tokenizer) != size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} entries, the checkpoint's word embeddings {size:,} rows: expected "
            f"{required_file(domain)}."
        )
    digest = hash_vocabulary(tokenizer)
    name, wanted = KNOWN.get(digest), expected.get("sha256")
    if (name is not None or wanted is not None) and digest != wanted:
        found = f"the vocabulary is that of {name}" if name else f"the vocabulary has the hash {digest[:16]}..."
        message = f"{found}, with the right size but other words than {required_file(domain)}"
        if OTHER_VOCABULARY not in accept:
            raise ValueError(
                f"{message}: texts would be read as other ones. --accept {OTHER_VOCABULARY} takes it all the same."
            )
        logger.warning(f"{message}: texts are read as other ones.")
    elif wanted is None:
        logger.warning(
            f"the vocabulary has the right size; whether it is that of {expected['file']} cannot be confirmed, its hash is not "
            "known here. Compare a few scores with the reference."
        )
    return {"size": size, "sha256": digest, "name": name, "confirmed": digest == wanted}
