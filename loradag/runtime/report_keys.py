"""The keys of every stage's report: the one definition of their names, types and units.

A stage returns its class from here, and `run_stage` refuses any other key before it writes
`reports/STAGE.json`. Pages, MLflow and sweeps read through the same classes, so mypy finds a key
that was renamed. A key that may be absent is `NotRequired`; readers get None for it.
"""

from typing import NotRequired

from typing_extensions import TypedDict  # pydantic needs it below Python 3.12


class StageReport(TypedDict):
    seconds: NotRequired[float | None]  # wall time; `run_stage` adds it


class FetchReport(StageReport):
    parameters: int
    bytes: int  # of the weight files
    revision: str
    architecture: str


class Origin(TypedDict):
    """The version of a source: the commit of a hub data set, or the version of a package."""

    id: NotRequired[str | None]
    commit: NotRequired[str | None]
    package: NotRequired[str | None]
    version: NotRequired[str | None]


class SourceReport(StageReport):
    origins: dict[str, Origin]  # by source


class LengthHistogram(TypedDict):
    width: int  # tokens a bin
    counts: list[int]  # rows in each bin, from 0 tokens on


class TokenLength(TypedDict):
    """Tokens a row."""

    p50: float
    p95: float
    max: int
    histogram: NotRequired[LengthHistogram | None]


class SourceRows(TypedDict):
    format: str
    rows_in: int
    rows_kept: int


class PreparedRows(StageReport):
    rows_in: int
    rows_kept: int
    dropped: dict[str, int]  # rows by reason
    first_dropped: dict[str, list[str]]  # the places of the first dropped rows, by reason
    sources: dict[str, SourceRows]
    leaked_prompts: int  # held-out rows whose prompt is trained on
    train_tokens: int
    eval_tokens: int
    trained_token_fraction: float  # of the train tokens: of the completions
    assistant_token_fraction: float  # of the train tokens: of all turns of the assistant
    train_rows: int
    eval_rows: int
    calibration_rows: int
    truncated_rows: int
    token_length: TokenLength


class PrepareReport(PreparedRows):
    template: str


class WeightErrors(TypedDict):
    rmse: float  # in the unit of the weights
    sqnr_db: NotRequired[float | None]  # absent where nothing was lost


class LayerErrors(WeightErrors):
    name: str


class WeightHistogram(TypedDict):
    """One layer's weights, and the values that the weights of its first block are rounded to."""

    layer: str
    edges: list[float]  # of the bins, one more than counts
    counts: list[int]
    levels: list[float]


class QuantizedWeights(StageReport, WeightErrors):
    parameters: int
    quantized_parameters: int
    # Stored bits incl. scales, over the quantized parameters; where there are none, over all.
    bits_per_weight: float
    information_bits_per_weight: NotRequired[float | None]  # without padding to whole bytes
    bytes: int
    bytes_full: int  # of the base at 16 bits
    layers: list[LayerErrors]
    histogram: NotRequired[WeightHistogram | None]


class QuantizeReport(QuantizedWeights):
    scheme: str
    calibration_rows: NotRequired[int | None]
    peak_rss_bytes: int


class TrainReport(StageReport):
    method: str
    trainable_parameters: int
    total_parameters: int
    steps: int  # optimizer steps
    tokens: int  # read without padding, before a resume too
    final_loss: float  # nats a token; mean over the steps that were logged last
    eval_loss: float  # of the saved weights on held-out rows; nats a token
    kept_step: int  # optimizer step of the saved weights
    stopped_early: bool
    tokens_per_second: float  # since a resume; evaluations and checkpoints included
    peak_memory_bytes: int  # of the largest process on the first machine
    resumed_from_step: int  # 0: not resumed
    dtype: str
    attention: NotRequired[str | None]  # transformers' name: sdpa, eager, flash_attention_2, …
    device: str  # torch's type: cpu, cuda, mps
    launch: str  # single, ddp, fsdp or deepspeed
    processes: int
    checkpoint_key: str


class HeldOutLoss(TypedDict):
    """A model's loss on the held-out rows."""

    perplexity: float  # exp(nll)
    nll: float  # nats a token
    bits_per_byte: NotRequired[float | None]  # of the scored tokens in UTF-8; EOS has no bytes
    tokens: int


