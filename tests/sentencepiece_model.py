"""SentencePiece models trained on embedded text."""

import importlib.resources
import io

VOCABULARY = 1000


def train_pieces(special: dict[str, str], prefix: bool) -> bytes:
    """A SentencePiece BPE with byte fallback, trained on embedded text."""
    import sentencepiece

    text = (importlib.resources.files("fortune") / "datfiles" / "wisdom").read_text("utf-8")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        num_threads=1,
        minloglevel=2,
        **{f"{name}_id": -1 for name in ("pad",) if name not in special},
        **{f"{name}_id": id for id, name in enumerate(special)},
        **{f"{name}_piece": token for name, token in special.items()},
    )
    return written.getvalue()
