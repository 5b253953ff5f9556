"""The names of a model's files against transformers' own."""

from fnmatch import fnmatch

import pytest
from huggingface_hub.utils import filter_repo_objects
from transformers import tokenization_utils_base, utils
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)

from loradag.checkpoints.model_files import DESCRIPTION
from loradag.models.pinning import HUB_FILES

# Whose decoder or encoder is counted as a causal language model.
NO_CAUSAL_MODELS = {"marian", "prophetnet", "roc_bert", "whisper"}


@pytest.mark.parametrize(
    "name",
    [
        utils.CONFIG_NAME, utils.GENERATION_CONFIG_NAME, utils.PROCESSOR_NAME,
        utils.IMAGE_PROCESSOR_NAME, utils.CHAT_TEMPLATE_FILE,
        utils.LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
        tokenization_utils_base.ADDED_TOKENS_FILE, tokenization_utils_base.FULL_TOKENIZER_FILE,
        tokenization_utils_base.SPECIAL_TOKENS_MAP_FILE,
        tokenization_utils_base.TOKENIZER_CONFIG_FILE,
    ],
)  # fmt: skip
def test_files_that_transformers_reads_are_kept(name: str) -> None:
    assert any(fnmatch(name, pattern) for pattern in DESCRIPTION)


def test_the_vocabulary_of_every_causal_model_is_kept() -> None:
    types = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & TOKENIZER_MAPPING_NAMES.keys()
    classes = {TOKENIZER_MAPPING_NAMES[type] for type in types - NO_CAUSAL_MODELS}
    tokenizers = [tokenizer_class_from_name(name) for name in classes if name]
    names = {name for each in tokenizers if each for name in each.vocab_files_names.values()}
    assert len(names) > 5
    assert not {name for name in names if not any(fnmatch(name, p) for p in DESCRIPTION)}


def test_of_a_hub_repository_no_other_file_is_read() -> None:
    kept = [
        "LICENSE", "USE_POLICY.md", "config.json", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    others = [
        "README.md", "consolidated.safetensors", "eval_results.json", "model.bin",
        "onnx/config.json", "original/LICENSE",
    ]  # fmt: skip
    assert list(filter_repo_objects(kept + others, **HUB_FILES)) == kept