class Sample(TypedDict):
    """Greedy text after a held-out row's prompt."""

    prompt: str
    base: str
    adapter: str


class GeneralLoss(TypedDict):
    perplexity: float
    nll: float  # nats a token
    tokens: int


class BaselineGeneral(TypedDict):
    """Each model's loss on a text outside the tuning data."""

    base: GeneralLoss
    quantized: GeneralLoss


class GeneralText(BaselineGeneral):
    adapter: GeneralLoss


Scores = dict[str, dict[str, float]]  # by task and metric of lm-evaluation-harness


class BaselineScores(TypedDict):
    base: Scores
    quantized: Scores


class TaskScores(BaselineScores):
    adapter: Scores


class BaselineReport(StageReport):
    base: HeldOutLoss
    quantized: HeldOutLoss
    general: NotRequired[BaselineGeneral | None]
    tasks: NotRequired[BaselineScores | None]
    dtype: str


class EvaluateReport(StageReport):
    base: HeldOutLoss
    quantized: HeldOutLoss
    adapter: HeldOutLoss
    samples: list[Sample]
    general: NotRequired[GeneralText | None]
    tasks: NotRequired[TaskScores | None]
    ended_fraction: NotRequired[float | None]  # fraction of the samples that end with EOS
    dtype: str


class Parity(StageReport):
    """The merged model against the trained one, or an exported model against the merged one."""

    max_abs_logit_diff: float
    mean_abs_logit_diff: NotRequired[float | None]
    mean_kl: float  # nats a token
    top_match: NotRequired[float | None]  # fraction of tokens
    perplexity_before: float
    perplexity_after: float
    greedy_match: float  # fraction
    mean_abs_nll_diff: NotRequired[float | None]  # nats a token


class MergeChecks(Parity):
    rounding_kl: NotRequired[
        float | None
    ]  # to the same base with the adapter unmerged; nats a token
    largest_layer_error: NotRequired[float | None]  # ‖y' − y‖ / ‖y‖
    dtype: str  # in which both models were compared
    passed: bool


class MergeReport(MergeChecks):
    base: str  # original or dequantized
    peak_rss_bytes: int


class ExportedFile(TypedDict):
    format: str
    path: str  # below artifacts/export
    bytes: int
    sha256: str


class ExportedFormat(TypedDict):
    """How a format computes in its runtime, compared with what it should compute."""

    runtime: str
    dtype: str  # in which the references were computed
    base: NotRequired[str | None]  # of an adapter: the scheme of its base
    perplexity: float
    expected_perplexity: float  # in transformers, with the rounding of the format
    merged_perplexity: float  # of the merged model on the same rows
    mean_kl: float  # from what it should compute; nats a token
    mean_kl_limit: float
    mean_kl_to_merged: float  # nats a token
    mean_abs_nll_diff: float  # nats a token
    mean_abs_nll_diff_limit: float
    tokens: int  # of the rows that were compared
    texts: int  # whose token ids were compared
    token_ids_match: bool
    # Set in the chat template by the runtime itself, so that dialogues are not as in training.
    template_variables: NotRequired[list[str] | None]
    greedy_match: float
    tokens_per_second: float
    # False: the runtime does not round activations as the training did.
    rounds_activations: NotRequired[bool | None]
    fallbacks: NotRequired[dict[str, str] | None]  # tensor to the type that stores it instead
    types: NotRequired[dict[str, int] | None]  # gguf: number of matrices by GGML type
    group_size: NotRequired[int | None]  # compressed w4a16: weights that share a scale
    importance_tokens: NotRequired[int | None]  # on which the importance of columns was measured
    bytes: NotRequired[int | None]  # of its weights; the stage `report` adds it


class Pushed(TypedDict):
    repository: str
    commit: str  # of the upload
    private: NotRequired[bool | None]  # a repository that existed keeps its visibility


class ExportReport(StageReport):
    files: list[ExportedFile]
    formats: dict[str, ExportedFormat]
    pushed: NotRequired[Pushed | None]  # to a model hub


class Reports(TypedDict, total=False):
    """The reports that a run has, by stage: those of stages that did not run are absent."""

    fetch: FetchReport
    source: SourceReport
    prepare: PrepareReport
    quantize: QuantizeReport
    train: TrainReport
    baseline: BaselineReport
    evaluate: EvaluateReport
    merge: MergeReport
    export: ExportReport
